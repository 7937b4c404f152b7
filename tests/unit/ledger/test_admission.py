"""Bundles checked once: good as long as the keys they were checked with, and not a block longer."""

from collections.abc import Callable

import pytest
from bundle_kit import LaneSession, party
from chain_kit import PAYER, PROVIDER, TinyChain, golden_answer

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import Admitted, admit_bundle, is_still_good
from node.ledger.execute import RULES_1, execute_block
from node.ledger.state import State
from node.ledger.wire.blocks import Payload
from node.ledger.wire.bundles import Bundle

NEW = party("a new key")


class Sale:
    """A chain with one bundle that waits."""

    def __init__(self) -> None:
        self.chain = TinyChain()
        self.chain.tell_story()
        self.session: LaneSession = self.chain.open_channel()
        golden_answer(self.session, ())
        self.bundle: Bundle = self.chain.bundle(self.session)
        self.admitted: Admitted = self.admit(self.chain.state())

    def admit(self, state: State) -> Admitted:
        return admit_bundle(state, self.chain.chain_id, self.bundle)


@pytest.fixture(scope="module")
def sale() -> Sale:
    return Sale()


def test_it_remembers_every_key_that_it_was_checked_with(sale: Sale) -> None:
    provider, channel = sale.admitted.keys
    assert provider == (PROVIDER.key, PROVIDER.key)
    assert channel == (sale.session.channel, PAYER.key)
    assert sale.admitted.header == sale.bundle.header
    assert sale.admitted.body_bytes == len(sale.bundle.body)
    assert sale.admitted.bundle.hash == sale.bundle.hash
    assert is_still_good(sale.chain.state(), sale.admitted)


def rotate(state: State, sale: Sale) -> None:
    account = state.account(PROVIDER.key)
    state.put(tables.ACCOUNT, (PROVIDER.key,), account._replace(key=NEW.key))


def leave(state: State, sale: Sale) -> None:
    state.remove(tables.PROVIDER, PROVIDER.key)


def respend(state: State, sale: Sale) -> None:
    channel = state.get(tables.CHANNEL, sale.session.channel)
    state.put(tables.CHANNEL, (sale.session.channel,), channel._replace(spender=NEW.key))


def forget(state: State, sale: Sale) -> None:
    state.remove(tables.CHANNEL, sale.session.channel)


def raise_minimum(state: State, sale: Sale) -> None:
    state.put(tables.PARAMETER, (b"min_receipt_fee",), tables.Parameter((27_309_201,)))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (rotate, "bundle.provider"),
        (leave, "bundle.provider"),
        (respend, "bundle.voucher"),
        (forget, "bundle.voucher"),
        (raise_minimum, "bundle.totals"),
    ],
)
def test_what_a_change_of_the_state_voids_is_checked_again_and_refused(
    sale: Sale, change: Callable[[State, Sale], None], code: str
) -> None:
    """A key that is no longer the provider's or payer's must not settle from memory."""
    state = sale.chain.state()
    change(state, sale)
    assert not is_still_good(state, sale.admitted)
    with pytest.raises(Invalid) as refusal:
        sale.admit(state)
    assert refusal.value.code == code


def test_what_has_nothing_to_do_with_its_keys_leaves_it_good(sale: Sale) -> None:
    """Balances, other channels and the channel's own sums are execution's to judge."""
    state = sale.chain.state()
    channel = state.get(tables.CHANNEL, sale.session.channel)
    state.put(tables.CHANNEL, (sale.session.channel,), channel._replace(paid=1))
    state.put(tables.CHANNEL, (bytes(32),), channel._replace(spender=NEW.key))
    state.put(tables.ACCOUNT, (PAYER.key,), tables.Account(9, 0))
    assert is_still_good(state, sale.admitted)


def test_a_minimum_at_the_mean_fee_still_admits(sale: Sale) -> None:
    state = sale.chain.state()
    state.put(tables.PARAMETER, (b"min_receipt_fee",), tables.Parameter((27_309_200,)))
    assert sale.admit(state).min_receipt_fee == 27_309_200


@pytest.mark.parametrize("piece", ["header", "signature", "body"])
def test_a_damaged_bundle_is_never_admitted(sale: Sale, piece: str) -> None:
    good = getattr(sale.bundle, piece)
    bad = sale.bundle._replace(**{piece: good[:-1] + bytes([good[-1] ^ 1])})
    with pytest.raises(Invalid, match=r"bundle\."):
        admit_bundle(sale.chain.state(), sale.chain.chain_id, bad)


def test_a_block_executes_what_is_known_without_its_body(sale: Sale) -> None:
    """The body was read and its signatures verified once, when it came."""
    chain, payload = sale.chain, Payload(bundles=(sale.bundle.hash,))
    known = {sale.bundle.hash: sale.admitted}
    by_memory = execute_block(RULES_1, chain.state(), chain.context(), payload, {}, known)
    assert by_memory == chain.execute(bundles=(sale.bundle,))


def test_a_block_checks_again_what_its_own_state_has_voided(sale: Sale) -> None:
    """Else two nodes that remember different things would disagree on the block."""
    chain, payload = sale.chain, Payload(bundles=(sale.bundle.hash,))
    known, bodies = {sale.bundle.hash: sale.admitted}, {sale.bundle.hash: sale.bundle}
    for memory in ({}, known):
        state = chain.state()
        rotate(state, sale)
        with pytest.raises(Invalid, match=r"bundle\.provider"):
            execute_block(RULES_1, state, chain.context(), payload, bodies, memory)
