"""Circuits: who may have one, what it carries, and how it ends. All over real connections."""

import contextlib
import random
from types import SimpleNamespace

import pytest
import trio
from libp2p.custom_types import TProtocol
from network_kit import CHAIN, admitted, seed_of, wait_until

from p2p import relay as relay_module
from p2p.counters import Counters
from p2p.errors import NetworkError, Unreachable
from p2p.gossip import Verdict
from p2p.limits import (
    HEARTBEAT_S,
    PROTOCOLS,
    RELAY_LOOK_S,
    RELAYED_PROTOCOLS,
    RESERVATION_S,
    RESERVATIONS_MAX,
    TOPICS,
)
from p2p.network import Libp2pNetwork
from p2p.peers import PeerId, StatusFacts, peer_id_text
from p2p.relay import HOP, RELAY_ROLE, STOP, Relaying, Way, id_of, is_circuit, pb

HERE = "/ip4/127.0.0.1/tcp/0"
ASK = {"timeout_s": 5, "bytes_max": 300_000}


async def echo(peer, body):
    return body


async def bounce(peer, stream):
    while True:
        await stream.write(await stream.read(99, 5), 5)


def network_of(number, **options):
    options = {"listen": [HERE], "reach": "devnet", "chain_id": CHAIN} | options
    network = Libp2pNetwork(seed=seed_of(number), **options)
    for protocol in ("light", "blob"):
        network.serve(protocol, echo, PROTOCOLS[protocol])
    network.accept("infer", bounce, PROTOCOLS["infer"])
    network.subscribe("votes", lambda *told: Verdict.ACCEPT, TOPICS["votes"])
    return network


class Scene:
    """A relay, one who listens nowhere and is reached through it, and one who calls."""

    def __init__(self, nursery):
        self._nursery = nursery
        self.relay = network_of(1, relay="server", facts=lambda: StatusFacts(roles=RELAY_ROLE))

    async def start(self):
        await self._nursery.start(self.relay.run)
        self.hidden = network_of(2, relay="client", listen=[], bootstrap=self.relay.addresses())
        await self._nursery.start(self.hidden.run)
        await wait_until(lambda: self.hidden.announced(), 20)
        return self

    def address(self):
        """Where the hidden one can be called, in full."""
        return f"{self.hidden.announced()[0]}/p2p/{peer_id_text(self.hidden.me)}"

    async def caller(self, number=3, **options):
        options = {"relay": "client", "listen": [], "reserved": [self.address()]} | options
        network = network_of(number, **options)
        await self._nursery.start(network.run)
        return network


@pytest.fixture
async def scene(nursery, monkeypatch):
    monkeypatch.setattr(relay_module, "RELAY_LOOK_S", 0.1)
    return await Scene(nursery).start()


def view_of(network, peer):
    return next((view for view in network.peers() if view.peer == peer.me), None)


async def met(caller, scene):
    await wait_until(lambda: (view_of(caller, scene.hidden) or scene.relay.peers()[0]).admitted, 20)
    await wait_until(lambda: scene.hidden.members.is_admitted(caller.me), 20)
    await wait_until(lambda: caller.members.is_admitted(scene.hidden.me), 20)


async def test_peer_that_nobody_can_dial_is_reached_through_a_relay(scene):
    assert scene.hidden.announced() == (f"{scene.relay.addresses()[0]}/p2p-circuit",)
    caller = await scene.caller()
    await met(caller, scene)
    assert await caller.request(scene.hidden.me, "light", b"x" * 60_000, **ASK) == b"x" * 60_000
    assert await scene.hidden.request(caller.me, "light", b"y", **ASK) == b"y"
    stream = await caller.open(scene.hidden.me, "infer")
    for word in (b"one", b"two"):
        await stream.write(word, 5)
        assert await stream.read(99, 5) == word
    await stream.reset()
    assert scene.relay.statistics().circuits["carried"] == 1
    assert scene.hidden.statistics().circuits["taken"] == 1


async def test_circuit_carries_no_gossip_no_consensus_and_no_blobs(scene):
    caller = await scene.caller()
    await met(caller, scene)
    for asker, asked in ((caller, scene.hidden), (scene.hidden, caller)):
        with pytest.raises(Unreachable, match="through a relay only"):
            await asker.request(asked.me, "blob", b"x", **ASK)
        with pytest.raises(Unreachable, match="through a relay only"):
            await asker.open(asked.me, "consensus")
    await trio.sleep(HEARTBEAT_S + 0.1)
    for network, other in ((caller, scene.hidden), (scene.hidden, caller)):
        assert id_of(other.me) not in network._stack.pubsub.peers
        assert network.statistics().mesh_peers["votes"] == 1, "with the relay alone"
    assert "consensus" not in RELAYED_PROTOCOLS


@pytest.mark.slow
async def test_peer_that_sends_more_than_requests_through_a_circuit_is_reset(scene, monkeypatch):
    """The other side need not be as polite as we are."""
    caller = await scene.caller()
    await met(caller, scene)
    monkeypatch.setattr(caller._stack, "_is_relayed", lambda peer_id: False)
    monkeypatch.setattr(caller._stack.pubsub, "_is_relayed", lambda peer_id: False)
    with pytest.raises(NetworkError):
        await caller.request(scene.hidden.me, "blob", b"x", **ASK)
    await caller._stack.pubsub.ensure_peer_stream(id_of(scene.hidden.me), 1)
    await trio.sleep(0.5)
    heard = scene.hidden._stack.pubsub.peer_topics.values()
    assert id_of(scene.relay.me) in set().union(*heard)
    assert id_of(caller.me) not in set().union(*heard)
    assert await caller.request(scene.hidden.me, "light", b"x", **ASK) == b"x"


async def test_link_through_a_relay_is_none_of_the_outbound_peers(scene):
    caller = await scene.caller(reserved=[], bootstrap=scene.relay.addresses())
    await wait_until(lambda: admitted(caller) == 1)
    caller.add(scene.address())
    await met(caller, scene)
    assert caller.members.find_link(scene.hidden.me).relayed
    caller.members._configured = frozenset()
    assert caller._discovery._outbound() == 1


@pytest.mark.slow
async def test_others_are_told_soon_through_whom_we_can_be_called(scene):
    link = scene.relay.members.find_link(scene.hidden.me)
    told = scene.hidden.announced()
    await wait_until(lambda: tuple(a.text() for a in link.record.addresses) == told, 20)


@pytest.mark.slow
async def test_dialler_with_the_relay_off_passes_such_addresses_over(scene):
    caller = await scene.caller(relay="off", bootstrap=scene.relay.addresses())
    await wait_until(lambda: admitted(caller) == 1)
    caller.members.learn_record(scene.hidden._own_record(), scene.relay.me)
    assert caller._discovery._book.find(scene.hidden.me).record.addresses
    await trio.sleep(1)
    assert view_of(caller, scene.hidden) is None
    assert caller.statistics().dials["ok"] == 1
    assert not caller.statistics().dials.get("failed")


async def test_relay_ends_a_circuit_after_its_bytes(scene, monkeypatch):
    monkeypatch.setattr(relay_module, "CIRCUIT_BYTES_MAX", 100_000)
    caller = await scene.caller()
    await met(caller, scene)
    with pytest.raises(NetworkError):
        await caller.request(scene.hidden.me, "light", b"x" * 60_000, **ASK)
    assert scene.relay.statistics().circuits["over bytes"] == 1
    await wait_until(lambda: scene.relay._stack._relaying._circuits == [] or admitted(caller) == 2)
    assert scene.relay.peers(), "the relay's own connections stay"


@pytest.mark.slow
async def test_relay_ends_a_silent_circuit_after_its_time(scene, monkeypatch):
    monkeypatch.setattr(relay_module, "CIRCUIT_S", 2.0)
    caller = await scene.caller()
    await met(caller, scene)
    await wait_until(lambda: scene.relay.statistics().circuits.get("over time", 0) >= 1)
    await wait_until(lambda: caller.statistics().dials["ok"] >= 3, 20)  # and it is dialled again
    await met(caller, scene)


# --- what strangers ask of a relay


async def told_by(network, protocol, kind, **fields):
    """What the one peer answers to one message on a new stream."""
    (other,) = network.peers()
    stream = await network._stack._host.new_stream(id_of(other.peer), [TProtocol(protocol)])
    await relay_module._write(stream, kind(**fields))
    return await relay_module._read(stream, kind)


async def linked_with(nursery, relay, number, **options):
    network = network_of(number, listen=[], bootstrap=relay.addresses(), **options)
    await nursery.start(network.run)
    await wait_until(lambda: admitted(network) == 1)
    return network


async def test_place_is_for_the_peer_that_asks_whatever_it_says(scene, nursery):
    """The library's relay lets one stranger take all places under made-up ids."""
    stranger = await linked_with(nursery, scene.relay, 9)
    for number in range(20, 20 + RESERVATIONS_MAX):
        name = pb.PeerId(id=id_of(seed_of(number)).to_bytes())
        answer = await told_by(stranger, HOP, pb.HopMessage, type=pb.HopMessage.RESERVE, peer=name)
        assert answer.status == pb.OK
    assert set(scene.relay._stack._relaying._places) == {scene.hidden.me, stranger.me}


async def test_places_are_bounded_and_end_with_the_connection(scene, nursery, monkeypatch):
    monkeypatch.setattr(relay_module, "RESERVATIONS_MAX", 2)
    reserve = {"type": pb.HopMessage.RESERVE}
    async with trio.open_nursery() as inner:
        second = await linked_with(inner, scene.relay, 9)
        assert (await told_by(second, HOP, pb.HopMessage, **reserve)).status == pb.OK
        third = await linked_with(nursery, scene.relay, 10)
        answer = await told_by(third, HOP, pb.HopMessage, **reserve)
        assert answer.status == pb.RESERVATION_REFUSED
        inner.cancel_scope.cancel()
    await wait_until(lambda: not scene.relay.members.is_admitted(second.me))
    assert (await told_by(third, HOP, pb.HopMessage, **reserve)).status == pb.OK


async def test_nobody_is_called_who_has_no_place(scene, nursery):
    one = await linked_with(nursery, scene.relay, 9)
    two = await linked_with(nursery, scene.relay, 10)
    connect = {"type": pb.HopMessage.CONNECT, "peer": pb.PeerId(id=id_of(two.me).to_bytes())}
    assert (await told_by(one, HOP, pb.HopMessage, **connect)).status == pb.NO_RESERVATION
    rubbish = {"type": pb.HopMessage.CONNECT, "peer": pb.PeerId(id=b"rubbish")}
    assert (await told_by(one, HOP, pb.HopMessage, **rubbish)).status == pb.MALFORMED_MESSAGE


async def test_peer_of_another_chain_gets_no_place(scene, nursery):
    stranger = network_of(9, listen=[], bootstrap=scene.relay.addresses(), chain_id=bytes(32))
    await nursery.start(stranger.run)
    await wait_until(lambda: stranger.statistics().requests, 20)
    assert scene.relay._stack._relaying._places.keys() == {scene.hidden.me}
    assert not scene.relay.members.is_admitted(stranger.me)


async def test_who_is_not_admitted_gets_nothing(scene, nursery):
    stranger = await linked_with(nursery, scene.relay, 9)
    scene.relay.members.find_link(stranger.me).admitted = False
    for kind in (pb.HopMessage.RESERVE, pb.HopMessage.CONNECT):
        answer = await told_by(stranger, HOP, pb.HopMessage, type=kind)
        assert answer.status == pb.PERMISSION_DENIED


async def test_only_our_own_relay_may_hand_us_a_caller(scene, nursery):
    """Anybody else would have us shake hands with whomever it likes."""
    stranger = await linked_with(nursery, scene.relay, 9)
    call = {"type": pb.StopMessage.CONNECT, "peer": pb.PeerId(id=id_of(stranger.me).to_bytes())}
    answer = await told_by(stranger, STOP, pb.StopMessage, **call)
    assert answer.status == pb.PERMISSION_DENIED


@pytest.mark.slow
async def test_garbage_ends_nothing_but_its_sender(scene, nursery):
    stranger = await linked_with(nursery, scene.relay, 9)
    chance, host = random.Random(7), stranger._stack._host
    for _ in range(20):
        with contextlib.suppress(Exception):  # at last it is banned
            stream = await host.new_stream(id_of(scene.relay.me), [TProtocol(HOP)])
            await stream.write(b"\x08" + chance.randbytes(8))
            await stream.read(1)
    await wait_until(lambda: stranger.me in scene.relay.bans())
    assert scene.relay.statistics().restarts == 0
    await met(await scene.caller(), scene)


async def test_off_means_off(nursery):
    network = network_of(1)
    await nursery.start(network.run)
    assert not {HOP, STOP} & set(network._stack._host.get_mux().handlers)


async def test_place_that_stands_is_not_asked_for_again(scene):
    await trio.sleep(0.35)  # three looks
    assert scene.relay.statistics().circuits["reserved"] == 1


async def test_place_ends_with_the_connection_that_it_was_given_on(autojump_clock, nursery):
    """A relay that was started anew between two looks knows of no place."""
    relay, here, asked = PeerId(bytes(32)), [SimpleNamespace(muxed_conn=object())], []
    way = Way(
        host=SimpleNamespace(set_stream_handler=lambda protocol, handler: None),
        swarm=SimpleNamespace(get_connections=lambda peer_id: here),
        is_admitted=lambda peer: True,
        relays=lambda: [relay],
        changed=lambda: None,
        counters=Counters(),
    )
    client = Relaying(way, "client")

    async def reserve(relay):
        asked.append(relay)
        return here[0].muxed_conn

    client._reserve = reserve
    nursery.start_soon(client.keep_reserved)
    await trio.sleep(10 * RELAY_LOOK_S)
    assert len(asked) == 1
    here[0] = SimpleNamespace(muxed_conn=object())
    await trio.sleep(RELAY_LOOK_S + 0.1)
    assert len(asked) == 2
    await trio.sleep(RESERVATION_S / 2 + RELAY_LOOK_S)
    assert len(asked) == 3, "and its time ends"


async def test_circuit_is_told_from_a_connection(scene):
    caller = await scene.caller()
    await met(caller, scene)
    told = {
        peer: [is_circuit(conn.muxed_conn) for conn in conns]
        for peer, conns in caller._stack._swarm.connections.items()
    }
    assert told == {id_of(scene.relay.me): [False], id_of(scene.hidden.me): [True]}
