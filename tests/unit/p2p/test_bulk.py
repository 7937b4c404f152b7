"""A large frame comes whole, its writer never waits for credit, other streams live beside it."""

import struct
from dataclasses import replace

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamError
from network_kit import World, admitted, wait_until

from p2p import bulk, streams
from p2p.errors import Misbehaving, NetworkError, Unreachable
from p2p.limits import CREDIT_S, PROTOCOLS, WINDOW_BYTES_MAX, MiB

SIZE = 1 * MiB
FIRST_WINDOW = bulk.yamux_module.DEFAULT_WINDOW_SIZE
WHOLE = bytes(range(256)) * (SIZE // 256)
LIMITS = replace(PROTOCOLS["blob"], rate_s=1_000, burst=1_000)


async def give_whole(peer, body):
    return WHOLE


async def two(nursery, **served):
    def prepare(network):
        for name, handler in served.items():
            if name == "infer":
                network.accept(name, handler, replace(PROTOCOLS["infer"], reply_max=4 * MiB))
            else:
                network.serve(name, handler, LIMITS)

    return await World("libp2p").start(nursery, 2, prepare, upload_bytes_s=0)


async def ask(one, other, **more):
    options = {"timeout_s": 5, "bytes_max": SIZE} | more
    return await one.request(other.me, "blob", b"x", **options)


async def test_a_large_reply_comes_as_it_was_sent(nursery):
    one, other = await two(nursery, blob=give_whole)
    for _ in range(3):
        assert await ask(one, other) == WHOLE


async def test_a_writer_of_a_whole_reply_never_waits_for_credit(nursery, monkeypatch):
    """Bare, it looks each 10 ms for more of 256 KiB, and loses its stream after 5 s."""
    windows = []

    async def write(stream, data):
        if len(data) >= SIZE:
            windows.append(stream.send_window)
        await bulk.write_frames(stream, data)

    one, other = await two(nursery, blob=give_whole)
    monkeypatch.setattr(bulk.YamuxStream, "write", write)
    assert await ask(one, other) == WHOLE
    (window,) = windows
    assert window >= SIZE


async def test_large_replies_to_one_peer_go_one_after_the_other(nursery, monkeypatch):
    """Side by side they would end together, and each side would wait for the other."""
    told = []

    async def write(stream, data):
        is_large = len(data) >= SIZE
        if is_large:
            told.append("begins")
        await bulk.write_frames(stream, data)
        if is_large:
            told.append("ends")

    one, other = await two(nursery, blob=give_whole)
    monkeypatch.setattr(bulk.YamuxStream, "write", write)
    async with trio.open_nursery() as inner:
        for _ in range(4):
            inner.start_soon(ask, one, other)
    assert told == ["begins", "ends"] * 4
    assert other.requests._turns == {}


async def test_a_peer_that_does_not_read_a_large_reply_has_its_small_ones(nursery):
    async def echo(peer, body):
        return body

    one, other = await two(nursery, blob=give_whole, light=echo)
    unread = await one.open(other.me, "blob")
    await unread.write(b"x", 5)
    await wait_until(lambda: other.requests._turns)
    assert await one.request(other.me, "light", b"hello", timeout_s=5, bytes_max=9) == b"hello"
    assert other.requests._turns, "it still waits for its reader"
    await unread.reset()


async def test_a_peer_is_in_use_as_long_as_a_stream_runs_to_it_or_from_it(nursery):
    async def wait(peer, stream):
        await stream.read(9, 60)

    one, other = await two(nursery, infer=wait)
    stream = await one.open(other.me, "infer")
    await wait_until(lambda: other.requests.is_in_use(one.me))
    assert one.requests.is_in_use(other.me)
    await stream.reset()
    del stream
    await wait_until(lambda: not (one.requests.is_in_use(other.me)))
    await wait_until(lambda: not other.requests.is_in_use(one.me))


async def test_a_large_frame_of_a_stream_comes_with_the_credit_of_its_length(nursery):
    got = []

    async def hear(peer, stream):
        got.extend([await stream.read(4 * MiB, 5) for _ in range(2)])

    one, other = await two(nursery, infer=hear)
    stream = await one.open(other.me, "infer")
    for _ in range(2):
        await stream.write(WHOLE, 5)
    await wait_until(lambda: got == [WHOLE, WHOLE])


async def test_a_small_answer_comes_while_a_large_frame_waits_for_its_reader(nursery):
    async def read_nothing(peer, stream):
        await trio.sleep_forever()

    async def echo(peer, body):
        return body

    one, other = await two(nursery, infer=read_nothing, light=echo)
    stream = await one.open(other.me, "infer")
    nursery.start_soon(write_in_vain, stream)
    await wait_until(lambda: stream._stream.muxed_stream.send_window == 0)
    assert await one.request(other.me, "light", b"hello", timeout_s=5, bytes_max=9) == b"hello"


async def write_in_vain(stream):
    with pytest.raises(NetworkError):
        await stream.write(WHOLE, 2)


async def test_a_writer_whose_bytes_nobody_takes_is_told(autojump_clock):
    class Stream:
        closed = False
        send_window = 0

    began_s = trio.current_time()
    with pytest.raises(MuxedStreamError):
        await bulk._wait_credit(Stream())
    assert CREDIT_S <= trio.current_time() - began_s < CREDIT_S + 1


async def test_credit_wakes_its_writer_at_once(autojump_clock, nursery):
    class Stream:
        closed = False
        send_window = bulk.SendWindow()

    stream, began_s = Stream(), trio.current_time()

    async def give():
        await trio.sleep(0.05)
        stream.send_window += 1

    nursery.start_soon(give)
    await bulk._wait_credit(stream)
    assert trio.current_time() - began_s == pytest.approx(0.05)


async def test_a_peer_that_does_not_speak_a_protocol_is_unreachable_by_it(nursery):
    one, other = await two(nursery)
    with pytest.raises(Unreachable, match="does not speak"):
        await one.open(other.me, "infer")


async def test_a_peer_that_dies_inside_a_frame_has_not_misbehaved(nursery):
    """Else an honest source that is restarted under load is banned by all that it served."""

    async def stall(peer, stream):
        await stream._stream.write(SIZE.to_bytes(4, "big") + b"and no more")
        await trio.sleep_forever()

    world = World("libp2p")
    (one,) = await world.start(nursery, 1)
    async with trio.open_nursery() as inner:
        (other,) = await world.start(
            inner, 1, lambda net: net.accept("infer", stall, PROTOCOLS["infer"])
        )
        await wait_until(lambda: admitted(one) == admitted(other) == 1)
        stream = await one.open(other.me, "infer")
        await wait_until(lambda: has_come(stream))
        inner.cancel_scope.cancel()
    with pytest.raises(Unreachable):
        await stream.read(SIZE, 5)
    assert one.statistics().penalties == {}


def has_come(stream):
    muxed = stream._stream.muxed_stream
    return b"and no more" in muxed.conn.stream_buffers[muxed.stream_id]


async def test_a_peer_that_closes_inside_a_frame_has_misbehaved(nursery):
    async def half(peer, stream):
        await stream._stream.write(SIZE.to_bytes(4, "big") + b"and no more")

    one, other = await two(nursery, infer=half)
    stream = await one.open(other.me, "infer")
    with pytest.raises(Misbehaving):
        await stream.read(SIZE, 5)


async def muxed(one, length, body=b""):
    """A Yamux frame of data for a stream that does not exist."""
    head = struct.pack("!BBHII", 0, bulk.TYPE_DATA, 0, 99_999, length)
    await link_of(one).muxed_conn._write_frame(head + body)


def link_of(network):
    ((link,),) = network._stack._swarm.connections.values()
    return link


async def test_a_frame_above_all_windows_is_not_read(nursery):
    """Its length comes from a stranger: 16 MiB would be kept, for a stream that nobody has."""
    one, other = await two(nursery, blob=give_whole)
    link = link_of(other)
    await muxed(one, FIRST_WINDOW, bytes(FIRST_WINDOW))
    assert await ask(one, other) == WHOLE
    assert not link.is_closed
    await muxed(one, FIRST_WINDOW + 1)
    await wait_until(lambda: link.is_closed, 5)


async def test_a_frame_may_be_as_large_as_the_largest_window_that_we_gave(nursery):
    one, other = await two(nursery, blob=give_whole)
    assert await ask(one, other) == WHOLE
    link = link_of(one)
    largest = link.muxed_conn.__dict__[bulk.LARGEST]
    assert SIZE <= largest <= WINDOW_BYTES_MAX
    await muxed(other, largest, bytes(largest))
    assert await ask(one, other) == WHOLE
    assert not link.is_closed
    await muxed(other, WINDOW_BYTES_MAX + 1)
    await wait_until(lambda: link.is_closed, 5)


@pytest.mark.parametrize(
    ("told", "remote"),
    [
        (("1.2.3.4", 5), ("1.2.3.4", 5)),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::1", 5)),
        (("fe80::1%eth0", 5, 0, 2), ("fe80::1", 5)),
        (("::ffff:1.2.3.4", 5, 0, 0), ("1.2.3.4", 5)),
        (OSError("not connected"), None),
    ],
)
async def test_the_address_of_a_socket_is_known_for_both_kinds(told, remote):
    """Bare, IPv6 has none: no `deny` and no limit would hold for it."""

    class Socket:
        asked = 0

        def getpeername(self):
            self.asked += 1
            if isinstance(told, OSError):
                raise told
            return told

    class Stream:
        socket = Socket()

    stream = bulk.BufferedTcpStream(Stream())
    assert [stream.get_remote_address() for _ in range(2)] == [remote] * 2
    assert Stream.socket.asked == (2 if remote is None else 1)


@pytest.mark.parametrize("half", [b"\x00\x00", (9).to_bytes(4, "big") + b"and"])
async def test_who_begins_a_frame_and_does_not_end_it_is_blamed(nursery, monkeypatch, half):
    monkeypatch.setattr(streams, "FRAME_BODY_S", 0.2)

    async def hear(peer, stream):
        await stream.read(9, 60)

    one, other = await two(nursery, infer=hear)
    stream = await one.open(other.me, "infer")
    await stream._stream.write(half)
    await wait_until(lambda: other.statistics().penalties.get("timeout") == 1)


async def test_who_is_given_up_amid_its_first_frame_is_blamed(nursery):
    """A handler may wait for it less long than we do, and take its loss for an end."""

    async def hear(peer, stream):
        with trio.move_on_after(0.2):
            await stream.read(9, 60)

    one, other = await two(nursery, infer=hear)
    silent = await one.open(other.me, "infer")
    await wait_until(lambda: other.statistics().requests.get(("infer", "served", 0)) == 1)
    assert other.statistics().penalties == {}, "it has begun nothing"
    await silent.reset()
    stream = await one.open(other.me, "infer")
    await stream._stream.write(b"\x00")
    await wait_until(lambda: other.statistics().penalties.get("timeout") == 1)


def test_a_yamux_frame_with_its_head_fills_one_noise_message():
    framed = bulk._framed(3, WHOLE, 0, len(WHOLE))
    heads = -(-len(WHOLE) // bulk.MUXED_BYTES_MAX)
    assert len(framed) == len(WHOLE) + heads * bulk.HEADER_SIZE
    assert bulk.MUXED_BYTES_MAX + bulk.HEADER_SIZE == bulk.MAX_PLAINTEXT_LENGTH
