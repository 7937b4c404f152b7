"""Chunks from several sources: a liar is left, a slow one replaced, a late one asked for twice."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from exchange_kit import at_once

from consensus.primitives.errors import Invalid
from node.peering.chunks import (
    ASKED_TWICE_MAX,
    FAILURES_MAX,
    IN_FLIGHT_MAX,
    LATE_S,
    REST_IN_VAIN_S,
    SLOW_BYTES_S,
    SLOW_S,
    ChunkFetch,
)
from p2p.errors import Code, Refused, TooSlow, Unreachable

A, B, C, D, E, F = (bytes([n]) * 32 for n in range(6))


@dataclass
class Sources:
    """Goods whose sources behave as a test says: a function of (peer, index) that is awaited."""

    behave: Any
    chunks: int = 12
    at_once_max: int = 4
    name: str = "goods"
    here: set[int] = field(default_factory=set)
    having: dict[bytes, set[int]] = field(default_factory=dict)
    asked: list[tuple[bytes, int]] = field(default_factory=list)
    penalties: list[tuple[bytes, str]] = field(default_factory=list)
    asking: int = 0
    asking_most: int = 0

    def missing(self) -> list[int]:
        return [index for index in range(self.chunks) if index not in self.here]

    def is_at(self, peer: bytes, index: int) -> bool:
        return index in self.having.get(peer, range(self.chunks))

    async def ask(self, peer: bytes, index: int) -> bytes:
        self.asked.append((peer, index))
        self.asking += 1
        self.asking_most = max(self.asking_most, self.asking)
        try:
            sent = await self.behave(peer, index)
            return b"true" if sent is None else sent
        finally:
            self.asking -= 1

    def keep(self, index: int, raw: bytes) -> None:
        if raw == b"false":
            raise Invalid("test.false")
        assert index not in self.here, "written twice"
        self.here.add(index)

    def note_kept(self, index: int) -> None:
        assert index in self.here

    def penalise(self, peer: bytes, points: int, reason: str) -> None:
        self.penalties.append((peer, reason))

    def of(self, peer: bytes) -> int:
        return sum(who == peer for who, _ in self.asked)


async def fetch(goods: Sources, *sources: bytes, run_blocking: Any = at_once) -> Counter[str]:
    counters: Counter[str] = Counter()
    made = ChunkFetch(
        network=goods,  # type: ignore[arg-type]  # all that it needs of one
        goods=goods,
        sources=sources,
        counters=counters,
        run_blocking=run_blocking,
    )
    assert await made.run() is (not goods.missing())
    return counters


async def takes_1_s(peer: bytes, index: int) -> None:
    await trio.sleep(1)


async def test_sources_share_the_chunks_and_eight_are_on_their_way(autojump_clock) -> None:
    goods = Sources(takes_1_s, chunks=24)
    await fetch(goods, A, B, C, D, E, F)
    assert {goods.of(peer) for peer in (A, B, C, D)} == {6}
    assert goods.of(E) == goods.of(F) == 0
    assert goods.asking_most == IN_FLIGHT_MAX
    assert trio.current_time() == pytest.approx(3)


@pytest.mark.parametrize(("at_once_max", "sources", "most"), [(4, 1, 4), (2, 1, 2), (4, 2, 8)])
async def test_few_sources_are_asked_for_more_at_once_if_they_answer_it(
    autojump_clock, at_once_max: int, sources: int, most: int
) -> None:
    goods = Sources(takes_1_s, chunks=24, at_once_max=at_once_max)
    await fetch(goods, *(A, B)[:sources])
    assert goods.asking_most == most


async def test_what_is_here_is_not_asked_for(autojump_clock) -> None:
    goods = Sources(takes_1_s, here=set(range(12)) - {5})
    counters = await fetch(goods, A, B)
    assert [index for _, index in goods.asked] == [5]
    assert counters["chunks_resumed"] == 11


async def test_a_liar_is_barred_and_another_takes_its_place(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> bytes | None:
        await trio.sleep(1)
        return b"false" if peer == A else None

    goods = Sources(behave, chunks=40)
    await fetch(goods, A, B, C, D, E)
    assert set(goods.penalties) == {(A, "false_chunk")}
    assert goods.of(A) == 2
    assert goods.of(E) > 0
    assert not goods.missing()


async def test_a_dead_source_is_left_without_penalty_and_nothing_is_lost(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> None:
        await trio.sleep(1)
        if peer == A:
            raise Unreachable("gone")

    goods = Sources(behave, chunks=40)
    counters = await fetch(goods, A, B)
    assert goods.penalties == []
    assert counters["chunks_failed"] >= FAILURES_MAX
    assert not goods.missing()


async def test_without_any_source_left_it_ends_and_keeps_what_came(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> None:
        if index >= 6:
            raise Refused(Code.NOT_FOUND)

    goods = Sources(behave)
    await fetch(goods, A, B)
    assert goods.here == set(range(6))


async def test_a_source_is_asked_only_for_what_it_has(autojump_clock) -> None:
    goods = Sources(takes_1_s, having={A: {0, 1, 2}, B: set(range(2, 12))})
    await fetch(goods, A, B)
    assert {index for peer, index in goods.asked if peer == A} <= {0, 1, 2}
    assert not goods.missing()
    lacking = Sources(takes_1_s, having={A: {0}, B: {1}})
    await fetch(lacking, A, B)
    assert lacking.here == {0, 1}


async def test_the_last_chunks_are_asked_for_twice_when_they_are_late(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> None:
        await trio.sleep(1 if peer == B else 1_000)

    goods = Sources(behave, chunks=20)
    await fetch(goods, A, B)
    twice = len(goods.asked) - goods.chunks
    assert 1 <= twice <= ASKED_TWICE_MAX
    assert trio.current_time() < 10 + 2 * LATE_S, "the slow one does not decide when all is here"
    assert not goods.missing()


async def test_nothing_is_asked_for_twice_that_is_not_late(autojump_clock) -> None:
    goods = Sources(takes_1_s, chunks=3)
    await fetch(goods, A, B, C, D)
    assert len(goods.asked) == 3


async def test_a_slow_source_is_replaced_where_another_waits(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> bytes:
        seconds = 10 if peer == A else 1
        await trio.sleep(seconds)
        return bytes(seconds * SLOW_BYTES_S // (4 if peer == A else 1))

    goods = Sources(behave, chunks=400)
    counters = await fetch(goods, A, B, C, D, E)
    assert counters["sources_slow"] == 1
    assert goods.of(A) <= 2 * (1 + SLOW_S // 10)
    assert goods.of(E) > 0


async def test_a_slow_source_is_kept_where_no_other_waits(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> bytes:
        await trio.sleep(10)
        return b"slow"

    goods = Sources(behave)
    counters = await fetch(goods, A)
    assert counters["sources_slow"] == 0
    assert not goods.missing()


async def test_a_line_too_slow_for_two_chunks_together_carries_them_one_by_one(
    autojump_clock,
) -> None:
    """Else each would wait for the other until both are too late, again and again."""

    async def behave(peer: bytes, index: int) -> None:
        if goods.asking > 1:
            await trio.sleep(20)
            raise TooSlow("no reply within 20 s")
        await trio.sleep(15)

    goods = Sources(behave, at_once_max=2)
    await fetch(goods, A)
    assert not goods.missing()


async def test_a_busy_source_is_left_alone_for_as_long_as_it_says(autojump_clock) -> None:
    turns: Counter[int] = Counter()

    async def behave(peer: bytes, index: int) -> None:
        turns[index] += 1
        if turns[index] == 1:
            raise Refused(Code.BUSY, 1_500)

    goods = Sources(behave, chunks=2)
    counters = await fetch(goods, A)
    assert trio.current_time() == pytest.approx(1.5)
    assert counters["chunks_failed"] == 0


async def test_a_busy_source_holds_up_no_chunk_that_another_can_give(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> None:
        if peer == A:
            raise Refused(Code.BUSY, 1_900)
        await trio.sleep(1)

    alone = Sources(behave, chunks=40)
    await fetch(alone, B)
    alone_s = trio.current_time()
    goods = Sources(behave, chunks=40)
    await fetch(goods, A, B)
    assert not goods.missing()
    assert trio.current_time() - alone_s <= alone_s + LATE_S


async def test_a_source_that_stays_busy_is_left_where_another_waits(autojump_clock) -> None:
    async def behave(peer: bytes, index: int) -> None:
        if peer != E:
            raise Refused(Code.BUSY, 1_000)
        await trio.sleep(1)

    goods = Sources(behave)
    counters = await fetch(goods, A, B, C, D, E)
    assert not goods.missing()
    assert counters["sources_busy"] == 1
    assert goods.penalties == []
    assert trio.current_time() <= REST_IN_VAIN_S + 1 + 12


async def test_a_chunk_that_came_back_is_as_late_as_it_was(autojump_clock) -> None:
    """Else a source that is busy in turns would never be helped out with the last chunks."""

    async def behave(peer: bytes, index: int) -> None:
        if peer == B:
            await trio.sleep(1)
        elif trio.current_time() < LATE_S:
            await trio.sleep(LATE_S - 0.1)
            raise Refused(Code.BUSY, 1)
        else:
            await trio.sleep(100)

    goods = Sources(behave, chunks=1)
    await fetch(goods, A, B)
    assert trio.current_time() < 2 * LATE_S


async def test_a_slow_disk_slows_the_asking_and_no_source_waits_for_it(autojump_clock) -> None:
    """A minute for each write: nothing is asked for meanwhile that could not be taken at once."""
    writing = 0

    async def slow_disk(function: Any, *arguments: Any) -> Any:
        nonlocal writing
        writing += 1
        assert writing + goods.asking <= 4
        await trio.sleep(60)
        writing -= 1
        return function(*arguments)

    goods = Sources(takes_1_s)
    counters = await fetch(goods, A, run_blocking=slow_disk)
    assert not goods.missing()
    assert counters["chunks_failed"] == 0
    assert len(goods.asked) == goods.chunks


async def test_a_disk_that_takes_no_more_ends_it_as_what_it_is(autojump_clock) -> None:
    """Not as a group of errors, which no caller looks for; and no source is at fault."""
    goods = Sources(takes_1_s)

    async def full(function: Any, *arguments: Any) -> Any:
        if function == goods.keep and goods.here:
            raise OSError(28, "No space left on device")
        return function(*arguments)

    with pytest.raises(OSError, match="No space left"):
        await fetch(goods, A, B, run_blocking=full)
    assert len(goods.here) == 1
    assert goods.penalties == []
