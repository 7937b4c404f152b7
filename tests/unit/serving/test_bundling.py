"""Receipts into bundles: each second or at 256, acknowledged first, offered until settled."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN, some_receipt
from exchange_kit import at_once
from ledger_kit import (
    BASE,
    NOW_MS,
    OPEN,
    PAYER,
    PROVIDER,
    add_model,
    context,
    fee_of,
    new_state,
    open_channel,
)

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.rules import channels
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, decode_body, decode_header, decode_section
from node.ledger.wire.orders import Voucher, encode_voucher, voucher_message
from node.ledger.wire.receipts import decode_receipt, encode_receipt, receipt_message
from node.serving import bundling
from node.serving.book import UNSETTLED_MAX, ReceiptBook, Served
from node.serving.bundling import (
    CLAIM_AFTER_MS,
    CLAIM_EXPIRY_MS,
    CUT_EVERY_S,
    EXPIRY_MARGIN_MS,
    OPEN_MAX,
    RECEIPTS_MAX,
    RECUT_MS,
    Bundler,
)
from node.storage.segments import SEGMENT_BYTES

FEE = fee_of(3, 5)
HOUR_MS = 3_600_000


@dataclass
class Counter:
    """A provider with its lanes; `answer` leaves a receipt as the service would."""

    folder: Path
    state: State = field(default_factory=new_state)
    ms: int = NOW_MS
    offered: list[Bundle] = field(default_factory=list)
    channels: int = 0
    segment_bytes: int = SEGMENT_BYTES

    def __post_init__(self) -> None:
        self.book = ReceiptBook(self.folder, lambda: self.state, self.segment_bytes, now_ms=NOW_MS)
        self.bundler = Bundler(
            book=self.book, chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign,
            get_state=lambda: self.state, offer_bundle=self.offer, now_ms=lambda: self.ms,
            run_blocking=at_once,
        )  # fmt: skip

    async def offer(self, bundle: Bundle) -> None:
        await trio.lowlevel.checkpoint()
        self.offered.append(bundle)

    def channel(self) -> bytes:
        self.channels += 1
        return open_channel(self.state, 10 * OPEN, nonce=self.channels)

    def voucher(self, channel: bytes, lane: int = 0, **fields: Any) -> tuple[bytes, bytes]:
        """The payer's next voucher in a lane: acknowledges all, and holds one answer."""
        at = self.book.lane(channel, lane)
        made = Voucher(
            version=1, channel=channel, lane=lane, seq=at.seq + 1, sub=0, cumulative=at.cumulative,
            accumulator=at.accumulator, hold=FEE, order_hash=b"\1" * 32,
            expires_ms=self.ms + HOUR_MS,
        )  # fmt: skip
        raw = encode_voucher(made._replace(**fields))
        return raw, PAYER.sign(voucher_message(CHAIN, raw))

    def answer(self, channel: bytes, lane: int = 0, count: int = 1, **fields: Any) -> None:
        model = fields.pop("model", 1)
        for _ in range(count):
            raw, signature = self.voucher(channel, lane, **fields)
            at = self.book.lane(channel, lane)
            self.book.take_voucher(at, raw, signature)
            receipt = encode_receipt(
                some_receipt(
                    random.Random(at.seq), b"\x90", channel=channel, lane=lane, seq=at.seq + 1,
                    order_hash=b"\1" * 32, model=model, tokens_in=3, tokens_out=5, fee=FEE,
                    finished_ms=self.ms, sketch_hash=bytes(32),
                )
            )  # fmt: skip
            signed = PROVIDER.sign(receipt_message(CHAIN, receipt))
            empty = (b"", b"", b"", bytes(32), (b"",), (b"",), b"")
            self.book.keep(Served(receipt, signed, b"\x90", *empty, raw, signature))

    def acknowledge(self, channel: bytes, lane: int = 0) -> None:
        raw, signature = self.voucher(channel, lane, hold=0)
        self.book.take_voucher(self.book.lane(channel, lane), raw, signature)

    def settle(self) -> None:
        """A block takes all that was offered."""
        for bundle in self.offered:
            admitted = admit_bundle(self.state, CHAIN, bundle)
            channels.apply_bundle(self.state, context(self.ms), admitted.bundle)
        self.offered.clear()

    def try_to_settle(self) -> int:
        """A block takes what it can of all that was offered; how many that is."""
        taken = 0
        for bundle in self.offered:
            try:
                with self.state.trial():
                    checked = admit_bundle(self.state, CHAIN, bundle).bundle
                    channels.apply_bundle(self.state, context(self.ms), checked)
                taken += 1
            except Invalid:
                continue
        self.offered.clear()
        return taken

    def settled(self, channel: bytes, lane: int) -> int:
        return channels.lane_of(self.state, channel, lane).seq

    async def turn(self) -> list[list[tuple[int, int]]]:
        """(from, to) of each section of each bundle that this turn offered."""
        before = len(self.offered)
        await self.bundler.turn()
        return [
            [
                (section.from_seq, section.to_seq)
                for section in (decode_section(part.section) for part in decode_body(bundle.body))
            ]
            for bundle in self.offered[before:]
        ]


@pytest.fixture
def counter(tmp_path: Path) -> Any:
    made = Counter(tmp_path / "receipts")
    yield made
    made.book.close()


async def test_acknowledged_receipts_go_and_the_last_one_waits(counter: Counter) -> None:
    channel = counter.channel()
    counter.answer(channel, count=3)
    assert await counter.turn() == [[(1, 2)]]
    counter.acknowledge(channel)
    assert await counter.turn() == [[(3, 3)]]
    assert await counter.turn() == []


@pytest.mark.parametrize("early_ms", [0, 1])
async def test_last_receipt_is_claimed_from_its_hold_after_a_while(
    counter: Counter, early_ms: int
) -> None:
    """A claim costs every checker a second signature, so the payer gets time to acknowledge."""
    counter.answer(counter.channel())
    counter.ms += CLAIM_AFTER_MS + 1 - early_ms
    cut = await counter.turn()
    assert cut == ([] if early_ms else [[(1, 1)]])
    if cut:
        (part,) = decode_body(counter.offered[0].body)
        assert decode_section(part.section).last_receipt_sig != b""
        counter.settle()


@pytest.mark.parametrize("why", ["voucher expires", "channel closes"])
async def test_last_receipt_is_claimed_at_once_when_time_is_short(
    counter: Counter, why: str
) -> None:
    channel = counter.channel()
    left_ms = CLAIM_EXPIRY_MS - (why == "voucher expires")
    counter.answer(channel, expires_ms=counter.ms + left_ms)
    if why == "channel closes":
        assert await counter.turn() == []
        record = counter.state.get(tables.CHANNEL, channel)
        closing = record._replace(state=tables.CHANNEL_CLOSING)
        counter.state.put(tables.CHANNEL, (channel,), closing)
    assert await counter.turn() == [[(1, 1)]]


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_lane_with_a_void_voucher_waits_and_sinks_nobody_elses_bundle(
    counter: Counter, late_ms: int
) -> None:
    """One void section would make the ledger refuse the whole bundle."""
    void, good = counter.channel(), counter.channel()
    counter.answer(void, expires_ms=counter.ms + CLAIM_AFTER_MS + EXPIRY_MARGIN_MS - late_ms)
    counter.answer(good)
    counter.ms += CLAIM_AFTER_MS
    counter.acknowledge(good)
    assert sum(map(len, await counter.turn())) == (1 if late_ms else 2)
    assert (counter.bundler.counters["expired"] > 0) == (late_ms > 0)
    counter.settle()
    counter.acknowledge(void)  # the payer's next voucher pays what waited
    assert await counter.turn() == ([[(1, 1)]] if late_ms else [])


async def test_bundle_is_one_signature_over_many_lanes(counter: Counter) -> None:
    first, second = counter.channel(), counter.channel()
    for channel, lane in ((first, 0), (first, 1), (second, 0)):
        counter.answer(channel, lane, count=2)
        counter.acknowledge(channel, lane)
    assert await counter.turn() == [[(1, 2)] * 3]
    header = decode_header(counter.offered[0].header)
    assert (header.bundle_seq, header.count, header.fee_total) == (1, 6, 6 * FEE)
    counter.settle()
    assert counter.state.get(tables.CHANNEL, first).paid == 4 * FEE


async def test_bundle_holds_256_receipts_and_the_rest_follows_in_the_next(
    counter: Counter,
) -> None:
    channel = counter.channel()
    for lane, count in enumerate((100, 156, 1)):
        counter.answer(channel, lane, count=count)
        counter.acknowledge(channel, lane)
    assert await counter.turn() == [[(1, 100), (1, 156)], [(1, 1)]]
    counts = [decode_header(bundle.header).count for bundle in counter.offered]
    assert counts == [RECEIPTS_MAX, 1]


async def test_lane_as_full_as_it_may_be_fits_into_one_bundle(counter: Counter) -> None:
    """A lane is settled whole by its newest voucher: one that did not fit would never be paid."""
    channel = counter.channel()
    counter.answer(channel, count=UNSETTLED_MAX)
    counter.acknowledge(channel)
    assert await counter.turn() == [[(1, UNSETTLED_MAX)]]
    counter.settle()
    await counter.turn()
    assert counter.book.lane(channel, 0).unsettled == []


async def test_bundle_is_of_one_base(counter: Counter) -> None:
    add_model(counter.state, 2, base=b"\x08" * 32)
    assert counter.state.get(tables.MODEL, 1).base == BASE
    channel = counter.channel()
    for lane, model in ((0, 1), (1, 2), (2, 1)):
        counter.answer(channel, lane, model=model)
        counter.acknowledge(channel, lane)
    await counter.turn()
    models = [
        [decode_receipt(part.receipts[0]).model for part in decode_body(bundle.body)]
        for bundle in counter.offered
    ]
    assert models == [[1, 1], [2]]


async def test_open_bundles_are_bounded_and_each_settled_one_makes_room(counter: Counter) -> None:
    channel = counter.channel()
    for turn in range(OPEN_MAX + 1):
        counter.answer(channel)
        counter.acknowledge(channel)
        assert len(await counter.turn()) == (turn < OPEN_MAX)
    assert counter.bundler.open_count == OPEN_MAX
    counter.settle()
    assert await counter.turn() == [[(OPEN_MAX + 1, OPEN_MAX + 1)]]
    assert counter.bundler.open_count == 1


async def test_what_is_not_settled_in_time_is_cut_anew_under_a_higher_number(
    counter: Counter,
) -> None:
    channel = counter.channel()
    for _ in range(2):
        counter.answer(channel)
        counter.acknowledge(channel)
        await counter.turn()
    counter.ms += RECUT_MS
    assert await counter.turn() == []
    counter.ms += 1
    assert await counter.turn() == [[(1, 2)]]
    numbers = [decode_header(bundle.header).bundle_seq for bundle in counter.offered]
    assert numbers == [1, 2, 3]


async def test_section_that_the_ledger_never_takes_sinks_no_other_for_long(
    counter: Counter,
) -> None:
    """Its price fell while the answer took its time; lanes go apart once their bundle failed."""
    add_model(counter.state, 2, BASE)
    channel = counter.channel()
    for lane, model in ((0, 2), (1, 1), (2, 1)):
        counter.answer(channel, lane, model=model)
        counter.acknowledge(channel, lane)
    counter.state.put(tables.PRICE, (2, 1), tables.Price(1, 1, 1, 1, 1, 1, 0))
    assert await counter.turn() == [[(1, 1)] * 3]
    assert counter.try_to_settle() == 0
    counter.ms += RECUT_MS + 1
    assert await counter.turn() == [[(1, 1)]] * 3
    assert counter.try_to_settle() == 2
    assert [counter.settled(channel, lane) for lane in range(3)] == [0, 1, 1]
    counter.answer(channel, 1)
    counter.acknowledge(channel, 1)
    counter.answer(channel, 2)
    counter.acknowledge(channel, 2)
    counter.ms += RECUT_MS + 1
    assert await counter.turn() == [[(2, 2)] * 2, [(1, 1)]], "those that settled, together again"
    assert counter.try_to_settle() == 1


async def test_number_is_never_used_twice_over_a_restart(counter: Counter, tmp_path: Path) -> None:
    """Two bundles of one number would be a fault that anybody can prove."""
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    await counter.turn()
    counter.book.close()
    again = Counter(tmp_path / "receipts", state=counter.state, ms=counter.ms)
    assert await again.turn() == [[(1, 1)]]
    assert decode_header(again.offered[0].header).bundle_seq == 2
    again.book.close()


async def test_bundle_that_was_passed_by_is_given_up_at_once(counter: Counter) -> None:
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    await counter.turn()
    record = counter.state.get(tables.PROVIDER, PROVIDER.key)
    counter.state.put(tables.PROVIDER, (PROVIDER.key,), record._replace(bundle_seq=1))
    assert await counter.turn() == [[(1, 1)]]
    assert decode_header(counter.offered[-1].header).bundle_seq == 2


async def test_receipts_of_a_closed_channel_are_counted_as_lost(counter: Counter) -> None:
    channel = counter.channel()
    counter.answer(channel, count=3)
    record = counter.state.get(tables.CHANNEL, channel)
    closed = record._replace(state=tables.CHANNEL_CLOSED)
    counter.state.put(tables.CHANNEL, (channel,), closed)
    assert await counter.turn() == []
    assert counter.bundler.counters["lost"] == 3
    await counter.turn()
    assert counter.bundler.counters["lost"] == 3


async def test_jailed_provider_offers_nothing_that_no_block_would_take(counter: Counter) -> None:
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    key = (tables.ROLE_PROVIDER, PROVIDER.key)
    counter.state.put(tables.CONDUCT, key, tables.Conduct(jailed_until_ms=1))
    assert await counter.turn() == []
    counter.state.remove(tables.CONDUCT, *key)
    assert await counter.turn() == [[(1, 1)]]


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_book_opens_that_was_pruned_amid_a_channel_that_ended(
    tmp_path: Path, is_forgotten: bool
) -> None:
    """What was lost, or what the ledger forgot, left a gap at which no provider started again."""
    counter = Counter(tmp_path / "receipts", segment_bytes=4_096)
    channel = counter.channel()
    for _ in range(20):
        counter.answer(channel)
        counter.ms += 1
    record = counter.state.get(tables.CHANNEL, channel)
    closed = record._replace(state=tables.CHANNEL_CLOSED)
    counter.state.put(tables.CHANNEL, (channel,), closed)
    await counter.turn()
    assert counter.book.prune(counter.ms) > 0
    counter.book.close()
    if is_forgotten:
        counter.state.remove(tables.CHANNEL, channel)
    again = Counter(tmp_path / "receipts", counter.state, counter.ms, segment_bytes=4_096)
    assert again.book.find(channel, 0, 20, b"\1" * 32) is not None, "for whoever asks again"
    assert await again.turn() == []
    again.book.close()


async def test_provider_that_is_not_registered_offers_nothing(counter: Counter) -> None:
    channel = counter.channel()
    counter.answer(channel)
    counter.acknowledge(channel)
    record = counter.state.get(tables.PROVIDER, PROVIDER.key)
    counter.state.remove(tables.PROVIDER, PROVIDER.key)
    assert await counter.turn() == []
    counter.state.put(tables.PROVIDER, (PROVIDER.key,), record)
    assert await counter.turn() == [[(1, 1)]]


# --- when


class Turns:
    """The bundler's clock: at which seconds it turns."""

    def __init__(self, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[float] = []
        turn = counter.bundler.turn

        async def note() -> None:
            self.at.append(trio.current_time())
            await turn()

        monkeypatch.setattr(counter.bundler, "turn", note)


async def test_bundler_turns_each_second(counter, monkeypatch, autojump_clock) -> None:
    turns = Turns(counter, monkeypatch)
    with trio.move_on_after(3.5 * CUT_EVERY_S):
        await counter.bundler.run()
    assert turns.at == pytest.approx([CUT_EVERY_S, 2 * CUT_EVERY_S, 3 * CUT_EVERY_S])


async def test_256_waiting_receipts_wake_it_and_255_do_not(
    counter, monkeypatch, autojump_clock
) -> None:
    turns, channel = Turns(counter, monkeypatch), counter.channel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counter.bundler.run)
        counter.answer(channel, 0, count=RECEIPTS_MAX - 1)
        await trio.sleep(0.1)
        counter.bundler.note_receipt()
        await trio.testing.wait_all_tasks_blocked()
        assert turns.at == []
        counter.answer(channel, 1)
        counter.bundler.note_receipt()
        await trio.testing.wait_all_tasks_blocked()
        assert turns.at == pytest.approx([0.1])
        nursery.cancel_scope.cancel()


async def test_receipts_that_are_in_a_bundle_wake_it_no_more(
    counter, monkeypatch, autojump_clock
) -> None:
    """Else every answer between offer and block would cost a look at all lanes."""
    channel = counter.channel()
    counter.answer(channel, 0, count=RECEIPTS_MAX)
    counter.acknowledge(channel)
    await counter.bundler.turn()
    turns = Turns(counter, monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counter.bundler.run)
        counter.answer(channel, 1, count=5)
        counter.bundler.note_receipt()
        await trio.testing.wait_all_tasks_blocked()
        assert turns.at == []
        nursery.cancel_scope.cancel()


async def test_book_is_pruned_once_an_hour(counter, monkeypatch, autojump_clock) -> None:
    pruned = []
    monkeypatch.setattr(counter.book, "prune", pruned.append)
    for _ in range(2 * 3_600 - 1):
        await counter.bundler.turn()
    assert pruned == [counter.ms - bundling.KEEP_MS]
