"""A settled receipt's shares, as far as a node can tell: as payer, as holder, as a stranger."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from chain_kit import PROVIDER, STEWARD
from exchange_kit import at_once
from fraud_kit import LIES, ROWS, UNBOUND, Court, leave_out, proof_of, raise_score
from stored_kit import Stored

from consensus.primitives.errors import Invalid
from node import sharecheck
from node.attribution.attribute import Version
from node.attribution.audit import Claim
from node.attribution.index import Index
from node.ledger.wire import openings
from node.ledger.wire.bundles import Bundle, decode_body
from node.ledger.wire.openings import NORM, NormOpened, Opened, RawRows
from node.ledger.wire.receipts import receipt_id
from node.lightshares import Lie
from node.peering.auditing import RowOpener
from node.peering.audits import StatedClaim
from node.sharecheck import AGAIN_S, CHECK_EVERY_S, PEERS_MAX, TRIES, ShareChecker
from node.storage.store import MemoryKV
from p2p.errors import Unreachable
from p2p.network import PeerId


class Peers:
    """Stands for `Audits`: a provider that states what it is told to, and peers that open rows."""

    def __init__(self, court: Court) -> None:
        self.opener = RowOpener({court.index.root: court.index}.get)
        self.states: StatedClaim | None = None
        self.opens = {bytes([7]) * 32}
        self.asked: list[bytes] = []

    async def claims_from(
        self, peer: PeerId, name: bytes, places: Sequence[int]
    ) -> dict[int, StatedClaim]:
        if self.states is None:
            raise Unreachable("the provider is away")
        return dict.fromkeys(places, self.states)

    async def ask_rows(self, peer: PeerId, root: bytes, rows: Sequence[int]) -> RawRows:
        self.asked.append(peer)
        found = self.opener.open(root, rows)
        if peer not in self.opens or found is None:
            raise Unreachable("no index here")
        return found


class Scene:
    """A chain with one settled answer, and a node that looks at it."""

    def __init__(self, folder: Path, claim_of: Any) -> None:
        self.court = Court(folder / "index", Stored(folder / "chain", MemoryKV()))
        self.claim: Claim = claim_of(self.court)
        self.bundle: Bundle = self.court.settle(self.claim)
        self.receipt = receipt_id(decode_body(self.bundle.body)[0].receipts[0])
        self.peers = Peers(self.court)
        self.knows: StatedClaim | None = None
        self.held: dict[tuple[int, int], tuple[Index, Version]] = {}
        self.sources = [bytes([n]) * 32 for n in (5, 7)]
        self.noted: list[tuple[bytes, int, int, Opened]] = []
        self.inflated: list[tuple[tuple[int, int], NormOpened]] = []

    @property
    def stated(self) -> StatedClaim:
        return StatedClaim(self.claim.statement, self.claim.sketch)

    async def check(self, receipt: bytes | None = None) -> Any:
        return await self.checker().check(receipt or self.receipt)

    def checker(self) -> ShareChecker:
        chain: Any = self.court.chain
        audits: Any = self.peers

        async def note(*proof: Any) -> None:
            self.noted.append(proof)

        return ShareChecker(
            chain_id=chain.chain_id, take_view=chain.chain.view,
            find_claim=lambda receipt: self.knows, audits=audits,
            find_index=lambda *which: self.held.get(which),
            find_sources=lambda: [PeerId(peer) for peer in self.sources], note_proof=note,
            note_inflated=lambda *proof: self.inflated.append(proof),
            run_blocking=at_once,
        )  # fmt: skip


def honest(court: Court) -> Claim:
    return court.claim()


async def test_payer_without_an_index_checks_by_rows_of_peers(tmp_path: Path) -> None:
    scene = Scene(tmp_path, honest)
    scene.knows = scene.stated
    told = await scene.check()
    assert (told.verdict, told.why, told.model, told.version) == ("true", "", "facts-1", 1)
    assert (told.index_rows, told.panel_rows, told.drawn_rows) == (ROWS, 3, 16)
    asked = list(dict.fromkeys(scene.peers.asked))
    assert asked == [PROVIDER.key, *scene.sources], "its provider first; it and the next have none"
    assert scene.noted == []


async def test_holder_of_the_index_recomputes_all_and_asks_nobody(tmp_path: Path) -> None:
    scene = Scene(tmp_path, honest)
    scene.peers.states = scene.stated
    scene.held = {(1, 1): (scene.court.index, scene.court.version)}
    told = await scene.check()
    assert (told.verdict, told.drawn_rows) == ("true", ROWS)
    assert scene.peers.asked == []


@pytest.mark.parametrize("name", [name for name in LIES if name != "leave_out"])
@pytest.mark.parametrize("holds", [False, True])
async def test_lie_is_found_and_its_proof_holds_in_a_block(
    tmp_path: Path, name: str, holds: bool
) -> None:
    scene = Scene(tmp_path, lambda court: court.claim(LIES[name]))
    scene.knows = scene.stated
    scene.held = {(1, 1): (scene.court.index, scene.court.version)} if holds else {}
    assert (await scene.check()).verdict == "false"
    ((bundle, place, kind, opened),) = scene.noted
    assert bundle == scene.bundle.hash
    proof = proof_of(kind, scene.bundle, place, opened)
    assert scene.court.accuse(proof, STEWARD).codes == (0,)


async def test_inflated_row_accuses_the_index_and_not_the_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = NormOpened(b"header", b"leaf", ())

    async def show(*_: Any) -> None:
        raise Lie("row.inflated", NORM, opened)

    monkeypatch.setattr(sharecheck, "check_shares", show)
    scene = Scene(tmp_path, honest)
    scene.knows = scene.stated
    told = await scene.check()
    assert (told.verdict, told.why) == ("false", "row.inflated")
    assert (scene.inflated, scene.noted) == ([((1, 1), opened)], [])


async def test_row_left_out_is_found_by_a_whole_scan(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lambda court: court.claim(leave_out))
    scene.knows = scene.stated
    scene.held = {(1, 1): (scene.court.index, scene.court.version)}
    told = await scene.check()
    assert (told.verdict, told.why) == ("false", "claim.scores")
    assert [kind for _, _, kind, _ in scene.noted] == [openings.ROW]


async def test_stranger_is_shown_no_sketch_and_says_so(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lambda court: court.claim(raise_score))
    scene.peers.states = scene.stated._replace(sketch=b"")
    told = await scene.check()
    assert (told.verdict, told.why) == ("unknown", "claim.hidden")
    assert scene.noted == []


async def test_credits_without_a_claim_need_nobody(tmp_path: Path) -> None:
    scene = Scene(tmp_path, lambda court: UNBOUND)
    scene.sources = []
    assert (await scene.check()).verdict == "false"
    assert [kind for _, _, kind, _ in scene.noted] == [openings.SHARES]
    nothing = Scene(tmp_path / "2", lambda court: UNBOUND._replace(credits=()))
    nothing.sources = []
    told = await nothing.check()
    assert (told.verdict, told.index_rows, told.credits) == ("true", 0, 0)


async def test_receipt_that_is_not_settled_is_not_known(tmp_path: Path) -> None:
    assert await Scene(tmp_path, honest).check(bytes(32)) is None


async def test_claim_that_nobody_gives_or_that_is_another_is_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path, honest)
    with pytest.raises(Invalid, match=r"shares\.no_statement"):
        await scene.check()
    scene.peers.states = scene.stated._replace(sketch=bytes(1_024))
    with pytest.raises(Invalid, match=r"shares\.no_statement"):
        await scene.check()
    scene.held = {(1, 1): (scene.court.index, scene.court.version)}
    with pytest.raises(Invalid, match=r"shares\.no_statement"):
        await scene.check()
    assert scene.noted == [], "whoever gave it may have invented it"


async def test_without_rows_nothing_is_said(tmp_path: Path) -> None:
    scene = Scene(tmp_path, honest)
    scene.knows, scene.peers.opens = scene.stated, set()
    scene.sources = [bytes([n]) * 32 for n in range(PEERS_MAX + 5)]
    with pytest.raises(Invalid, match=r"shares\.no_rows"):
        await scene.check()
    assert len(scene.peers.asked) == PEERS_MAX


@asynccontextmanager
async def checking(scene: Scene, *bought: bytes) -> AsyncIterator[ShareChecker]:
    """A node that bought these answers, while it looks at them by itself."""
    checker = scene.checker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checker.run, lambda: list(bought))
        yield checker
        nursery.cancel_scope.cancel()


async def test_payer_checks_what_it_bought_by_itself_and_once(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """A lie is accused without anybody asking; what has not settled yet is left for later."""
    scene = Scene(tmp_path, lambda court: court.claim(raise_score))
    scene.knows = scene.stated
    async with checking(scene, bytes(32), scene.receipt) as checker:
        await trio.sleep(5.5 * CHECK_EVERY_S)
        assert checker.counters == {"false": 1}
    assert len(scene.noted) == 1


async def test_answer_that_nobody_opens_rows_for_is_given_up(
    tmp_path: Path, autojump_clock: Any
) -> None:
    scene = Scene(tmp_path, honest)
    scene.knows, scene.peers.opens = scene.stated, set()
    async with checking(scene, scene.receipt) as checker:
        await trio.sleep(2 * AGAIN_S * 2**TRIES)
        assert checker.counters == {"shares.no_rows": TRIES}


async def test_lie_is_found_when_its_provider_comes_back_within_hours(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """To be away for half a minute was enough to be looked at no more."""
    scene = Scene(tmp_path, lambda court: court.claim(raise_score))
    scene.knows, opens, scene.peers.opens = scene.stated, scene.peers.opens, set()
    async with checking(scene, scene.receipt) as checker:
        await trio.sleep(3_600)
        assert scene.noted == []
        assert checker.counters["shares.no_rows"] < TRIES
        scene.peers.opens = opens
        await trio.sleep(2 * 3_600)
    assert len(scene.noted) == 1
