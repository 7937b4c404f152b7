"""What waits: admitted by the cheapest check first, bounded, picked in order of what it pays."""

import pytest
from bundle_kit import party
from chain_kit import (
    FAUCET,
    OPEN,
    PAYER,
    PROVIDER,
    STEWARD,
    TinyChain,
    accusation,
    golden_answer,
)

from consensus.primitives.errors import Invalid
from node.ledger.admission import admit_bundle, is_still_good
from node.ledger.pool import (
    NONCE_AHEAD_MAX,
    PER_PROVIDER_MAX,
    BundlePool,
    TransactionPool,
)
from node.ledger.proposing import choose_payload
from node.ledger.wire import transactions as wire
from node.ledger.wire.transactions import Transfer

BEN = party("ben")
GIFT = Transfer(BEN.key, 5, b"")


@pytest.fixture
def chain() -> TinyChain:
    return TinyChain()


def pool_of(chain: TinyChain, **fields) -> TransactionPool:
    return TransactionPool(chain.chain_id, **fields)


def add(pool: TransactionPool, chain: TinyChain, raw: bytes):
    return pool.add(chain.state(), chain.time_ms, raw)


def refusal_of(pool: TransactionPool, chain: TinyChain, raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        add(pool, chain, raw)
    return refusal.value.code


def forged(chain: TinyChain) -> bytes:
    return wire.encode_transaction(wire.decode_transaction(chain.tx(FAUCET, GIFT)).body, bytes(64))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda c: bytes(65_537), "tx.too_large"),
        (lambda c: b"\xc0", "tx.malformed"),
        (lambda c: c.tx(FAUCET, GIFT, valid_until_ms=c.time_ms), "tx.expired"),
        (lambda c: c.tx(FAUCET, GIFT, valid_until_ms=c.time_ms + 86_400_001), "tx.expired"),
        (lambda c: c.tx(FAUCET, GIFT, NONCE_AHEAD_MAX + 1), "tx.nonce"),
        (lambda c: c.tx(FAUCET, GIFT, max_fee=100), "tx.max_fee"),
        (lambda c: c.tx(FAUCET, GIFT, max_fee=1_000_000 * OPEN + 1), "tx.cannot_pay"),
        (forged, "tx.signature"),
    ],
)
def test_each_refusal_has_its_word_and_is_counted(chain, make, code) -> None:
    pool = pool_of(chain)
    assert refusal_of(pool, chain, make(chain)) == code
    assert (len(pool), pool.statistics().refused) == (0, 1)


def test_limits_at_their_edges_pass(chain) -> None:
    pool = pool_of(chain)
    for ahead in range(NONCE_AHEAD_MAX + 1):
        add(pool, chain, chain.tx(FAUCET, GIFT, ahead))
    add(pool, chain, chain.tx(STEWARD, GIFT, max_fee=1_000_000 * OPEN))
    assert len(pool) == NONCE_AHEAD_MAX + 2


def test_known_is_refused_and_replacing_costs_an_eighth_more(chain) -> None:
    pool = pool_of(chain)
    raw = chain.tx(FAUCET, GIFT, max_fee=8_000_000)
    first = add(pool, chain, raw)
    assert first.tx_id in pool
    assert refusal_of(pool, chain, raw) == "pool.known"
    assert refusal_of(pool, chain, chain.tx(FAUCET, GIFT, max_fee=8_999_999)) == "pool.replace"
    second = add(pool, chain, chain.tx(FAUCET, GIFT, max_fee=9_000_000))
    assert len(pool) == 1
    assert pool.find(second.tx_id) == second
    assert pool.find(first.tx_id) is None


def test_next_nonce_goes_behind_what_waits(chain) -> None:
    """Signed with the ledger's nonce, the second would silently replace the first."""
    pool = pool_of(chain)
    assert pool.next_nonce(chain.state(), FAUCET.key) == 0
    add(pool, chain, chain.tx(FAUCET, GIFT, max_fee=8_000_000))
    add(pool, chain, chain.tx(FAUCET, GIFT, 1))
    add(pool, chain, chain.tx(FAUCET, GIFT, 3))  # behind a gap: it waits for number 2
    assert pool.next_nonce(chain.state(), FAUCET.key) == 2
    assert pool.next_nonce(chain.state(), BEN.key) == 0
    chain.block(*(chain.tx(FAUCET, GIFT, ahead) for ahead in range(5)))
    assert pool.next_nonce(chain.state(), FAUCET.key) == 5  # those that wait are past


def test_best_payers_come_first_each_in_order_and_without_gaps(chain) -> None:
    pool = pool_of(chain)
    cheap = [chain.tx(FAUCET, GIFT, ahead, max_fee=10**6) for ahead in (0, 1)]
    dear = chain.tx(STEWARD, GIFT, max_fee=10**8)
    gap = chain.tx(PAYER, GIFT, 1, max_fee=10**9)
    dear_later = chain.tx(FAUCET, GIFT, 2, max_fee=10**8)
    for raw in (gap, dear_later, cheap[1], cheap[0], dear):
        add(pool, chain, raw)
    picked = [tx.raw for tx in pool.pick(chain.state(), 1 << 20)]
    assert picked == [dear, *cheap, dear_later]


def test_picking_stops_at_the_bytes(chain) -> None:
    pool = pool_of(chain)
    first, second = chain.tx(FAUCET, GIFT, max_fee=10**8), chain.tx(STEWARD, GIFT, max_fee=10**6)
    for raw in (first, second):
        add(pool, chain, raw)
    assert [tx.raw for tx in pool.pick(chain.state(), len(first) + 64)] == [first]
    assert pool.pick(chain.state(), len(first) + 63) == []


def test_a_full_pool_evicts_the_poorest(chain) -> None:
    poor, rich = chain.tx(FAUCET, GIFT, max_fee=10**6), chain.tx(STEWARD, GIFT, max_fee=10**8)
    pool = pool_of(chain, bytes_max=len(poor) + len(rich) - 1)
    add(pool, chain, poor)
    add(pool, chain, rich)
    assert [tx.raw for tx in pool.pick(chain.state(), 10**6)] == [rich]
    assert pool.statistics().evicted == 1
    assert refusal_of(pool, chain, poor) == "pool.full"


def test_after_a_block_what_is_done_or_late_is_dropped(chain) -> None:
    pool = pool_of(chain)
    done = chain.tx(FAUCET, GIFT)
    late = chain.tx(STEWARD, GIFT, valid_until_ms=chain.time_ms + 1_000)
    stays = chain.tx(FAUCET, GIFT, 1)
    for raw in (done, late, stays):
        add(pool, chain, raw)
    chain.block(done)
    pool.review(chain.state(), chain.time_ms)
    assert [tx.raw for tx in pool.pick(chain.state(), 10**6)] == [stays]
    assert pool.statistics().dropped == 2
    pool.drop(wire.decode_transaction(stays).tx_id)
    assert len(pool) == 0


# ---- bundles


@pytest.fixture(scope="module")
def selling() -> tuple[TinyChain, list]:
    """A chain and nine bundles of one lane, in order; tests must not add blocks."""
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    bundles = []
    for number in range(1, PER_PROVIDER_MAX + 2):
        golden_answer(session, ())
        bundles.append(chain.bundle(session, number))
    state = chain.state()
    return chain, [admit_bundle(state, chain.chain_id, bundle) for bundle in bundles]


def test_bundles_of_a_provider_are_picked_in_order(selling) -> None:
    chain, admitted = selling
    pool = BundlePool()
    for one in (admitted[2], admitted[0], admitted[1]):
        pool.add(chain.state(), one)
    assert pool.pick() == admitted[:3]
    assert set(pool.known()) == {one.bundle.hash for one in admitted[:3]}


def refused(pool: BundlePool, chain: TinyChain, admitted) -> str:
    with pytest.raises(Invalid) as refusal:
        pool.add(chain.state(), admitted)
    return refusal.value.code


def test_a_provider_has_at_most_eight_open_bundles(selling) -> None:
    chain, admitted = selling
    pool = BundlePool()
    for one in admitted[:PER_PROVIDER_MAX]:
        pool.add(chain.state(), one)
    assert refused(pool, chain, admitted[PER_PROVIDER_MAX]) == "pool.provider_full"
    assert refused(pool, chain, admitted[0]) == "pool.known"
    twin = admitted[0]._replace(bundle=admitted[0].bundle._replace(hash=bytes(32)))
    assert refused(pool, chain, twin) == "pool.same_number"


def test_a_bundle_pool_is_bounded_in_bytes(selling) -> None:
    chain, admitted = selling
    size = admitted[0].body_bytes + len(admitted[0].header)
    pool = BundlePool(bytes_max=size)
    pool.add(chain.state(), admitted[0])
    assert refused(pool, chain, admitted[1]) == "pool.full"
    assert refused(BundlePool(bytes_max=size - 1), chain, admitted[0]) == "pool.full"


def test_settled_bundles_are_dropped_and_not_taken_again() -> None:
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ())
    bundle = chain.bundle(session)
    admitted = admit_bundle(chain.state(), chain.chain_id, bundle)
    pool = BundlePool()
    pool.add(chain.state(), admitted)
    pool.review(chain.state(), chain.time_ms)
    assert len(pool) == 1
    chain.block(bundles=(bundle,))
    pool.review(chain.state(), chain.time_ms)
    assert len(pool) == 0
    assert refused(pool, chain, admitted) == "pool.settled"


def test_void_bundles_are_dropped(selling) -> None:
    chain, admitted = selling
    pool = BundlePool()
    pool.add(chain.state(), admitted[0])
    pool.review(chain.state(), 4_000_000_000_000)  # past the vouchers' end
    assert len(pool) == 0


def test_bundle_of_a_provider_jailed_meanwhile_is_not_taken() -> None:
    """Its check was good, then came an audit, and the block with the evidence: proposed, it would
    make our payload invalid."""
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ())
    admitted = admit_bundle(chain.state(), chain.chain_id, chain.bundle(session))
    evidence = accusation(chain.chain_id, session.channel, PROVIDER)
    assert chain.block(chain.tx(STEWARD, evidence)).codes == (0,)
    assert refused(BundlePool(), chain, admitted) == "pool.stale"
    choice = choose_payload(chain.rules, chain.state(), chain.context(), (), [admitted])
    assert choice.refused_bundles == ((admitted.bundle.hash, "pool.stale"),)


def test_what_was_checked_with_other_keys_is_checked_again(selling) -> None:
    chain, admitted = selling
    state = chain.state()
    assert is_still_good(state, admitted[0])
    stale = admitted[0]._replace(keys=((PROVIDER.key, BEN.key), *admitted[0].keys[1:]))
    assert not is_still_good(state, stale)
    assert not is_still_good(state, admitted[0]._replace(min_receipt_fee=1))
