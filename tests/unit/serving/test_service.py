"""The provider's side: each refusal by its code, partial answers, receipts that survive."""

import contextlib
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from bundle_kit import CHAIN, party
from exchange_kit import (
    PROMPT,
    SALT,
    SAMPLING,
    World,
    make_order,
    make_start,
    provider_frame,
    signed_voucher,
    stream_pair,
    world_in,
)
from ledger_kit import NOW_MS, OPEN, PAYER, PROVIDER, context, fee_of

from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.rules import channels
from node.ledger.wire import exchange
from node.ledger.wire.claims import sketch_hash
from node.ledger.wire.exchange import (
    Accepted,
    Alive,
    Cancel,
    Finished,
    RefusedFrame,
    Reveal,
    Start,
    Tick,
    Tokens,
)
from node.ledger.wire.orders import (
    PAYER_SEEDED,
    PRIVATE,
    REMOTE_OK,
    ZERO_HASH,
    encode_order,
    encode_sampling,
    order_hash,
    pack_ids,
    prompt_commit,
    seed_commit,
)
from node.ledger.wire.receipts import (
    COMPLETE,
    PARTIAL,
    accumulate_receipt,
    accumulator_start,
    answer_root,
    decode_receipt,
    verify_receipt,
)
from node.serving import verify
from node.serving.attributing import UNATTRIBUTED, Attributed
from node.serving.book import ReceiptBook
from node.serving.checking import (
    CLAIM_LEFT_MS,
    DEADLINE_AHEAD_MS_MAX,
    VOUCHER_LEFT_MS,
    ServedModel,
)
from node.serving.engine import (
    BadAdapter,
    BadSampling,
    DeadlinePassed,
    EngineLost,
    Overloaded,
    TooLong,
    UnknownAdapter,
    WrongBase,
)
from node.serving.service import LOADING_S
from p2p.errors import EndOfStream

NONCE = b"\x09" * 32


class Line:
    """A payer's end that sends what a test wants."""

    def __init__(self, world: World) -> None:
        self.ours, theirs = stream_pair()
        world.nursery.start_soon(world.service.serve, PAYER.key, theirs)

    async def send(self, frame) -> None:
        await self.ours.write(exchange.encode_frame(frame), 1)

    async def next(self, timeout_s: float = 30):
        while True:
            frame = provider_frame(await self.ours.read(1 << 21, timeout_s))
            if not isinstance(frame, Alive):
                return frame

    async def until(self, kind):
        """Frames up to the first of `kind`, which comes last."""
        got = [await self.next()]
        while not isinstance(got[-1], (kind, RefusedFrame)):
            got.append(await self.next())
        return got


async def ask(world: World, start: Start):
    line = Line(world)
    await line.send(start)
    got = await line.until(Finished)
    await line.ours.close()
    return got


async def refusal(world: World, start: Start) -> RefusedFrame:
    (frame,) = await ask(world, start)
    assert isinstance(frame, RefusedFrame)
    await trio.testing.wait_all_tasks_blocked()
    return frame


async def test_an_order_ends_in_a_receipt_that_is_durable_and_checks(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order()
        accepted, *tokens, finished = await ask(world, make_start(channel, order))
        assert accepted.order_hash == order_hash(encode_order(order))
        ids = [i for frame in tokens for i in exchange.unpack_ids(frame.ids)]
        assert ids == [100, 101, 102, 103, 104]
        receipt = decode_receipt(finished.receipt)
        verify_receipt(CHAIN, finished.receipt, finished.signature, PROVIDER.key)
        assert receipt.answer_root == answer_root(SALT, ZERO_HASH, ZERO_HASH, [ids])
        assert (receipt.fee, receipt.status, receipt.seq) == (fee_of(3, 5), 0, 1)
        assert receipt.tokens_out == 5
        served = world.book.find(channel, 0, 1, receipt.order_hash)
        assert served.receipt == finished.receipt
        evidence = verify.decode_evidence(served.evidence)
        assert verify.fingerprint_hash(served.evidence) == receipt.fingerprint_hash
        assert evidence.prompt == pack_ids(PROMPT)
        assert evidence.choices[0].ids == pack_ids(ids)


def with_channel_state(world: World, state: int) -> bytes:
    channel = world.own_channel()
    record = world.state.get(tables.CHANNEL, channel)
    world.state.put(tables.CHANNEL, (channel,), record._replace(state=state))
    return channel


HOT = SAMPLING._replace(temperature_milli=500)

REFUSED = {
    "a voucher that is none": (1, lambda c: make_start(c)._replace(
        voucher=b"\x90")),
    "a voucher for another order": (1, lambda c: make_start(c, voucher={
        "order_hash": b"\1" * 32})),
    "an order that is none": (1, lambda c: make_start(c)._replace(order=b"\x90")),
    "another sampling than ordered": (1, lambda c: make_start(c)._replace(
        sampling=encode_sampling(SAMPLING._replace(top_k=1)))),
    "another prompt than ordered": (1, lambda c: make_start(c, prompt=pack_ids((1, 2, 3)))),
    "a false count of prompt tokens": (1, lambda c: make_start(c, make_order(max_in=2))),
    "a false limit of answer tokens": (1, lambda c: make_start(c, make_order(max_out=9))),
    "no quantum": (1, lambda c: make_start(c, make_order(quantum=0))),
    "a seed without temperature": (1, lambda c: make_start(c, make_order(
        seed_commit=seed_commit(NONCE)))),
    "a nonce before its time": (1, lambda c: make_start(c, payer_nonce=NONCE)),
    "a forged signature": (7, lambda c: make_start(c, who=party("thief"))),
    "a deadline that has passed": (9, lambda c: make_start(c, make_order(deadline_ms=NOW_MS))),
    "a deadline too far ahead": (9, lambda c: make_start(c, make_order(
        deadline_ms=NOW_MS + 3_700_000))),
    "a voucher that expires too soon": (9, lambda c: make_start(c, voucher={
        "expires_ms": NOW_MS + 20 * 60_000 - 1})),
    "an unknown channel": (32, lambda c: make_start(bytes(32))),
    "a number out of step": (33, lambda c: make_start(c, voucher={"seq": 2})),
    "a false sum": (33, lambda c: make_start(c, voucher={"cumulative": 1})),
    "a false accumulator": (33, lambda c: make_start(c, voucher={"accumulator": bytes(32)})),
    "a model that is not served": (34, lambda c: make_start(c, make_order(model=9))),
    "a hold below the price": (35, lambda c: make_start(c, voucher={"hold": fee_of(3, 8) - 1})),
    "more than the cap": (36, lambda c: make_start(c, voucher={"hold": 10 * OPEN + 1})),
}  # fmt: skip


@pytest.mark.parametrize("desc", sorted(REFUSED))
async def test_a_bad_order_is_refused_by_its_code_before_any_work(tmp_path, autojump_clock, desc):
    code, make = REFUSED[desc]
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.service._find_model = lambda model, version: world.model if model == 1 else None
        frame = await refusal(world, make(channel))
        assert frame.code == code
        assert not world.engine.requests
        assert not world.book.lane(channel, 0).is_busy


async def test_limits_pass_at_their_value(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        voucher = {"hold": 10 * OPEN, "expires_ms": NOW_MS + 20 * 60_000 + 1_000}
        got = await ask(world, make_start(channel, voucher=voucher))
        assert isinstance(got[-1], Finished)


async def test_a_closing_channel_gets_no_more_answers(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = with_channel_state(world, tables.CHANNEL_CLOSING)
        assert (await refusal(world, make_start(channel))).code == 32


ENGINE = {
    38: Overloaded(retry_after_s=3),
    36: TooLong(limit=5),
    37: UnknownAdapter(),
    39: DeadlinePassed(),
    41: EngineLost(),
    1: BadSampling(field="top_k"),
}


@pytest.mark.parametrize("code", sorted(ENGINE))
async def test_what_the_engine_refuses_has_a_code_and_leaves_no_receipt(
    tmp_path, autojump_clock, code
) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.error = ENGINE[code]
        frame = await refusal(world, make_start(channel))
        assert (frame.code, frame.retry_ms) == (code, {37: 1_000, 38: 3_000}.get(code, 0))
        world.engine.error = None
        again = make_start(channel, voucher={"sub": 1})  # the same number, a greater sub
        assert isinstance((await ask(world, again))[-1], Finished)


@pytest.mark.parametrize("error", [BadAdapter(key="r"), WrongBase(key="q")])
async def test_adapter_that_is_no_good_is_no_fault_of_the_payer(
    tmp_path, autojump_clock, error
) -> None:
    async with world_in(tmp_path) as world:
        world.engine.error = error
        assert (await refusal(world, make_start(world.own_channel()))).code == 34


@pytest.mark.parametrize(("takes_s", "waits"), [(LOADING_S - 0.1, True), (LOADING_S + 0.1, False)])
async def test_adapter_that_loads_is_waited_for_as_long_as_the_payer_waits(
    tmp_path, autojump_clock, takes_s, waits
) -> None:
    async with world_in(tmp_path) as world:
        submit = world.engine.submit

        @asynccontextmanager
        async def load_first(request):
            await trio.sleep(takes_s)
            async with submit(request) as stream:
                yield stream

        world.engine.submit = load_first
        frame = (await ask(world, make_start(world.own_channel())))[-1]
        if waits:
            assert isinstance(frame, Finished)
            assert world.service.receipt_delay.sum_s < LOADING_S
            assert sum(world.service.receipt_delay.counts) == 1
        else:
            assert isinstance(frame, RefusedFrame)
            assert (frame.code, frame.retry_ms) == (37, 1_000)
            assert world.engine.requests == []


async def test_an_adapter_an_engine_or_a_ledger_that_is_not_there_yet_asks_to_come_again(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.model = ServedModel(b"\1" * 32, False, 0, False)
        frame = await refusal(world, make_start(channel))
        assert (frame.code, frame.retry_ms) == (37, 1_000)
        world.model = None
        assert (await refusal(world, make_start(channel))).code == 34
        world.has_engine = False
        frame = await refusal(world, make_start(channel))
        assert (frame.code, frame.retry_ms) == (10, 1_000)
        world.has_room = False
        frame = await refusal(world, make_start(channel))
        assert (frame.code, frame.retry_ms) == (3, 1_000)
        world.is_current = False
        frame = await refusal(world, make_start(channel))
        assert (frame.code, frame.retry_ms) == (3, 1_000)
        assert not world.engine.requests


async def slow_answer(world: World, channel: bytes) -> Line:
    """A payer whose order is under way, and stays so for some seconds."""
    world.engine.step_s = 1.0
    line = Line(world)
    await line.send(make_start(channel))
    await line.next()
    return line


async def test_one_request_a_lane_at_a_time(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        await slow_answer(world, channel)
        other = make_order(salt16=b"\1" * 16, prompt_commit=prompt_commit(b"\1" * 16, PROMPT))
        frame = await refusal(world, make_start(channel, other, voucher={"sub": 1}))
        assert frame.code == 3
        lane_1 = make_start(channel, other, voucher={"lane": 1})
        assert isinstance((await ask(world, lane_1))[-1], Finished)


async def test_node_that_is_to_stop_ends_what_it_began_and_begins_nothing(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        first = await slow_answer(world, channel)
        world.service.drain()
        assert world.service.under_way == 1
        frame = await refusal(world, make_start(channel, voucher={"lane": 1}))
        assert (frame.code, frame.retry_ms) == (3, 1_000)
        assert isinstance((await first.until(Finished))[-1], Finished)
        await first.ours.close()
        await trio.testing.wait_all_tasks_blocked()
        assert world.service.under_way == 0


async def test_out_of_step_shows_the_voucher_we_hold(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        start = make_start(channel)
        await ask(world, start)
        other = make_order(salt16=b"\1" * 16, prompt_commit=prompt_commit(b"\1" * 16, PROMPT))
        await trio.sleep(10)
        frame = await refusal(world, make_start(channel, other, voucher={"sub": 1}))
        assert (frame.code, frame.voucher) == (33, start.voucher)


async def test_silence_at_the_start_is_refused(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        line = Line(world)
        assert (await line.next()).code == 1
        gone = Line(world)
        await gone.ours.close()
        with pytest.raises(EndOfStream):
            await gone.next()
        assert world.blamed == [], "a line may break"
        other = Line(world)
        await other.send(Cancel(b""))
        assert (await other.next()).code == 1
        assert world.blamed == [PAYER.key]


@pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"\x91\x00", b"\x96\x00" + b"\xc4\x00" * 5])
async def test_bytes_that_are_no_frame_end_their_stream_and_nothing_else(
    tmp_path, autojump_clock, raw
) -> None:
    async with world_in(tmp_path) as world:
        line = Line(world)
        await line.ours.write(raw, 1)
        with pytest.raises(EndOfStream):
            await line.next()
        counters = world.service.counters
        assert (counters["malformed"], counters["refused.1"]) == (1, 1)
        assert world.blamed == [PAYER.key]
        assert not world.engine.requests
        channel = world.own_channel()
        assert isinstance((await ask(world, make_start(channel)))[-1], Finished)


# seeds


async def test_the_payer_reveals_in_time_or_gets_nothing(tmp_path, autojump_clock) -> None:
    order = make_order(sampling=HOT, seed_commit=seed_commit(NONCE))
    for reveal in (None, Reveal(bytes(32)), Cancel(b"")):
        async with world_in(tmp_path / str(reveal)[:6]) as world:
            channel = world.own_channel()
            line = Line(world)
            await line.send(make_start(channel, order, HOT))
            assert isinstance(await line.next(), Accepted)
            if reveal is not None:
                await line.send(reveal)
            assert (await line.next()).code == 42
            assert world.book.lane(channel, 0).seq == 0


async def test_a_revealed_seed_binds_both_sides(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(sampling=HOT, seed_commit=seed_commit(NONCE))
        line = Line(world)
        await line.send(make_start(channel, order, HOT))
        accepted = await line.next()
        await line.send(Reveal(NONCE))
        *_, finished = await line.until(Finished)
        root = answer_root(SALT, NONCE, accepted.provider_nonce, [list(range(100, 105))])
        assert decode_receipt(finished.receipt).answer_root == root
        assert accepted.provider_nonce != ZERO_HASH


async def test_a_payers_own_seed_comes_with_the_order(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(sampling=HOT, seed_commit=seed_commit(NONCE), flags=PAYER_SEEDED)
        accepted, *_, finished = await ask(
            world, make_start(channel, order, HOT, payer_nonce=NONCE)
        )
        assert accepted.provider_nonce == ZERO_HASH
        assert isinstance(finished, Finished)


async def test_engine_that_cannot_draw_with_the_seed_serves_who_allows_it(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.info = replace(world.engine.info, kind="remote", can=())
        fields = {"sampling": HOT, "seed_commit": seed_commit(NONCE)}
        strict = make_order(**fields, flags=PAYER_SEEDED)
        frame = await refusal(world, make_start(channel, strict, HOT, payer_nonce=NONCE))
        assert frame.code == exchange.NOT_SERVED
        assert not world.engine.requests
        assert not world.book.lane(channel, 0).is_busy
        loose = make_order(**fields, flags=PAYER_SEEDED | REMOTE_OK)
        *_, finished = await ask(world, make_start(channel, loose, HOT, payer_nonce=NONCE))
        assert isinstance(finished, Finished)
        voucher = {"lane": 1}
        *_, finished = await ask(world, make_start(channel, voucher=voucher))
        assert isinstance(finished, Finished), "greedy answers need no seed"


# partial answers


async def test_a_cancel_ends_in_a_receipt_for_what_was_delivered(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.step_s = 1.0
        line = Line(world)
        await line.send(make_start(channel))
        await line.next()
        await line.next()
        await line.send(Cancel(b"enough"))
        *tokens, finished = await line.until(Finished)
        receipt = decode_receipt(finished.receipt)
        count = 1 + sum(len(f.ids) // 4 for f in tokens if isinstance(f, Tokens))
        assert (receipt.status, receipt.tokens_out) == (2, count)
        assert receipt.fee == fee_of(3, count)


async def test_a_payer_that_goes_away_has_paid_for_what_it_got(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.step_s = 1.0
        line = Line(world)
        start = make_start(channel)
        await line.send(start)
        await line.next()
        await line.next()
        line.ours.cut()
        await trio.sleep(5)
        lane = world.book.lane(channel, 0)
        assert (lane.seq, lane.unsettled[0].receipt.status) == (1, 2)
        *_, finished = await ask(world, start)  # it comes back and gets the same
        assert finished.receipt == lane.unsettled[0].raw
        assert len(world.engine.requests) == 1


async def test_lane_of_a_payer_that_went_away_is_free_at_once(tmp_path, autojump_clock) -> None:
    """No acknowledgement can come from it, so none is waited for."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.step_s = 0.2
        ours, theirs = stream_pair()
        world.nursery.start_soon(world.service.serve, PAYER.key, theirs)
        await ours.write(exchange.encode_frame(make_start(channel)), 1)
        await trio.sleep(0.5)
        ours.cut()
        await trio.sleep(0.3)
        lane = world.book.lane(channel, 0)
        assert (lane.seq, lane.is_busy) == (1, False)


async def test_without_a_tick_the_answer_ends_at_the_quantum(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(quantum=2)
        *_, finished = await ask(world, make_start(channel, order, voucher={"hold": fee_of(3, 2)}))
        receipt = decode_receipt(finished.receipt)
        assert (receipt.status, receipt.tokens_out, receipt.fee) == (2, 2, fee_of(3, 2))
        assert world.service.counters["ticks_late"] == 1


async def test_a_tick_that_covers_too_little_is_as_none(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(quantum=2)
        line = Line(world)
        await line.send(make_start(channel, order, voucher={"hold": fee_of(3, 2)}))
        for sub, hold in ((1, fee_of(3, 4) - 1), (2, fee_of(3, 4))):
            await line.send(Tick(*signed_voucher(channel, order, sub=sub, hold=hold)))
        *_, finished = await line.until(Finished)
        assert decode_receipt(finished.receipt).tokens_out == 4
        assert world.service.counters["ticks_bad"] == 1


async def test_a_lost_worker_pays_for_the_tokens_shown(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.reason = "engine_lost"
        *_, finished = await ask(world, make_start(channel))
        assert decode_receipt(finished.receipt).status == 2


async def test_nothing_delivered_leaves_no_receipt(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.engine.tokens, world.engine.reason = 0, "deadline"
        assert (await ask(world, make_start(channel)))[-1].code == 41
        assert world.book.lane(channel, 0).seq == 0


# receipts


async def test_asked_again_the_same_answer_comes_and_nothing_is_charged(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        start = make_start(channel)
        first = await ask(world, start)
        await trio.sleep(10)
        again = await ask(world, start)
        assert again[-1] == first[-1]
        assert world.book.lane(channel, 0).seq == 1
        assert world.service.counters["sent_again"] == 1


async def test_asking_again_frees_no_promise_of_the_order_in_flight(
    tmp_path, autojump_clock
) -> None:
    """A bare voucher beside it would leave its hold to another lane: the whole cap twice."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        start = make_start(channel)
        *_, finished = await ask(world, start)
        await trio.sleep(10)
        receipt = decode_receipt(finished.receipt)
        stands = {
            "seq": 2,
            "cumulative": receipt.fee,
            "accumulator": accumulate_receipt(accumulator_start(channel, 0), finished.receipt),
        }
        world.engine.step_s = 2.0
        other = make_order(salt16=b"\1" * 16, prompt_commit=prompt_commit(b"\1" * 16, PROMPT))
        running = Line(world)
        await running.send(make_start(channel, other, voucher=stands))
        await running.next()
        lane = world.book.lane(channel, 0)
        promised = world.book.promised(channel)
        assert promised == receipt.fee + fee_of(3, 8)

        again = Line(world)
        await again.send(start)
        assert (await again.until(Finished))[-1] == finished
        bare = stands | {"sub": 1, "hold": 0}
        await again.send(Tick(*signed_voucher(channel, None, **bare)))
        await trio.testing.wait_all_tasks_blocked()
        assert (world.book.promised(channel), lane.voucher.sub) == (promised, 0)
        assert world.service.counters["acknowledgements_late"] == 1
        assert isinstance((await running.until(Finished))[-1], Finished)
        assert world.book.lane(channel, 0).seq == 2


async def test_after_a_restart_answers_and_lanes_are_there(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        start = make_start(channel)
        *_, finished = await ask(world, start)
        await trio.sleep(10)
        world.book.close()
        world.book = ReceiptBook(tmp_path / "provider", lambda: world.state, now_ms=NOW_MS)
        lane = world.book.lane(channel, 0)
        expected = accumulate_receipt(accumulator_start(channel, 0), finished.receipt)
        assert (lane.seq, lane.accumulator) == (1, expected)
        world.service, world.bundler = world.new_service(), world.new_bundler()
        assert (await ask(world, start))[-1] == finished
        await trio.sleep(15)
        await world.bundler.turn()
        settle(world)
        assert world.paid() == fee_of(3, 5)


def settle(world: World) -> None:
    for bundle in world.bundles:
        admitted = admit_bundle(world.state, CHAIN, bundle)
        with contextlib.suppress(channels.Invalid), world.state.trial():
            channels.apply_bundle(world.state, context(world.now_ms()), admitted.bundle)
    world.bundles.clear()


@pytest.mark.parametrize("short_ms", [0, 1])
async def test_an_acknowledgement_that_is_void_too_soon_is_not_held(
    tmp_path, autojump_clock, short_ms: int
) -> None:
    """A payer that signed an expired one could have kept all receipts of a bundle from settling."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        await ask(world, make_start(channel))
        lane = world.book.lane(channel, 0)
        raw, signature = signed_voucher(
            channel, None, seq=2, hold=0, cumulative=lane.cumulative, accumulator=lane.accumulator,
            expires_ms=world.now_ms() + VOUCHER_LEFT_MS - short_ms,
        )  # fmt: skip
        world.service.take_bare_voucher(Tick(raw, signature), lane)
        assert (lane.voucher.seq == 2) == (not short_ms)
        assert world.service.counters["acknowledgements_bad"] == short_ms


async def test_a_tick_that_is_void_too_soon_is_as_none(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(quantum=2)
        line = Line(world)
        await line.send(make_start(channel, order, voucher={"hold": fee_of(3, 2)}))
        short = {"hold": fee_of(3, 4), "expires_ms": world.now_ms() + 1_000}
        await line.send(Tick(*signed_voucher(channel, order, sub=1, **short)))
        *_, finished = await line.until(Finished)
        assert decode_receipt(finished.receipt).tokens_out == 2
        assert world.service.counters["ticks_bad"] == 1


@pytest.mark.parametrize(("is_other_channel", "number"), [(True, 0), (False, 1)])
async def test_a_tick_of_another_channel_or_lane_is_as_none(
    tmp_path, autojump_clock, is_other_channel, number
) -> None:
    """The receipt stood in that channel, where nothing pays it, and its book stopped the node."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        order = make_order(quantum=2)
        line = Line(world)
        await line.send(make_start(channel, order, voucher={"hold": fee_of(3, 2)}))
        named = b"\7" * 32 if is_other_channel else channel
        fields = {"lane": number, "sub": 1, "hold": fee_of(3, 4)}
        fields["accumulator"] = accumulator_start(channel, 0)
        await line.send(Tick(*signed_voucher(named, order, **fields)))
        *_, finished = await line.until(Finished)
        receipt = decode_receipt(finished.receipt)
        assert (receipt.channel, receipt.lane, receipt.tokens_out) == (channel, 0, 2)
        assert world.service.counters["ticks_bad"] == 1


async def test_a_tick_outlives_its_orders_time(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        deadline_ms = world.now_ms() + DEADLINE_AHEAD_MS_MAX - 1_000
        order = make_order(quantum=2, deadline_ms=deadline_ms)
        line = Line(world)
        first = {"hold": fee_of(3, 2), "expires_ms": deadline_ms + CLAIM_LEFT_MS}
        await line.send(make_start(channel, order, voucher=first))
        short = {"hold": fee_of(3, 4), "expires_ms": deadline_ms + CLAIM_LEFT_MS - 1}
        await line.send(Tick(*signed_voucher(channel, order, sub=1, **short)))
        *_, finished = await line.until(Finished)
        assert decode_receipt(finished.receipt).tokens_out == 2
        assert world.service.counters["ticks_bad"] == 1


async def test_an_unacknowledged_receipt_is_claimed_after_a_while(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        await ask(world, make_start(channel))
        await world.bundler.turn()
        assert not world.bundles
        await trio.sleep(11)
        await world.bundler.turn()
        settle(world)
        assert world.paid() == fee_of(3, 5)


async def test_a_bundle_that_does_not_settle_is_cut_anew_under_a_higher_number(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        await ask(world, make_start(channel))
        await trio.sleep(11)
        await world.bundler.turn()
        (lost,) = world.bundles
        world.bundles.clear()
        await world.bundler.turn()
        assert not world.bundles
        await trio.sleep(31)
        await world.bundler.turn()
        (anew,) = world.bundles
        assert anew.hash != lost.hash
        settle(world)
        assert world.paid() == fee_of(3, 5)
        await world.bundler.turn()
        assert world.bundler.open_count == 0
        assert not world.book.lane(channel, 0).unsettled


async def test_credits_and_sketch_go_into_receipt_and_frame(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        sketch, statement = b"\1" * 1_024, b"statement"
        world.attributed = Attributed(
            ((1, 4_000), (2, 6_000)), sketch, statement, sketch_hash(sketch, statement)
        )
        world.model = ServedModel(None, True, 0, True)
        *_, finished = await ask(world, make_start(channel))
        assert (finished.sketch, finished.statement) == (sketch, statement)
        assert decode_receipt(finished.receipt).sketch_hash == sketch_hash(sketch, statement)
        private = make_order(flags=PRIVATE)
        start = make_start(channel, private, voucher={"lane": 1})
        *_, finished = await ask(world, start)
        assert (finished.sketch, finished.credits) == (b"", b"\x90")


@pytest.mark.parametrize(("why", "status"), [("engine.lost", PARTIAL), ("no_answer", COMPLETE)])
async def test_answer_whose_sketch_was_lost_with_its_worker_is_not_called_whole(
    why: str, status: int, tmp_path, autojump_clock
) -> None:
    """An auditor that makes the sketch would else have shown the provider to be false."""
    async with world_in(tmp_path) as world:
        world.model = ServedModel(None, True, 0, True)
        world.attributed = UNATTRIBUTED._replace(why=why)
        *_, finished = await ask(world, make_start(world.own_channel()))
        receipt = decode_receipt(finished.receipt)
        assert (receipt.status, receipt.tokens_out) == (status, 5)


async def test_records_stand_before_the_prompt_and_cost_the_payer_nothing(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        world.retrieved, world.before = (4, 2), (901, 902)
        world.model = ServedModel(None, True, 0, True)
        told = []

        async def attribute(*given):
            told.append(given)
            return UNATTRIBUTED

        world.attribute = attribute
        world.service = world.new_service()
        start = make_start(world.own_channel())
        *_, finished = await ask(world, start)
        (request,) = world.engine.requests
        asked = request.prompt[2:]
        assert request.prompt[:2] == (901, 902)
        receipt = decode_receipt(finished.receipt)
        assert (receipt.tokens_in, receipt.fee) == (len(asked), fee_of(3, 5))
        assert told[0][2] == asked, "attributed is what the payer asked"
        assert told[0][4] == (4, 2)


async def test_records_leave_room_for_the_orders_answer(tmp_path, autojump_clock) -> None:
    """Who audits a sketch has the order and no sampling: for two choices it found other records."""
    async with world_in(tmp_path) as world:
        world.model = ServedModel(None, True, 0, True)
        sampling = SAMPLING._replace(n=2)
        order = make_order(sampling=sampling)
        start = make_start(world.own_channel(), order, sampling, voucher={"hold": fee_of(3, 16)})
        await ask(world, start)
        assert world.rooms == [order.max_out] == [2 * sampling.max_tokens]


async def test_a_discount_lowers_the_fee_and_not_the_hold(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.model = ServedModel(None, True, 2_500, False)
        *_, finished = await ask(world, make_start(channel))
        assert decode_receipt(finished.receipt).fee == -(-fee_of(3, 5) * 7_500 // 10_000)


async def test_evidence_tells_the_class_that_the_version_pins(tmp_path, autojump_clock) -> None:
    """Whatever the engine computes in: another one is FAIL before anything is run again."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        world.model = ServedModel(None, True, 0, False, "bf16")
        *_, finished = await ask(world, make_start(channel))
        receipt = decode_receipt(finished.receipt)
        served = world.book.find(channel, 0, 1, receipt.order_hash)
        assert verify.decode_evidence(served.evidence).dtype_class == b"bf16"


async def test_two_choices_are_counted_together(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        sampling = SAMPLING._replace(n=2)
        start = make_start(
            channel, make_order(sampling=sampling), sampling, voucher={"hold": fee_of(3, 16)}
        )
        *_, finished = await ask(world, start)
        assert decode_receipt(finished.receipt).tokens_out == 10


def test_evidence_that_breaks_a_rule_is_refused_by_its_word() -> None:
    choice = verify.choice_evidence([1], bytes(4), b"", "stop")
    good = verify.Evidence(
        1, bytes(32), b"", b"fp32", b"", b"", bytes(32), bytes(32), b"", b"", (choice,)
    )
    assert verify.decode_evidence(verify.encode_evidence(good)) == good
    for code, bad in (
        ("evidence.version", good._replace(version=2)),
        ("evidence.reason", good._replace(choices=(choice._replace(reason=9),))),
        ("evidence.malformed", good._replace(choices=())),
    ):
        with pytest.raises(channels.Invalid) as refused:
            verify.decode_evidence(verify.encode_evidence(bad))
        assert refused.value.code == code
