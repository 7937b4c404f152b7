"""Publish a model version: check what was trained, gather its blobs, build the transaction.

Why check here: what a provider would refuse must never reach the ledger, so the adapters are
read from their folders again and loaded by an engine before anything is stored or sent.
Storing and sending are callables, so that this file knows neither peers nor keys.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from consensus.primitives.digest import sha256
from node.attribution.index import Index
from node.ledger.wire.transactions import PublishVersion
from node.serving.adapters import CONFIG, WEIGHTS, base_files, base_hash, read_adapter
from node.serving.engine import AdapterInfo, AdapterRef
from node.serving.manifest import (
    DTYPES,
    VERSION,
    Manifest,
    Thresholds,
    encode_manifest,
    manifest_hash,
)
from node.training.finetune import EARLY, FINAL, MIDDLE, Adapter, TrainingError

# Kinds of blob listings, page 70 §10.
KIND_ADAPTER: Final = 1
KIND_BASE: Final = 2
KIND_INDEX: Final = 3
KIND_CONTENT: Final = 5
CONTENT_NAME: Final = "content"

Load = Callable[[AdapterRef], Awaitable[AdapterInfo]]  # an engine's load_adapter
Store = Callable[["Goods"], Awaitable[None]]
Send = Callable[[PublishVersion], Awaitable[bytes]]  # gives the transaction's id


@dataclass(frozen=True, slots=True)
class Goods:
    """One thing to store: its identity on the ledger, and its files by name (path or bytes)."""

    kind: int
    identity: bytes
    files: Mapping[str, Path | bytes]


@dataclass(frozen=True, slots=True)
class Release:
    """What is to be published; prices are in grains per million tokens and per call."""

    model: int
    base_folder: Path
    adapter: Adapter
    snapshot: int
    index_folder: Path
    index_root: bytes
    p_in: int
    p_out: int
    p_call: int = 0
    probe: bytes = b""
    dtype_class: str = "fp32"
    gradient_dtype: str = "fp32"
    max_model_len: int = 512
    thresholds: Thresholds = ()
    report: bytes = b""  # a calibration's bytes: stored, and named by the manifest
    parts: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked release: the payload, the manifest it names, and all that must be fetchable."""

    payload: PublishVersion
    manifest: Manifest
    goods: tuple[Goods, ...]


async def publish(release: Release, load: Load, store: Store, send: Send) -> bytes:
    """Check, store, send; the transaction's id. Nothing is sent if a check or a store fails."""
    prepared = prepare(release)
    for name in (EARLY, MIDDLE, FINAL):
        adapter: bytes = getattr(release.adapter, name)
        await load(AdapterRef(adapter, release.adapter.folder_of(name)))
    for goods in prepared.goods:
        await store(goods)
    return await send(prepared.payload)


def prepare(release: Release) -> Prepared:
    """Read everything again as a provider would.

    Raises BadAdapter, IndexInvalid, or TrainingError where adapter, index and base do not belong
    together.
    """
    base = base_hash(release.base_folder)
    index = Index.open(release.index_folder, release.index_root)
    header = index.header
    adapter = release.adapter
    found = (header.base, header.adapter, header.early, header.middle)
    if found != (base, adapter.final, adapter.early, adapter.middle):
        raise TrainingError("the index is of another base or of other checkpoints: build it again")
    goods = [_adapter_goods(adapter, name) for name in (EARLY, MIDDLE, FINAL)]
    file = read_adapter(adapter.folder_of(FINAL))
    manifest = Manifest(
        version=VERSION,
        base=base,
        adapter=adapter.final,
        early=adapter.early,
        middle=adapter.middle,
        rank=file.rank,
        targets=tuple(target.encode() for target in file.targets),
        snapshot=header.snapshot_root,
        index_root=release.index_root,
        probe=release.probe,
        dtype_class=DTYPES.index(release.dtype_class),
        gradient_dtype=DTYPES.index(release.gradient_dtype),
        max_model_len=release.max_model_len,
        thresholds=release.thresholds,
        report=sha256(release.report) if release.report else b"",
    )
    raw = encode_manifest(manifest)
    goods += [
        base_goods(release.base_folder),
        Goods(KIND_INDEX, release.index_root, index.contents),
        Goods(KIND_CONTENT, manifest_hash(raw), {CONTENT_NAME: raw}),
    ]
    if release.report:
        goods.append(Goods(KIND_CONTENT, manifest.report, {CONTENT_NAME: release.report}))
    payload = PublishVersion(
        model=release.model,
        adapter=adapter.final,
        snapshot=release.snapshot,
        index_root=release.index_root,
        manifest=manifest_hash(raw),
        probe=release.probe,
        p_in=release.p_in,
        p_out=release.p_out,
        p_call=release.p_call,
        parts=release.parts,
    )
    return Prepared(payload, manifest, tuple(goods))


def base_goods(folder: Path) -> Goods:
    """The base's files under its hash."""
    return Goods(KIND_BASE, base_hash(folder), {name: folder / name for name in base_files(folder)})


def _adapter_goods(adapter: Adapter, name: str) -> Goods:
    folder = Path(adapter.folder_of(name))
    identity: bytes = getattr(adapter, name)
    if read_adapter(folder).hash != identity:
        raise TrainingError(f"{folder} has changed since the training: train again")
    return Goods(KIND_ADAPTER, identity, {file: folder / file for file in (CONFIG, WEIGHTS)})
