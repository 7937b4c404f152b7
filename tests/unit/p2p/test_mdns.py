"""Neighbours by multicast DNS: what is told, what is taken, and that only our dialler dials."""

import random
import socket
import struct

import pytest
import trio
from network_kit import CHAIN, admitted, seed_of, wait_until

from p2p.addresses import Address
from p2p.counters import Counters
from p2p.errors import Misbehaving
from p2p.limits import HINT_ADDRESSES_MAX, HINTED_MAX, MDNS_QUEUE_MAX, MDNS_TEXT_BYTES_MAX
from p2p.mdns import (
    Mdns,
    decode_texts,
    encode_texts,
    is_neighbourly,
    service_type,
    spelled_out,
)
from p2p.network import Libp2pNetwork
from p2p.peers import PeerId, peer_id_text

HERE = "/ip4/127.0.0.1/tcp/0"
PEER, OTHER = PeerId(b"p" * 32), PeerId(b"o" * 32)
NEAR = Address("ip4", "192.168.1.7", 7017)


def network_of(number, **options):
    options = {"chain_id": CHAIN, "listen": [HERE], "reach": "devnet", "mdns": True} | options
    return Libp2pNetwork(seed=seed_of(number), **options)


def text_of(*texts):
    return b"".join(bytes([len(text)]) + text for text in texts)


def dnsaddr(address="/ip4/192.168.1.7/tcp/7017", peer=PEER):
    return f"dnsaddr={address}/p2p/{peer_id_text(peer)}".encode()


@pytest.mark.parametrize(
    ("host", "on_devnet", "on_lan"),
    [
        ("192.168.1.7", True, True),
        ("10.0.0.1", True, True),
        ("169.254.3.4", True, True),
        ("127.0.0.1", True, False),
        ("8.8.8.8", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.251", False, False),
    ],
)
def test_only_private_addresses_are_told_and_taken(host, on_devnet, on_lan):
    address = Address("ip4", host, 7017)
    told = [is_neighbourly(address, reach) for reach in ("devnet", "lan", "public")]
    assert told == [on_devnet, on_lan, False]
    raw = text_of(dnsaddr(f"/ip4/{host}/tcp/7017"))
    assert [decode_texts(raw, reach) is not None for reach in ("devnet", "lan", "public")] == told


def test_name_of_a_machine_is_not_taken():
    assert not is_neighbourly(Address("dns4", "printer.local", 7017), "lan")
    assert decode_texts(text_of(dnsaddr("/dns4/printer.local/tcp/7017")), "lan") is None


def test_text_is_read_as_it_was_written():
    addresses = (NEAR, Address("ip6", "fd00::7", 7017))
    assert decode_texts(encode_texts(PEER, addresses), "lan") == (PEER, addresses)


def test_foreign_texts_beside_ours_are_passed_over():
    raw = text_of(
        b"",
        b"id=7",
        b"dnsaddr=",
        b"dnsaddr=\xff\xfe",
        b"dnsaddr=/ip4/192.168.1.8/tcp/1",  # of nobody
        f"dnsaddr=/ip4/192.168.1.7/udp/4001/quic-v1/p2p/{peer_id_text(OTHER)}".encode(),
        dnsaddr(),
    )
    assert decode_texts(raw, "lan") == (PEER, (NEAR,))


def test_more_addresses_than_we_try_are_dropped():
    raw = text_of(*(dnsaddr(f"/ip4/10.0.0.{n}/tcp/1") for n in range(1, 9)))
    assert len(decode_texts(raw, "lan")[1]) == HINT_ADDRESSES_MAX


@pytest.mark.parametrize(
    "raw",
    [
        text_of(dnsaddr())[:-1],
        text_of(dnsaddr(), dnsaddr(peer=OTHER)),
        text_of(b"x" * 200) * (MDNS_TEXT_BYTES_MAX // 201 + 1),
    ],
    ids=["cut short", "of two peers", "too long"],
)
def test_bad_text_is_refused(raw):
    with pytest.raises(Misbehaving):
        decode_texts(raw, "lan")


def test_flipped_bits_and_random_bytes_raise_only_misbehaving():
    chance = random.Random(5)
    good = text_of(dnsaddr(), dnsaddr("/ip6/fd00::7/tcp/1"))
    for _ in range(4_000):
        raw = bytearray(good if chance.random() < 0.7 else chance.randbytes(chance.randrange(90)))
        for _ in range(chance.randrange(4)):
            if raw:
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        try:
            told = decode_texts(bytes(raw), "lan")
        except Misbehaving:
            continue
        assert told is None or all(is_neighbourly(address, "lan") for address in told[1])


def test_listening_everywhere_is_told_as_the_addresses_of_this_machine():
    told = spelled_out([Address("ip4", "0.0.0.0", 7017), Address("ip6", "::", 7018), NEAR])
    assert Address("ip4", "127.0.0.1", 7017) in told
    assert NEAR in told
    assert not any(address.ip().is_unspecified for address in told)


def test_name_is_the_chains_and_short_enough():
    assert service_type(CHAIN) != service_type(bytes(32))
    assert len(service_type(CHAIN).partition(".")[0]) <= 16  # an underscore and 15 (RFC 6335)


def test_public_network_takes_no_mdns():
    with pytest.raises(ValueError, match="private addresses"):
        network_of(1, reach="public")


# --- what is done with what was heard


class Ear:
    """An Mdns that hears what a test says, and what it made of it."""

    def __init__(self):
        self.found, self.lost, self.counters = [], [], Counters()
        self.mdns = Mdns(
            me=OTHER,
            chain_id=CHAIN,
            reach="lan",
            counters=self.counters,
            found=lambda peer, addresses: self.found.append((peer, addresses)),
            lost=self.lost.append,
        )
        self.mdns._token = trio.lowlevel.current_trio_token()

    async def hears(self, name, texts):
        self.mdns._hear(name, texts)
        await trio.testing.wait_all_tasks_blocked()


async def test_peer_is_found_and_lost_by_its_name():
    ear = Ear()
    await ear.hears("a", text_of(dnsaddr()))
    await ear.hears("b", None)
    assert (ear.found, ear.lost) == ([(PEER, (NEAR,))], [])
    await ear.hears("a", None)
    assert ear.lost == [PEER]


async def test_our_own_echo_and_rubbish_find_nobody():
    ear = Ear()
    await ear.hears("a", text_of(dnsaddr(peer=OTHER)))
    await ear.hears(ear.mdns._name, text_of(dnsaddr()))
    await ear.hears("b", text_of(dnsaddr())[:-1])
    assert (ear.found, ear.lost) == ([], [])
    assert ear.counters.faults["mdns text"] == 1


async def test_chatterer_fills_a_bounded_queue():
    ear = Ear()
    for number in range(MDNS_QUEUE_MAX + 7):
        ear.mdns._hear(str(number), text_of(dnsaddr()))
    await trio.testing.wait_all_tasks_blocked()
    assert len(ear.found) == MDNS_QUEUE_MAX
    assert ear.counters.queue_dropped["mdns", "shed"] == 7


async def test_neighbours_that_are_remembered_are_bounded(monkeypatch):
    """A name costs whoever makes it up nothing; those that we know are heard on."""
    monkeypatch.setattr("p2p.mdns.MDNS_PEERS_MAX", 2)
    ear = Ear()
    for name in ("a", "b", "c", "a"):
        await ear.hears(name, text_of(dnsaddr()))
    assert sorted(ear.mdns._peers) == ["a", "b"]
    assert ear.counters.queue_dropped["mdns", "full"] == 1
    await ear.hears("a", None)
    await ear.hears("c", text_of(dnsaddr()))
    assert sorted(ear.mdns._peers) == ["b", "c"]


async def test_hints_are_bounded_and_neither_kept_nor_told_on(tmp_path):
    network = network_of(1, reach="lan", book=tmp_path / "peers.msgpack")
    discovery = network._discovery
    for number in range(HINTED_MAX + 1):
        discovery.hint(PeerId(number.to_bytes(32, "big")), (NEAR,))
    assert discovery.known() == HINTED_MAX
    assert network.statistics().queue_dropped["hints", "shed"] == 1
    discovery._book.find(PeerId((7).to_bytes(32, "big"))).failures = 1
    discovery.hint(OTHER, (NEAR,))
    assert discovery._book.find(OTHER), "in place of one that was dialled in vain"
    await discovery._save()
    assert network_of(1, reach="lan", book=tmp_path / "peers.msgpack")._discovery.known() == 0
    assert await discovery.answer_peers(PEER, b"\x91\x40") == b"\x90"
    discovery.drop_hint(PeerId(bytes(32)))
    assert discovery.known() == HINTED_MAX - 1


async def test_other_addresses_of_this_machine_are_told_anew(nursery, monkeypatch):
    monkeypatch.setattr("p2p.mdns.MDNS_LOOK_S", 0.01)
    ear, begun, ended = Ear(), [], []
    ear.mdns._begin = lambda told: begun.append(told) or ("zeroconf", "browser")
    monkeypatch.setattr("p2p.mdns._end", lambda zeroconf, browser: ended.append(1))
    now = [NEAR]
    nursery.start_soon(ear.mdns.run, lambda: now)
    await wait_until(lambda: begun == [[NEAR]])
    await trio.sleep(0.1)
    assert len(begun) == 1
    now[:] = [Address("ip4", "10.0.0.9", 7017)]
    await wait_until(lambda: len(begun) == 2)
    assert (begun[1], ended) == (now, [1])


# --- over real multicast, on loopback


def has_multicast():
    """Whether this machine carries multicast over loopback."""
    group = "224.0.0.251"
    membership = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        ear.settimeout(1)
        try:
            ear.bind(("", 0))
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            mouth.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            mouth.sendto(b"x", (group, ear.getsockname()[1]))
            return ear.recv(1) == b"x"
        except OSError:
            return False


@pytest.fixture
def multicast():
    if not has_multicast():
        pytest.skip("this machine carries no multicast over loopback")


async def test_neighbours_meet_without_a_bootstrap_and_other_chains_do_not(multicast, nursery):
    a = network_of(1)
    stranger = network_of(3, chain_id=bytes(32))
    async with trio.open_nursery() as inner:
        b = network_of(2)
        for network, owner in ((a, nursery), (stranger, nursery), (b, inner)):
            await owner.start(network.run)
        await wait_until(lambda: admitted(a) == admitted(b) == 1, 30)
        assert {peer for n in (a, b) for peer in n._mdns._peers.values()} <= {a.me, b.me}
        assert not stranger.peers()
        assert not stranger.statistics().dials
        await wait_until(lambda: b.me in a._mdns._peers.values(), 30)
        inner.cancel_scope.cancel()
    await wait_until(lambda: not a._mdns._peers and not a.peers(), 30)  # it said goodbye


@pytest.mark.slow
async def test_denied_neighbour_is_not_dialled(multicast, nursery):
    a = network_of(1, listen=[HERE], deny=[peer_id_text(seed_key(2))])
    b = network_of(2, deny=["127.0.0.0/8"])
    await nursery.start(a.run)
    await nursery.start(b.run)
    await wait_until(lambda: a._mdns._peers and b._mdns._peers, 30)
    await trio.sleep(0.6)
    assert not a.statistics().dials
    assert not b.statistics().dials


def seed_key(number):
    return network_of(number, mdns=False).me


async def test_service_that_cannot_be_told_is_no_reason_to_fall(nursery, monkeypatch):
    from zeroconf import NonUniqueNameException, Zeroconf

    closed = []
    close = Zeroconf.close
    monkeypatch.setattr(Zeroconf, "close", lambda self: closed.append(1) or close(self))

    def taken(self, info):
        raise NonUniqueNameException

    monkeypatch.setattr(Zeroconf, "register_service", taken)
    network = network_of(1)
    await nursery.start(network.run)
    await wait_until(lambda: network.statistics().faults.get("mdns") == 1)
    assert (closed, network.statistics().restarts) == ([1], 0)


async def test_machine_without_multicast_is_told_of_once(nursery):
    network = network_of(1, reach="lan")  # it listens on loopback alone: nothing to tell a wire
    await nursery.start(network.run)
    await wait_until(lambda: network.statistics().faults.get("mdns") == 1)
