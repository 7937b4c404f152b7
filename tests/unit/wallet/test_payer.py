"""The wallet against a provider that serves, refuses, vanishes or lies."""

import contextlib
import dataclasses
import random

import pytest
import trio
from bundle_kit import CHAIN
from exchange_kit import ASK, SAMPLING, kind_of, provider_frame, world_in
from ledger_kit import NOW_MS, OPEN, PAYER, PROVIDER, context, fee_of

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.admission import admit_bundle
from node.ledger.rules import channels
from node.ledger.wire import exchange
from node.ledger.wire.exchange import RefusedFrame, Tokens
from node.ledger.wire.orders import ZERO_HASH, decode_order, decode_voucher
from node.ledger.wire.receipts import decode_receipt, encode_receipt, receipt_message
from node.serving.engine import Overloaded
from node.wallet.buying import Answer, PaymentFailed, Piece
from node.wallet.payer import FORGET_AFTER_MS
from node.wallet.promises import Opening
from p2p.errors import Unreachable

FEE = fee_of(3, 5)


async def settle(world) -> None:
    await world.bundler.turn()
    for bundle in world.bundles:
        admitted = admit_bundle(world.state, CHAIN, bundle)
        with world.state.trial():
            channels.apply_bundle(world.state, context(world.now_ms()), admitted.bundle)
    world.bundles.clear()


async def test_an_answer_is_bought_checked_and_acknowledged(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        pieces: list[Piece] = []
        answer = await world.payer.ask(ASK, pieces.append)
        assert answer.ids == ((100, 101, 102, 103, 104),)
        assert answer.text == (b"t0 t1 t2 t3 t4 .",)
        assert b"".join(piece.text for piece in pieces) == answer.text[0]
        assert answer.receipt.fee == FEE
        assert (answer.receipt.tokens_in, answer.receipt.tokens_out) == (3, 5)
        assert answer.receipt.status == 0
        await trio.testing.wait_all_tasks_blocked()
        lane = world.book.lanes()[0]
        assert lane.is_acknowledged, world.service.counters
        assert (lane.voucher.hold, lane.voucher.order_hash) == (0, ZERO_HASH)


async def test_infer_streams_pieces_and_ends_with_the_answer(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world, world.payer.infer(ASK) as items:
        got = [item async for item in items]
        assert isinstance(got[-1], Answer)
        assert [i for piece in got[:-1] for i in piece.ids] == [100, 101, 102, 103, 104]


async def test_many_answers_go_through_one_channel_and_settle(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        for _ in range(4):
            await world.payer.ask(ASK)
        await trio.sleep(1)
        await settle(world)
        assert len(world.opened) == 1
        assert world.paid() == 4 * FEE


async def test_no_stream_outlives_its_answer(tmp_path, autojump_clock) -> None:
    """Closed only, each stays in the connection's count: 61 answers, and pings were refused."""
    async with world_in(tmp_path) as world:
        for _ in range(3):
            await world.payer.ask(ASK)
        world.engine.error = Overloaded()
        with pytest.raises(PaymentFailed):
            await world.payer.ask(ASK)
        assert len(world.streams) == 4
        assert all(stream.is_broken for stream in world.streams)


async def test_requests_at_once_take_lanes_of_their_own(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(world.payer.ask, ASK)
        await trio.sleep(1)
        await settle(world)
        assert world.paid() == 6 * FEE
        assert {lane.number for lane in world.book.lanes()} == set(range(6))


async def test_a_long_answer_is_promised_quantum_by_quantum(tmp_path, autojump_clock) -> None:
    """At any moment the hold covers one quantum more than was received, no more."""
    async with world_in(tmp_path) as world:
        world.engine.tokens = 20
        holds = []

        def watch(body):
            if kind_of(body) == 1:
                voucher = exchange.decode_payer_frame(body).voucher
                holds.append(decode_voucher(voucher).hold)
            return body

        world.tamper_payer = watch
        sampling = SAMPLING._replace(max_tokens=10)
        answer = await world.payer.ask(replaced(sampling=sampling, quantum=4))
        assert len(answer.ids[0]) == 10
        assert holds == [fee_of(3, 8), fee_of(3, 10), 0]
        assert answer.receipt.fee == fee_of(3, 10)


def replaced(**fields):
    return dataclasses.replace(ASK, **fields)


async def test_both_sides_choose_the_seed_and_the_receipt_binds_it(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        hot = SAMPLING._replace(temperature_milli=700)
        first = await world.payer.ask(replaced(sampling=hot))
        second = await world.payer.ask(replaced(sampling=hot))
        assert first.ids == second.ids  # the engine of this test does not care
        assert world.engine.seeds[0] != world.engine.seeds[1]
        assert first.receipt.answer_root != second.receipt.answer_root


async def test_a_callers_seed_needs_no_reveal(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        hot = SAMPLING._replace(temperature_milli=700)
        answer = await world.payer.ask(replaced(sampling=hot, seed=b"\5" * 32))
        assert decode_order(answer.order).flags == 2


# limits


async def test_a_request_above_the_fee_limit_is_not_sent(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        top = fee_of(3, 8)
        await world.payer.ask(replaced(fee_max=top))
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(replaced(fee_max=top - 1))
        assert failure.value.code == "payer.fee_max"
        assert failure.value.facts["fee_max"] == top - 1
        assert "max_fee" in failure.value.facts["mend"]
        assert "OPEN" in failure.value.facts["mend"]


async def test_the_operators_fee_limit_is_named_by_its_setting(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        top = fee_of(3, 8)
        with pytest.raises(PaymentFailed) as failure:
            await world.new_payer(fee_max=top - 1).ask(replaced(fee_max=OPEN))
        assert failure.value.facts["fee_max"] == top - 1, "the lower of the two"
        assert "max_fee_open under [payer] in config.toml" in failure.value.facts["mend"]


async def test_no_more_is_locked_than_the_operator_allows(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        payer = world.new_payer(total_locked_max=10 * OPEN - 1)
        with pytest.raises(PaymentFailed) as failure:
            await payer.ask(ASK)
        assert failure.value.code == "payer.locked_max"
        assert failure.value.facts["mend"] == (
            "0 OPEN lie in channels and this one takes 10; raise total_locked_open (9.999999999) "
            "under [payer] in config.toml, or wait until closed channels have returned theirs"
        )
        await world.new_payer(total_locked_max=10 * OPEN).ask(ASK)


async def test_channel_that_no_block_took_yet_counts_as_locked_until_none_may(
    tmp_path, autojump_clock
) -> None:
    """Its transaction may be in any pool; at its expiry and a minute it is forgotten."""
    async with world_in(tmp_path) as world:
        world.settles = False
        with pytest.raises(Invalid):
            await world.payer.ask(ASK)
        (lost,) = world.promises.openings()
        world.opened.append(lost.channel)  # the next one is another channel
        world.settles = True
        world.now_ms = lambda: lost.until_ms + FORGET_AFTER_MS - 1
        with pytest.raises(PaymentFailed) as failure:
            await world.new_payer(total_locked_max=20 * OPEN - 1).ask(ASK)
        assert (failure.value.code, failure.value.facts["locked"]) == (
            "payer.locked_max",
            10 * OPEN,
        )
        world.now_ms = lambda: lost.until_ms + FORGET_AFTER_MS
        payer = world.new_payer(total_locked_max=20 * OPEN - 1)
        await payer.ask(ASK)
        assert len(world.promises.openings()) == 1, "the one that a block took is none any more"


async def test_channel_whose_number_went_to_another_transaction_is_forgotten_at_once(
    tmp_path, autojump_clock
) -> None:
    """The ledger refused it, or took another transaction in its place: its id can never be."""
    async with world_in(tmp_path) as world:
        world.settles = False
        with pytest.raises(Invalid):
            await world.payer.ask(ASK)
        (lost,) = world.promises.openings()
        world.opened.append(lost.channel)
        world.settles = True
        payer = world.new_payer(total_locked_max=20 * OPEN - 1)
        with pytest.raises(PaymentFailed):
            await payer.ask(ASK)
        account = world.state.account(PAYER.key)
        world.state.put(tables.ACCOUNT, (PAYER.key,), account._replace(nonce=lost.nonce + 1))
        await payer.ask(ASK)


async def test_the_same_channel_tried_again_is_counted_once(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        payer = world.new_payer(total_locked_max=10 * OPEN)
        world.settles = False
        for _ in range(2):
            with pytest.raises(Invalid):
                await payer.ask(ASK)
        world.settles = True
        await payer.ask(ASK)
        assert world.promises.openings() == ()


async def test_without_an_offer_there_is_no_provider(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(replaced(model=9))
        assert failure.value.code == "payer.no_provider"


async def test_a_full_channel_is_followed_by_a_new_one(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path, cap=fee_of(3, 8) + FEE) as world:
        for _ in range(4):
            await world.payer.ask(ASK)
        assert len(world.opened) == 2


async def test_a_refusal_comes_with_its_code(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        world.engine.error = Overloaded(retry_after_s=7)
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(ASK)
        assert (failure.value.code, failure.value.number) == ("payer.refused", 38)
        assert failure.value.facts["retry_ms"] == 7_000
        world.engine.error = None
        await world.payer.ask(ASK)  # the same lane and number, a greater sub


# streams that break


async def test_a_broken_stream_is_resumed_and_costs_nothing_more(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        broken = []

        def cut(body):
            if kind_of(body) == 3 and not broken:
                broken.append(body)
                world.streams[-1].cut()
                raise Unreachable("cut")
            return body

        world.tamper_provider = cut
        pieces: list[Piece] = []
        answer = await world.payer.ask(ASK, pieces.append)
        assert world.service.counters["sent_again"] == 1
        assert [i for piece in pieces for i in piece.ids] == list(answer.ids[0])
        assert len(world.engine.requests) == 1
        await trio.sleep(1)
        await settle(world)
        assert world.paid() == FEE


async def test_a_provider_that_vanishes_takes_one_hold_at_most(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        world.tamper_provider = lambda body: None
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(ASK)
        assert failure.value.code == "payer.lost"
        channel = world.opened[0]
        assert world.promises.promised(channel) <= fee_of(3, 8)


# callers that leave early


async def leave_early(world, payer=None) -> None:
    """Ask, and hang up at the first piece; the provider then has a moment to notice."""
    async with (payer or world.payer).infer(ASK) as items:
        async for _ in items:
            break
    await trio.sleep(1)


async def test_a_lane_whose_caller_hung_up_goes_on_at_its_next_use(tmp_path, autojump_clock):
    """The partial receipt is asked for, checked and acknowledged like any other."""
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        for turn in range(1, 13):
            await leave_early(world, payer)
            await payer.ask(ASK)
            lane = world.promises.lane(world.opened[0], 0)
            assert (lane.is_left, lane.seq) == (False, 2 * turn)
        await trio.sleep(1)
        await settle(world)
        assert (len(world.opened), world.closed) == (1, [])
        assert world.paid() == lane.cumulative == payer.counters["spent_grains"]


async def test_hanging_up_for_good_uses_up_neither_lanes_nor_channels(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        for _ in range(30):
            await leave_early(world)
        await world.payer.ask(ASK)
        lanes = [world.promises.lane(world.opened[0], number) for number in range(8)]
        assert (len(world.opened), any(lane.is_left for lane in lanes)) == (1, False)


async def test_what_was_cut_off_is_collected_before_a_fresh_lane_is_taken(
    tmp_path, autojump_clock
) -> None:
    """Whoever is silent has one hold, however often it is asked."""
    async with world_in(tmp_path) as world:
        await leave_early(world)
        answer = await world.payer.ask(ASK)
        assert (answer.receipt.lane, answer.receipt.seq) == (0, 2)
        assert world.service.counters["sent_again"] == 1


async def test_a_seeded_answer_of_many_quanta_that_was_cut_off_is_collected(
    tmp_path, autojump_clock
) -> None:
    """Both nonces are in its root, and its fee is held against the last tick's hold."""
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        hot = replaced(sampling=SAMPLING._replace(temperature_milli=700), quantum=2)
        async with payer.infer(hot) as items:
            seen = 0
            async for piece in items:
                seen += len(piece.ids)
                if seen >= 4:
                    break
        await trio.sleep(1)
        await payer.ask(hot)
        lane = world.promises.lane(world.opened[0], 0)
        assert (lane.is_left, lane.seq, payer.counters["receipts_late"]) == (False, 2, 1)


async def test_an_order_that_is_still_being_ended_is_waited_for(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        world.model = world.model._replace(has_index=True)
        slow = world.attribute

        async def attribute(*_):
            await trio.sleep(2)
            return await slow()

        world.attribute = attribute
        world.service = world.new_service()
        async with world.payer.infer(ASK) as items:
            async for _ in items:
                break
        answer = await world.payer.ask(ASK)
        assert (answer.receipt.lane, answer.receipt.seq) == (0, 2)


async def test_an_order_of_which_nothing_was_served_costs_no_lane(tmp_path, autojump_clock):
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        world.engine.step_s = 5.0
        with trio.move_on_after(0.5):
            await payer.ask(ASK)
        await trio.sleep(6)
        world.engine.step_s = 0.01
        answer = await payer.ask(ASK)
        assert (answer.receipt.seq, len(world.opened)) == (1, 1)


async def test_an_answer_cut_off_by_a_silent_provider_is_taken_when_it_is_back(
    tmp_path, autojump_clock
) -> None:
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        world.tamper_provider = lambda body: None
        with pytest.raises(PaymentFailed):
            await payer.ask(ASK)
        with pytest.raises(PaymentFailed) as failure:
            await payer.ask(ASK)  # still silent: no second order is put upon the first
        assert failure.value.code == "payer.lost"
        assert len(world.engine.requests) == 1
        world.tamper_provider = lambda body: body
        answer = await payer.ask(ASK)
        assert (answer.receipt.lane, answer.receipt.seq) == (0, 2)


@pytest.mark.parametrize("check", ["answer", "fee", "signature"])
async def test_a_lie_about_what_was_cut_off_is_not_acknowledged(tmp_path, autojump_clock, check):
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        await leave_early(world, payer)
        world.tamper_provider = LIES[check]
        with pytest.raises(PaymentFailed) as failure:
            await payer.ask(ASK)
        assert failure.value.facts["check"] == check
        lane = world.promises.lane(world.opened[0], 0)
        assert (lane.is_left, lane.seq, world.closed) == (True, 0, world.opened)


async def test_what_was_cut_off_is_acknowledged_at_once(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        payer = world.new_payer(lanes=1)
        await leave_early(world, payer)
        world.engine.error = Overloaded()
        with pytest.raises(PaymentFailed):
            await payer.ask(ASK)  # the lane is settled before the order, which is refused
        assert world.book.lanes()[0].is_acknowledged


# channels of no more use


def leave_all(world, channel, lanes=8) -> None:
    for number in range(lanes):
        world.promises.leave(world.promises.lane(channel, number))


async def test_a_channel_whose_lanes_are_all_left_is_closed(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        spent, other = world.own_channel(), world.own_channel()
        leave_all(world, spent)
        leave_all(world, other, lanes=7)
        await world.payer.ask(ASK)
        assert world.closed == []  # the other one serves: nothing waits for a close
        leave_all(world, other)
        answer = await world.payer.ask(ASK)
        assert (world.closed, answer.receipt.channel) == ([spent, other], world.opened[2])


async def test_wallet_that_hit_its_limit_comes_back_when_the_money_does(
    tmp_path, autojump_clock
) -> None:
    """Closing money is locked until the ledger has given it back."""
    async with world_in(tmp_path) as world:
        channels = [world.own_channel() for _ in range(10)]
        for channel in channels:
            leave_all(world, channel)
        for _ in range(2):
            with pytest.raises(PaymentFailed) as failure:
                await world.payer.ask(ASK)
            assert (failure.value.code, failure.value.facts["locked"]) == (
                "payer.locked_max",
                100 * OPEN,
            )
        assert world.closed == channels, "each is closed once"
        record = world.state.get(tables.CHANNEL, channels[0])
        world.state.put(
            tables.CHANNEL, (channels[0],), record._replace(state=tables.CHANNEL_CLOSED)
        )
        await world.payer.ask(ASK)


async def test_a_full_channel_is_closed_when_its_successor_opens(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path, cap=fee_of(3, 8) + FEE) as world:
        for _ in range(4):
            await world.payer.ask(ASK)
        assert world.closed == world.opened[:1]


async def test_a_close_that_fails_stands_in_nobodys_way(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        leave_all(world, world.own_channel())

        async def refuse(channel):
            raise Invalid("payer.not_settled")

        world.close_channel = refuse
        payer = world.new_payer()
        await payer.ask(ASK)
        assert payer.counters["closes_failed"] == 1


async def test_openings_at_once_do_not_pass_the_limit_together(tmp_path, autojump_clock) -> None:
    """Each awaits its journal entry after its look at the limit."""
    async with world_in(tmp_path) as world:
        payer = world.new_payer(total_locked_max=25 * OPEN)
        refused = []

        async def note(number: int) -> None:
            opening = Opening(bytes([number]) * 32, PROVIDER.key, 10 * OPEN, 0, 2**62)
            try:
                await payer._note_opening(opening)
            except PaymentFailed as failure:
                refused.append(failure.code)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(note, number)
        assert len(world.promises.openings()) == 2
        assert refused == ["payer.locked_max"] * 2


# providers that lie


def forged(**fields):
    """A provider that signs another receipt than the one it owes."""

    def tamper(body):
        if kind_of(body) != 3:
            return body
        frame = provider_frame(body)
        raw = encode_receipt(decode_receipt(frame.receipt)._replace(**fields))
        signature = PROVIDER.sign(receipt_message(CHAIN, raw))
        return exchange.encode_frame(frame._replace(receipt=raw, signature=signature))

    return tamper


def other_frame(**fields):
    def tamper(body):
        if kind_of(body) != 3:
            return body
        return exchange.encode_frame(provider_frame(body)._replace(**fields))

    return tamper


def more_tokens(body):
    if kind_of(body) != 1:
        return body
    frame = provider_frame(body)
    assert isinstance(frame, Tokens)
    return exchange.encode_frame(frame._replace(ids=frame.ids + bytes(4 * 20)))


LIES = {
    "place": forged(seq=2),
    "order": forged(model_version=2),
    "tokens": forged(tokens_out=6),
    "fee": forged(fee=FEE + 1),
    "answer": forged(answer_root=bytes(32)),
    "credits": other_frame(credits=b"\x91\x92\x01\xcd\x27\x10"),
    "sketch": forged(sketch_hash=b"\1" * 32),
    "signature": other_frame(signature=bytes(64)),
    "receipt": other_frame(receipt=b"\x90"),
}


@pytest.mark.parametrize("check", sorted(LIES))
async def test_a_lie_is_never_acknowledged_and_its_lane_is_left(tmp_path, autojump_clock, check):
    async with world_in(tmp_path) as world:
        world.tamper_provider = LIES[check]
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(ASK)
        assert failure.value.facts["check"] == check
        lane = world.promises.lane(world.opened[0], 0)
        assert lane.is_left
        assert (lane.seq, lane.cumulative) == (0, 0)
        assert world.closed == world.opened


async def test_tokens_beyond_what_was_promised_are_a_lie(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        world.tamper_provider = more_tokens
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(ASK)
        assert failure.value.facts["check"] == "tokens"


async def test_a_frame_that_is_none_is_a_lie(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        world.tamper_provider = lambda body: b"\xff\xff"
        with pytest.raises(PaymentFailed) as failure:
            await world.payer.ask(ASK)
        assert failure.value.code == "payer.check_failed"


async def test_a_lane_out_of_step_is_left_and_another_taken(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        refusals = []

        def refuse_once(body):
            if kind_of(body) == 0 and not refusals:
                refusals.append(1)
                return exchange.encode_frame(RefusedFrame(33, 0, b"", b""))
            return body

        world.tamper_provider = refuse_once
        await world.payer.ask(ASK)
        assert world.promises.lane(world.opened[0], 0).is_left
        assert not world.promises.lane(world.opened[0], 1).is_left


# the journal


async def test_after_a_restart_the_wallet_goes_on_where_it_was(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        await world.payer.ask(ASK)
        before = world.promises.lane(world.opened[0], 0)
        world.promises.close()
        world.promises = world.open_promises()
        again = world.promises.lane(world.opened[0], 0)
        assert (again.seq, again.cumulative, again.last) == (1, FEE, before.last)
        assert again.accumulator == before.accumulator
        world.payer = world.new_payer()
        await world.payer.ask(ASK)
        await trio.sleep(1)
        await settle(world)
        assert world.paid() == 2 * FEE


async def test_vouchers_of_a_lane_only_rise(tmp_path, autojump_clock) -> None:
    async with world_in(tmp_path) as world:
        seen = []

        def watch(body):
            if kind_of(body) < 2:
                voucher = decode_voucher(exchange.decode_payer_frame(body).voucher)
                seen.append((voucher.lane, voucher.seq, voucher.sub, voucher))
            return body

        world.tamper_payer = watch
        for turn in range(5):
            world.engine.error = Overloaded() if turn == 2 else None
            with contextlib.suppress(PaymentFailed):
                await world.payer.ask(ASK)
        steps = [(seq, sub) for lane, seq, sub, _ in seen if lane == 0]
        assert steps == sorted(set(steps))


async def test_a_voucher_we_do_not_remember_ends_its_lane(tmp_path, autojump_clock) -> None:
    """A journal restored from a copy must not sign below what it once signed."""
    async with world_in(tmp_path) as world:
        channel = world.own_channel()
        lane = world.promises.lane(channel, 0)
        first = world.promises.promise(lane, hold=5, order_hash=b"\1" * 32, expires_ms=NOW_MS)
        world.promises.saw(first.raw, first.signature)
        assert not lane.is_left
        lane.last = None  # as if the journal had been rolled back
        world.promises.saw(first.raw, first.signature)
        assert lane.is_left
        world.promises.close()
        world.promises = world.open_promises()
        assert world.promises.lane(channel, 0).is_left


@pytest.mark.parametrize("seed", range(6))
async def test_whoever_stops_or_lies_the_payer_loses_one_hold_at_most(
    tmp_path, autojump_clock, seed
) -> None:
    """And the provider loses nothing that it was promised, and the cap always holds."""
    rng = random.Random(seed)
    async with world_in(tmp_path, seed=seed) as world:
        accepted, incidents = 0, 0
        lies = list(LIES.values())

        def mischief(body):
            nonlocal incidents
            chance = rng.random()
            incidents += chance < 0.06
            if chance < 0.03:
                world.streams[-1].cut()
                raise Unreachable("cut")
            return rng.choice(lies)(body) if chance < 0.06 else body

        world.tamper_provider = mischief
        for _ in range(25):
            world.engine.tokens = rng.randrange(1, 9)
            with contextlib.suppress(PaymentFailed):
                answer = await world.payer.ask(replaced(quantum=rng.choice((2, 4, 256))))
                accepted += answer.receipt.fee
        world.tamper_provider = lambda body: body
        await trio.sleep(15)  # then unacknowledged receipts are claimed from their holds
        await settle(world)
        assert world.paid() - accepted <= incidents * fee_of(3, 8)
        for channel in world.opened:
            record = world.state.get(tables.CHANNEL, channel)
            assert record.paid <= min(record.cap, world.promises.promised(channel))
