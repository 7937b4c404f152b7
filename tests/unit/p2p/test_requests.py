"""Large replies: who has left or does not read costs the others neither upload nor room."""

import contextlib
from dataclasses import replace

import pytest
import trio

from p2p.counters import Counters
from p2p.errors import Code, TooSlow, Unreachable
from p2p.framing import decode_reply
from p2p.limits import (
    PROTOCOLS,
    REPLIES_BYTES_STRANGERS_MAX,
    UPLOAD_QUEUE_MAX,
    MiB,
)
from p2p.peers import PeerId
from p2p.requests import Requests

LIMITS = replace(PROTOCOLS["blob"], rate_s=1_000, burst=1_000, at_once_max=16)
VALIDATOR = PeerId(b"v" * 32)


def key(number: int) -> PeerId:
    return PeerId(bytes([number]) * 32)


class Asking:
    """A stream of one who asks, takes the reply as told, and is gone."""

    def __init__(self, takes_s: float = 0.0, *, has_left: bool = False) -> None:
        self.takes_s, self.has_left = takes_s, has_left
        self.got: tuple[int, int, bytes] | None = None
        self.got_s = 0.0
        self.is_reset = False

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.got is not None:
            raise Unreachable("gone")
        return b"?"

    async def write(self, body: bytes, timeout_s: float) -> None:
        if self.has_left:
            raise Unreachable("gone")
        with trio.move_on_after(timeout_s):
            await trio.sleep(self.takes_s)
            self.got, self.got_s = decode_reply(body), trio.current_time()
            return
        raise TooSlow("not taken")

    async def close(self) -> None:
        """It hears of it."""

    async def reset(self) -> None:
        self.is_reset = True


class Server:
    """One that gives a MiB to whoever asks."""

    def __init__(self, upload_bytes_s: int = 0) -> None:
        self.made, self.blamed = 0, []
        self.requests = Requests(
            counters=Counters(),
            is_admitted=lambda peer: True,
            is_banned=lambda peer: False,
            is_reserved=lambda peer: peer == VALIDATOR,
            blame=lambda peer, reason: self.blamed.append((peer, reason)),
            upload_bytes_s=upload_bytes_s,
        )
        self.requests.serve("blob", self._give, LIMITS)

    async def _give(self, peer: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.made += 1
        return bytes(MiB)

    async def answer(self, peer: PeerId, stream: Asking) -> None:
        await self.requests.incoming(peer, "blob", stream)


async def test_reply_that_would_come_too_late_is_refused_and_said_for_how_long(
    autojump_clock,
) -> None:
    server, streams = Server(upload_bytes_s=MiB), [Asking() for _ in range(40)]
    async with trio.open_nursery() as nursery:
        for number, stream in enumerate(streams):
            nursery.start_soon(server.answer, key(number), stream)
    codes = [stream.got[0] for stream in streams if stream.got]
    given = [stream for stream in streams if stream.got and stream.got[0] == Code.OK]
    refused = [stream for stream in streams if stream.got and stream.got[0] == Code.BUSY]
    most = int(UPLOAD_QUEUE_MAX * LIMITS.timeout_s)
    assert (len(given), len(refused), len(codes)) == (most, 40 - most, 40)
    assert max(stream.got_s for stream in given) < most
    assert all(stream.got[1] == pytest.approx(most * 1_000, abs=1) for stream in refused)


async def test_nothing_more_is_made_while_the_queue_is_long(autojump_clock) -> None:
    server, late = Server(upload_bytes_s=MiB // 16), Asking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.answer, key(1), Asking())  # 16 s, and the first in the queue
        await trio.sleep(1)
        await server.answer(key(2), late)
    assert late.got is not None
    assert (late.got[0], late.got[1]) == (Code.BUSY, pytest.approx(15_000, abs=1))
    assert server.made == 1


async def test_who_has_left_costs_the_others_no_upload(autojump_clock) -> None:
    server = Server(upload_bytes_s=MiB)
    for number in range(100):
        await server.answer(key(number), Asking(has_left=True))
    stream = Asking()
    await server.answer(key(200), stream)
    assert stream.got is not None
    assert stream.got[0] == Code.OK
    assert trio.current_time() < 2


async def test_large_reply_that_is_not_taken_is_its_askers_fault_and_is_held_no_longer(
    autojump_clock,
) -> None:
    """Also one that waits its turn behind others that are not taken."""
    server, streams = Server(), [Asking(takes_s=1e9) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(server.answer, key(1), stream)
    assert trio.current_time() == pytest.approx(LIMITS.timeout_s)
    assert server.blamed == [(key(1), "timeout")] * 3
    assert all(stream.is_reset for stream in streams)
    assert server.requests._bulk_bytes == 0


class Opening:
    """Opens streams on which nothing comes, and keeps them, as the trace of a cancel does."""

    def __init__(self) -> None:
        self.opened: list[Asking] = []

    async def open_stream(self, peer: PeerId, protocol: str, *, credit_bytes: int = 0) -> Asking:
        await trio.lowlevel.checkpoint()
        self.opened.append(Silent())
        return self.opened[-1]


class Silent(Asking):
    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        await trio.sleep_forever()

    async def write(self, body: bytes, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("asker_waits_s", [1.0, 9.0])
async def test_request_that_was_given_up_keeps_no_link(asker_waits_s, autojump_clock) -> None:
    """Else links to peers that never answer are the last to make room for others."""
    requests, opening = Server().requests, Opening()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_used_meanwhile, requests)
        with trio.move_on_after(asker_waits_s), contextlib.suppress(TooSlow):
            await requests.request(opening, key(1), "blob", b"?", timeout_s=5, bytes_max=9)
    assert len(opening.opened) == 1
    assert not requests.is_in_use(key(1))


async def is_used_meanwhile(requests: Requests) -> None:
    await trio.sleep(0.5)
    assert requests.is_in_use(key(1))


async def test_strangers_that_do_not_read_leave_room_for_a_validator(autojump_clock) -> None:
    server = Server()
    unread = [Asking(takes_s=1e9) for _ in range(8 * LIMITS.at_once_max)]
    stranger, validator = Asking(), Asking()
    async with trio.open_nursery() as nursery:
        for number, stream in enumerate(unread):
            nursery.start_soon(server.answer, key(number // LIMITS.at_once_max), stream)
            await trio.sleep(0.01)
        room = REPLIES_BYTES_STRANGERS_MAX - server.requests._bulk_bytes
        assert 0 <= room < LIMITS.reply_max
        await server.answer(key(99), stranger)
        await server.answer(VALIDATOR, validator)
        nursery.cancel_scope.cancel()
    assert stranger.got is not None
    assert validator.got is not None
    assert (stranger.got[0], validator.got[0]) == (Code.BUSY, Code.OK)
