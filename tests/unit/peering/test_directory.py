"""Offers: the newest good one of each provider is kept, told and asked for."""

import pytest
import trio
from bundle_kit import CHAIN, party
from ledger_kit import NOW_MS, PROVIDER, add_provider, new_state

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.wire.orders import (
    Load,
    Offer,
    OfferedModel,
    decode_offer,
    encode_offer,
    offer_message,
)
from node.peering.directory import Directory
from node.peering.topics import SignedOffer
from p2p.errors import Misbehaving
from p2p.memory import MemoryHub

KEYS = [party(f"node {i}").key for i in range(3)]


def offer(seq: int = 1, expires_ms: int = NOW_MS + 60_000, **fields) -> Offer:
    made = Offer(
        1, PROVIDER.key, KEYS[0], seq, (), (OfferedModel(1, 1, 1, 0),), Load(8, 0, 50), expires_ms
    )
    return made._replace(**fields)


def signed(made: Offer, by=PROVIDER) -> SignedOffer:
    raw = encode_offer(made)
    return SignedOffer(raw, by.sign(offer_message(CHAIN, raw)), decode_offer(raw))


def make_state():
    state = new_state()
    provider = state.get(tables.PROVIDER, PROVIDER.key)._replace(peer_key=KEYS[0])
    state.put(tables.PROVIDER, (PROVIDER.key,), provider)
    return state


def directory(network=None, state=None) -> Directory:
    made = state or make_state()
    return Directory(
        network=network or MemoryHub(1).network(KEYS[2]), chain_id=CHAIN,
        get_state=lambda: made, now_ms=lambda: NOW_MS,
    )  # fmt: skip


def test_an_offer_that_may_not_be_told_on_is_neither_kept_nor_told() -> None:
    """On a public network: who buys would dial its private address, and so would all it tells."""
    held = directory()
    held._network.may_tell = lambda addresses: b"/ip4/10.0.0.1/tcp/1" not in addresses
    assert not held.take(signed(offer(addresses=(b"/ip4/8.8.8.8/tcp/1", b"/ip4/10.0.0.1/tcp/1"))))
    assert held.offers() == []
    assert held.counters["not_tellable"] == 1
    assert held.take(signed(offer(addresses=(b"/ip4/8.8.8.8/tcp/1",))))


def test_only_a_newer_offer_replaces_what_is_held() -> None:
    held = directory()
    assert held.take(signed(offer(5)))
    assert not held.take(signed(offer(5)))
    assert not held.take(signed(offer(4)))
    assert held.take(signed(offer(6)))
    assert [o.seq for o in held.offers()] == [6]
    assert held.find_peer(PROVIDER.key) == KEYS[0]


NOT_TAKEN = {
    "an unknown provider": offer(provider=party("nobody").key),
    "another peer than the ledger's": offer(peer_key=KEYS[1]),
    "expired": offer(expires_ms=NOW_MS),
    "too far ahead": offer(expires_ms=NOW_MS + 300_001),
}


@pytest.mark.parametrize("desc", sorted(NOT_TAKEN))
def test_an_offer_that_is_not_in_order_is_not_taken(desc: str) -> None:
    assert not directory().take(signed(NOT_TAKEN[desc]))


def test_an_offer_at_the_edge_of_its_time_is_taken() -> None:
    assert directory().take(signed(offer(expires_ms=NOW_MS + 300_000)))


def test_a_paused_providers_offer_is_not_taken() -> None:
    state = make_state()
    paused = state.get(tables.PROVIDER, PROVIDER.key)._replace(status=tables.PROVIDER_PAUSED)
    state.put(tables.PROVIDER, (PROVIDER.key,), paused)
    assert not directory(state=state).take(signed(offer()))


def test_a_false_signature_is_refused() -> None:
    with pytest.raises(Invalid, match=r"offer\.signature"):
        directory().take(signed(offer(), by=party("thief")))


async def test_offers_are_heard_and_asked_for(autojump_clock) -> None:
    state = make_state()
    other = party("other provider")
    add_provider(state, other, other)
    record = state.get(tables.PROVIDER, other.key)._replace(peer_key=KEYS[1])
    state.put(tables.PROVIDER, (other.key,), record)
    hub = MemoryHub(seed=2)
    networks = [hub.network(key) for key in KEYS]
    made = [directory(network, state) for network in networks]

    def make(seq: int, expires_ms: int) -> Offer:
        return offer(seq, min(expires_ms, NOW_MS + 200_000))

    async with trio.open_nursery() as nursery:
        for network in networks[:2]:
            await nursery.start(network.run)
        for one in made[:2]:
            nursery.start_soon(one.run)
        await trio.sleep(3)
        nursery.start_soon(made[0].run_sender, make, PROVIDER.sign)
        await trio.sleep(5)
        assert [o.provider for o in made[1].offers()] == [PROVIDER.key]
        await nursery.start(networks[2].run)  # comes late, and asks
        nursery.start_soon(made[2].run)
        await trio.sleep(10)
        assert [o.provider for o in made[2].offers()] == [PROVIDER.key]
        before = made[1].offers()[0].seq
        made[0].note_change()
        await trio.sleep(5)
        assert made[1].offers()[0].seq > before
        nursery.cancel_scope.cancel()


async def test_a_question_out_of_bounds_counts_against_who_asks() -> None:
    held = directory()
    for body in (b"", b"\x92\x00\x00", b"\x92\x00\x41", b"\xc1"):
        with pytest.raises(Misbehaving):
            await held.answer(KEYS[0], body)
