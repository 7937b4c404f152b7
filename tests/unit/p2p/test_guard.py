"""The guards are in place: a changed library, or a forgotten override, fails here first."""

import contextlib
import importlib.metadata
import os
import struct
import time
from collections import Counter
from dataclasses import replace

import pytest
import trio
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import MessageTooLarge
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.utils.varint import encode_varint_prefixed
from network_kit import CHAIN, World, admitted, wait_until

from p2p import bulk, guard
from p2p.errors import EndOfStream, ListenError, Misbehaving, NetworkError, TooSlow
from p2p.gossip import Verdict
from p2p.host import topic_text
from p2p.limits import (
    COME_ANEW_S,
    NEGOTIATION_LINE_BYTES_MAX,
    OPENED_STREAMS_BURST,
    OPENED_STREAMS_S,
    OUTBOUND_QUEUE,
    OUTBOUND_QUEUE_BYTES_MAX,
    PROTOCOLS,
    PRUNE_BACKOFF_S_MAX,
    REFUSED_STREAMS_MAX,
    REFUSED_STREAMS_S,
    RPC_CONTROLS_MAX,
    RPC_IDS_MAX,
    RPC_MESSAGES_MAX,
    RPC_SUBSCRIPTIONS_MAX,
    RPC_WANTED_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    TOPICS,
    ServeLimits,
)
from p2p.network import part


@pytest.fixture
async def network(nursery):
    (network,) = await World("libp2p").start(
        nursery, 1, lambda n: n.subscribe("votes", lambda *told: Verdict.ACCEPT, TOPICS["votes"])
    )
    return network


def test_libp2p_is_the_pinned_version():
    assert importlib.metadata.version("libp2p") == "0.8.1"


async def test_defaults_that_lose_or_leak_are_off(network):
    stack = network._stack
    router, pubsub, swarm = stack.router, stack.pubsub, stack._swarm
    assert router.heartbeat_interval == 1 == network.statistics().heartbeat_interval_s
    assert router.protocols == ["/meshsub/1.1.0"]
    assert not router.spam_protection_enabled
    assert not router.adaptive_gossip_enabled
    assert not router.eclipse_protection_enabled
    assert not router.do_px
    assert (router.degree_low, router.degree, router.degree_high) == (4, 6, 12)
    assert router._max_pending_messages_per_peer == guard.PENDING_MAX
    assert isinstance(pubsub.validation_cache, guard.NoCache)
    assert pubsub.validation_cache.get(b"id") is None
    assert pubsub.strict_signing
    assert pubsub.counter > 1 << 60  # nanoseconds, not seconds
    assert "/olnode/votes/1/" in next(iter(pubsub.topic_validators))
    assert not next(iter(pubsub.topic_validators.values())).is_async
    assert swarm._resource_manager is None
    assert swarm.retry_config.max_retries == 0
    assert list(swarm.upgrader.security_multistream.transports) == ["/noise"]
    assert list(swarm.upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_overrides_are_in_place(network):
    swarm, host = network._stack._swarm, network._stack._host
    assert swarm.common_stream_handler.__module__ == "p2p.guard"
    assert swarm._do_handle_inbound_connection.__module__ == "p2p.guard"
    assert swarm.auto_connector.maybe_connect.__module__ == "p2p.guard"
    assert host._schedule_identify.__module__ == "p2p.guard"
    assert guard.IDENTIFY_PUSH not in host.multiselect.handlers
    assert host.multiselect.handlers[guard.IDENTIFY].__module__ == "p2p.guard"
    assert YamuxStream._auto_tune_and_send_window_update is bulk.batched_credit
    assert YamuxStream.write is bulk.write_frames
    assert Yamux.read_stream is bulk.read_some
    assert Yamux._read_data_body is bulk.read_body
    assert NoiseTransportReadWriter.write_msg is bulk.write_message
    assert bulk.tcp_module.TrioTCPStream is bulk.BufferedTcpStream
    assert guard.muxer_module.Yamux is guard.GuardedYamux
    assert guard.communicator_module.read_delim is guard._read_line
    queue = guard.pubsub_module.RpcQueue()
    assert queue._queue.max_size == OUTBOUND_QUEUE
    assert guard.gossipsub_module.env_to_send_in_RPC(None) == (b"", False)


async def test_router_holds_no_old_messages(network):
    router = network._stack.router
    router.equivocation_detection["key"] = "message"
    router.recent_message_deliveries["topic"].append(1.0)
    assert router._check_equivocation(None) is True
    router._periodic_security_cleanup()
    assert not router.equivocation_detection
    assert not router.recent_message_deliveries


class Reader:
    """A stream that has come whole; it counts what was taken of it."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0

    async def read(self, n):
        part = self.raw[self.at : self.at + n]
        self.at += len(part)
        return part


async def test_a_line_of_negotiation_is_bounded_before_it_is_read():
    name = b"n" * (NEGOTIATION_LINE_BYTES_MAX - 1)
    assert await guard._read_line(Reader(encode_varint_prefixed(name + b"\n"))) == name
    endless = Reader(encode_varint_prefixed(b"n" + name + b"\n"))
    with pytest.raises(MessageTooLarge):
        await guard._read_line(endless)
    assert endless.at == 2, "its length, and no more"
    with pytest.raises(ParseError):
        await guard._read_line(Reader(b"\x01n"))


@pytest.mark.parametrize(
    ("field", "item", "most"),
    [
        ("publish", rpc_pb2.Message(), RPC_MESSAGES_MAX),
        ("subscriptions", rpc_pb2.RPC.SubOpts(topicid="t"), RPC_SUBSCRIPTIONS_MAX),
    ],
)
async def test_items_of_one_gossip_frame_are_bounded(network, field, item, most):
    pubsub = network._stack.pubsub
    await pubsub._take_rpc(pubsub.my_id, rpc_pb2.RPC(**{field: [item] * most}).SerializeToString())
    over = rpc_pb2.RPC(**{field: [item] * (most + 1)}).SerializeToString()
    with pytest.raises(Misbehaving):
        await pubsub._take_rpc(pubsub.my_id, over)


@pytest.mark.parametrize("kind", ["ihave", "iwant", "graft", "prune", "idontwant"])
def test_control_messages_of_one_frame_are_bounded(kind):
    control = rpc_pb2.ControlMessage()
    for _ in range(RPC_CONTROLS_MAX):
        getattr(control, kind).add()
    guard._prune_control(control, ["t"])
    for _ in range(RPC_CONTROLS_MAX + 1):  # those of no topic of ours are gone
        getattr(control, kind).add()
    with pytest.raises(Misbehaving):
        guard._prune_control(control, ["t"])


@pytest.mark.parametrize("kind", ["ihave", "iwant", "idontwant"])
def test_message_ids_of_one_frame_are_bounded(kind):
    control = rpc_pb2.ControlMessage()
    getattr(control, kind).add(messageIDs=[b"id"] * RPC_IDS_MAX)
    guard._prune_control(control, ["t"])
    getattr(control, kind).add(messageIDs=[b"id"] * (RPC_IDS_MAX + 1))
    with pytest.raises(Misbehaving):
        guard._prune_control(control, ["t"])


async def test_control_is_of_our_topics_and_names_nobody_to_dial(network):
    """The library dials whom a PRUNE names, and remembers each topic that a stranger makes up."""
    topic = topic_text("votes", CHAIN)
    rpc = rpc_pb2.RPC()
    for name in (topic, "made up"):
        rpc.control.prune.add(topicID=name, backoff=10).peers.add(peerID=b"id")
        rpc.control.graft.add(topicID=name)
        rpc.control.ihave.add(topicID=name, messageIDs=[b"id"])
    router = network._stack.router
    router._is_welcome = lambda peer: True
    await router.handle_rpc(rpc, network._stack.pubsub.my_id)
    for kind in ("prune", "graft", "ihave"):
        assert [each.topicID for each in getattr(rpc.control, kind)] == [topic]
    assert not rpc.control.prune[0].peers
    assert topic in router.back_off
    assert "made up" not in router.back_off


def held_messages(router, count, size):
    """So many in the router's history; their ids."""
    for number in range(count):
        seqno = number.to_bytes(8, "big")
        router.mcache.put(rpc_pb2.Message(from_id=b"\xff", seqno=seqno, data=bytes(size)))
    return list(router.mcache.msgs)


async def answers_to(network, *wants):
    """The messages in our answer to a frame of these IWANTs."""
    peer, pubsub = network._stack.pubsub.my_id, network._stack.pubsub
    queue = pubsub.peer_queues[peer] = guard._LongQueue()
    rpc = rpc_pb2.RPC()
    for names in wants:
        rpc.control.iwant.add(messageIDs=names)
    await network._stack.router.handle_rpc(rpc, peer)
    queue.close()
    told = []
    while (answer := await queue.pop()) is not None:
        told += answer.publish
    return told


async def test_a_message_is_answered_once_to_a_frame_that_names_it_often(network):
    """Bare, 188 KB of one id made 347 MB of copies for a peer that need not read them."""
    router = network._stack.router
    router._is_welcome = lambda peer: True
    (name,) = held_messages(router, 1, 60_000)
    wants = [name] * 2_000, [name.hex().encode()] * 10, [name]
    assert len(await answers_to(network, *wants)) == 1


async def test_the_answer_to_one_frame_is_bounded_in_bytes(network):
    router = network._stack.router
    router._is_welcome = lambda peer: True
    names = held_messages(router, 40, 60_000)
    told = await answers_to(network, names[:20], names[20:])
    assert len(told) == RPC_WANTED_BYTES_MAX // told[0].ByteSize()


async def test_a_peer_that_is_not_admitted_may_graft_and_has_no_answer(network):
    router, topic = network._stack.router, topic_text("votes", CHAIN)
    names = held_messages(router, 1, 100)
    assert await answers_to(network, names) == []
    rpc = rpc_pb2.RPC()
    rpc.control.graft.add(topicID=topic)
    rpc.control.ihave.add(topicID=topic, messageIDs=[b"id"])
    rpc.control.idontwant.add(messageIDs=[b"id"])
    await router.handle_rpc(rpc, network._stack.pubsub.my_id)
    assert rpc.control.graft
    assert not rpc.control.ihave
    assert not rpc.control.idontwant


async def test_what_waits_for_a_peer_is_bounded_in_bytes():
    queue, half = guard._LongQueue(), OUTBOUND_QUEUE_BYTES_MAX // 2
    message = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(half - 100))])
    assert [queue.push(message) for _ in range(3)] == [True, True, False]
    assert len(queue) == 2
    await queue.pop()
    assert [queue.push(message) for _ in range(2)] == [True, False]


async def test_back_off_is_kept_for_its_time_only(network):
    router, topic = network._stack.router, topic_text("votes", CHAIN)
    rpc = rpc_pb2.RPC()
    rpc.control.prune.add(topicID=topic, backoff=2**62)
    await router.handle_rpc(rpc, network._stack.pubsub.my_id)
    (until_s,) = router.back_off[topic].values()
    assert until_s <= time.time() + PRUNE_BACKOFF_S_MAX
    router._periodic_security_cleanup()
    assert len(router.back_off[topic]) == 1
    router.back_off[topic] = dict.fromkeys(router.back_off[topic], int(time.time()) - 1)
    router._periodic_security_cleanup()
    assert not router.back_off[topic]


async def test_inbound_slots_are_given_back(nursery):
    """Bare, the library takes no connection more after as many as its limit have come and gone."""
    world = World("libp2p")
    (a,) = await world.start(nursery, 1, connections_max=3)
    for _ in range(5):
        async with trio.open_nursery() as inner:
            (b,) = await world.start(inner, 1)
            await wait_until(lambda b=b: admitted(b) == 1)
            inner.cancel_scope.cancel()
        await wait_until(lambda: not a.peers())


async def test_taken_port_is_told_at_once(network, nursery):
    port = network.addresses()[0].split("/")[4]
    other = World("libp2p")
    other._made = 7
    second = other.make()
    second._listen = (type(second._listen[0])("ip4", "127.0.0.1", int(port)),)
    with pytest.raises(ListenError, match=port):
        await second.run()


async def test_fallen_stack_is_rebuilt_with_its_registrations(nursery, monkeypatch):
    monkeypatch.setattr("p2p.network.RESTART_FIRST_S", 0.2)

    async def echo(peer, body):
        return body

    def prepare(network):
        network.serve("blocks", echo, PROTOCOLS["blocks"])
        network.inbox = network.subscribe("votes", lambda *told: Verdict.ACCEPT, TOPICS["votes"])

    a, b = await World("libp2p").start(nursery, 2, prepare)

    async def fall():
        raise ZeroDivisionError

    b._stack._nursery.start_soon(fall)
    await wait_until(lambda: b.statistics().restarts == 1)
    await wait_until(lambda: admitted(a) == admitted(b) == 1)
    assert await b.request(a.me, "blocks", b"x", timeout_s=5, bytes_max=9) == b"x"
    assert b.statistics().is_ready
    await wait_until(lambda: a.statistics().mesh_peers.get("votes") == 1)
    await wait_until(lambda: b.statistics().mesh_peers.get("votes") == 1)
    await b.publish("votes", b"after the fall")
    with trio.fail_after(5):
        assert (await anext(a.inbox)).data == b"after the fall"


async def test_stop_lets_a_running_request_end_and_refuses_new_ones(nursery):
    started = trio.Event()

    async def slow(peer, body):
        started.set()
        await trio.sleep(0.5)
        return body

    world = World("libp2p")
    (a,) = await world.start(nursery, 1)
    answers = []
    async with trio.open_nursery() as inner:
        (b,) = await world.start(inner, 1, lambda n: n.serve("blocks", slow, PROTOCOLS["blocks"]))
        await wait_until(lambda: admitted(a) == 1)

        async def ask():
            answers.append(await a.request(b.me, "blocks", b"x", timeout_s=5, bytes_max=9))

        nursery.start_soon(ask)
        await started.wait()
        inner.cancel_scope.cancel()
    await wait_until(lambda: answers == [b"x"])


def test_bytes_beyond_the_window_are_not_kept():
    """Bare, the library only logs that a peer sends more than it may."""
    buffers = guard._BoundedBuffers({})
    buffers[1] = bytearray()
    most = guard.yamux_module.DEFAULT_WINDOW_SIZE + guard.UNREAD_SLACK_BYTES
    buffers[1].extend(bytes(most))
    with pytest.raises(BufferError):
        buffers[1].extend(b"x")
    assert len(buffers[1]) == most


async def test_peer_that_comes_anew_at_once_is_gossiped_with(nursery):
    """Bare, the node keeps its dead stream to the peer, and the two never mesh."""

    def prepare(network):
        network.subscribe("votes", lambda *told: Verdict.ACCEPT, TOPICS["votes"])

    world = World("libp2p")
    (a,) = await world.start(nursery, 1, prepare)
    for _ in range(3):
        async with trio.open_nursery() as inner:
            world._made = 1  # the same key each time
            (b,) = await world.start(inner, 1, prepare)
            await wait_until(lambda b=b: b.statistics().mesh_peers.get("votes") == 1, 6)
            await wait_until(lambda: a.statistics().mesh_peers.get("votes") == 1, 6)
            inner.cancel_scope.cancel()


async def test_peer_whose_socket_is_full_is_disconnected_at_once(nursery, monkeypatch):
    """Bare, the goodbye waits behind the write that is stuck in the socket of a stopped peer."""
    monkeypatch.setattr(guard, "STUCK_WRITE_S", 120.0)
    a, b = await World("libp2p").start(nursery, 2)

    async def read_no_more(size=None):
        await trio.sleep_forever()

    monkeypatch.setattr(link_of(b).muxed_conn.secured_conn, "read", read_no_more)  # as SIGSTOP
    with pytest.raises(TooSlow):
        await a.request(b.me, "ping", bytes(9), timeout_s=0.2, bytes_max=9)
    await fill(socket_of(link_of(a)))
    a.ban(b.me, 60)
    await wait_until(lambda: not a.peers(), 5)


def socket_of(link):
    """The kernel's, below Noise and the library's wrappers."""
    noise = link.muxed_conn.secured_conn.conn
    return noise.read_writer.read_write_closer.stream.stream.socket


async def test_peer_that_comes_anew_is_not_asked_on_the_connection_it_has_lost(nursery):
    """As after a power cut, of which nothing has told us: its second life has the same key."""

    def answering(word):
        async def answer(peer, body):
            return word

        return lambda network: network.serve("blocks", answer, PROTOCOLS["blocks"])

    world = World("libp2p")
    (a,) = await world.start(nursery, 1)
    (first,) = await world.start(nursery, 1, answering(b"first"))
    await wait_until(lambda: admitted(a) == 1)
    a.members.find_link(first.me).since_s -= COME_ANEW_S
    first._discovery._find_address = lambda entry, now_s: None  # it is dead, and dials nobody
    events = a.events()
    world._made = 1  # the same key
    (second,) = await world.start(nursery, 1, answering(b"second"))
    await wait_until(lambda: a.statistics().faults.get("came anew") == 1)
    await wait_until(lambda: admitted(a) == 1 and len(link_list(a)) == 1)
    assert await a.request(second.me, "blocks", b"x", **ASK) == b"second"
    told = [type(await anext(events)).__name__ for _ in range(3)]
    assert told == ["Joined", "Left", "Joined"]


def link_list(network):
    """All of the library's connections."""
    return network._stack._swarm.get_connections()


async def fill(socket):
    """Until nothing more goes into it, also after the kernel has moved what it could."""
    is_full = False
    while not is_full:
        is_full = True
        with contextlib.suppress(BlockingIOError):
            while os.write(socket.fileno(), bytes(1 << 20)):
                is_full = False
        await trio.sleep(0.3)


# --- streams come and go, the connection stays

MANY = ServeLimits(64, 64, float("inf"), rate_s=1_000, at_once_max=2, burst=1_000)
ASK = {"timeout_s": 5, "bytes_max": 9}


def link_of(network):
    """The library's one connection to the one peer."""
    ((link,),) = network._stack._swarm.connections.values()
    return link


async def echo(peer, body):
    return body


async def bounce_once(peer, stream):
    await stream.write(await stream.read(9, 5), 5)


async def bounce_to_the_end(peer, stream):
    await bounce_once(peer, stream)
    with pytest.raises(EndOfStream):
        await stream.read(9, 5)


async def close_first(stream):
    await part(stream, 9)


async def close_second(stream):
    with pytest.raises(EndOfStream):
        await stream.read(9, 5)
    await stream.close()
    await stream.reset()


async def converse(a, b, handler, end):
    stream = await a.open(b.me, "infer")
    await stream.write(b"x", 5)
    assert await stream.read(9, 5) == b"x"
    await end(stream)


async def ask(a, b, handler, end):
    assert await a.request(b.me, "blocks", b"x", **ASK) == b"x"


@pytest.mark.parametrize(
    ("speak", "handler", "end"),
    [
        (converse, bounce_to_the_end, close_first),
        (converse, bounce_once, close_second),
        (ask, None, None),
    ],
    ids=["opener closes first", "acceptor returns first", "requests"],
)
async def test_200_streams_leave_none_behind_and_the_connection_stays(nursery, speak, handler, end):
    def prepare(network):
        network.serve("blocks", echo, replace(MANY, timeout_s=5))
        if handler is not None:
            network.accept("infer", handler, MANY)

    a, b = await World("libp2p").start(nursery, 2, prepare)
    links = link_of(a), link_of(b)
    for _ in range(200):
        await speak(a, b, handler, end)

    def are_few_left():  # gossip, and whatever the keepalive does at this moment
        return all(
            len(link.get_streams()) <= 5 and len(link.muxed_conn.streams) <= 5 for link in links
        )

    await wait_until(lambda: not a.statistics().streams + b.statistics().streams)
    await wait_until(are_few_left, seconds=2)
    assert await b.request(a.me, "blocks", b"x", **ASK) == b"x"
    assert (link_of(a), link_of(b)) == links
    assert not any(link.is_closed for link in links)


async def test_our_own_open_streams_do_not_shut_out_the_peer(nursery):
    """A guard that counts both ways resets the peer's pings, and the peer leaves."""

    async def wait(peer, stream):
        with pytest.raises(EndOfStream):
            await stream.read(9, float("inf"))

    def prepare(network):
        network.serve("blocks", echo, replace(MANY, timeout_s=5))
        network.accept("infer", wait, replace(MANY, at_once_max=200))

    a, b = await World("libp2p").start(nursery, 2, prepare)
    half = STREAMS_PER_CONNECTION_MAX // 2 + 8  # of each: together above the limit of one
    streams = [await a.open(b.me, "infer") for _ in range(half)]
    streams += [await b.open(a.me, "infer") for _ in range(half)]
    assert await b.request(a.me, "blocks", b"x", **ASK) == b"x"
    assert await a.request(b.me, "blocks", b"x", **ASK) == b"x"
    for stream in streams:
        await stream.reset()
    await wait_until(lambda: not a.statistics().streams + b.statistics().streams)


async def test_who_opens_streams_on_and_on_is_cut_off(nursery):
    """Above the limit of one connection a stream is refused; so many refusals are no mistake."""

    async def wait(peer, stream):
        with pytest.raises(NetworkError):
            await stream.read(9, float("inf"))

    patient = replace(MANY, at_once_max=200)
    a, b = await World("libp2p").start(nursery, 2, lambda n: n.accept("infer", wait, patient))
    link, ends = link_of(a), Counter()
    with trio.fail_after(60):
        while not link.is_closed:
            try:
                await a.open(b.me, "infer")
                ends["opened"] += 1
            except NetworkError:
                ends["refused"] += 1
    assert STREAMS_PER_CONNECTION_MAX - 4 <= ends["opened"] <= STREAMS_PER_CONNECTION_MAX
    assert ends["refused"] >= REFUSED_STREAMS_MAX, "a few too many are forgiven"
    await wait_until(lambda: b.statistics().faults.get("stream flood") == 1)
    assert b.statistics().penalties["malformed"] == 1


async def test_streams_opened_and_reset_at_once_are_counted(nursery):
    """Twelve bytes each, never above any number at once: they cost a core of ours."""
    a, b = await World("libp2p").start(nursery, 2)
    link = link_of(b)
    numbers = range(1_001, 1_001 + 2 * (OPENED_STREAMS_BURST + 1_000), 2)
    with contextlib.suppress(Exception):  # it is cut off amid them
        for number in numbers:
            await link_of(a).muxed_conn._write_frame(muxed_head(SYN_AND_RESET, number, 0))
    await wait_until(lambda: link.is_closed)
    assert b.statistics().faults["stream flood"] == 1
    assert b.statistics().penalties["malformed"] == 1


SYN_AND_RESET = guard.yamux_module.FLAG_SYN | guard.yamux_module.FLAG_RST


def muxed_head(flags, number, length):
    """Of a Yamux frame of data."""
    return struct.pack("!BBHII", 0, guard.yamux_module.TYPE_DATA, flags, number, length)


async def test_refused_streams_are_forgiven_with_time(autojump_clock):
    """Else a payer of many requests is cut off in the end, however long that takes."""
    streams = guard._Streams()
    assert all(streams.refuse() for _ in range(REFUSED_STREAMS_MAX))
    assert not streams.refuse()
    await trio.sleep(1)
    assert [streams.refuse() for _ in range(int(REFUSED_STREAMS_S) + 1)][-2:] == [True, False]


async def test_streams_may_come_at_their_rate_for_ever(autojump_clock):
    streams = guard._Streams()
    for _ in range(10):
        assert all(streams.take() for _ in range(int(OPENED_STREAMS_S)))
        await trio.sleep(1)
    assert all(streams.take() for _ in range(OPENED_STREAMS_BURST))
    assert not streams.take()


async def test_reset_that_cannot_be_written_still_ends_the_count(nursery):
    a, b = await World("libp2p").start(nursery, 2, lambda n: n.accept("infer", bounce_once, MANY))
    stream, link = await a.open(b.me, "infer"), link_of(a)
    assert stream._stream in link.get_streams()
    async with link.muxed_conn._write_lock, trio.open_nursery() as other:  # a lock knows its task
        other.start_soon(stream.reset)
    assert stream._stream not in link.get_streams()
