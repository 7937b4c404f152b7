"""Whether an order is served: every check alone, at its limit, and before any work."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle_kit import CHAIN, party
from exchange_kit import SAMPLING, make_order, make_start
from ledger_kit import NOW_MS, OPEN, PRICES, PROVIDER, fee_of, new_state, open_channel

from node.ledger import purses, tables
from node.ledger.state import State
from node.ledger.tables import Lane
from node.ledger.wire import exchange
from node.ledger.wire.exchange import Start
from node.ledger.wire.orders import PAYER_SEEDED, order_hash, seed_commit
from node.serving.book import UNSETTLED_MAX, ReceiptBook, Released
from node.serving.checking import (
    CLAIM_LEFT_MS,
    DEADLINE_AHEAD_MS_MAX,
    END_MARGIN_MS,
    VOUCHER_LEFT_MS,
    Job,
    OrderRefused,
    ServedModel,
    engine_sampling,
    prices_now,
    verify_order,
)

NONCE = b"\x09" * 32
HOT = SAMPLING._replace(temperature_milli=500)
READY = ServedModel(None, True, 0, False)


class Door:
    """A provider's state and book; `check` is `verify_order` on them."""

    def __init__(self, folder: Path) -> None:
        self.state: State = new_state()
        self.channel = open_channel(self.state)
        self.book = ReceiptBook(folder, lambda: self.state, now_ms=NOW_MS)
        self.model: ServedModel | None = READY
        self.provider = PROVIDER.key

    def check(self, start: Start, now_ms: int = NOW_MS) -> Job:
        return verify_order(
            start, chain_id=CHAIN, provider=self.provider, state=self.state, book=self.book,
            find_model=lambda model, version: self.model, now_ms=now_ms,
        )  # fmt: skip

    def refusal(self, start: Start, now_ms: int = NOW_MS) -> OrderRefused:
        with pytest.raises(OrderRefused) as refused:
            self.check(start, now_ms)
        return refused.value

    def start(self, order: Any = None, **voucher: Any) -> Start:
        return make_start(self.channel, order, voucher=voucher)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.book.close()


def test_order_that_is_in_order_becomes_a_job(door: Door) -> None:
    start = door.start()
    job = door.check(start)
    assert (job.prompt, job.prices, job.model) == ((5, 6, 7), PRICES, READY)
    assert (job.order_hash, job.voucher_raw) == (order_hash(start.order), start.voucher)
    assert job.channel == door.state.get(tables.CHANNEL, door.channel)
    assert (job.is_seeded, job.is_payer_seeded) == (False, False)
    assert not job.lane.is_busy, "looking takes nothing"


def test_released_channel_is_served_no_more_until_more_is_paid(door: Door) -> None:
    """A signed CoopClose of that sum gives up whatever is served behind it."""
    later_ms = NOW_MS + 1_000
    door.book.release(Released(door.channel, 0, later_ms))
    assert door.refusal(door.start(), later_ms - 1).code == exchange.CLOSING
    assert door.refusal(door.start(), later_ms).code == exchange.CLOSING
    record = door.state.get(tables.CHANNEL, door.channel)
    door.state.put(tables.CHANNEL, (door.channel,), record._replace(paid=1))
    assert door.refusal(door.start(), later_ms - 1).code == exchange.CLOSING, "it settles first"
    door.check(door.start(), later_ms)


def test_channel_older_than_the_book_is_not_served(door: Door, tmp_path: Path) -> None:
    """Its payer may hold receipts that the lost book had: a second one for the same place costs
    the provider's bond."""
    door.book.close()
    for now_ms in (NOW_MS + 1, NOW_MS + 2):  # made, and opened again
        door.book = ReceiptBook(tmp_path / "new", lambda: door.state, now_ms=now_ms)
        assert door.refusal(door.start()).code == exchange.CLOSING
        door.book.close()
    door.channel = open_channel(door.state, nonce=1, opened_ms=NOW_MS + 1)
    door.book = ReceiptBook(tmp_path / "new", lambda: door.state, now_ms=NOW_MS + 3)
    door.check(door.start())


def test_jailed_provider_serves_nothing_that_it_could_not_settle(door: Door) -> None:
    jailed = tables.Conduct(jailed_until_ms=1)
    door.state.put(tables.CONDUCT, (tables.ROLE_PROVIDER, PROVIDER.key), jailed)
    assert door.refusal(door.start()).code == exchange.NOT_SERVED


@pytest.mark.parametrize(
    ("ahead_ms", "passes"),
    [(0, False), (1, True), (DEADLINE_AHEAD_MS_MAX, True), (DEADLINE_AHEAD_MS_MAX + 1, False)],
)
def test_deadline_is_ahead_and_not_too_far(door: Door, ahead_ms: int, passes: bool) -> None:
    order = make_order(deadline_ms=NOW_MS + ahead_ms)
    start = door.start(order, expires_ms=NOW_MS + 2 * DEADLINE_AHEAD_MS_MAX)
    if passes:
        door.check(start)
    else:
        refused = door.refusal(start)
        assert (refused.code, refused.why) == (exchange.EXPIRED, "the order's deadline")


def test_order_that_expired_on_its_way_is_refused(door: Door) -> None:
    start = door.start(make_order(deadline_ms=NOW_MS + 5))
    door.check(start, NOW_MS + 4)
    assert door.refusal(start, NOW_MS + 5).code == exchange.EXPIRED


def test_voucher_outlives_the_time_that_settling_takes(door: Door) -> None:
    door.check(door.start(expires_ms=NOW_MS + VOUCHER_LEFT_MS))
    refused = door.refusal(door.start(expires_ms=NOW_MS + VOUCHER_LEFT_MS - 1))
    assert refused.code == exchange.EXPIRED


def test_voucher_outlives_the_time_that_its_order_may_take(door: Door) -> None:
    """An answer of an hour was paid by a promise of twenty minutes: by nothing."""
    order = make_order(deadline_ms=NOW_MS + DEADLINE_AHEAD_MS_MAX)
    least_ms = order.deadline_ms + CLAIM_LEFT_MS
    door.check(door.start(order, expires_ms=least_ms))
    refused = door.refusal(door.start(order, expires_ms=least_ms - 1))
    assert refused.code == exchange.EXPIRED


@pytest.mark.parametrize("state", [tables.CHANNEL_CLOSING, tables.CHANNEL_CLOSED])
def test_channel_must_be_open(door: Door, state: int) -> None:
    record = door.state.get(tables.CHANNEL, door.channel)
    door.state.put(tables.CHANNEL, (door.channel,), record._replace(state=state))
    assert door.refusal(door.start()).code == exchange.UNKNOWN_CHANNEL


def test_channel_must_be_with_this_provider(door: Door) -> None:
    door.provider = party("another provider").key
    assert door.refusal(door.start()).code == exchange.UNKNOWN_CHANNEL


def test_model_is_served_and_loaded(door: Door) -> None:
    door.model = None
    assert door.refusal(door.start()).code == exchange.NOT_SERVED
    door.model = READY._replace(is_ready=False)
    refused = door.refusal(door.start())
    assert (refused.code, refused.retry_ms > 0) == (exchange.ADAPTER_LOADING, True)


def test_model_that_ends_is_served_until_just_before(door: Door) -> None:
    """A receipt that is started at its end or later would sink its whole bundle."""
    record = door.state.get(tables.MODEL, 1)._replace(status=tables.MODEL_RETIRING)
    for left_ms, is_served in ((END_MARGIN_MS + 1, True), (END_MARGIN_MS, False)):
        ending = record._replace(retired_ms=NOW_MS + left_ms)
        door.state.put(tables.MODEL, (1,), ending)
        if is_served:
            door.check(door.start())
        else:
            refused = door.refusal(door.start())
            assert (refused.code, refused.why) == (exchange.NOT_SERVED, "the version ends")


def test_version_without_a_price_on_the_ledger_is_not_served(door: Door) -> None:
    door.state.remove(tables.PRICE, 1, 1)
    refused = door.refusal(door.start())
    assert (refused.code, refused.why) == (exchange.NOT_SERVED, "version")


def test_lane_with_a_request_in_flight_is_busy(door: Door) -> None:
    door.book.lane(door.channel, 0).is_busy = True
    refused = door.refusal(door.start())
    assert (refused.code, refused.retry_ms > 0) == (exchange.BUSY, True)
    door.check(door.start(lane=1))


def test_lane_that_waits_to_be_settled_takes_no_more(door: Door) -> None:
    """A lane is settled whole: beyond one bundle's room its receipts could never be paid."""
    lane = door.book.lane(door.channel, 0)
    waiting: Any = [SimpleNamespace()] * UNSETTLED_MAX
    lane.unsettled = waiting[1:]
    door.check(door.start())
    lane.unsettled = waiting
    refused = door.refusal(door.start())
    assert (refused.code, refused.retry_ms > 0) == (exchange.BUSY, True)


@pytest.mark.parametrize("who", ["thief", "provider"])
def test_voucher_is_signed_by_the_channels_spender(door: Door, who: str) -> None:
    refused = door.refusal(make_start(door.channel, who=party(who)))
    assert (refused.code, refused.why) == (exchange.NOT_ALLOWED, "the voucher's signature")


STEPS: dict[str, Callable[[Door], Start]] = {
    "a number ahead": lambda door: door.start(seq=2),
    "a sum ahead": lambda door: door.start(cumulative=1),
    "another accumulator": lambda door: door.start(accumulator=bytes(32)),
}


@pytest.mark.parametrize("desc", sorted(STEPS))
def test_voucher_continues_its_lane(door: Door, desc: str) -> None:
    assert door.refusal(STEPS[desc](door)).code == exchange.OUT_OF_STEP


def test_voucher_rises_above_the_last_one_or_is_the_same(door: Door) -> None:
    """The same again is a stream that broke; another under the same number is a second promise."""
    first = door.start(sub=3)
    job = door.check(first)
    door.book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
    door.check(first)
    door.check(door.start(sub=4))
    assert door.refusal(door.start(sub=2)).code == exchange.OUT_OF_STEP
    assert door.refusal(door.start(sub=3, hold=fee_of(3, 8) + 1)).code == exchange.OUT_OF_STEP


def test_hold_covers_the_first_quantum(door: Door) -> None:
    order = make_order(quantum=2)
    door.check(door.start(order, hold=fee_of(3, 2)))
    refused = door.refusal(door.start(order, hold=fee_of(3, 2) - 1))
    assert refused.code == exchange.PRICE_CHANGED
    door.check(door.start(make_order(quantum=10_000), hold=fee_of(3, 8)))


def test_all_lanes_together_stay_within_the_cap(door: Door) -> None:
    job = door.check(door.start(hold=4 * OPEN))
    door.book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
    door.check(door.start(lane=1, hold=6 * OPEN))
    refused = door.refusal(door.start(lane=1, hold=6 * OPEN + 1))
    assert refused.code == exchange.OVER_LIMITS
    door.check(door.start(sub=1, hold=10 * OPEN))  # its own hold is replaced, not added


def test_cap_counts_what_a_book_that_was_pruned_does_not_know(door: Door, tmp_path: Path) -> None:
    """Settled and dropped: after a restart that lane's fees were promised a second time."""
    paid = 4 * OPEN
    door.state.put(tables.LANE, (door.channel, 0), Lane(1, paid, bytes(32)))
    door.state.move(purses.channel(door.channel), purses.SETTLING, paid)
    refused = door.refusal(door.start(lane=1, hold=6 * OPEN + 1))
    assert refused.code == exchange.OVER_LIMITS
    job = door.check(door.start(lane=1, hold=OPEN))
    door.book.take_voucher(job.lane, job.voucher_raw, job.voucher_sig)
    assert door.book.promised(door.channel) == 5 * OPEN
    again = {"seq": 2, "cumulative": paid, "accumulator": bytes(32)}
    door.check(door.start(hold=5 * OPEN, **again))  # its own lane is replaced, not added
    refused = door.refusal(door.start(hold=5 * OPEN + 1, **again))
    assert refused.code == exchange.OVER_LIMITS


def test_raised_price_counts_from_its_time_on(door: Door) -> None:
    old, new = PRICES, tuple(2 * price for price in PRICES)
    door.state.put(tables.PRICE, (1, 1), tables.Price(*new, *old, NOW_MS + 10))
    assert prices_now(door.state, 1, 1, NOW_MS + 9) == old
    assert prices_now(door.state, 1, 1, NOW_MS + 10) == new
    door.check(door.start(), NOW_MS + 9)
    assert door.refusal(door.start(), NOW_MS + 10).code == exchange.PRICE_CHANGED


# --- seeds


def seeded(door: Door, nonce: bytes, commit: bytes, flags: int, sampling: Any = HOT) -> Start:
    order = make_order(sampling=sampling, seed_commit=commit, flags=flags)
    return make_start(door.channel, order, sampling, payer_nonce=nonce)


def test_seed_of_the_payer_alone_comes_with_the_order(door: Door) -> None:
    job = door.check(seeded(door, NONCE, seed_commit(NONCE), PAYER_SEEDED))
    assert (job.is_seeded, job.is_payer_seeded, job.payer_nonce) == (True, True, NONCE)


def test_seed_of_both_is_committed_to_and_revealed_later(door: Door) -> None:
    job = door.check(seeded(door, b"", seed_commit(NONCE), 0))
    assert (job.is_seeded, job.is_payer_seeded, job.payer_nonce) == (True, False, b"")


SEEDS: dict[str, Callable[[Door], Start]] = {
    "seed_commit": lambda door: seeded(door, b"", bytes(32), 0),
    "payer_nonce": lambda door: seeded(door, b"", seed_commit(NONCE), PAYER_SEEDED),
    "payer_seeded": lambda door: seeded(door, NONCE, seed_commit(bytes(32)), PAYER_SEEDED),
}


@pytest.mark.parametrize("why", sorted(SEEDS))
def test_seed_that_contradicts_itself_is_malformed_by_its_word(door: Door, why: str) -> None:
    refused = door.refusal(SEEDS[why](door))
    assert (refused.code, refused.why) == (exchange.MALFORMED, why)


def test_cold_answer_has_no_seed_of_the_payer(door: Door) -> None:
    refused = door.refusal(seeded(door, NONCE, bytes(32), PAYER_SEEDED, SAMPLING))
    assert refused.code == exchange.MALFORMED


def test_order_of_checks_never_lets_a_stranger_cost_a_signature_check(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature costs 50 µs: what is refused by a look is refused before it."""
    checked = []
    monkeypatch.setattr("node.serving.checking.verify_voucher", lambda *_: checked.append(1))
    for start in (
        door.start(make_order(deadline_ms=NOW_MS)),
        make_start(bytes(32)),
        door.start()._replace(order=b"\x90"),
    ):
        door.refusal(start)
    assert checked == []
    door.check(door.start())
    assert checked == [1]


def test_engine_is_told_what_was_ordered() -> None:
    ordered = SAMPLING._replace(temperature_milli=7, top_p_milli=8, top_k=9, n=2, stop=(b"x",))
    told = engine_sampling(ordered)
    assert (told.max_tokens, told.temperature_milli, told.top_p_milli, told.top_k, told.n) == (
        8,
        7,
        8,
        9,
        2,
    )
    assert (told.stop, told.flags) == ((b"x",), 0)
