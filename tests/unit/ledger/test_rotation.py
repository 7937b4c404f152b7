"""RotateKey: who may, who may not, and that the new key alone is believed from then on."""

import random
from typing import Any

import chain_kit
import pytest
from bundle_kit import LaneSession, Party, party
from chain_kit import (
    FAUCET,
    OPEN,
    PAYER,
    VALIDATORS,
    TinyChain,
    golden_answer,
)

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle, is_still_good
from node.ledger.execute import RULES_1
from node.ledger.pool import TransactionPool
from node.ledger.proposing import choose_payload
from node.ledger.rules import accounts, channels, staking
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import build_bundle

NEW, THIRD = party("a new key"), party("a third key")
LOW_ORDER = bytes([1]) + bytes(31)
SERVER = party("server")  # a provider that is no validator


@pytest.fixture
def chain() -> TinyChain:
    return TinyChain()


def rotation(chain: TinyChain, who: Party, key: Party, **fields: Any) -> wire.RotateKey:
    """The payload of the next transaction of `who`; `fields` change what the new key signs."""
    nonce = chain.state().account(who.key).nonce
    values = {"chain_id": chain.chain_id, "account": who.key, "nonce": nonce} | fields
    return chain_kit.rotation(key=key, **values)


def code(chain: TinyChain, who: Party, payload: Any) -> int:
    return chain.block(chain.tx(who, payload)).codes[0]


def refusal_of(call: Any, *args: Any) -> str:
    with pytest.raises(Invalid) as refusal:
        call(*args)
    return refusal.value.code


PAY = wire.Transfer(PAYER.key, 5, b"")


def test_the_new_key_alone_signs_for_the_account(chain) -> None:
    assert code(chain, FAUCET, rotation(chain, FAUCET, NEW)) == 0
    assert accounts.current_key(chain.state(), FAUCET.key) == NEW.key
    assert refusal_of(chain.execute, chain.tx(FAUCET, PAY)) == "tx.signature"
    assert chain.block(chain.tx(FAUCET, PAY, signer=NEW)).codes == (0,)
    assert not chain.state().has(tables.ACCOUNT, NEW.key)  # a key, and no account


def test_a_key_is_rotated_again_and_back(chain) -> None:
    assert code(chain, FAUCET, rotation(chain, FAUCET, NEW)) == 0
    for signer, key in ((NEW, THIRD), (THIRD, FAUCET)):
        raw = chain.tx(FAUCET, rotation(chain, FAUCET, key), signer=signer)
        assert chain.block(raw).codes == (0,)
        assert accounts.current_key(chain.state(), FAUCET.key) == key.key
    assert chain.state().account(FAUCET.key).key == b""  # as if it had never been


@pytest.mark.parametrize(
    ("desc", "fields"),
    [
        ("for another account", {"account": PAYER.key}),
        ("for another transaction", {"nonce": 1}),
        ("for another chain", {"chain_id": bytes(32)}),
    ],
)
def test_what_the_new_key_signed_is_good_for_one_transaction(chain, desc, fields) -> None:
    assert code(chain, FAUCET, rotation(chain, FAUCET, NEW, **fields)) == 28, desc


def test_a_key_that_nobody_holds_is_refused(chain) -> None:
    good = rotation(chain, FAUCET, NEW)
    assert code(chain, FAUCET, good._replace(key=THIRD.key)) == 28
    assert code(chain, FAUCET, good._replace(key=LOW_ORDER)) == 26
    assert code(chain, FAUCET, rotation(chain, FAUCET, FAUCET)) == 26
    assert accounts.current_key(chain.state(), FAUCET.key) == FAUCET.key


def test_a_rotation_costs_two_signatures(chain) -> None:
    tx = wire.decode_transaction(chain.tx(FAUCET, rotation(chain, FAUCET, NEW)))
    assert tx.weight == len(tx.raw) + 2 * 500 + 200


# ---- validators


def test_a_validator_in_the_set_keeps_its_key(chain) -> None:
    assert code(chain, VALIDATORS[1], rotation(chain, VALIDATORS[1], NEW)) == 23


def test_a_rotated_account_does_not_stand_for_the_set(chain) -> None:
    """The set names members by their accounts: the key that was given up would vote."""
    chain.block()  # reads the candidates: the next does not
    assert code(chain, FAUCET, wire.Bond(0, FAUCET.key, 20 * OPEN)) == 0
    assert FAUCET.key in staking.candidates(chain.state())
    assert code(chain, FAUCET, rotation(chain, FAUCET, NEW)) == 0
    chain.block(later_ms=60_000)
    assert chain.validators.index(FAUCET.key) is None
    assert chain.validators.index(NEW.key) is None


# ---- providers


def serving() -> TinyChain:
    """A chain with a provider that is no validator."""
    chain = TinyChain()
    chain.tell_story()
    chain.block(chain.tx(FAUCET, wire.Transfer(SERVER.key, 100 * OPEN, b"")))
    register = wire.RegisterProvider(SERVER.key, SERVER.key)
    bond = wire.Bond(tables.ROLE_PROVIDER, SERVER.key, 2 * OPEN)
    assert chain.block(chain.tx(SERVER, register), chain.tx(SERVER, bond, 1)).codes == (0, 0)
    return chain


OPENING = wire.OpenChannel(SERVER.key, PAYER.key, OPEN, 0)


def channel_to_server(chain: TinyChain) -> bytes:
    nonce = chain.state().account(PAYER.key).nonce
    assert code(chain, PAYER, OPENING) == 0
    return channels.channel_id(chain.chain_id, PAYER.key, SERVER.key, nonce)


def test_a_provider_rotates_once_its_channels_are_closed() -> None:
    chain = serving()
    first, second = channel_to_server(chain), channel_to_server(chain)
    assert channels.served_channels(chain.state(), SERVER.key) == 2
    assert code(chain, SERVER, rotation(chain, SERVER, NEW)) == 23
    assert code(chain, PAYER, wire.CloseChannel(first)) == 0  # closing: bundles still settle
    assert code(chain, SERVER, wire.CloseChannel(second)) == 0
    assert code(chain, SERVER, rotation(chain, SERVER, NEW)) == 23
    chain.block(later_ms=60_000)
    assert channels.served_channels(chain.state(), SERVER.key) == 0
    assert code(chain, SERVER, rotation(chain, SERVER, NEW)) == 0
    assert channels.find_provider_key(chain.state(), SERVER.key) == NEW.key


def test_bundles_are_checked_with_the_new_key() -> None:
    chain = serving()
    assert code(chain, SERVER, rotation(chain, SERVER, NEW)) == 0
    channel = channel_to_server(chain)
    session = LaneSession(channel, 0, PAYER, SERVER, random.Random(1), chain.chain_id)
    golden_answer(session, ())
    part = session.cut()
    by_old, by_new = (
        build_bundle(
            chain_id=chain.chain_id,
            provider=SERVER.key,
            bundle_seq=1,
            parts=[part],
            sign=signer.sign,
        )
        for signer in (SERVER, NEW)
    )
    assert refusal_of(admit_bundle, chain.state(), chain.chain_id, by_old) == "bundle.provider"
    chain.block(bundles=(by_new,))
    assert chain.state().get(tables.CHANNEL, channel).paid == 27_309_200


def test_a_payer_rotates_with_open_channels_and_its_vouchers_stay_good() -> None:
    """A provider has served for them: making them void would take its answers for nothing."""
    chain = TinyChain()
    chain.tell_story()
    session = chain.open_channel()
    golden_answer(session, ())
    admitted = admit_bundle(chain.state(), chain.chain_id, bundle := chain.bundle(session))
    assert code(chain, PAYER, rotation(chain, PAYER, NEW)) == 0
    assert is_still_good(chain.state(), admitted)
    outcome = chain.block(bundles=(bundle,))
    assert outcome.bundle_headers
    assert chain.state().get(tables.CHANNEL, session.channel).paid == 27_309_200


# ---- what waits


def test_what_the_old_key_signed_leaves_the_pool(chain) -> None:
    pool, state = TransactionPool(chain.chain_id), chain.state()
    rotate = chain.tx(FAUCET, rotation(chain, FAUCET, NEW))
    behind = chain.tx(FAUCET, PAY, 1)
    for raw in (rotate, behind):
        pool.add(state, chain.time_ms, raw)
    chosen = choose_payload(RULES_1, state, chain.context(), pool.pick(state, 10**6), [])
    assert chosen.payload.transactions == (rotate,)
    assert [word for _, word in chosen.refused_transactions] == ["tx.signature"]
    chain.block(rotate)
    pool.review(chain.state(), chain.time_ms)
    assert len(pool) == 0
    assert refusal_of(pool.add, chain.state(), chain.time_ms, behind) == "tx.signature"
    pool.add(chain.state(), chain.time_ms, chain.tx(FAUCET, PAY, signer=NEW))
