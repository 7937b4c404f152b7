"""A version that is published is fetched, checked, loaded and sold by a provider that runs.

Three nodes on one simulated network and one ledger (land_kit.py): the creator's, which has the
goods, the provider's and the payer's.
"""

import re
import socket
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from land_kit import P_CALL, WAIT_S, Land, land_of, priced, until
from ledger_kit import BALANCE, OPEN, PAYER
from release_kit import make_release
from unit.web.behind import STATUS

from node.ledger.amounts import part_bps
from node.ledger.wire.receipts import receipt_id
from node.metrics import Metrics
from node.serving.adapters import WEIGHTS
from node.serving.basefacts import read_facts
from node.serving.engine import AUTO
from node.serving.judging import Finding, Vocabulary, check_answer
from node.training.publish import Release
from node.web.metrics import run_metrics

pytestmark = pytest.mark.ml


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    pytest.importorskip("torch").set_num_threads(1)
    return priced(make_release(tmp_path_factory.mktemp("release")))


async def test_new_version_is_sold_by_a_provider_that_was_not_started_again(
    tmp_path: Path, release: Release
) -> None:
    async with land_of(tmp_path, release, disk_folder=str(tmp_path / "packed")) as land:
        await land.publish_base(release)
        await land.wait_offered(1)
        first = await land.ask("facts")
        await land.publish(release)
        await land.wait_offered(2)
        answers = [await land.ask("facts") for _ in range(2)]
        assert (first.receipt.model_version, first.receipt.fee > P_CALL) == (1, True)
        assert {answer.receipt.model_version for answer in answers} == {2}
        fees = sum(answer.receipt.fee for answer in answers)
        (engine,) = land.engines
        assert engine.stats().restarts == 0

        rows = await land.models()
        assert {label: row.requests for label, row in rows.items()} == {"facts@1": 1, "facts@2": 2}
        row = rows["facts@2"]
        assert (row.tier, row.ready, row.fees) == ("slot", True, fees)
        ours_bps = land.ledger.state.parameter_values("split_bps")[0]
        assert row.earned == part_bps(fees, ours_bps) < fees
        assert row.adapter == release.adapter.final
        assert land.ledger.state.account(PAYER.key).balance <= BALANCE - 10 * OPEN

        # The engine tells its counters twice a second.
        await until(lambda: engine.stats().finished == 3 and engine.stats().gradients_done == 2)
        seen = await scrape(land)
        assert seen["olnode_inference_engine_up"] == 1
        assert sum(v for k, v in seen.items() if "request_success_total" in k) == 3
        assert seen["olnode_inference_time_to_first_token_seconds_count"] == 3
        assert seen["olnode_inference_receipt_delay_seconds_count"] == 3
        assert seen["olnode_inference_gradient_seconds_count"] == 2, "a sketch for each"
        assert seen["olnode_adapter_registered"] == 3
        assert seen['olnode_adapter_load_seconds_count{tier="folder"}'] == 3
        assert seen["olnode_adapter_ram_bytes"] == 3 * packed_bytes(release)


async def test_adapter_that_rots_on_the_provider_comes_from_the_creator_again(
    tmp_path: Path, release: Release
) -> None:
    """There is memory for two adapters: each sketch, of two checkpoints, evicts the served one."""
    async with land_of(tmp_path, release, ram_bytes=2 * packed_bytes(release)) as land:
        await land.publish(release)
        await land.wait_offered(1)
        expected = await land.ask("facts")
        weights = land.provider.home / "adapters" / release.adapter.final.hex() / WEIGHTS
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
        again = await land.ask("facts")
        assert again.ids == expected.ids
        (engine,) = land.engines
        await until(lambda: sum(engine.stats().tiers.load_times["peers"].counts) == 1)
        assert engine.stats().tiers.evictions["ram"] >= 2
        assert land.provider.holdings.counters["rotted"] == 1


def packed_bytes(release: Release) -> int:
    from node.serving.lora import LoraStack
    from node.serving.model import load_base

    stack = LoraStack(load_base(release.base_folder), 1)
    return 4 * stack.layouts[8].elements


async def scrape(land: Land) -> dict[str, float]:
    """What Prometheus would read of the provider, over a socket; no label tells of whom."""
    pool = SimpleNamespace(statistics=lambda: SimpleNamespace(bytes=0))
    telling: Any = SimpleNamespace(
        status=lambda: STATUS, network=land.provider.network, transactions=pool, bundles=pool,
        replica=SimpleNamespace(statistics=lambda: SimpleNamespace(round=0)),
        disk=SimpleNamespace(free_bytes=1), shop=land.shop,
    )  # fmt: skip
    text = Metrics(telling, {"blobs": land.provider.blobs.statistics}).text
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    found = ""
    async with trio.open_nursery() as nursery:
        run = partial(run_metrics, text, "127.0.0.1", port, wait_for_stop=trio.sleep_forever)
        nursery.start_soon(run)
        with trio.fail_after(WAIT_S):
            while not found:
                try:
                    found = await trio.to_thread.run_sync(read, port)
                except OSError:
                    await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    own = [line for line in found.splitlines() if re.match("olnode_(inference|adapter)_", line)]
    assert not re.search(r'="[^"]{17,}"', "\n".join(own)), "labels are words"
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in own}


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


async def test_version_that_pins_bf16_is_served_told_and_judged_in_it(
    tmp_path: Path, release: Release
) -> None:
    """`dtype = "auto"`: the engine computes in what the only version held pins. An answer of it is
    no FAIL by the bf16 table, and not even looked at as one of fp32."""
    async with land_of(tmp_path, release, dtype_class=AUTO, device=AUTO) as land:
        await land.publish(replace(release, dtype_class="bf16"))
        await land.wait_offered(1)
        answer = await land.ask("facts")
        (engine,) = land.engines
        assert engine.info.dtype_class == "bf16"
        held = land.provider.holdings.find(1, 1)
        receipt = answer.receipt
        served = land.shop.book.find(receipt.channel, receipt.lane, receipt.seq, receipt.order_hash)
        assert held is not None
        assert served is not None
        facts = read_facts(release.base_folder)
        words = Vocabulary(facts.pieces, facts.ends)
        judge = partial(check_answer, receipt, served.evidence)
        found = await judge(held.manifest, words, engine.score)
        assert found.finding is not Finding.FAIL
        assert found.measures is not None
        as_fp32 = await judge(held.manifest._replace(dtype_class=0), words, engine.score)
        assert as_fp32.why == ("answer.weights",)
        await until(lambda: engine.stats().gradients_done == 1)


async def test_payer_that_is_started_again_knows_what_its_answers_are_checked_with(
    tmp_path: Path, release: Release
) -> None:
    async with land_of(tmp_path, release) as land:
        await land.publish_base(release)
        await land.wait_offered(1)
        await land.publish(release)
        await land.wait_offered(2)
        bought = [receipt_id((await land.ask("facts")).receipt_raw) for _ in range(2)]
        land.restart_purse()
        assert land.purse.find_bought() == bought
        for receipt in bought:
            served = land.shop.book.find_receipt(receipt)
            assert served is not None
            assert served.sketch, "the base alone would have none"
            assert land.purse.find_claim(receipt) == (served.sketch, served.statement)
