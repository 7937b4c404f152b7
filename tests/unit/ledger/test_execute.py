"""Blocks: the order of things, what refuses a payload, what only costs its fee, exact supply."""

import pytest
from bundle_kit import party
from chain_kit import (
    CONTRIBUTORS,
    CREATOR,
    FAUCET,
    OPEN,
    PAYER,
    PROVIDER,
    STEWARD,
    VALIDATORS,
    TinyChain,
    devnet,
    golden_answer,
)

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.execute import RULES_1, execute_block, rules_for
from node.ledger.proposing import choose_payload
from node.ledger.rules import accounts
from node.ledger.state import State
from node.ledger.wire import transactions as wire
from node.ledger.wire.blocks import Payload
from node.ledger.wire.codes import ENVELOPE_CODES
from node.ledger.wire.payouts import decode_payout

BEN = party("ben")


@pytest.fixture
def chain() -> TinyChain:
    return TinyChain()


def refusal_of(call, *args, **fields) -> Invalid:
    with pytest.raises(Invalid) as refusal:
        call(*args, **fields)
    return refusal.value


def transfer(amount: int = 5) -> wire.Transfer:
    return wire.Transfer(BEN.key, amount, b"")


# ---- money of a transaction


def test_a_transfer_pays_half_its_charge_to_the_proposer_and_burns_half(chain) -> None:
    turn = chain.validators.turn
    before = chain.state().account(turn).balance
    raw = chain.tx(FAUCET, transfer())
    charge = wire.decode_transaction(raw).weight * 100
    outcome = chain.block(raw)
    state = chain.state()
    assert outcome.codes == (0,)
    assert state.account(BEN.key).balance == 5
    assert state.account(FAUCET.key).balance == 1_000_000 * OPEN - 5 - charge
    assert state.account(FAUCET.key).nonce == 1
    assert outcome.supply == 10**18 - charge // 2
    assert state.account(turn).balance == before + charge - charge // 2


def test_a_failed_effect_is_charged_and_rolled_back(chain) -> None:
    outcome = chain.block(chain.tx(FAUCET, transfer(10**18)))
    state = chain.state()
    assert outcome.codes == (20,)
    assert not state.has(tables.ACCOUNT, BEN.key)
    assert state.account(FAUCET.key).nonce == 1
    assert state.account(FAUCET.key).balance < 1_000_000 * OPEN


def test_a_code_is_part_of_the_leaf(chain) -> None:
    good, bad = chain.tx(FAUCET, transfer()), chain.tx(FAUCET, transfer(0), 1)
    outcome = chain.block(good, bad)
    assert outcome.codes == (0, 26)
    assert outcome.txs_root == merkle.root(outcome.tx_leaves)
    assert outcome.tx_leaves[0] != outcome.tx_leaves[1]


# ---- envelopes: the whole payload is refused


def forged(chain: TinyChain) -> bytes:
    tx = wire.decode_transaction(chain.tx(FAUCET, transfer()))
    return wire.encode_transaction(tx.body, bytes(64))


def charge_of(chain: TinyChain) -> int:
    """Of a transfer whose max_fee packs into five bytes, as its own does."""
    return wire.decode_transaction(chain.tx(FAUCET, transfer(), max_fee=10**5)).weight * 100


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda c: b"\xc0", 1),
        (lambda c: bytes(65_537), 2),
        (forged, 5),
        (lambda c: c.tx(FAUCET, transfer(), valid_until_ms=c.time_ms + 1_000), 6),
        (lambda c: c.tx(FAUCET, transfer(), valid_until_ms=c.time_ms + 86_401_001), 6),
        (lambda c: c.tx(FAUCET, transfer(), ahead=1), 7),
        (lambda c: c.tx(FAUCET, transfer(), max_fee=charge_of(c) - 1), 8),
        (lambda c: c.tx(party("poor"), transfer()), 9),
    ],
)
def test_an_envelope_that_fails_refuses_the_payload(chain, make, code) -> None:
    refusal = refusal_of(chain.execute, make(chain))
    assert ENVELOPE_CODES[refusal.code] == code


def test_envelopes_at_their_limits_pass(chain) -> None:
    soon = chain.tx(FAUCET, transfer(), valid_until_ms=chain.time_ms + 1_001)
    late = chain.tx(STEWARD, transfer(), valid_until_ms=chain.time_ms + 86_401_000)
    exact = chain.tx(PAYER, transfer(), max_fee=charge_of(chain))
    assert chain.execute(soon, late, exact).codes == (0, 0, 0)


def test_the_same_transaction_twice_refuses_the_payload(chain) -> None:
    raw = chain.tx(FAUCET, transfer())
    assert refusal_of(chain.execute, raw, raw).code == "tx.nonce"


def test_a_signature_of_another_chain_is_refused(chain) -> None:
    other = TinyChain(devnet("whitepaper"))
    assert refusal_of(chain.execute, other.tx(FAUCET, transfer())).code == "tx.signature"


# ---- payloads


def run(chain: TinyChain, payload: Payload, bodies=None):
    return execute_block(RULES_1, chain.state(), chain.context(), payload, bodies or {})


def test_payload_limits(chain) -> None:
    assert refusal_of(run, chain, Payload(evidence=(b"x",))).code == "evidence.kind"
    many = Payload((b"",) * 8_193)
    assert refusal_of(run, chain, many).code == "payload.transactions"
    bundles = Payload(bundles=(bytes(32),) * 257)
    assert refusal_of(run, chain, bundles).code == "payload.bundles"
    large = Payload((bytes(65_000),) * 17)
    assert refusal_of(run, chain, large).code == "payload.too_large"


def test_missing_bodies_are_the_hosts_fault(chain) -> None:
    with pytest.raises(AssertionError):
        run(chain, Payload(bundles=(bytes(32),)))


def test_unknown_rules_stop_the_node() -> None:
    assert rules_for(1) is RULES_1
    assert refusal_of(rules_for, 2).code == "rules.unknown_version"


def test_an_empty_block_only_turns_the_proposer(chain) -> None:
    first = chain.validators.turn
    outcome = chain.block()
    assert outcome.next_validators.turn != first
    assert outcome.supply == 10**18
    assert outcome.payouts_root == merkle.EMPTY_ROOT


def test_every_validator_proposes_in_turn(chain) -> None:
    turns = []
    for _ in range(8):
        turns.append(chain.validators.turn)
        chain.block()
    assert sorted(turns) == sorted(2 * [who.key for who in VALIDATORS])


# ---- base price


def test_base_price_moves_at_most_an_eighth_and_not_below_its_floor(chain) -> None:
    state = chain.state()
    state.set_counter(b"base_price", 800)
    target = state.parameter("tx_weight_target")
    prices = [accounts.next_base_price(state, used) for used in (0, target, 2 * target, 9**20)]
    assert prices == [700, 800, 900, 900]
    assert accounts.next_base_price(state, target + 1) == 801
    state.set_counter(b"base_price", 100)
    assert accounts.next_base_price(state, 0) == 100


# ---- bundles and payouts through a whole block


def paid_block(split: str, credits):
    chain = TinyChain(devnet(split))
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, credits)
    bundle = chain.bundle(session)
    return chain, chain.block(bundles=(bundle,)), bundle


def test_a_settled_answer_pays_everyone_when_its_window_is_over() -> None:
    """Golden: page 40 §3 on 27,309,200 grains; the payout's contributor gets his net credit."""
    chain, outcome, _ = paid_block("default", ((1, 6_120), (2, 2_455), (3, 1_425)))
    leaves = [decode_payout(raw) for raw in outcome.payout_leaves]
    data = [leaf.amount for leaf in leaves if leaf.kind == tables.KIND_DATA]
    assert data == [6_685_292, 2_681_764, 1_556_624]
    parts = {leaf.kind: leaf.part for leaf in leaves if leaf.kind}
    assert list(parts.values()) == [5_461_840, 10_923_680, 4_096_380, 2_730_920, 2_730_920,
                                    1_365_460]  # fmt: skip
    before = chain.state()
    assert before.totals().maturing == 27_309_200
    chain.block(later_ms=62_500)
    after = chain.state()
    assert after.totals().maturing == 0
    net = [6_685_292 - 334_264, 2_681_764 - 134_088, 1_556_624 - 77_831]
    for who, number, amount, gross in zip(CONTRIBUTORS, (1, 2, 3), net, data, strict=True):
        gained = after.account(who.key).balance - before.account(who.key).balance
        assert gained == amount
        assert after.get(tables.CONTRIBUTION, number).earned == gross
    gained = after.get(tables.FUND, 1).balance - before.get(tables.FUND, 1).balance
    assert gained == 2_730_920
    assert after.account(CREATOR.key).balance - before.account(CREATOR.key).balance == 4_096_380


def test_one_open_under_the_whitepaper_split_pays_an_eighth() -> None:
    chain = TinyChain(devnet("whitepaper"))
    chain.tell_story()
    session = chain.open_channel()
    session.serve(((1, 2_500), (2, 7_500)), model=1, model_version=1,
                  tokens_in=50_000, tokens_out=5_000, fee=10**9)  # fmt: skip
    outcome = chain.block(bundles=(chain.bundle(session),))
    leaves = [decode_payout(raw) for raw in outcome.payout_leaves]
    assert [leaf.amount for leaf in leaves if leaf.kind == tables.KIND_DATA] == [
        125_000_000,
        375_000_000,
    ]
    rest = [leaf.amount for leaf in leaves if leaf.kind > tables.KIND_DATA]
    assert rest == [100_000_000, 200_000_000, 80_000_000, 20_000_000]


def test_a_bundle_settles_once() -> None:
    chain, _, bundle = paid_block("default", ())
    assert refusal_of(chain.execute, bundles=(bundle,)).code == "bundle.channel"


def test_bundles_out_of_order_refuse_the_payload() -> None:
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    bundles = []
    for number in (1, 2):
        golden_answer(session, ())
        bundles.append(chain.bundle(session, number))
    assert chain.execute(bundles=tuple(bundles)).supply
    refused = refusal_of(chain.execute, bundles=tuple(reversed(bundles)))
    assert refused.code in ("payload.bundle_order", "bundle.channel")


def test_the_providers_own_close_comes_after_its_bundle() -> None:
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ())
    close = chain.tx(PROVIDER, wire.CloseChannel(session.channel))
    outcome = chain.block(close, bundles=(chain.bundle(session),))
    assert outcome.codes == (0,)
    channel = chain.state().get(tables.CHANNEL, session.channel)
    assert (channel.state, channel.paid) == (tables.CHANNEL_CLOSED, 27_309_200)


def test_a_rehearsal_leaves_out_what_does_not_fit() -> None:
    chain, _, spent = paid_block("default", ())
    admitted = admit_bundle(chain.state(), chain.chain_id, spent)
    good, gap = chain.tx(FAUCET, transfer()), chain.tx(STEWARD, transfer(), 2)
    waiting = [wire.decode_transaction(raw) for raw in (good, gap)]
    choice = choose_payload(RULES_1, chain.state(), chain.context(), waiting, [admitted])
    assert choice.payload == Payload((good,))
    assert [code for _, code in choice.refused_transactions] == ["tx.nonce"]
    assert [code for _, code in choice.refused_bundles] == ["bundle.channel"]
    assert run(chain, choice.payload).codes == (0,)


def test_a_fault_in_the_totals_stops_the_node(chain) -> None:
    state = State(chain.base)
    account = state.account(FAUCET.key)
    state.put(tables.ACCOUNT, (FAUCET.key,), account._replace(balance=account.balance + 1))
    totals = state.totals()
    state.put(tables.TOTALS, (b"totals",), totals._replace(accounts=totals.accounts + 1))
    with pytest.raises(AssertionError):
        execute_block(RULES_1, state, chain.context(), Payload(), {})
