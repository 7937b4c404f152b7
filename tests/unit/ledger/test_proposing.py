"""Choosing a payload: what is chosen always executes, and what is left out is named."""

import random

import pytest
from bundle_kit import Party, party
from chain_kit import CREATOR, FAUCET, OPEN, PAYER, PROVIDER, STEWARD, TinyChain, golden_answer

from node.ledger.admission import Admitted, admit_bundle
from node.ledger.execute import RULES_1, execute_block
from node.ledger.proposing import Choice, choose_payload
from node.ledger.wire import transactions as wire
from node.ledger.wire.blocks import Payload
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.transactions import Transaction, Transfer

BEN = party("ben")


def choose(chain: TinyChain, *raws: bytes, bundles: tuple[Bundle, ...] = ()) -> Choice:
    waiting: list[Transaction] = [wire.decode_transaction(raw) for raw in raws]
    admitted: list[Admitted] = [
        admit_bundle(chain.state(), chain.chain_id, bundle) for bundle in bundles
    ]
    return choose_payload(RULES_1, chain.state(), chain.context(), waiting, admitted)


def gift(chain: TinyChain, who: Party, amount: int = 1, ahead: int = 0, **fields: int) -> bytes:
    return chain.tx(who, Transfer(BEN.key, amount, b""), ahead, **fields)


def codes(choice: Choice) -> list[str]:
    return [code for _, code in choice.refused_transactions]


@pytest.fixture
def chain() -> TinyChain:
    return TinyChain()


@pytest.fixture(scope="module")
def selling() -> TinyChain:
    chain = TinyChain()
    chain.tell_story()
    return chain


def test_nothing_waiting_is_an_empty_payload(chain: TinyChain) -> None:
    assert choose(chain) == Choice(Payload(), (), ())


def test_the_order_given_is_kept(chain: TinyChain) -> None:
    raws = (gift(chain, STEWARD), gift(chain, FAUCET), gift(chain, FAUCET, 2, 1))
    assert choose(chain, *raws).payload.transactions == raws


def test_one_that_fails_by_its_effect_stays_and_pays(chain: TinyChain) -> None:
    """It has its place in the block, its charge and its code; only envelopes are left out."""
    raw = gift(chain, FAUCET, 10**18)
    choice = choose(chain, raw)
    assert choice.payload.transactions == (raw,)
    assert chain.execute(raw).codes == (20,)


def test_what_follows_a_stale_one_of_its_sender_is_left_out_and_others_stay(
    chain: TinyChain,
) -> None:
    late = gift(chain, FAUCET, valid_until_ms=chain.time_ms + 1_000)
    after, other = gift(chain, FAUCET, 2, 1), gift(chain, STEWARD)
    choice = choose(chain, late, after, other)
    assert choice.payload.transactions == (other,)
    assert codes(choice) == ["tx.expired", "tx.nonce"]
    assert choice.refused_transactions[0][0] == wire.decode_transaction(late).tx_id


def test_what_the_payload_itself_makes_possible_is_chosen(chain: TinyChain) -> None:
    """Ben has nothing but what stands before him in the same block."""
    funded = chain.tx(FAUCET, Transfer(BEN.key, OPEN, b""))
    spends = chain.tx(BEN, Transfer(FAUCET.key, 1, b""))
    assert choose(chain, funded, spends).payload.transactions == (funded, spends)
    assert codes(choose(chain, spends, funded)) == ["tx.cannot_pay"]


def test_what_falls_due_in_the_block_comes_first() -> None:
    """A closing channel returns its rest in the very block whose charge the payer could not pay."""
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    chain.block(chain.tx(PAYER, wire.CloseChannel(session.channel)))
    charge = wire.decode_transaction(gift(chain, PAYER, 10**15)).weight * 100
    held = chain.state().account(PAYER.key).balance
    chain.block(gift(chain, PAYER, held - charge))
    assert chain.state().account(PAYER.key).balance == 0
    spends = gift(chain, PAYER)
    assert codes(choose(chain, spends)) == ["tx.cannot_pay"]
    tx = wire.decode_transaction(spends)
    choice = choose_payload(RULES_1, chain.state(), chain.context(60_000), [tx], [])
    assert choice.payload.transactions == (spends,)
    assert chain.execute(spends, later_ms=60_000).codes == (0,)


def test_bundles_come_before_transactions_as_in_the_block(selling: TinyChain) -> None:
    """The provider's own close would void its bundle if it were tried first."""
    chain = selling
    session = chain.open_channel()
    golden_answer(session, ())
    bundle = chain.bundle(session)
    close = chain.tx(PROVIDER, wire.CloseChannel(session.channel))
    choice = choose(chain, close, bundles=(bundle,))
    assert choice.payload.bundles == (bundle.hash,)
    assert choice.payload.transactions == (close,)
    assert chain.execute(close, bundles=(bundle,)).codes == (0,)


def test_bundles_are_put_in_their_order_and_the_spent_are_named(selling: TinyChain) -> None:
    chain = selling
    session = chain.open_channel()
    first, second = [], []
    for number, made in ((11, first), (12, second)):
        golden_answer(session, ())
        made.append(chain.bundle(session, number))
    choice = choose(chain, bundles=(*second, *first))
    assert choice.payload.bundles == (first[0].hash, second[0].hash)
    alone = choose(chain, bundles=tuple(second))
    assert alone.payload.bundles == ()
    assert alone.refused_bundles == ((second[0].hash, "bundle.channel"),)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_chosen_always_executes(seed: int) -> None:
    """One entry that no longer fits would make the block invalid and cost the proposer its turn."""
    chance, chain = random.Random(seed), TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    people = (FAUCET, STEWARD, CREATOR, PAYER, PROVIDER, BEN)
    ahead: dict[bytes, int] = {}
    raws = []
    for _ in range(40):
        who = chance.choice(people)
        step = ahead.get(who.key, 0)
        fields = chance.choice(
            ({}, {}, {}, {"valid_until_ms": chain.time_ms + 1_000}, {"max_fee": 10}, {"nonce": 99})
        )
        payload = chance.choice(
            (
                Transfer(chance.choice(people).key, chance.choice((0, 1, 10**18)), b""),
                wire.Bond(1, PROVIDER.key, 1),
                wire.CloseChannel(session.channel),
                wire.FundMaintenance(chance.randrange(3), 5),
            )
        )
        raws.append(chain.tx(who, payload, step, **fields))
        ahead[who.key] = step + 1
    golden_answer(session, ((1, 10_000),))
    bundle = chain.bundle(session)
    choice = choose(chain, *raws, bundles=(bundle,))
    assert choice.refused_transactions
    assert len(choice.payload.transactions) + len(choice.refused_transactions) == len(raws)
    bodies = {bundle.hash: bundle}
    outcome = execute_block(RULES_1, chain.state(), chain.context(), choice.payload, bodies)
    assert len(outcome.codes) == len(choice.payload.transactions)
