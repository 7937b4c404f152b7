"""A lying provider on a small network: refused by who holds the index, slashed where it settled."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from chain_kit import PAYER, PROVIDER, STEWARD, VALIDATORS
from exchange_kit import at_once
from fraud_kit import FEE, LIES, UNBOUND, Court, raise_score
from network_kit import not_here
from stored_kit import Stored

from consensus.primitives.errors import Invalid
from node.attribution.attribute import Version
from node.attribution.audit import Claim
from node.attribution.index import Index
from node.ledger import tables
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.bundles import Bundle, decode_body
from node.ledger.wire.codes import EFFECT_CODES, code_name
from node.ledger.wire.openings import decode_subject
from node.ledger.wire.receipts import Receipt, receipt_id
from node.ledger.wire.transactions import FraudProof, decode_fraud
from node.peering.auditing import IndexAuditor, RowOpener
from node.peering.audits import Audits, StatedClaim
from node.peering.relay import Found, Relay
from node.refuter import (
    ANSWER_S,
    CHARGED_AGAIN_S,
    FINAL,
    LOOK_EVERY_S,
    STAGGER_S,
    TRIES,
    Refuter,
    answers_of,
)
from node.storage.segments import ENDED_FOLDER
from node.storage.store import MemoryKV
from p2p.memory import MemoryHub
from p2p.network import PeerId

ME = VALIDATORS[1].key
LADDER_BPS = 100


class Bodies(dict[bytes, Bundle]):
    def append(self, bundle: Bundle) -> None:
        self.setdefault(bundle.hash, bundle)

    confirm = append

    def take_refuted(self, bundle_hash: bytes) -> bool:
        return False


class Scene:
    """The provider's node, and a validator's; blocks are made by others."""

    def __init__(self, folder: Path) -> None:
        self.court = Court(folder / "index", Stored(folder / "chain", MemoryKV()))
        self.folder = folder / "evidence"
        self.held: dict[tuple[int, int], tuple[Index, Version]] = {}
        self.is_member = True
        self.answers = True
        self.shown_to = frozenset({PeerId(ME)})
        self.sent: list[FraudProof] = []
        self.refusal: Invalid | None = None
        self.stated: dict[bytes, StatedClaim] = {}
        hub = MemoryHub(seed=1)
        self.provider, self.validator = hub.network(PROVIDER.key), hub.network(ME)
        self.relay_of_provider = self.make_relay(self.provider, Bodies())
        self.relay = self.make_relay(self.validator, Bodies())
        self.refuter = self.make_refuter()

    def hold(self) -> None:
        """The index is here from now on."""
        self.held = {(1, 1): (self.court.index, self.court.version)}

    def make_relay(self, network: Any, store: Any) -> Relay:
        chain: Any = self.court.chain
        is_mine = network is self.__dict__.get("validator")
        auditor = IndexAuditor(lambda *which: self.held.get(which) if is_mine else None)
        audits = Audits(
            network=network, get_state=chain.chain.state, find_bundle=store.get,
            find_stated=self.find_stated, may_see_sketch=self.may_see_sketch,
            open_rows=RowOpener(lambda root: None).open, run_blocking=at_once,
        )  # fmt: skip
        if is_mine:
            self.auditor, self.audits = auditor, audits
        return Relay(
            network=network, chain_id=chain.chain_id, bundles=BundlePool(), store=store,
            transactions=TransactionPool(chain.chain_id), get_state=chain.chain.state,
            auditor=auditor, audits=audits, may_be_shown=lambda: self.is_member,
            fetch_body=not_here, evidence_folder=self.folder, watch_folder=self.folder / "kept",
            get_height=lambda: chain.chain.height, find_validators=list,
            now_ms=lambda: chain.time_ms, run_blocking=at_once,
            on_audited=lambda name, which: self.refuter.note_audited(name, which),
            on_false=lambda found: self.refuter.note_false(found),
        )  # fmt: skip

    def make_refuter(self) -> Refuter:
        chain: Any = self.court.chain
        return Refuter(
            folder=self.folder, get_view=chain.chain.view, auditor=self.auditor,
            audits=self.audits, find_held=lambda: frozenset(self.held),
            may_be_shown=lambda: self.is_member, account=ME, send=self.send,
            now_ms=lambda: chain.time_ms + 10_000, run_blocking=at_once,
        )  # fmt: skip

    def find_stated(self, receipt: bytes) -> StatedClaim | None:
        return self.stated.get(receipt) if self.answers else None

    def may_see_sketch(self, peer: PeerId, receipt: Receipt) -> bool:
        return peer in self.shown_to

    async def send(self, payload: FraudProof) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.sent.append(payload)
        (code,) = self.court.accuse(payload, STEWARD).codes
        if code:
            raise Invalid(code_name(code))

    # --- what the provider does

    def make_bundle(self, *given: Claim) -> Bundle:
        """Answers, and what is stated of them to whoever asks."""
        for claim in given:
            self.court.answer(claim)
        self.court.bundles += 1
        bundle = self.court.chain.bundle(self.court.session, self.court.bundles)
        raws = [raw for part in decode_body(bundle.body) for raw in part.receipts]
        for raw, claim in zip(raws, given, strict=True):
            self.stated[receipt_id(raw)] = StatedClaim(claim.statement, claim.sketch)
        self.relay_of_provider._store.append(bundle)
        return bundle

    def settle(self, bundle: Bundle) -> None:
        self.court.chain.block(bundles=(bundle,))
        self.refuter.note_commit(None)

    def slashed_bps(self) -> int:
        key = (tables.ROLE_PROVIDER, PROVIDER.key)
        bonded = self.court.chain.state().get(tables.STAKE, *key).bonded
        return 10_000 - bonded * 10_000 // (2 * 10**9)

    def payer(self) -> int:
        return self.court.chain.state().account(PAYER.key).balance

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("fraud-*"))

    def ended(self) -> list[str]:
        return sorted(path.name for path in (self.folder / ENDED_FOLDER).glob("fraud-*"))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Scene]:
    scene = Scene(folder)
    async with trio.open_nursery() as nursery:
        for network, relay in (
            (scene.provider, scene.relay_of_provider),
            (scene.validator, scene.relay),
        ):
            await nursery.start(network.run)
            await nursery.start(relay.run)
        nursery.start_soon(scene.refuter.run)
        await trio.sleep(3)
        yield scene
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_lie_is_refused_by_who_holds_the_index_and_slashed_where_it_settles(
    lie: Any, tmp_path: Path, autojump_clock: Any
) -> None:
    """One share raised, a row left out, another paid, floors lowered, a row invented."""
    async with running(tmp_path) as scene:
        scene.hold()
        bundle = scene.make_bundle(scene.court.claim(), scene.court.claim(lie, 1))
        await scene.relay_of_provider.offer_bundle(bundle)
        await trio.sleep(5)
        assert bundle.hash not in scene.relay._bundles, "credits refused"
        assert scene.relay.counters["audit_false"] == 1
        assert scene.kept() == [f"fraud-{bundle.hash.hex()}-1"]
        assert scene.sent == [], "nothing to reverse yet"
        before = scene.payer()
        scene.settle(bundle)  # by others, who hold no index
        await trio.sleep(5)
        assert [proof.kind for proof in scene.sent] == [2]
        assert scene.slashed_bps() == LADDER_BPS
        assert scene.payer() == before + FEE
        assert (scene.kept(), len(scene.ended())) == ([], 1)


async def test_index_that_comes_later_finds_what_has_settled(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """No validator held it: the lie passed, and is reversed while its money waits."""
    async with running(tmp_path) as scene:
        bundles = [
            scene.make_bundle(scene.court.claim()),
            scene.make_bundle(scene.court.claim(raise_score, 1)),
            scene.make_bundle(UNBOUND),
        ]
        for bundle in bundles:
            scene.settle(bundle)
        await trio.sleep(LOOK_EVERY_S)
        assert scene.sent == []
        scene.hold()
        await trio.sleep(2 * LOOK_EVERY_S)
        assert [proof.kind for proof in scene.sent] == [2, 1]
        assert scene.slashed_bps() > LADDER_BPS, "two bundles, two failures"
        assert scene.refuter.counters["accused"] == 2
        assert scene.refuter.counters["rescanned"] == 3


async def test_bundle_that_was_audited_is_not_looked_at_again(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        bundle = scene.make_bundle(scene.court.claim())
        await scene.relay_of_provider.offer_bundle(bundle)
        await trio.sleep(5)
        assert bundle.hash in scene.relay._bundles
        scene.settle(bundle)
        await trio.sleep(LOOK_EVERY_S)
        assert scene.refuter.counters["rescanned"] == 0
        assert scene.refuter.counters["proved"] == 0


async def test_who_does_not_vote_is_shown_nothing_and_asks_nothing(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        scene.is_member = False
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(2 * LOOK_EVERY_S)
        assert scene.audits.counters.total() == 0
        scene.is_member = True
        await trio.sleep(2 * LOOK_EVERY_S)
        assert len(scene.sent) == 1


async def test_provider_that_does_not_answer_is_asked_a_few_times(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """Each time twice as long after the last."""
    async with running(tmp_path) as scene:
        scene.hold()
        scene.answers = False
        scene.settle(scene.make_bundle(scene.court.claim(raise_score), UNBOUND))
        await trio.sleep(3 * LOOK_EVERY_S * 2**TRIES)
        assert scene.refuter.counters["unanswered"] == TRIES + 1
        assert [proof.kind for proof in scene.sent] == [1], "what needs no word of it is shown"


async def test_provider_that_states_another_claim_is_told_of_and_not_accused(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        bundle = scene.make_bundle(scene.court.claim(raise_score))
        honest = scene.court.claim()
        for receipt in scene.stated:
            scene.stated[receipt] = StatedClaim(honest.statement, honest.sketch)
        scene.settle(bundle)
        await trio.sleep(5)
        assert scene.refuter.counters["unbound"] == 1
        assert scene.sent == []


async def test_proof_that_cannot_be_sent_is_kept_and_sent_by_the_next_life(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        scene.refusal = Invalid("tx.insufficient")
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(5)
        assert scene.refuter.counters["failed"] > 1
        (name,) = scene.kept()
        payload = decode_fraud((scene.folder / name).read_bytes())
    async with running_again(scene):
        await trio.sleep(5)
        assert scene.sent == [payload]
        assert scene.slashed_bps() == LADDER_BPS


@asynccontextmanager
async def running_again(scene: Scene) -> AsyncIterator[None]:
    """Another life of the refuter alone."""
    scene.refusal, scene.held = None, {}
    scene.refuter = scene.make_refuter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.refuter.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["refuted", "matured"])
async def test_proof_that_the_ledger_needs_no_more_is_put_away(
    end: str, tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        scene.refusal = Invalid("tx.insufficient")
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(5)
        (name,) = scene.kept()
        if end == "refuted":  # by somebody else
            scene.court.accuse(decode_fraud((scene.folder / name).read_bytes()))
        else:
            scene.court.chain.block(later_ms=200_000)
        await trio.sleep(5)
        assert (scene.kept(), scene.ended(), scene.sent) == ([], [name], [])


async def test_file_that_is_no_proof_is_told_and_left(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path)
    scene.folder.mkdir()
    (scene.folder / "fraud-1").write_bytes(b"\x90")
    (scene.folder / "fraud-2").write_bytes(b"\x93\x05\xc4\x00\xc4\x00")
    assert scene.make_refuter().counters["unreadable"] == 2
    assert scene.kept() == ["fraud-1", "fraud-2"]


async def test_stagger_differs_by_who_finds_it(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path)
    waits = set()
    for who in VALIDATORS:
        scene.refuter._account = who.key
        waits.add(scene.refuter._stagger_ms((bytes(32), 0)))
    assert len(waits) > 1
    assert max(waits) < STAGGER_S * 1_000


async def test_bundle_waits_for_its_own_index_while_others_come(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        opened = (scene.court.index, scene.court.version)
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        for which in ((8, 8), (9, 9)):
            scene.held[which] = opened
            await trio.sleep(2 * LOOK_EVERY_S)
        assert scene.sent == []
        scene.hold()
        await trio.sleep(2 * LOOK_EVERY_S)
        assert len(scene.sent) == 1


async def test_silent_provider_keeps_no_proof_waiting(tmp_path: Path, autojump_clock: Any) -> None:
    """It may settle a bundle a second, and each could cost us ANSWER_S."""
    async with running(tmp_path) as scene:
        scene.hold()
        asked = await never_answered(scene)
        for _ in range(20):
            scene.settle(scene.make_bundle(scene.court.claim()))
        lie = scene.make_bundle(UNBOUND)
        ((receipt, credits),) = answers_of(lie)[1]
        scene.refuter.note_false(Found(lie, 0, receipt, credits, StatedClaim(b"", b"")))
        scene.settle(lie)
        await trio.sleep(2 * ANSWER_S + STAGGER_S)
        assert len(scene.sent) == 1
        assert len(asked) == 1


async def never_answered(scene: Scene) -> list[bytes]:
    """The bundles that are asked for."""
    asked: list[bytes] = []

    async def claims_from(peer: PeerId, name: bytes, places: Any) -> Any:
        asked.append(name)
        await trio.sleep_forever()

    scene.audits.claims_from = claims_from  # type: ignore[method-assign]
    await trio.lowlevel.checkpoint()
    return asked


async def test_silent_provider_is_asked_for_another_bundle_first(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with running(tmp_path) as scene:
        scene.hold()
        asked = await never_answered(scene)
        bundles = [scene.make_bundle(scene.court.claim()) for _ in range(2)]
        for bundle in bundles:
            scene.settle(bundle)
        await trio.sleep(2 * LOOK_EVERY_S)
        assert asked == [bundle.hash for bundle in bundles]


async def test_proof_that_a_block_refused_is_not_paid_for_each_second(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """Say, for want of the bond: its fee is gone each time."""
    async with running(tmp_path) as scene:
        scene.hold()
        scene.refusal = Invalid("tx.insufficient", number=20)
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(CHARGED_AGAIN_S - LOOK_EVERY_S)
        assert scene.refuter.counters["failed"] == 1
        scene.refusal = None
        await trio.sleep(2 * LOOK_EVERY_S)
        assert scene.refuter.counters["accused"] == 1


@pytest.mark.parametrize("code", sorted(FINAL))
async def test_proof_that_the_ledger_will_never_take_is_put_away(
    code: str, tmp_path: Path, autojump_clock: Any
) -> None:
    """A false one burns its bond each time."""
    async with running(tmp_path) as scene:
        scene.hold()
        scene.refusal = Invalid(code, number=EFFECT_CODES[code])
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(5)
        assert (scene.kept(), len(scene.ended())) == ([], 1)
        await trio.sleep(CHARGED_AGAIN_S)
        assert scene.refuter.counters["failed"] == 1


@pytest.mark.parametrize(("audited", "proofs"), [(frozenset(), 1), (frozenset({(1, 1)}), 0)])
async def test_versions_that_nobody_here_has_recomputed_are_looked_at(
    audited: frozenset[tuple[int, int]], proofs: int, tmp_path: Path, autojump_clock: Any
) -> None:
    """A bundle with answers of two versions, of which one index was here before it settled."""
    async with running(tmp_path) as scene:
        scene.hold()
        bundle = scene.make_bundle(scene.court.claim(raise_score))
        scene.refuter.note_audited(bundle.hash, audited)
        scene.settle(bundle)
        await trio.sleep(2 * LOOK_EVERY_S)
        assert len(scene.sent) == proofs


async def test_lies_that_are_more_than_fit_are_proved_later(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.refuter.PROOFS_MAX", 1)
    async with running(tmp_path) as scene:
        scene.hold()
        scene.settle(scene.make_bundle(*[scene.court.claim(raise_score, n) for n in range(3)]))
        await trio.sleep(4 * LOOK_EVERY_S)
        assert scene.refuter.counters["accused"] == 3


async def test_proof_that_was_half_written_is_no_proof(tmp_path: Path, autojump_clock: Any) -> None:
    """By a life that was killed: it is found again, and written anew."""
    scene = Scene(tmp_path)
    scene.folder.mkdir()
    (scene.folder / "fraud-00-1.new").write_bytes(b"\x93")
    assert scene.make_refuter().counters["unreadable"] == 0


async def test_provider_that_hides_its_sketches_is_asked_again(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """It may not know yet that we vote; a node that starts looks at a whole window at once."""
    async with running(tmp_path) as scene:
        scene.hold()
        shown, scene.shown_to = scene.shown_to, frozenset[PeerId]()
        scene.settle(scene.make_bundle(scene.court.claim(raise_score)))
        await trio.sleep(LOOK_EVERY_S)
        assert (scene.sent, scene.refuter.counters["unanswered"]) == ([], 1)
        scene.shown_to = shown
        await trio.sleep(3 * LOOK_EVERY_S)
        assert len(scene.sent) == 1


async def test_large_bundle_is_looked_at_at_the_rate_that_its_provider_allows(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a lie in one would be safe: its provider seems silent however often it is asked."""
    monkeypatch.setattr("node.peering.audits.CLAIMS_MAX", 1)
    monkeypatch.setattr("node.refuter.CLAIMS_MAX", 1)
    async with running(tmp_path) as scene:
        scene.hold()
        true = [scene.court.claim() for _ in range(59)]
        scene.settle(scene.make_bundle(*true, scene.court.claim(raise_score, 1)))
        await trio.sleep(2 * LOOK_EVERY_S)
        assert scene.audits.counters["audit_waited"] > 0
        assert len(scene.sent) == 1


async def test_lies_anywhere_in_a_large_bundle_are_proved_at_their_places(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rechecked four at a time; one of the lies states no sketch."""
    monkeypatch.setattr("node.refuter.RECHECKED_MAX", 4)
    async with running(tmp_path) as scene:
        scene.hold()
        claims = [scene.court.claim(number=number) for number in range(11)]
        for place in (0, 3, 4):
            claims[place] = scene.court.claim(raise_score, place)
        claims[10] = UNBOUND
        scene.settle(scene.make_bundle(*claims))
        await trio.sleep(4 * LOOK_EVERY_S)
        subjects = [decode_subject(proof.kind, proof.subject) for proof in scene.sent]
        assert sorted(subject.place for subject in subjects) == [0, 3, 4, 10]


async def test_newest_bundles_wait_for_an_index_where_not_all_can(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The money of the oldest has long been paid by the time that an index comes."""
    monkeypatch.setattr("node.refuter.UNSEEN_MAX", 2)
    async with running(tmp_path) as scene:
        scene.held[8, 8] = (scene.court.index, scene.court.version)
        for _ in range(2):
            scene.settle(scene.make_bundle(scene.court.claim()))
        scene.settle(scene.make_bundle(scene.court.claim(raise_score, 1)))
        await trio.sleep(LOOK_EVERY_S)
        assert scene.refuter.counters["unseen_dropped"] == 1
        scene.hold()
        await trio.sleep(2 * LOOK_EVERY_S)
        assert len(scene.sent) == 1


async def test_lies_that_never_settle_keep_no_other_from_being_proved(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost their provider nothing, and each would have its place for a day."""
    monkeypatch.setattr("node.refuter.PROOFS_MAX", 3)
    monkeypatch.setattr("node.refuter.EARLY_MAX", 2)
    async with running(tmp_path) as scene:
        scene.hold()
        settles = scene.make_bundle(scene.court.claim(raise_score))
        early = [scene.make_bundle(UNBOUND) for _ in range(4)]
        for lie in early:
            ((receipt, credits),) = answers_of(lie)[1]
            scene.refuter.note_false(Found(lie, 0, receipt, credits, StatedClaim(b"", b"")))
            await trio.sleep(1)
        assert scene.kept() == sorted(f"fraud-{lie.hash.hex()}-0" for lie in early[2:])
        assert scene.ended() == []
        scene.settle(settles)
        await trio.sleep(LOOK_EVERY_S)
        assert [proof.kind for proof in scene.sent] == [2]
        for lie in early:
            scene.settle(lie)
        await trio.sleep(2 * LOOK_EVERY_S)
        assert len(scene.sent) == 5, "what was forgotten is found again once it settles"
