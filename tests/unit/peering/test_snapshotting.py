"""Snapshots are made beside the chain at their heights, and what has rotted is not handed on."""

from pathlib import Path
from typing import Any

import pytest
import trio
from exchange_kit import at_once
from snapshot_kit import Snapped
from stored_kit import Stored

from consensus.primitives.encoding import decode, encode
from node.peering.snapshotting import CHUNK_REPLY, LIST_REPLY, REPLY_BYTES_MAX, SnapshotKeeper
from node.storage.snapshots import (
    SnapshotStore,
    decode_manifest,
    encode_manifest,
    write_chunk,
)
from node.storage.store import MemoryKV
from p2p.errors import Misbehaving, Refused
from p2p.network import PeerId

PEER = PeerId(bytes(32))


def keeper_of(made: Stored, store: SnapshotStore, every: int = 4) -> SnapshotKeeper:
    return SnapshotKeeper(store=store, get_view=made.chain.view, every=every, run_blocking=at_once)


async def test_every_fourth_block_leaves_a_snapshot_and_two_are_kept(
    tmp_path: Path, autojump_clock: Any
) -> None:
    made, store = Stored(tmp_path, MemoryKV()), SnapshotStore(tmp_path / "snapshots")
    keeper = keeper_of(made, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        for _ in range(14):
            made.block(made.pay())
            keeper.note(made.chain.tip)
            await trio.sleep(1)
        assert [manifest.height for manifest in store.manifests()] == [12, 8]
        assert keeper.height == 12
        assert keeper.counters["made"] == 3
        nursery.cancel_scope.cancel()


async def test_chain_goes_on_while_a_snapshot_is_made(tmp_path: Path, autojump_clock: Any) -> None:
    """Three blocks come before the writer's turn; the state is still that of block 4."""
    made, store = Stored(tmp_path, MemoryKV()), SnapshotStore(tmp_path / "snapshots")
    keeper = keeper_of(made, store)
    for _ in range(7):
        made.block(made.pay())
        keeper.note(made.chain.tip)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (manifest,) = store.manifests()
    assert manifest.height == 4
    assert manifest.footing.header == made.chain.header(4)


async def test_full_disk_costs_the_snapshot_and_nothing_else(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = Stored(tmp_path, MemoryKV()), SnapshotStore(tmp_path / "snapshots")
    keeper = keeper_of(made, store)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        for turn in range(8):
            made.block(made.pay())
            with monkeypatch.context() as patch:
                if turn < 4:
                    patch.setattr("node.storage.snapshots.write_chunk", full)
                keeper.note(made.chain.tip)
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert (keeper.counters["failed"], keeper.counters["made"]) == (1, 1)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["8"]


def test_making_ends_when_the_node_ends(tmp_path: Path) -> None:
    snapped = Snapped(tmp_path)
    store = SnapshotStore(tmp_path / "snapshots")
    assert store.make(snapped.made.chain.view(), lambda: True) is None
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_peers_get_manifests_and_chunks(tmp_path: Path, autojump_clock: Any) -> None:
    snapped = Snapped(tmp_path)
    keeper = keeper_of(snapped.made, snapped.store)
    raw = await keeper.answer(PEER, encode((0,)))
    told = decode(raw, LIST_REPLY, REPLY_BYTES_MAX, "test")
    assert [encode_manifest(decode_manifest(m)) for m in told] == [
        encode_manifest(snapped.manifest)
    ]
    for index in range(len(snapped.manifest.chunks)):
        raw = await keeper.answer(PEER, encode((1, snapped.height, index)))
        assert decode(raw, CHUNK_REPLY, REPLY_BYTES_MAX, "test") == (snapped.read(index),)


async def test_what_is_not_there_or_has_rotted_is_an_honest_no(
    tmp_path: Path, autojump_clock: Any
) -> None:
    snapped = Snapped(tmp_path)
    keeper, folder = keeper_of(snapped.made, snapped.store), snapped.store.folder(snapped.height)
    raw = snapped.read(1)
    assert raw is not None
    write_chunk(folder, 1, raw[:-1] + bytes([raw[-1] ^ 1]))
    (folder / "00002").unlink()
    missing = len(snapped.manifest.chunks)
    for height, index in ((snapped.height, 1), (snapped.height, 2), (snapped.height, missing)):
        with pytest.raises(Refused):
            await keeper.answer(PEER, encode((1, height, index)))
    with pytest.raises(Refused):
        await keeper.answer(PEER, encode((1, snapped.height + 1, 0)))
    assert keeper.counters["rotten"] == 1


@pytest.mark.parametrize("body", [b"", b"\x91", encode((2,)), encode((0, 0)), encode((1, 5))])
async def test_other_questions_are_misbehaviour(
    tmp_path: Path, autojump_clock: Any, body: bytes
) -> None:
    keeper = keeper_of(Stored(tmp_path, MemoryKV()), SnapshotStore(tmp_path / "snapshots"))
    with pytest.raises(Misbehaving):
        await keeper.answer(PEER, body)
