"""What is not settled, in one bundle for others: when it is made, what is in it, what it costs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN
from exchange_kit import at_once
from ledger_kit import PROVIDER, add_model, context
from unit.serving.test_bundling import FEE, Counter

from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.rules import channels
from node.ledger.wire import bundles
from node.ledger.wire.bundles import Bundle, decode_body, decode_header, decode_section
from node.serving import entrusting
from node.serving.book import RESERVED_EVERY, RESERVED_ROOM, ReceiptBook
from node.serving.bundling import CLAIM_AFTER_MS, CUT_EVERY_S, OPEN_MAX
from node.serving.entrusting import REFRESH_S, SOON_S, VOUCHER_LEFT_MS, WAITED_MS, Entruster


class Careful(Counter):
    """A provider that hands its unsettled receipts to `keepers` others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.handed: list[Bundle] = []
        self.keepers = 2
        self.entruster = Entruster(
            book=self.book, chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign,
            get_state=lambda: self.state, hand=self.hand, now_ms=lambda: self.ms,
            run_blocking=at_once,
        )  # fmt: skip

    async def hand(self, bundle: Bundle) -> int:
        self.handed.append(bundle)
        return self.keepers

    async def look(self) -> list[tuple[int, int, int]]:
        """(lane, from, to) of each section that was handed over in this look."""
        before = len(self.handed)
        await self.entruster.look()
        return [
            (section.lane, section.from_seq, section.to_seq)
            for bundle in self.handed[before:]
            for section in (decode_section(part.section) for part in decode_body(bundle.body))
        ]

    def pass_time(self, seconds: float) -> None:
        self.ms += round(1_000 * seconds)
        self.entruster._handed_s -= seconds

    def take(self, bundle: Bundle) -> None:
        """A block settles it, whoever told it."""
        admitted = admit_bundle(self.state, CHAIN, bundle)
        channels.apply_bundle(self.state, context(self.ms), admitted.bundle)

    def paid(self, channel: bytes) -> int:
        return self.state.get(tables.CHANNEL, channel).paid


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Careful]:
    made = Careful(tmp_path / "receipts")
    yield made
    made.book.close()


def waited(counter: Careful) -> None:
    counter.pass_time(WAITED_MS / 1_000)


async def test_all_that_waits_is_handed_over_with_the_last_receipts(counter: Careful) -> None:
    channel = counter.channel()
    counter.answer(channel, 0, count=3)
    counter.answer(channel, 1, count=2)
    counter.acknowledge(channel, 1)
    waited(counter)
    assert await counter.look() == [(0, 1, 3), (1, 1, 2)]
    counter.take(counter.handed[0])
    assert counter.paid(channel) == 5 * FEE


@pytest.mark.parametrize("early_ms", [0, 1])
async def test_what_may_still_settle_by_itself_is_not_handed_over(
    counter: Careful, early_ms: int
) -> None:
    counter.answer(counter.channel())
    counter.ms += WAITED_MS - early_ms
    assert bool(await counter.look()) is not early_ms


async def test_it_is_made_anew_each_minute_with_what_came(counter: Careful) -> None:
    channel = counter.channel()
    counter.answer(channel)
    waited(counter)
    assert await counter.look() == [(0, 1, 1)]
    counter.answer(channel)
    counter.pass_time(REFRESH_S - 1)
    assert await counter.look() == []
    counter.pass_time(1)
    assert await counter.look() == [(0, 1, 2)]


@pytest.mark.parametrize("what", ["a lane", "its number"])
async def test_it_is_made_anew_sooner_once_the_ledger_would_not_take_it(
    counter: Careful, what: str
) -> None:
    first, second = counter.channel(), counter.channel()
    counter.answer(first)
    counter.answer(second)
    waited(counter)
    assert len(await counter.look()) == 2
    if what == "a lane":
        counter.acknowledge(first)
        await counter.turn()
        counter.settle()
    else:
        record = counter.state.get(tables.PROVIDER, PROVIDER.key)
        passed = record._replace(bundle_seq=RESERVED_EVERY)
        counter.state.put(tables.PROVIDER, (PROVIDER.key,), passed)
    await counter.turn()
    counter.pass_time(SOON_S - 1)
    assert await counter.look() == []
    counter.pass_time(1)
    assert len(await counter.look()) == (1 if what == "a lane" else 2)


async def test_nothing_is_handed_over_when_all_is_settled(counter: Careful) -> None:
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    await counter.turn()
    counter.settle()
    await counter.turn()
    waited(counter)
    assert await counter.look() == []


@pytest.mark.parametrize("why", ["jailed", "not registered", "closed"])
async def test_nothing_is_handed_over_that_no_block_would_take(counter: Careful, why: str) -> None:
    channel = counter.channel()
    counter.answer(channel)
    waited(counter)
    if why == "jailed":
        key = (tables.ROLE_PROVIDER, PROVIDER.key)
        counter.state.put(tables.CONDUCT, key, tables.Conduct(jailed_until_ms=1))
    elif why == "closed":
        record = counter.state.get(tables.CHANNEL, channel)
        closed = record._replace(state=tables.CHANNEL_CLOSED)
        counter.state.put(tables.CHANNEL, (channel,), closed)
    else:
        counter.state.remove(tables.PROVIDER, PROVIDER.key)
    assert await counter.look() == []


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_section_whose_voucher_is_soon_void_sinks_no_others(
    counter: Careful, late_ms: int
) -> None:
    channel = counter.channel()
    left_ms = WAITED_MS + VOUCHER_LEFT_MS - late_ms
    counter.answer(channel, 0, expires_ms=counter.ms + left_ms)
    counter.answer(channel, 1)
    waited(counter)
    assert await counter.look() == [(0, 1, 1), (1, 1, 1)][late_ms:]


async def test_what_fits_nowhere_is_not_gathered_each_second(
    counter: Careful, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[object] = []
    monkeypatch.setattr(entrusting, "cut_section", lambda lane, **_: gathered.append(lane))
    counter.answer(counter.channel())
    waited(counter)
    for _ in range(3):
        assert await counter.look() == []
        counter.pass_time(SOON_S / 2)
    assert len(gathered) == 2, "at once, and after ten seconds"


async def test_it_is_built_in_a_thread(counter: Careful, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of receipts take longer than the loop may stand still."""
    built_by: list[int] = []

    def build(**fields: Any) -> Bundle:
        built_by.append(threading.get_ident())
        return bundles.build_bundle(**fields)

    monkeypatch.setattr(entrusting, "build_bundle", build)
    counter.entruster._run_blocking = trio.to_thread.run_sync
    counter.answer(counter.channel())
    waited(counter)
    assert len(await counter.look()) == 1
    assert built_by != [threading.get_ident()]


async def test_it_is_of_one_base_and_within_a_bundles_limits(
    counter: Careful, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(counter.state, 2, base=b"\x08" * 32)
    channel = counter.channel()
    for lane, model in ((0, 1), (1, 2), (2, 1), (3, 1)):
        counter.answer(channel, lane, model=model)
    monkeypatch.setattr(bundles, "RECEIPTS_MAX", 2)
    waited(counter)
    assert await counter.look() == [(0, 1, 1), (2, 1, 1)]


async def test_unkept_is_counted(counter: Careful) -> None:
    counter.keepers = 0
    counter.answer(counter.channel())
    waited(counter)
    await counter.look()
    assert (counter.entruster.counters["unkept"], counter.entruster.counters["kept"]) == (1, 0)


# ---- numbers


def number_of(bundle: Bundle) -> int:
    return decode_header(bundle.header).bundle_seq


async def test_own_bundles_settle_below_the_reserved_number(counter: Careful) -> None:
    """Gaps are allowed: what is told meanwhile must not wait for what is kept."""
    channel = counter.channel()
    counter.answer(channel, 0)
    waited(counter)
    await counter.look()
    for lane in range(1, 4):
        counter.answer(channel, lane)
        counter.acknowledge(channel, lane)
        await counter.turn()
        counter.settle()
    assert counter.state.get(tables.PROVIDER, PROVIDER.key).bundle_seq == 3
    counter.take(counter.handed[0])
    assert counter.paid(channel) == 4 * FEE


async def test_kept_bundle_that_is_told_costs_the_provider_nothing(counter: Careful) -> None:
    """Its open bundles are refused from then on: what is left is cut anew above it, once."""
    channel = counter.channel()
    counter.answer(channel, 0, count=2)
    counter.answer(channel, 1)
    waited(counter)
    await counter.look()
    counter.answer(channel, 2)
    for lane in (0, 2):
        counter.acknowledge(channel, lane)
    assert await counter.turn() == [[(1, 2), (1, 1)]]
    below = counter.offered.pop()
    counter.take(counter.handed[0])
    assert counter.paid(channel) == 3 * FEE
    with pytest.raises(channels.Invalid):
        counter.take(below)
    assert await counter.turn() == [[(1, 1)]]
    assert number_of(counter.offered[0]) > number_of(counter.handed[0])
    counter.settle()
    assert counter.paid(channel) == 4 * FEE
    counter.ms += CLAIM_AFTER_MS + 1
    assert await counter.turn() == []
    assert counter.bundler.open_count == 0
    assert all(not lane.unsettled for lane in counter.book.lanes())


async def test_no_number_is_used_twice_of_either_kind(counter: Careful, tmp_path: Path) -> None:
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    waited(counter)
    for _ in range(3):
        await counter.look()
        await counter.turn()
        counter.pass_time(REFRESH_S)
    counter.book.close()
    again = Careful(tmp_path / "receipts", state=counter.state, ms=counter.ms)
    for _ in range(3):
        await again.look()
        await again.turn()
        again.pass_time(REFRESH_S)
    again.book.close()
    told = [number_of(b) for b in (*counter.offered, *again.offered)]
    kept = [number_of(b) for b in (*counter.handed, *again.handed)]
    assert len(kept) == 6
    assert kept == sorted(set(kept))
    assert told == sorted(set(told))
    assert all(number % RESERVED_EVERY == 0 for number in kept)
    assert all(number % RESERVED_EVERY for number in told)


@pytest.mark.parametrize(
    ("told", "reserved", "settled", "next_told", "next_reserved"),
    [
        (0, 0, 0, 1, RESERVED_EVERY),
        (RESERVED_EVERY - RESERVED_ROOM - 1, 0, 0, 512, RESERVED_EVERY),
        (RESERVED_EVERY - RESERVED_ROOM, 0, 0, 513, 2 * RESERVED_EVERY),
        (RESERVED_EVERY - 1, 0, 0, RESERVED_EVERY + 1, 2 * RESERVED_EVERY),
        (5, RESERVED_EVERY, 0, 6, 2 * RESERVED_EVERY),
        (5, RESERVED_EVERY, RESERVED_EVERY, RESERVED_EVERY + 1, 2 * RESERVED_EVERY),
    ],
)
def test_reserved_numbers_leave_room(
    tmp_path: Path, told: int, reserved: int, settled: int, next_told: int, next_reserved: int
) -> None:
    nothing: Any = lambda: None  # noqa: E731
    book = ReceiptBook(tmp_path, nothing, now_ms=0)
    book.bundle_seq, book.reserved_seq = told, reserved
    assert book.next_bundle_seq(settled) == next_told
    assert book.next_reserved_seq(settled) == next_reserved
    book.close()


def test_a_minute_of_own_bundles_fits_below_the_reserved_number() -> None:
    assert OPEN_MAX * REFRESH_S / CUT_EVERY_S < RESERVED_ROOM
