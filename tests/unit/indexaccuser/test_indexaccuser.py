"""An inflated row of an index is brought to the ledger once, by whoever is first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attribution_kit import sound_rows, write_index
from chain_kit import PROVIDER, STEWARD, TinyChain
from exchange_kit import at_once

from consensus.primitives.errors import Invalid
from node.attribution.index import find_inflated
from node.indexaccuser import AGAIN_S, FOUND_MAX, STAGGER_S, IndexAccuser
from node.ledger.rules.models import is_suspended
from node.ledger.wire.codes import code_name
from node.ledger.wire.openings import NORM, VersionSubject, encode_opening
from node.ledger.wire.transactions import FraudProof, decode_fraud


class Scene:
    """A chain whose model 1 has an index with an inflated row, and a node that has found it."""

    def __init__(self, folder: Path) -> None:
        rows = sound_rows(20)
        rows[3] = 127
        index, root = write_index(folder / "index", rows, [1] * 20)
        self.chain = TinyChain()
        self.chain.tell_story(index_root=root)
        found = find_inflated(index, root)
        assert found is not None
        self.opened, self.folder = found, folder / "evidence"
        self.sent: list[FraudProof] = []
        self.refusal: Invalid | None = None
        self.accuser = IndexAccuser(
            folder=self.folder, get_state=self.chain.state, account=PROVIDER.key, send=self.send,
            now_ms=lambda: self.chain.time_ms, run_blocking=at_once,
        )  # fmt: skip

    async def send(self, payload: FraudProof) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(payload)
        if self.refusal is not None:
            raise self.refusal
        (code,) = self.chain.block(self.chain.tx(STEWARD, payload)).codes
        if code:
            raise Invalid(code_name(code))

    def is_suspended(self) -> bool:
        return is_suspended(self.chain.state(), (1, 1))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Scene]:
    scene = Scene(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.accuser.run)
        yield scene
        nursery.cancel_scope.cancel()


async def test_index_with_an_inflated_row_pays_nobody_any_more(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        for _ in range(2):
            scene.accuser.note((1, 1), scene.opened)
        await trio.sleep(STAGGER_S)
        assert scene.is_suspended()
        scene.accuser.note((1, 1), scene.opened)
        await trio.sleep(2 * AGAIN_S)
        assert len(scene.sent) == 1
        (kept,) = scene.folder.iterdir()
        assert decode_fraud(kept.read_bytes()) == scene.sent[0]


async def test_whom_another_was_quicker_than_pays_no_fee(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.accuser.note((1, 1), scene.opened)
        subject = encode_opening(VersionSubject(1, 1))
        await scene.send(FraudProof(NORM, subject, encode_opening(scene.opened)))
        await trio.sleep(2 * AGAIN_S)
        assert (scene.accuser.counters, len(scene.sent)) == ({}, 1)


async def test_what_the_ledger_refuses_is_told_once_and_tried_again_later(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.refusal = Invalid("tx.insufficient")
        scene.accuser.note((1, 1), scene.opened)
        await trio.sleep(AGAIN_S)
        assert (scene.accuser.counters["failed"], scene.is_suspended()) == (1, False)
        scene.refusal = None
        await trio.sleep(AGAIN_S)
        assert scene.is_suspended()


@pytest.mark.parametrize("which", [(1, 2), (2, 1)])
async def test_version_that_the_ledger_does_not_have_is_not_accused(
    tmp_path: Path, autojump_clock: Any, which: tuple[int, int]
) -> None:
    async with running(tmp_path) as scene:
        scene.accuser.note(which, scene.opened)
        await trio.sleep(AGAIN_S)
        assert scene.sent == []


async def test_no_more_are_kept_than_may_be(tmp_path: Path, monkeypatch: Any) -> None:
    scene = Scene(tmp_path)
    monkeypatch.setattr(scene.accuser, "_is_due", lambda which: True)
    for version in range(FOUND_MAX + 1):
        scene.accuser.note((1, version), scene.opened)
    assert len(scene.accuser._found) == FOUND_MAX


async def test_full_disk_keeps_no_file_and_accuses_all_the_same(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.folder.write_bytes(b"in the way")
        scene.accuser.note((1, 1), scene.opened)
        await trio.sleep(STAGGER_S)
        assert (scene.accuser.counters["unkept"], scene.is_suspended()) == (1, True)
