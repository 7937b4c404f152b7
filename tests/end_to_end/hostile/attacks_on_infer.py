"""Attacks on `infer`: orders that are spoilt, cut short, unpaid, or paid and left alone.

Only a node with an engine speaks it, so `test_node_under_attack.py` cannot reach it.
"""

import struct
from functools import partial
from itertools import count
from typing import Any, Final

import trio
from attacking import Attacks, Evil, Siege, now_ms, protocol_text
from besieged import LEAVER, NODE
from exchange_kit import make_order, make_start
from vectors.hostile import BOMBS, hostile

from consensus.primitives.digest import sha256
from node.ledger.wire.exchange import Cancel, Reveal, Start, Tick, encode_frame
from node.ledger.wire.orders import (
    LANES,
    Voucher,
    channel_id,
    encode_order,
    encode_voucher,
    order_hash,
    voucher_message,
)
from node.ledger.wire.receipts import accumulator_start
from p2p.framing import frame
from p2p.limits import PROTOCOLS

ATTACKS: Final = Attacks()
INFER: Final = protocol_text("infer")
LEFT_ALONE: Final = "orders that are paid, and left at once or when they are taken"
HOLD: Final = 10_000_000
VALID_MS: Final = 600_000


def frames_of(start: Start) -> list[bytes]:
    """One of each kind that a payer sends."""
    told = (start, Tick(b"v", bytes(64)), Reveal(bytes(32)), Cancel(b""))
    return [encode_frame(one) for one in told]


def unpaid() -> list[bytes]:
    """In good form, on a channel that nobody has opened."""
    return frames_of(make_start(sha256(b"no channel")))


async def spoilt_frames(siege: Siege, goods: list[bytes], evil: Evil) -> None:
    bad = [raw or b"\0" for raw in hostile(siege.rng, goods, len(BOMBS) + 60)]
    await evil.say_all((INFER, (frame(raw),), "read") for raw in bad)


async def half_frames(siege: Siege, goods: list[bytes], evil: Evil) -> None:
    largest = struct.pack(">I", PROTOCOLS["infer"].request_max)
    heads = (b"\0", b"\0\0\0\0", b"\xff" * 4, largest, frame(goods[0])[:-1])
    await evil.say_all((INFER, (head,), "reset") for head in heads * 4)


async def silent_streams(siege: Siege, goods: list[bytes], evil: Evil) -> None:
    """As many as it may have, each with an order that never comes whole."""
    for _ in range(PROTOCOLS["infer"].at_once_max):
        stream = await evil.stream(INFER)
        await stream.write(frame(goods[0])[:-1])
        siege.sent += 1
    await trio.sleep_forever()


@ATTACKS.note("spoilt frames of infer", has_points=True)
async def spoilt(siege: Siege) -> None:
    await siege.again(partial(spoilt_frames, siege, unpaid()))


@ATTACKS.note("half frames of infer, and lengths that none may have", has_points=True)
async def half(siege: Siege) -> None:
    await siege.again(partial(half_frames, siege, unpaid()))


@ATTACKS.note("silent streams of infer", has_points=False)
async def silent(siege: Siege) -> None:
    """Several peers, each with all the streams that one may have."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(siege.again, partial(silent_streams, siege, unpaid()))


@ATTACKS.note("orders that nobody pays", has_points=False)
async def beggars(siege: Siege) -> None:
    start = frame(unpaid()[0])

    async def once(evil: Evil) -> None:
        await evil.say_all((INFER, (start,), "read") for _ in range(200))

    await siege.again(once)


@ATTACKS.note(LEFT_ALONE, has_points=False)
async def leavers(siege: Siege) -> None:
    """On every lane of a channel with money: the engine works, and nobody takes what it says."""
    starts = [frame(encode_frame(paid_start(siege, lane))) for lane in range(LANES)]
    ways = (("reset",), ("wait",), ("read",))
    numbers = count()

    async def once(evil: Evil) -> None:
        rows: list[Any] = [
            (INFER, (start,), *ways[(next(numbers) + lane) % len(ways)])
            for lane, start in enumerate(starts)
        ]
        siege.rng.shuffle(rows)
        await evil.say_all(rows)

    await siege.again(once)


def paid_start(siege: Siege, lane: int) -> Start:
    """The first order of a lane, paid by LEAVER, whose first transaction opened the channel."""
    channel = channel_id(siege.chain_id, LEAVER.key, NODE.key, 0)
    order = make_order(deadline_ms=now_ms() + VALID_MS)
    voucher = Voucher(
        version=1, channel=channel, lane=lane, seq=1, sub=0, cumulative=0,
        accumulator=accumulator_start(channel, lane), hold=HOLD,
        order_hash=order_hash(encode_order(order)), expires_ms=now_ms() + 6 * VALID_MS,
    )  # fmt: skip
    raw = encode_voucher(voucher)
    signature = LEAVER.sign(voucher_message(siege.chain_id, raw))
    return make_start(channel, order, voucher=None, signature=signature)._replace(voucher=raw)
