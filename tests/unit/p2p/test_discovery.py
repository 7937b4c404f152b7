"""Finding peers: by exchange, from the book, again after a restart; and who is never dialled."""

import pytest
import trio
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils.varint import decode_varint_with_size
from multiaddr import Multiaddr
from network_kit import CHAIN, World, admitted, seed_of, wait_until

from p2p.errors import Misbehaving, Unreachable
from p2p.framing import decode, encode
from p2p.network import Libp2pNetwork
from p2p.peers import peer_id_text

HERE = "/ip4/127.0.0.1/tcp/0"


def network_of(number, **options):
    return Libp2pNetwork(
        seed=seed_of(number), chain_id=CHAIN, listen=[HERE], reach="devnet", **options
    )


async def test_peers_meet_through_a_third_and_go_on_without_it(nursery):
    world = World("libp2p")
    async with trio.open_nursery() as inner:
        (first,) = await world.start(inner, 1)
        others = await world.start(nursery, 3, is_met=False)
        await wait_until(lambda: all(admitted(n) == 3 for n in [first, *others]))
        inner.cancel_scope.cancel()
    await wait_until(lambda: all(admitted(n) == 2 for n in others))


async def test_book_brings_peers_back_without_bootstrap(nursery, tmp_path):
    book = tmp_path / "peers.msgpack"
    a = network_of(1)
    await nursery.start(a.run)
    async with trio.open_nursery() as inner:
        b = network_of(2, bootstrap=a.addresses(), book=book)
        await inner.start(b.run)
        await wait_until(lambda: admitted(b) == 1)
        inner.cancel_scope.cancel()
    await wait_until(lambda: not a.peers())
    again = network_of(2, book=book)
    await nursery.start(again.run)
    await wait_until(lambda: admitted(again) == 1)


async def test_unreadable_book_is_put_aside_and_the_node_starts(nursery, tmp_path):
    book = tmp_path / "peers.msgpack"
    book.write_bytes(b"rubbish")
    network = network_of(1, book=book)
    await nursery.start(network.run)
    assert network.statistics().faults["book_unreadable"] == 1
    assert (tmp_path / "peers.msgpack.unreadable").exists()


async def test_ban_outlives_a_restart(nursery, tmp_path):
    book = tmp_path / "peers.msgpack"
    liar = bytes(32)
    async with trio.open_nursery() as inner:
        network = network_of(1, book=book)
        await inner.start(network.run)
        network.penalise(liar, 100, "forged")
        inner.cancel_scope.cancel()
    again = network_of(1, book=book)
    await nursery.start(again.run)
    assert again.statistics().bans == 1


async def test_denied_peer_is_neither_dialled_nor_let_in(nursery):
    a = network_of(1)
    await nursery.start(a.run)
    b = network_of(2, bootstrap=a.addresses(), deny=[peer_id_text(a.me)])
    await nursery.start(b.run)
    c = network_of(3, deny=["127.0.0.0/8"])
    await nursery.start(c.run)
    d = network_of(4, bootstrap=c.addresses())
    await nursery.start(d.run)
    e = network_of(5)
    f = network_of(6, deny=[peer_id_text(e.me)])
    await nursery.start(f.run)
    e.add(f.addresses()[0])
    await nursery.start(e.run)
    await wait_until(lambda: d.statistics().dials and e.statistics().dials)
    await trio.sleep(0.5)
    assert not b.statistics().dials
    assert not any(network.peers() for network in (b, c, f))


async def test_peer_that_one_of_ours_wants_is_dialled_where_it_says_it_is(nursery):
    a, b = network_of(1), network_of(2)
    for network in (a, b):
        await nursery.start(network.run)
    told = [text.encode() for text in b.announced()]
    await a.reach(b.me, [b"\xff", b"/ip4/1.2.3.4/udp/1", *told])
    assert a.peers()[0].admitted
    await a.reach(b.me, [])  # it is here


async def test_peer_that_may_not_be_dialled_is_not_reached(nursery, monkeypatch):
    monkeypatch.setattr("p2p.network.REACH_S", 0.4)
    b = network_of(2)
    await nursery.start(b.run)
    told = [text.encode() for text in b.announced()]
    public = Libp2pNetwork(seed=seed_of(1), chain_id=CHAIN, listen=[], reach="public")
    denying = network_of(3, deny=["127.0.0.0/8"])
    for network in (public, denying):
        await nursery.start(network.run)
        with pytest.raises(Unreachable):
            await network.reach(b.me, told)
        assert not network.statistics().dials


async def identified(network):
    """Addresses that it tells who asks by identify."""
    said = []

    class Asked:
        async def write(self, raw):
            said.append(raw)

        async def close(self):
            """It is told."""

    await network._stack._host.multiselect.handlers[IDENTIFY](Asked())
    length, size = decode_varint_with_size(said[0])
    told = Identify.FromString(said[0][size : size + length])
    own = f"/p2p/{peer_id_text(network.me)}"
    return [str(Multiaddr(raw)).removesuffix(own) for raw in told.listen_addrs]


async def test_public_network_is_told_only_what_its_peers_can_dial(nursery):
    """In our record, to identify and in offers: nothing private, no name."""
    at_home = Libp2pNetwork(seed=seed_of(1), chain_id=CHAIN, listen=[HERE], reach="public")
    public = "/ip4/8.8.8.8/tcp/7017"
    known = Libp2pNetwork(
        seed=seed_of(2), chain_id=CHAIN, listen=[HERE], reach="public", announce=[public]
    )
    for network, told in ((at_home, []), (known, [public])):
        await nursery.start(network.run)
        assert [a.text() for a in network._own_record().addresses] == told
        assert [str(a) for a in network._stack._host.get_addrs()] == [
            f"{text}/p2p/{peer_id_text(network.me)}" for text in told
        ]
        assert list(network.announced()) == told
        assert await identified(network) == told
    for text in ("/ip4/10.0.0.1/tcp/1", "/dns4/node.example.org/tcp/1"):
        with pytest.raises(ValueError, match=text):
            Libp2pNetwork(seed=seed_of(3), chain_id=CHAIN, listen=[], announce=[text])


async def test_deny_list_with_nonsense_fails_in_one_line():
    with pytest.raises(ValueError, match="nonsense"):
        network_of(1, deny=["nonsense"])


async def test_exchange_gives_at_most_what_is_asked_and_never_the_asker(nursery):
    networks = await World("libp2p").start(nursery, 4)
    asked, asker = networks[0], networks[1]
    raw = await asked._discovery.answer_peers(asker.me, encode((1,)))
    assert len(decode(raw, 10_000)) == 1
    raw = await asked._discovery.answer_peers(asker.me, encode((64,)))
    told = {record[0][1] for record in decode(raw, 10_000)}
    assert told == {networks[2].me, networks[3].me}
    for count in (0, 65):
        with pytest.raises(Misbehaving):
            await asked._discovery.answer_peers(asker.me, encode((count,)))


async def test_reserved_peer_gone_is_dialled_again(nursery, monkeypatch):
    monkeypatch.setattr("p2p.discovery.BACKOFF_FIRST_S", 0.2)
    async with trio.open_nursery() as inner:
        a = network_of(1)
        await inner.start(a.run)
        address = a.addresses()[0]
        b = network_of(2, reserved=[address])
        await nursery.start(b.run)
        await wait_until(lambda: admitted(b) == 1)
        assert b.peers()[0].reserved
        inner.cancel_scope.cancel()
    await wait_until(lambda: not b.peers())
    again = network_of(1)
    again._listen = (type(again._listen[0])("ip4", "127.0.0.1", int(address.split("/")[4])),)
    await nursery.start(again.run)
    await wait_until(lambda: admitted(b) == 1)


async def test_inbound_peers_over_the_limit_are_refused(nursery):
    a = network_of(1, inbound_max=2)
    await nursery.start(a.run)
    others = [network_of(number, bootstrap=a.addresses()) for number in (2, 3, 4)]
    for network in others:
        await nursery.start(network.run)
    await wait_until(lambda: sum(admitted(n) >= 1 for n in others) >= 2)
    await trio.sleep(0.5)
    assert len(a.peers()) == 2
