"""Bundles and transactions over the simulated network: told on, audited, fetched."""

import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from attribution_kit import open_index
from bundle_kit import CHAIN, LaneSession, party
from exchange_kit import at_once
from ledger_kit import (
    NOW_MS,
    OPEN,
    PAYER,
    PROVIDER,
    add_provider,
    fee_of,
    new_state,
    open_channel,
    session,
)

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.bundles import Bundle, build_bundle, decode_body
from node.ledger.wire.claims import encode_header, encode_row_leaf
from node.ledger.wire.openings import RawRows
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import Transfer, encode_body, sign_transaction
from node.peering import topics
from node.peering.audits import Audits, StatedClaim
from node.peering.blobparts import CHUNK_BYTES
from node.peering.blobs import Blobs
from node.peering.blobstore import BlobStore
from node.peering.bodies import LentBodies, fetch_body
from node.peering.relay import (
    AUDIT_S,
    EVIDENCE_MAX,
    RECHECKED_MAX,
    FalseClaim,
    Found,
    Relay,
)
from p2p.errors import Misbehaving, NetworkError, Refused
from p2p.memory import MemoryHub
from p2p.network import Verdict

KEYS = [party(f"node {i}").key for i in range(4)]


class Store(dict):
    """Bodies in memory."""

    def __init__(self) -> None:
        self.refuted: set[bytes] = set()

    def append(self, bundle: Bundle) -> None:
        self.setdefault(bundle.hash, bundle)

    def confirm(self, bundle: Bundle) -> None:
        self[bundle.hash] = bundle

    def refute(self, bundle_hash: bytes) -> None:
        del self[bundle_hash]
        self.refuted.add(bundle_hash)

    def take_refuted(self, bundle_hash: bytes) -> bool:
        was_refuted = bundle_hash in self.refuted
        self.refuted.discard(bundle_hash)
        return was_refuted


class FakeAuditor:
    """Holds one version's index if told so; calls false what has another sketch than `true`."""

    def __init__(self) -> None:
        self.is_holder = False
        self.true = b"s" * 1_024
        self.asked = 0

    def holds(self, model: int, version: int) -> bool:
        return self.is_holder

    def recheck(self, told) -> list[FalseClaim | None]:
        self.asked += len(told)
        false = FalseClaim("claim.scores", "row 3")
        return [None if stated.sketch == self.true else false for _, _, stated in told]


class Node:
    def __init__(self, hub, key, folder, state) -> None:
        self.state = state
        self.network = hub.network(key)
        self.store, self.auditor = Store(), FakeAuditor()
        self.transactions, self.bundles = TransactionPool(CHAIN), BundlePool()
        self.stated: dict[bytes, StatedClaim] = {}
        self.viewers: list[bytes] = list(KEYS)
        self.may_be_shown = True
        self.checked: list[bytes] = []
        self.audited: list[bytes] = []
        self.found: list[Found] = []
        self.indices: dict[bytes, RawRows] = {}
        self.validators: list[bytes] = []
        self.folder = folder / key.hex()[:8]
        blobs = BlobStore(folder / f"blobs {key.hex()[:8]}", 1)
        self.blobs = Blobs(
            network=self.network, store=blobs, lent=LentBodies(self.store.get), run_blocking=at_once
        )
        self.blobs.serve()
        self.relay = Relay(
            network=self.network, chain_id=CHAIN, transactions=self.transactions,
            bundles=self.bundles, store=self.store, get_state=lambda: self.state,
            auditor=self.auditor, may_be_shown=lambda: self.may_be_shown,
            audits=Audits(
                network=self.network, get_state=lambda: self.state, find_bundle=self.store.get,
                find_stated=self.stated.get, run_blocking=at_once, open_rows=self.open_rows,
                may_see_sketch=lambda peer, receipt: peer in self.viewers,
            ),
            on_audited=lambda name, _: self.audited.append(name), on_false=self.found.append,
            fetch_body=partial(fetch_body, self.blobs),
            evidence_folder=self.folder, watch_folder=self.folder / "kept", get_height=lambda: 1,
            find_validators=lambda: self.validators, now_ms=lambda: NOW_MS, run_blocking=at_once,
            on_checked=lambda bundle: self.checked.append(bundle.hash),
        )  # fmt: skip

    def open_rows(self, root: bytes, rows) -> RawRows | None:
        found = self.indices.get(root)
        return found and RawRows(found.header, tuple(found.rows[row] for row in rows))


@asynccontextmanager
async def four_nodes(folder):
    state = new_state()
    provider = state.get(tables.PROVIDER, PROVIDER.key)._replace(peer_key=KEYS[0])
    state.put(tables.PROVIDER, (PROVIDER.key,), provider)
    hub = MemoryHub(seed=1)
    nodes = [Node(hub, key, folder, state) for key in KEYS]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.network.run)
            await nursery.start(node.relay.run)
        await trio.sleep(3)
        yield nodes
        nursery.cancel_scope.cancel()


def make_bundle(state, provider=PROVIDER, sketch_hash=b"\1" * 32) -> Bundle:
    lane = session(open_channel(state, 10 * OPEN), random.Random(1))
    for _ in range(2):
        lane.serve(
            ((1, 10_000),), tokens_in=8, tokens_out=1, fee=fee_of(8, 1), sketch_hash=sketch_hash
        )
    return build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=1, parts=[lane.cut()],
        sign=provider.sign,
    )  # fmt: skip


def state_claims(node, bundle, sketch) -> None:
    for raw in decode_body(bundle.body)[0].receipts:
        node.stated[receipt_id(raw)] = StatedClaim(b"statement", sketch)


async def test_a_bundle_reaches_every_pool_with_its_body(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        for node in nodes:
            assert bundle.hash in node.bundles
            assert node.store[bundle.hash] == bundle
        assert [len(node.checked) for node in nodes] == [0, 1, 1, 1], "others' bundles are shown"


async def test_who_lags_behind_blames_nobody_for_a_channel_it_does_not_know_yet(
    tmp_path, autojump_clock
) -> None:
    """A node that joined banned honest providers, whose channels were newer than its ledger."""
    async with four_nodes(tmp_path) as nodes:
        late, blamed = nodes[3], []
        late.network.penalise = lambda peer, points, why: blamed.append(why)
        late.state = new_state()
        bundle = make_bundle(nodes[0].state)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert late.relay.counters["refused.bundle.voucher"] > 0
        assert bundle.hash not in late.bundles
        assert blamed == []
        late.state = nodes[0].state
        await nodes[1].network.publish(topics.BUNDLES, topics.announce_bundle(bundle))
        await trio.sleep(5)
        assert bundle.hash in late.bundles, "what was no verdict is judged again"


async def test_who_tells_a_forged_voucher_is_blamed(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        late, blamed = nodes[3], []
        late.network.penalise = lambda peer, points, why: blamed.append(why)
        late.state = new_state()
        open_channel(late.state, 10 * OPEN, spender=party("another").key)
        bundle = make_bundle(nodes[0].state)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert blamed[:1] == ["forged"]


async def test_who_holds_the_index_recomputes_before_it_tells_on(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        for node in nodes[1:]:
            node.auditor.is_holder = True
        bundle = make_bundle(nodes[0].state)
        state_claims(nodes[0], bundle, nodes[1].auditor.true)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        for node in nodes[1:]:
            assert bundle.hash in node.bundles
            assert node.auditor.asked == 2
            assert node.relay.counters["audited"] == 2
            assert node.relay.counters["bundles.accepted"] == 0


async def test_false_credits_are_neither_pooled_nor_told_on_and_the_finding_is_kept(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        for node in nodes[1:]:
            node.auditor.is_holder = True
        bundle = make_bundle(nodes[0].state)
        state_claims(nodes[0], bundle, b"x" * 1_024)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        for node in nodes[1:]:
            assert bundle.hash not in node.bundles
            assert node.relay.counters["told_on"] == 0
            (kept,) = node.folder.iterdir()
            assert kept.name == f"{bundle.hash.hex()}-0"
            assert b"claim.scores" in kept.read_bytes()
            assert [(x.bundle, x.place) for x in node.found] == [(bundle, 0)]


@pytest.mark.parametrize("trouble", ["full of findings", "no folder"])
async def test_finding_that_cannot_be_kept_ends_nothing(
    trouble: str, tmp_path, autojump_clock
) -> None:
    """A liar whose bundles never settle pays for none of them: they must not fill our disk."""
    async with four_nodes(tmp_path) as nodes:
        author, holder = nodes[0], nodes[1]
        holder.auditor.is_holder = True
        if trouble == "no folder":
            holder.folder.write_bytes(b"")
        else:
            holder.folder.mkdir()
            for number in range(EVIDENCE_MAX):
                (holder.folder / f"{number:064x}-0").write_bytes(b"")
        bundle = make_bundle(author.state)
        state_claims(author, bundle, b"x" * 1_024)
        await author.relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert holder.relay.counters["evidence_unkept"] == 1
        assert bundle.hash not in holder.bundles
        assert [(x.bundle, x.place) for x in holder.found] == [(bundle, 0)]
        assert holder.folder.is_file() or len(list(holder.folder.iterdir())) == EVIDENCE_MAX


async def test_who_is_shown_no_sketch_judges_nothing(tmp_path, autojump_clock) -> None:
    """A holder that does not vote took honest bundles for false: it had half of each claim."""
    async with four_nodes(tmp_path) as nodes:
        author, holder, validator, _ = nodes
        holder.auditor.is_holder = validator.auditor.is_holder = True
        holder.may_be_shown = False
        bundle = make_bundle(author.state)
        state_claims(author, bundle, holder.auditor.true)
        author.viewers = [KEYS[2]]
        await author.relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert bundle.hash in holder.bundles
        assert (holder.auditor.asked, holder.audited) == (0, [])
        assert holder.relay.counters["audit_hidden"] == 1
        assert (validator.auditor.asked, validator.audited) == (2, [bundle.hash])


async def test_validator_that_is_shown_no_sketch_refuses_and_accuses_nobody(
    tmp_path, autojump_clock
) -> None:
    """The provider may be a block behind, where that one did not vote yet."""
    async with four_nodes(tmp_path) as nodes:
        author, validator = nodes[0], nodes[1]
        validator.auditor.is_holder = True
        bundle = make_bundle(author.state)
        state_claims(author, bundle, validator.auditor.true)
        author.viewers = []
        await author.relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert bundle.hash not in validator.bundles
        assert validator.relay.counters["audit_hidden"] == 1
        assert validator.relay.counters["audit_false"] == 0
        assert (validator.found, validator.folder.exists()) == ([], False)


async def test_a_provider_that_states_nothing_is_not_proposed(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        nodes[1].auditor.is_holder = True
        bundle = make_bundle(nodes[0].state)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(20)
        assert bundle.hash not in nodes[1].bundles
        assert nodes[1].relay.counters["audit_unanswered"] == 1
        assert bundle.hash in nodes[2].bundles  # it holds no index and cannot know


def many(state, count: int, bundle_seq: int = 1, provider=PROVIDER, nonce: int = 0) -> Bundle:
    """A bundle of so many receipts, whose credits need their provider's word."""
    channel = open_channel(state, OPEN, nonce, provider=provider.key)
    lane = LaneSession(channel, 0, PAYER, provider, random.Random(nonce))
    return served(lane, count, (), bundle_seq, provider)


def served(lane: LaneSession, count: int, credits, bundle_seq: int, provider) -> Bundle:
    for _ in range(count):
        lane.serve(credits, tokens_in=8, tokens_out=1, fee=fee_of(8, 1), sketch_hash=b"\1" * 32)
    return build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=bundle_seq, parts=[lane.cut()],
        sign=provider.sign,
    )  # fmt: skip


async def test_large_bundle_is_audited_at_the_rate_that_its_provider_allows(
    tmp_path, autojump_clock
) -> None:
    """16 questions, of which 8 may come at once: it was refused as if nobody had answered."""
    async with four_nodes(tmp_path) as nodes:
        author, holder = nodes[0], nodes[1]
        holder.auditor.is_holder = True
        bundle = many(author.state, 1_000)
        state_claims(author, bundle, holder.auditor.true)
        await author.relay.offer_bundle(bundle)
        await trio.sleep(AUDIT_S)
        assert bundle.hash in holder.bundles
        assert holder.relay.counters["audited"] == 1_000
        assert 8 <= holder.relay.audits.counters["audit_waited"] <= 10


@pytest.mark.parametrize("place", [0, RECHECKED_MAX - 1, RECHECKED_MAX, 299])
async def test_lie_anywhere_in_a_large_bundle_is_found_at_its_place(
    tmp_path, autojump_clock, place: int
) -> None:
    async with four_nodes(tmp_path) as nodes:
        author, holder = nodes[0], nodes[1]
        holder.auditor.is_holder = True
        bundle = many(author.state, 300)
        state_claims(author, bundle, holder.auditor.true)
        lie = receipt_id(decode_body(bundle.body)[0].receipts[place])
        author.stated[lie] = StatedClaim(b"statement", b"x" * 1_024)
        await author.relay.offer_bundle(bundle)
        await trio.sleep(AUDIT_S)
        assert bundle.hash not in holder.bundles
        assert [(found.place, found.stated.sketch[:1]) for found in holder.found] == [(place, b"x")]
        assert holder.relay.counters["audited"] == 0


async def test_silent_provider_keeps_no_other_from_being_audited(tmp_path, autojump_clock) -> None:
    """Nor does its next bundle overtake the first, which would then never settle."""
    async with four_nodes(tmp_path) as nodes:
        author, holder = nodes[0], nodes[1]
        holder.auditor.is_holder = True
        other, asked = party("other"), never_answered(holder, PROVIDER)
        add_provider(author.state, other, PROVIDER)
        silent = [many(author.state, 1, number, nonce=number) for number in (1, 2, 3)]
        heard = many(author.state, 1, 1, other, nonce=9)
        state_claims(author, heard, holder.auditor.true)
        for bundle in (*silent, heard):
            await author.relay.offer_bundle(bundle)
            await trio.sleep(1)
        assert asked == [silent[0].hash, heard.hash]
        assert heard.hash in holder.bundles
        await trio.sleep(3 * AUDIT_S)
        assert asked == [silent[0].hash, heard.hash, silent[1].hash, silent[2].hash]
        assert holder.relay.counters["audit_unanswered"] == 3


def never_answered(holder, silent) -> list[bytes]:
    """The bundles whose providers are asked for their word; one gives none."""
    asked, ask = [], holder.relay.audits.ask_claims

    async def ask_claims(provider: bytes, sources, name: bytes, places):
        asked.append(name)
        if provider == silent.key:
            await trio.sleep_forever()
        return await ask(provider, sources, name, places)

    holder.relay.audits.ask_claims = ask_claims
    return asked


async def test_silent_provider_fills_no_queue(tmp_path, autojump_clock, monkeypatch) -> None:
    """One bundle of it is waited for at a time, and it may sign a thousand."""
    monkeypatch.setattr("node.peering.relay.QUEUE_MAX", 4)
    monkeypatch.setattr("node.peering.relay.QUEUED_PROVIDER_MAX", 2)
    async with four_nodes(tmp_path) as nodes:
        author, holder = nodes[0], nodes[1]
        holder.auditor.is_holder = True
        other = party("other")
        never_answered(holder, PROVIDER)
        add_provider(author.state, other, PROVIDER)
        for number in range(1, 8):
            silent = many(author.state, 1, number, nonce=number)
            await author.relay.offer_bundle(silent)
            await trio.sleep(0.5)
        assert len(holder.relay._queue) == 2
        heard = many(author.state, 1, 1, other, nonce=9)
        state_claims(author, heard, holder.auditor.true)
        await author.relay.offer_bundle(heard)
        await trio.sleep(1)
        assert heard.hash in holder.bundles


async def test_the_sketch_is_shown_only_to_those_who_may_see_it(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        state_claims(nodes[0], bundle, b"s" * 1_024)
        await nodes[0].relay.offer_bundle(bundle)
        nodes[0].viewers = [KEYS[1]]
        shown = await nodes[1].relay.audits.claims_from(KEYS[0], bundle.hash, [0, 1])
        hidden = await nodes[2].relay.audits.claims_from(KEYS[0], bundle.hash, [0, 1])
        assert {c.sketch for c in shown.values()} == {b"s" * 1_024}
        assert set(hidden.values()) == {StatedClaim(b"statement", b"")}


async def test_rows_are_asked_for_and_believed_only_under_their_root(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        holder, asker, peer = nodes[1], nodes[0].relay.audits, KEYS[1]
        index = open_index(tmp_path / "index")
        rows = tuple((encode_row_leaf(index.leaf(row)), index.prove_row(row)) for row in range(40))
        header = encode_header(index.header)
        holder.indices[index.root] = RawRows(header, rows)
        found = await asker.ask_rows(peer, index.root, (7, 0))
        assert found == RawRows(header, (rows[7], rows[0]))
        with pytest.raises(Refused):
            await asker.ask_rows(peer, bytes(32), (0,))
        with pytest.raises(NetworkError):
            await asker.ask_rows(peer, index.root, (40,))
        for false in (
            (rows[1], rows[0]),  # another one than was asked for
            ((rows[7][0], rows[8][1]), rows[0]),  # under another path
            ((rows[7][0][:-1] + b"\1", rows[7][1]), rows[0]),
        ):
            holder.open_rows = lambda root, asked, false=false: RawRows(header, false)
            holder.relay.audits._open_rows = holder.open_rows
            with pytest.raises(Invalid):
                await asker.ask_rows(peer, index.root, (7, 0))


async def test_bodies_that_a_block_names_are_fetched_by_hash(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        nodes[2].store.append(bundle)
        missing = await nodes[1].relay.fetch_bodies([bundle.hash, b"\0" * 32], KEYS)
        assert missing == (b"\0" * 32,)
        assert nodes[1].store[bundle.hash] == bundle
        assert bundle.hash not in nodes[1].bundles


def large(state, count: int) -> Bundle:
    """A bundle of so many receipts with credits as long as may be."""
    lane = session(open_channel(state, 10 * OPEN), random.Random(1))
    credits = tuple((number + 10**15, 156 + 16 * (not number)) for number in range(64))
    return served(lane, count, credits, 1, PROVIDER)


async def test_a_body_of_more_than_a_chunk_that_a_block_names_comes_as_a_blob(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle, (one, other, _, victim) = large(new_state(), 1_200), nodes
        assert len(bundle.body) > CHUNK_BYTES
        for node in (one, other):
            node.store.append(bundle)
        assert await victim.relay.fetch_bodies([bundle.hash], KEYS[:2]) == ()
        assert victim.store[bundle.hash] == bundle
        assert victim.blobs.counters["chunks"] == 2
        assert min(one.blobs.counters["served_bytes"], other.blobs.counters["served_bytes"]) > 0


async def test_a_bundle_of_more_than_a_chunk_is_told_without_its_body_and_pooled_by_all(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = large(nodes[0].state, 1_200)
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(10)
        for node in nodes:
            assert bundle.hash in node.bundles
            assert node.store[bundle.hash] == bundle


async def test_a_small_body_that_is_left_out_is_asked_of_another(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        nodes[0].store[bundle.hash] = bundle._replace(body=b"")
        nodes[1].store[bundle.hash] = bundle
        assert await nodes[3].relay.fetch_bodies([bundle.hash], KEYS[:2]) == ()
        assert nodes[3].store[bundle.hash] == bundle
        assert nodes[3].relay.counters["pull_failed"] == 1


async def test_questions_that_make_no_sense_count_against_who_asks(tmp_path, autojump_clock):
    async with four_nodes(tmp_path) as nodes:
        relay = nodes[0].relay
        for body in (b"", b"\x90", b"\x92\x09\xc4\x00", b"\xc1"):
            with pytest.raises(Misbehaving):
                await relay.audits.answer(KEYS[1], body)
            with pytest.raises(Misbehaving):
                await relay.answer_bundles(KEYS[1], body)
        unknown = b"\x93\x01\xc4\x20" + bytes(32) + b"\x00"
        with pytest.raises(Refused):
            await relay.audits.answer(KEYS[1], unknown)


async def test_a_transaction_reaches_every_pool_once(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        raw = transfer()
        tx_id = await nodes[3].relay.submit_transaction(raw)
        await trio.sleep(5)
        assert all(tx_id in node.transactions for node in nodes)
        with pytest.raises(Invalid, match=r"pool\.known"):
            await nodes[3].relay.submit_transaction(raw)


def transfer(nonce: int = 0, chain: bytes = CHAIN) -> bytes:
    body = encode_body(
        PAYER.key, nonce, 10_000_000, NOW_MS + 60_000, Transfer(PROVIDER.key, 5, b"")
    )
    return sign_transaction(chain, PAYER.seed, body)


# judges


def judge(state, data, known=()) -> Verdict:
    return topics.judge_bundle(data, state, CHAIN, lambda name: name in known)[0]


def test_a_bundle_is_judged_by_its_form_its_provider_and_its_signature() -> None:
    state = new_state()
    bundle = make_bundle(state)
    whole = topics.encode_bundle_message(bundle)
    assert judge(state, whole) is Verdict.ACCEPT
    assert judge(state, topics.announce_bundle(bundle)) is Verdict.ACCEPT
    assert judge(state, whole, [bundle.hash]) is Verdict.IGNORE
    assert judge(state, b"\x94\x02") is Verdict.REJECT
    forged = bundle._replace(signature=bytes(64))
    assert judge(state, topics.encode_bundle_message(forged)) is Verdict.REJECT
    torn = bundle._replace(body=bundle.body[:-1])
    assert judge(state, topics.encode_bundle_message(torn)) is Verdict.REJECT
    stranger = make_bundle(new_state(), party("stranger"))
    assert judge(state, topics.encode_bundle_message(stranger)) is Verdict.IGNORE
    provider = state.get(tables.PROVIDER, PROVIDER.key)
    state.put(tables.PROVIDER, (PROVIDER.key,), provider._replace(bundle_seq=1))
    assert judge(state, whole) is Verdict.IGNORE


def test_a_transaction_is_rejected_only_for_what_its_forwarder_could_see() -> None:
    state, pool = new_state(), TransactionPool(CHAIN)

    def verdict(raw: bytes) -> Verdict:
        return topics.judge_tx(
            topics.encode_tx_message(raw), lambda it: pool.add(state, NOW_MS, it)
        )

    assert verdict(transfer()) is Verdict.ACCEPT
    assert verdict(transfer()) is Verdict.IGNORE
    assert verdict(transfer(nonce=9)) is Verdict.IGNORE
    assert verdict(transfer(nonce=1, chain=bytes(32))) is Verdict.REJECT
    assert topics.judge_tx(b"\xc1", lambda it: None) is Verdict.REJECT


DECODERS = {
    "tx": (topics.decode_tx_message, lambda: topics.encode_tx_message(transfer())),
    "bundle": (
        topics.decode_bundle_message,
        lambda: topics.encode_bundle_message(make_bundle(new_state())),
    ),
    "vote": (topics.decode_vote_message, lambda: topics.encode_vote_message(2, b"vote")),
}


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_nothing_but_invalid_escapes_a_decoder(name: str) -> None:
    decode_it, make = DECODERS[name]
    good, rng = make(), random.Random(name)
    decode_it(good)
    refused = 0
    for _ in range(2_000):
        bad = bytearray(good)
        bad[rng.randrange(min(len(bad), 200))] ^= 1 << rng.randrange(8)
        try:
            decode_it(bytes(bad[: rng.randrange(1, len(bad) + 1)]))
        except Invalid:
            refused += 1
    assert refused > 500


def test_messages_of_two_topics_share_no_bytes() -> None:
    tx = topics.encode_tx_message(transfer())
    for decode_it in (topics.decode_bundle_message, topics.decode_vote_message):
        with pytest.raises(Invalid):
            decode_it(tx)


async def test_who_gave_a_false_signature_is_asked_last_and_a_little_to_blame(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle, blamed = make_bundle(nodes[0].state), []
        honest, liar, victim, _ = nodes
        victim.network.penalise = lambda peer, points, why: blamed.append((peer, points, why))
        honest.store[bundle.hash] = bundle
        liar.store[bundle.hash] = bundle._replace(signature=bytes(64))
        peers = [KEYS[1], KEYS[0]]
        await victim.relay.fetch_bodies([bundle.hash], peers)
        assert victim.store[bundle.hash] != bundle, "the hash does not tell them apart"
        assert blamed == []
        victim.store.refute(bundle.hash)  # as execution does
        assert await victim.relay.fetch_bodies([bundle.hash], peers) == ()
        assert victim.store[bundle.hash] == bundle
        assert blamed == [(KEYS[1], 5, "rejected")]
        assert victim.relay.counters["bodies_refuted"] == 1


async def test_a_pulled_body_is_kept_under_the_signature_that_was_judged(
    tmp_path, autojump_clock
) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        author, victim = nodes[0], nodes[3]
        author.store[bundle.hash] = bundle._replace(signature=bytes(64))
        await author.network.publish(topics.BUNDLES, topics.announce_bundle(bundle))
        await trio.sleep(5)
        assert bundle.hash in victim.bundles
        assert victim.store[bundle.hash] == bundle


async def test_what_is_pooled_takes_the_place_of_a_false_body(tmp_path, autojump_clock) -> None:
    async with four_nodes(tmp_path) as nodes:
        bundle = make_bundle(nodes[0].state)
        nodes[1].store[bundle.hash] = bundle._replace(signature=bytes(64))
        await nodes[0].relay.offer_bundle(bundle)
        await trio.sleep(5)
        assert nodes[1].store[bundle.hash] == bundle
