"""What the settings ask of engine and wallet, in the words of those parts.

Why apart: neither knows the config, and the composition root knows no setting's meaning.
"""

from functools import partial

from node.config import Engine, Payer, grains_of
from node.precheck import engine_token
from node.serving.devices import CLASSES
from node.serving.engine import AUTO, EngineSettings
from node.serving.fleet import make_workers
from node.serving.remote import make_remote
from node.shop import MakeEngine
from node.wallet.payer import Limits


def engine_settings(engine: Engine, *, packed_folder: str, free_bytes: int) -> EngineSettings:
    """What the operator wants of the engine; its base is on the ledger.

    `packed_folder`: where its disk tier lies, which leaves `free_bytes` of the disk.
    """
    return EngineSettings(
        base_folder="",
        threads=engine.threads,
        rows=engine.rows,
        device=engine.device,
        dtype_class=CLASSES.get(engine.dtype, AUTO),
        slots=engine.slots,
        slot_bytes=engine.slot_budget_mb << 20,
        ram_bytes=engine.ram_budget_mb << 20,
        disk_folder=packed_folder,
        disk_bytes=engine.disk_budget_gb << 30,
        disk_free_bytes=free_bytes,
        kv_bytes=engine.kv_budget_mb << 20,
        prefill_chunk=engine.prefill_chunk,
        queue_tokens=engine.queue_tokens,
        queue_requests=engine.queue_requests,
        aging_ms=engine.aging_ms,
        gradient_wait_ms=engine.gradient_max_wait_ms,
    )


def engine_maker(engine: Engine) -> MakeEngine:
    """What starts the engine that is asked for; raises ConfigError for its token's file."""
    if engine.kind != "remote":
        return partial(make_workers, devices=engine.devices, stall_s=float(engine.stall_s))
    return partial(
        make_remote,
        urls=engine.urls,
        flavour=engine.flavour,
        token=engine_token(engine),
        local_gradients=engine.local_gradients,
    )


def payer_limits(payer: Payer) -> Limits:
    """What the wallet may spend and lock."""
    return Limits(
        channel_cap=grains_of(payer.channel_cap_open),
        total_locked_max=grains_of(payer.total_locked_open),
        fee_max=grains_of(payer.max_fee_open),
        providers_tried=payer.providers_tried,
        lanes=payer.lanes,
    )
