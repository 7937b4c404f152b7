"""Peers as their operator steers them, over real libp2p."""

import pytest
from network_kit import World, admitted, wait_until

from consensus.primitives.errors import Invalid
from node.neighbours import make_peers
from p2p.peers import peer_id_text


async def test_operator_adds_bans_and_lets_in_again(nursery):
    world = World("libp2p")
    (a,) = await world.start(nursery, 1)
    world._first = None  # so that nobody tells them of each other
    (b,) = await world.start(nursery, 1, is_met=False)
    peers, (address,) = make_peers(a), b.addresses()
    assert peers.add(address) == peer_id_text(b.me)
    await wait_until(lambda: admitted(a) == 1)
    (seen,) = peers.connected()
    assert (seen.peer_id, seen.direction, seen.reserved) == (peer_id_text(b.me), "out", True)
    peers.ban(seen.peer_id, 600)
    await wait_until(lambda: not peers.connected())
    with pytest.raises(Invalid, match="banned"):
        peers.add(address)
    (ban,) = peers.banned()
    assert (ban.peer_id, 590 < ban.seconds_left <= 600) == (seen.peer_id, True)
    assert peers.unban(seen.peer_id)
    assert not peers.unban(seen.peer_id)
    await wait_until(lambda: admitted(a) == 1)


@pytest.mark.parametrize(
    "address", ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/p2p/12D3"]
)
async def test_bad_address_is_refused_by_its_code(nursery, address):
    (a,) = await World("libp2p").start(nursery, 1)
    with pytest.raises(Invalid) as refused:
        make_peers(a).add(address)
    assert refused.value.code == "peers.bad_address"


async def test_node_neither_adds_nor_bans_itself(nursery):
    (a,) = await World("libp2p").start(nursery, 1)
    peers, (address,) = make_peers(a), a.addresses()
    with pytest.raises(Invalid) as refused:
        peers.add(address)
    assert refused.value.code == "peers.bad_address"
    for text in (peer_id_text(a.me), "12D3", "\u00e9"):
        with pytest.raises(Invalid) as refused:
            peers.ban(text, 60)
        assert refused.value.code == "peers.bad_id"
