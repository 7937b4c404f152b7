"""Attacks by connections, streams and frames: what comes before any message of ours is judged."""

import contextlib
import os
import socket
import struct
from itertools import count, cycle
from typing import Any, Final

import trio
from attacking import LIBRARY, MESH, Attacks, Evil, Siege, now_ms, protocol_text, published
from attacks_by_gossip import a_transaction, subscribing
from besieged import NODE
from bundle_kit import party
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils import encode_varint_prefixed
from vectors.hostile import BOMBS, hostile

from consensus.primitives.digest import sha256
from node.peering import topics
from p2p.framing import encode, frame
from p2p.limits import PROTOCOLS, TOPICS, KiB, MiB

ATTACKS: Final = Attacks()


# ---- requests as an honest peer would ask them, to be spoiled


def questions(siege: Siege) -> dict[str, bytes]:
    nothing = sha256(b"nothing")
    return {
        "ping": encode((bytes(8),)),
        "status": encode((1, siege.chain_id, b"evil", 0, 0, b"", 0, 0, now_ms(), ((), b""))),
        "peers": encode((8,)),
        "blocks": encode((0, 1, 64)),
        "headers": encode((1, 256, 1)),
        "light": encode((0, 0)),
        "bundles": encode((0, (nothing,))),
        "pool": encode((topics.encode_tx_message(a_transaction(siege, b"nobody")),)),
        "snapshot": encode((0,)),
        "blob": encode((1, siege.blob_id, 0)),
        "offers": encode((0, 64)),
        "audit": encode((1, nothing, 0)),
        "consensus": encode((2, bytes(111))),
        "infer": encode((3, 0)),
    }


def protocols() -> list[str]:
    return [protocol_text(name) for name in PROTOCOLS] + list(LIBRARY)


# ---- frames


@ATTACKS.note("garbage and half frames on every protocol", has_points=True)
async def garbage(siege: Siege) -> None:
    """Chance, damaged questions, cut-off frames; admitted and not, closed and reset."""
    asked = questions(siege)

    async def once(evil: Evil) -> None:
        rows = []
        for turn, name in enumerate(protocols() * 3):
            good = asked.get(name.split("/")[2], siege.rng.randbytes(64))
            (bad,) = list(hostile(siege.rng, [good], len(BOMBS) + 1))[-1:]
            raw = (frame(bad or b"\0"), bad, frame(good)[: siege.rng.randrange(1, 9)])[turn % 3]
            rows.append((name, (raw,), ("read", "reset")[turn % 2]))
        siege.rng.shuffle(rows)
        await evil.say_all(rows)

    for is_admitted in cycle((True, False)):
        await siege.meet(once, admitted=is_admitted)


@ATTACKS.note("msgpack bombs on every protocol and topic", has_points=True)
async def bombs(siege: Siege) -> None:
    async def once(evil: Evil) -> None:
        rows = [
            (protocol_text(name), (frame(bomb),), "read")
            for name in PROTOCOLS
            for bomb in siege.rng.sample([bomb for bomb in BOMBS if bomb], 4)
        ]
        siege.rng.shuffle(rows)
        told = [published(evil.message(t, bomb)) for t in TOPICS for bomb in BOMBS if bomb]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(evil.say_all, rows)
            nursery.start_soon(evil.gossip, told)

    await siege.again(once)


@ATTACKS.note("lengths too large, and frames that never end", has_points=True)
async def lengths(siege: Siege) -> None:
    """Every limit by one byte, the largest there is, none; and bodies that go on for ever."""
    block = bytes(64 * KiB)

    async def pour(evil: Evil, protocol: str, head: bytes) -> None:
        with contextlib.suppress(Exception):
            stream = await evil.stream(protocol)
            await stream.write(head)
            for _ in range(500):  # 32 MB
                await stream.write(block)
                siege.sent += 1

    async def once(evil: Evil) -> None:
        rows = []
        for name, limits in PROTOCOLS.items():
            heads = [struct.pack(">I", most) for most in (0, limits.request_max + 1, 2**32 - 1)]
            rows += [(protocol_text(name), (head, b"x" * 9), "read") for head in heads]
        rows += [(name, (b"\xff" * 9 + b"\x01",), "read") for name in LIBRARY]
        siege.rng.shuffle(rows)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(evil.say_all, rows)
            for name, limits in PROTOCOLS.items():
                head = struct.pack(">I", limits.request_max)
                nursery.start_soon(pour, evil, protocol_text(name), head)
            for name in LIBRARY:
                nursery.start_soon(pour, evil, name, b"\xff\xff\xff\xff\x07")

    await siege.again(once)


@ATTACKS.note("names of protocols that never end, before any handshake", has_points=False)
async def endless_names(siege: Siege) -> None:
    """multistream-select's lines carry a length, and come before anyone is known."""
    block = bytes(1 * MiB)

    async def one() -> None:
        for head in cycle((b"\xff\xff\xff\xff\x07", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")):
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                async with await siege.raw() as stream:
                    await stream.send_all(head)
                    siege.sent += 1
                    for _ in range(200):
                        await stream.send_all(block)
                        siege.sent += 1
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)


@ATTACKS.note("300 connections of garbage", has_points=False)
async def connections(siege: Siege) -> None:
    """Silent ones, other protocols' first words, half a handshake; all of them at once."""
    words = (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + bytes(2),
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(32),
        os.urandom(300),
    )
    held: list[socket.socket] = []
    try:
        for number in count():
            if len(held) == 300:
                held.pop(0).close()
            made = socket.create_connection(siege.place)
            held.append(made)
            with contextlib.suppress(OSError):
                made.send(words[number % len(words)])
            siege.sent += 1
            await trio.sleep(0.002)
    finally:
        for made in held:
            made.close()


# ---- streams


@ATTACKS.note("streams opened and left, and a flood of their first frames", has_points=False)
async def streams(siege: Siege) -> None:
    async def once(evil: Evil) -> None:
        with trio.move_on_after(1):
            for _ in range(150):
                with contextlib.suppress(Exception):
                    await evil.stream(protocol_text("blocks"))
                    siege.sent += 1
        muxed = evil.muxed
        for number in range(1_001, 2**31, 2):
            # A data frame with SYN, whose body is a whole negotiation and nothing behind it.
            body = b"\x13/multistream/1.0.0\n"
            await muxed._write_frame(struct.pack("!BBHII", 0, 0, 1, number, len(body)) + body)
            siege.sent += 1

    await siege.again(once)


@ATTACKS.note("yamux frames that break its rules", has_points=False)
async def muxing(siege: Siege) -> None:
    """Of streams that are none, above the window, of unknown kinds; and pings without end."""
    body = bytes(60_000)

    async def once(evil: Evil) -> None:
        stream = await evil.stream(protocol_text("blob"))
        muxed, mine = evil.muxed, stream.muxed_stream.stream_id
        frames = (
            [struct.pack("!BBHII", 0, 2, 1, 0, number) for number in range(50)]
            + [struct.pack("!BBHII", 0, 0, 0, 77_777, len(body)) + body] * 5
            + [struct.pack("!BBHII", 9, 9, 9, 9, 9)] * 5
            + [struct.pack("!BBHII", 0, 1, 0, mine, 2**32 - 1)] * 5
            + [struct.pack("!BBHII", 0, 0, 0, mine, len(body)) + body] * 12
        )
        for raw in frames * 20:
            await muxed._write_frame(raw)
            siege.sent += 1
        await muxed._write_frame(struct.pack("!BBHII", 0, 0, 0, mine, 2**32 - 1))

    await siege.again(once)


@ATTACKS.note("slow readers", has_points=False)
async def slow_readers(siege: Siege) -> None:
    """Who asks for the largest replies and takes nothing of them, and of gossip neither."""
    asked = questions(siege)

    async def leave_unread(stream: Any) -> None:
        await trio.sleep_forever()

    async def once(evil: Evil) -> None:
        async def ask(name: str) -> None:
            with contextlib.suppress(Exception):
                stream = await evil.stream(protocol_text(name))
                await stream.write(frame(asked[name]))
                siege.sent += 1
                await trio.sleep(8)

        evil.host.set_stream_handler(MESH, leave_unread)
        await evil.gossip([subscribing(siege)])
        async with trio.open_nursery() as nursery:
            for name in ("blob", "blocks", "headers", "light", "snapshot", "offers"):
                for _ in range(PROTOCOLS[name].at_once_max):
                    nursery.start_soon(ask, name)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(siege.again, once)


@ATTACKS.note("slow writers", has_points=False)
async def slow_writers(siege: Siege) -> None:
    """A byte now and then: of each protocol's frame, of gossip, of a handshake."""
    asked = questions(siege)

    async def drip(evil: Evil, name: str, raw: bytes) -> None:
        with contextlib.suppress(Exception):
            stream = await evil.stream(name)
            for place in range(len(raw)):
                await stream.write(raw[place : place + 1])
                siege.sent += 1
                await trio.sleep(0.2)

    async def knock() -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            async with await siege.raw() as stream:
                for byte in b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + bytes(32):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.2)

    async def once(evil: Evil) -> None:
        async with trio.open_nursery() as nursery:
            for name in PROTOCOLS:
                raw = frame(asked[name])
                nursery.start_soon(drip, evil, protocol_text(name), raw)
            for name in LIBRARY:
                nursery.start_soon(drip, evil, name, b"\x7f" + bytes(127))
            for _ in range(20):
                nursery.start_soon(knock)

    await siege.again(once)


@ATTACKS.note("questions as fast as can be, with bodies behind the refusal", has_points=False)
async def questions_flood(siege: Siege) -> None:
    asked = questions(siege)
    block = bytes(64 * KiB)

    async def ask(evil: Evil, name: str) -> None:
        while evil.is_connected():
            with trio.move_on_after(2), contextlib.suppress(Exception):
                stream = await evil.stream(protocol_text(name))
                await stream.write(frame(asked[name]))
                siege.sent += 1
                # What is read behind a refusal is thrown away: a frame there must not be kept.
                await stream.write(struct.pack(">I", 4 * MiB))
                for _ in range(16):
                    await stream.write(block)
                await stream.reset()
            await trio.lowlevel.checkpoint()

    async def once(evil: Evil) -> None:
        async with trio.open_nursery() as nursery:
            for name in PROTOCOLS.keys() - {"infer", "consensus"}:
                for _ in range(5):
                    nursery.start_soon(ask, evil, name)

    await siege.again(once)


@ATTACKS.note("identities that say far too much", has_points=False)
async def identities(siege: Siege) -> None:
    """identify's answer and its push, as large as the library takes; it should take neither."""
    told = Identify(protocols=[f"/{number}" for number in range(60_000)])
    for number in range(20_000):
        told.listen_addrs.append(b"\x04\x7f" + struct.pack(">HB", number, 1) + b"\x06\x10\x00")
    raw = encode_varint_prefixed(told.SerializeToString())

    async def answer(stream: Any) -> None:
        with contextlib.suppress(Exception):
            await stream.write(raw)
            await stream.close()

    async def once(evil: Evil) -> None:
        evil.host.set_stream_handler("/ipfs/id/1.0.0", answer)
        with trio.move_on_after(2):
            while evil.is_connected():
                await evil.say("/ipfs/id/push/1.0.0", raw)

    await siege.again(once)


@ATTACKS.note("peers that come, say nothing true, and come again", has_points=False)
async def comers(siege: Siege) -> None:
    """Another's record, another chain, a false signature, none at all."""

    async def once(evil: Evil) -> None:
        true = evil.status()
        other = evil.status().replace(bytes(evil.identity.key), bytes(NODE.key))
        chain = true.replace(siege.chain_id, bytes(32))
        spoilt = true[:-1] + bytes([true[-1] ^ 1])
        late = evil.status(seq_ms=now_ms() + 10**9)
        forged = evil.status(binding=evil.binding_of(party("no validator"))[:-1] + b"\0")
        for told in siege.rng.sample((other, chain, spoilt, late, forged), 3):
            await evil.say(protocol_text("status"), frame(told), then="read")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: siege.again(once, admitted=False))
