"""The contract of Network, the same over libp2p and simulated: codes, limits, gossip, streams."""

import contextlib
from dataclasses import replace

import pytest
import trio
from network_kit import admitted, wait_until

from p2p import requests
from p2p.errors import (
    UNKNOWN_CODE,
    Code,
    EndOfStream,
    Misbehaving,
    NetworkError,
    Refused,
    TooSlow,
    Unreachable,
)
from p2p.limits import (
    BULK_BYTES,
    PROTOCOLS,
    REPLIES_BYTES_PER_PEER_MAX,
    TOPICS,
    ServeLimits,
    TopicLimits,
)
from p2p.network import Joined, Left, StatusFacts, Verdict

BLOCKS = PROTOCOLS["blocks"]
ASK = {"timeout_s": 5, "bytes_max": 1_000}


async def echo(peer, body):
    return body


def serving(handler=echo, limits=BLOCKS, name="blocks"):
    return lambda network: network.serve(name, handler, limits)


def accept_all(forwarder, author, data):
    return Verdict.ACCEPT


# --- requests


async def test_reply_is_what_the_handler_returned(world, nursery):
    a, b = await world.start(nursery, 2, serving())
    assert await a.request(b.me, "blocks", b"to b", **ASK) == b"to b"
    assert await b.request(a.me, "blocks", b"to a", **ASK) == b"to a"


async def test_refusal_reaches_the_caller_with_code_time_and_body(world, nursery):
    async def refuse(peer, body):
        raise Refused(Code.NOT_FOUND, 250, b"[1, 9]")

    a, b = await world.start(nursery, 2, serving(refuse))
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    refusal = caught.value
    assert (refusal.code, refusal.retry_ms, refusal.body) == (Code.NOT_FOUND, 250, b"[1, 9]")


async def test_handler_with_a_bug_answers_10_and_serves_on(world, nursery):
    async def fail_once(peer, body):
        if body == b"bad":
            raise ZeroDivisionError
        return body

    a, b = await world.start(nursery, 2, serving(fail_once))
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"bad", **ASK)
    assert caught.value.code == Code.OUR_FAILURE
    assert await a.request(b.me, "blocks", b"good", **ASK) == b"good"
    assert b.statistics().faults["handler blocks"] == 1
    assert b.peers()[0].score == 0


async def test_malformed_request_answers_1_and_scores_the_caller(world, nursery):
    async def blame(peer, body):
        raise Misbehaving("not such a request")

    a, b = await world.start(nursery, 2, serving(blame))
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.MALFORMED
    assert b.peers()[0].score >= 19


async def test_request_at_its_limit_passes_and_one_byte_more_does_not(world, nursery):
    a, b = await world.start(nursery, 2, serving())
    largest = bytes(BLOCKS.request_max)
    assert await a.request(b.me, "blocks", largest, **ASK) == largest
    with pytest.raises(Unreachable):
        await a.request(b.me, "blocks", largest + b"x", **ASK)


async def test_reply_longer_than_asked_for_is_misbehaving(world, nursery):
    a, b = await world.start(nursery, 2, serving())
    assert len(await a.request(b.me, "blocks", bytes(30), timeout_s=5, bytes_max=30)) == 30
    with pytest.raises(Misbehaving):
        await a.request(b.me, "blocks", bytes(31), timeout_s=5, bytes_max=30)
    with pytest.raises(Misbehaving):
        await a.request(b.me, "blocks", bytes(64), timeout_s=5, bytes_max=0)


async def test_reply_above_the_protocols_limit_answers_4(world, nursery):
    limits = replace(BLOCKS, reply_max=40)
    a, b = await world.start(nursery, 2, serving(limits=limits))
    assert len(await a.request(b.me, "blocks", bytes(40), **ASK)) == 40
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", bytes(41), **ASK)
    assert caught.value.code == Code.REPLY_TOO_LARGE


async def test_one_request_too_many_at_once_answers_3(world, nursery):
    go = trio.Event()

    async def wait(peer, body):
        await go.wait()
        return body

    a, b = await world.start(nursery, 2, serving(wait, replace(BLOCKS, at_once_max=2)))
    for _ in range(2):
        nursery.start_soon(lambda: a.request(b.me, "blocks", b"x", **ASK))
    await wait_until(lambda: b.statistics().streams >= 2)
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.BUSY
    assert caught.value.retry_ms > 0
    go.set()


class Slow:
    """Answers when it is told to; `asked` questions wait."""

    def __init__(self):
        self.go, self.asked = trio.Event(), 0

    async def answer(self, peer, body):
        self.asked += 1
        await self.go.wait()
        return body


BULK = replace(BLOCKS, at_once_max=16, burst=32)
MOST = REPLIES_BYTES_PER_PEER_MAX // BULK.reply_max


async def test_large_replies_that_one_peer_waits_for_are_bounded(world, nursery):
    """Else 16 of 4 MiB each, made and not taken, are held for every stranger."""
    slow = Slow()
    a, b, c = await world.start(nursery, 3, serving(slow.answer, BULK))
    for _ in range(MOST):
        nursery.start_soon(lambda: a.request(b.me, "blocks", b"x", **ASK))
    await wait_until(lambda: slow.asked == MOST)
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.BUSY
    nursery.start_soon(lambda: c.request(b.me, "blocks", b"x", **ASK))
    await wait_until(lambda: slow.asked == MOST + 1)
    slow.go.set()
    await wait_until(lambda: b.requests._bulk_bytes == 0)
    assert not b.requests._bulk_bytes_of_peer
    assert await a.request(b.me, "blocks", b"x", **ASK) == b"x"


async def test_large_replies_of_all_peers_together_are_bounded(world, nursery, monkeypatch):
    monkeypatch.setattr(requests, "REPLIES_BYTES_STRANGERS_MAX", BULK.reply_max)
    slow = Slow()
    a, b, c = await world.start(nursery, 3, serving(slow.answer, BULK))
    nursery.start_soon(lambda: a.request(b.me, "blocks", b"x", **ASK))
    await wait_until(lambda: slow.asked == 1)
    with pytest.raises(Refused) as caught:
        await c.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.BUSY
    slow.go.set()


async def test_small_replies_wait_for_nobody(world, nursery, monkeypatch):
    monkeypatch.setattr(requests, "REPLIES_BYTES_STRANGERS_MAX", 0)
    small, large = (replace(BLOCKS, reply_max=most) for most in (BULK_BYTES, BULK_BYTES + 1))
    a, b = await world.start(nursery, 2, serving(limits=small))
    assert await a.request(b.me, "blocks", b"x", **ASK) == b"x"
    a.serve("headers", echo, large)
    with pytest.raises(Refused) as caught:
        await b.request(a.me, "headers", b"x", **ASK)
    assert caught.value.code == Code.BUSY


async def test_request_above_the_rate_answers_5_and_when_to_come_back(world, nursery):
    a, b = await world.start(nursery, 2, serving(limits=replace(BLOCKS, rate_s=0.1, burst=3)))
    for _ in range(3):
        await a.request(b.me, "blocks", b"x", **ASK)
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.RATE_EXCEEDED
    assert 5_000 < caught.value.retry_ms <= 10_000


async def test_request_to_a_stranger_is_unreachable_at_once(world, nursery):
    (a,) = await world.start(nursery, 1, serving())
    began_s = trio.current_time()
    with pytest.raises(Unreachable):
        await a.request(bytes(32), "blocks", b"x", **ASK)
    assert trio.current_time() - began_s < 0.5


async def test_unknown_protocol_is_unreachable(world, nursery):
    a, b = await world.start(nursery, 2)
    with pytest.raises(Unreachable):
        await a.request(b.me, "blocks", b"x", **ASK)
    with pytest.raises(Unreachable):
        await a.open(b.me, "consensus")


async def test_late_reply_is_too_slow_and_the_connection_stays(world, nursery):
    async def sleep_on_demand(peer, body):
        if body == b"slow":
            await trio.sleep(0.5)
        return body

    a, b = await world.start(nursery, 2, serving(sleep_on_demand))
    with pytest.raises(TooSlow):
        await a.request(b.me, "blocks", b"slow", timeout_s=0.2, bytes_max=9)
    with trio.move_on_after(0.1):
        await a.request(b.me, "blocks", b"slow", **ASK)
    await trio.sleep(0.4)  # both slow handlers have ended: a caller's end does not end them
    assert await a.request(b.me, "blocks", b"fast", **ASK) == b"fast"


async def test_handler_over_its_deadline_answers_10(world, nursery):
    async def sleep(peer, body):
        await trio.sleep(5)

    a, b = await world.start(nursery, 2, serving(sleep, replace(BLOCKS, timeout_s=0.2)))
    with pytest.raises(Refused) as caught:
        await a.request(b.me, "blocks", b"x", **ASK)
    assert caught.value.code == Code.OUR_FAILURE


async def test_many_small_requests_leave_no_stream_behind(world, nursery):
    limits = replace(BLOCKS, rate_s=1_000, burst=1_000)
    a, b = await world.start(nursery, 2, serving(limits=limits))
    for number in range(100):
        body = b"%d" % number
        assert await a.request(b.me, "blocks", body, **ASK) == body
    await wait_until(lambda: b.statistics().streams == 0)


# --- gossip


def gossiping(inboxes, judge=accept_all, limits=TOPICS["votes"]):
    return lambda network: inboxes.append(network.subscribe("votes", judge, limits))


async def meshed(*networks):
    count = len(networks) - 1
    await wait_until(
        lambda: all(n.statistics().mesh_peers.get("votes", 0) >= count for n in networks)
    )


async def test_gossip_reaches_all_others_with_its_author_and_not_ourselves(world, nursery):
    inboxes = []
    networks = await world.start(nursery, 3, gossiping(inboxes))
    await meshed(*networks)
    for network in networks:
        await network.publish("votes", b"vote of " + network.me)
    for network, inbox in zip(networks, inboxes, strict=True):
        heard = {}
        with trio.fail_after(5):
            while len(heard) < 2:
                message = await anext(inbox)
                heard[message.author] = message.data
        assert heard == {n.me: b"vote of " + n.me for n in networks if n is not network}
        with trio.move_on_after(0.1) as scope:
            await anext(inbox)
        assert scope.cancelled_caught


async def test_gossip_at_the_limit_passes_and_one_byte_more_is_our_bug(world, nursery):
    inboxes = []
    networks = await world.start(nursery, 2, gossiping(inboxes))
    await meshed(*networks)
    largest = bytes(TOPICS["votes"].bytes_max)
    await networks[0].publish("votes", largest)
    with trio.fail_after(5):
        assert (await anext(inboxes[1])).data == largest
    with pytest.raises(ValueError, match="limit"):
        await networks[0].publish("votes", largest + b"x")
    with pytest.raises(ValueError, match="not subscribed"):
        await networks[0].publish("txs", b"x")


async def test_only_reject_scores_the_forwarder_and_a_raise_is_our_bug(world, nursery):
    def judge(forwarder, author, data):
        if data == b"raise":
            raise ZeroDivisionError
        return {b"good": Verdict.ACCEPT, b"late": Verdict.IGNORE}.get(data, Verdict.REJECT)

    inboxes = []
    a, b = await world.start(nursery, 2, gossiping(inboxes, judge))
    await meshed(a, b)
    for data in (b"late", b"raise"):
        await a.publish("votes", data)
    await wait_until(lambda: b.statistics().messages.get(("votes", "ignored"), 0) == 2)
    assert b.peers()[0].score == 0
    assert b.statistics().faults["judge"] == 1
    await a.publish("votes", b"bad")
    await a.publish("votes", b"good")
    with trio.fail_after(5):
        assert (await anext(inboxes[1])).data == b"good"
    assert b.statistics().messages["votes", "rejected"] == 1
    assert b.peers()[0].score >= 4


async def test_author_over_its_rate_is_ignored_not_punished(world, nursery):
    inboxes = []
    limits = TopicLimits(bytes_max=100, author_rate_s=0.1, author_burst=3, queue_max=100)
    a, b = await world.start(nursery, 2, gossiping(inboxes, limits=limits))
    await meshed(a, b)
    for number in range(5):
        await a.publish("votes", b"%d" % number)
    await wait_until(lambda: b.statistics().messages.get(("votes", "ignored"), 0) == 2)
    assert b.statistics().messages["votes", "accepted"] == 3
    assert b.peers()[0].score == 0


@pytest.mark.parametrize(
    ("rule", "kept"), [("drop newest", [b"0", b"1"]), ("drop oldest", [b"2", b"3"])]
)
async def test_full_queue_drops_by_its_rule_and_counts(world, nursery, rule, kept):
    inboxes = []
    limits = TopicLimits(100, 100, 100, queue_max=2, full=rule)
    a, b = await world.start(nursery, 2, gossiping(inboxes, limits=limits))
    await meshed(a, b)
    for number in range(4):
        await a.publish("votes", b"%d" % number)
        await wait_until(
            lambda done=number + 1: b.statistics().messages.get(("votes", "accepted")) == done
        )
    assert b.statistics().queue_dropped["votes", "shed"] == 2
    assert [(await anext(inboxes[1])).data for _ in range(2)] == kept


async def test_same_bytes_again_go_nowhere(world, nursery):
    inboxes = []
    a, b = await world.start(nursery, 2, gossiping(inboxes))
    await meshed(a, b)
    for data in (b"same", b"same", b"other"):
        await a.publish("votes", data)
    with trio.fail_after(5):
        assert [(await anext(inboxes[1])).data for _ in range(2)] == [b"same", b"other"]


# --- streams


STREAM = ServeLimits(1 << 20, 1 << 20, float("inf"), rate_s=100, at_once_max=2, burst=100)


def accepting(handler):
    return lambda network: network.accept("consensus", handler, STREAM)


async def bounce(peer, stream):
    while True:
        try:
            body = await stream.read(1 << 20, float("inf"))
        except EndOfStream:
            return
        await stream.write(body, 5)


async def test_stream_carries_frames_both_ways_in_order(world, nursery):
    a, b = await world.start(nursery, 2, accepting(bounce))
    stream = await a.open(b.me, "consensus")
    sent = [b"%d" % number * (1 + number * 100) for number in range(50)]

    async def write():
        for body in sent:
            await stream.write(body, 5)

    nursery.start_soon(write)
    with trio.fail_after(10):
        assert [await stream.read(1 << 20, 5) for _ in sent] == sent
    await stream.close()
    with pytest.raises(EndOfStream):
        await stream.read(1 << 20, 5)


async def test_reset_stream_is_unreachable_for_the_other_side(world, nursery):
    async def drop(peer, stream):
        await stream.read(10, 5)
        await stream.reset()

    a, b = await world.start(nursery, 2, accepting(drop))
    stream = await a.open(b.me, "consensus")
    await stream.write(b"x", 5)
    with pytest.raises(Unreachable):
        await stream.read(10, 5)
    with pytest.raises(Unreachable):
        await stream.write(b"x", 5)


async def test_frame_above_the_limit_is_misbehaving(world, nursery):
    a, b = await world.start(nursery, 2, accepting(bounce))
    stream = await a.open(b.me, "consensus")
    await stream.write(bytes(100), 5)
    assert len(await stream.read(100, 5)) == 100
    await stream.write(bytes(101), 5)
    with pytest.raises(Misbehaving):
        await stream.read(100, 5)


async def test_who_breaks_the_rules_of_frames_is_blamed_whatever_its_handler_makes_of_it(
    world, nursery
):
    """A service ends a stream the same way, whatever was wrong with it."""

    async def keep_it_to_itself(peer, stream):
        with contextlib.suppress(NetworkError):
            await stream.read(10, 5)

    a, b = await world.start(nursery, 2, accepting(keep_it_to_itself))
    stream = await a.open(b.me, "consensus")
    await stream.write(bytes(10), 5)
    with pytest.raises(EndOfStream):
        await stream.read(10, 5)
    assert b.statistics().penalties == {}
    stream = await a.open(b.me, "consensus")
    await stream.write(bytes(11), 5)
    await wait_until(lambda: b.statistics().penalties == {"malformed": 1})


async def test_silent_stream_is_too_slow_and_cancel_leaves_the_connection(world, nursery):
    a, b = await world.start(nursery, 2, accepting(bounce))
    stream = await a.open(b.me, "consensus")
    with pytest.raises(TooSlow):
        await stream.read(10, 0.1)
    stream = await a.open(b.me, "consensus")
    with trio.move_on_after(0.1):
        await stream.read(10, float("inf"))
    with pytest.raises(Unreachable):
        await stream.write(b"x", 1)
    stream = await a.open(b.me, "consensus")
    await stream.write(b"again", 5)
    assert await stream.read(10, 5) == b"again"


async def test_one_stream_too_many_is_reset(world, nursery):
    a, b = await world.start(nursery, 2, accepting(bounce))
    streams = []
    for _ in range(2):
        streams.append(await a.open(b.me, "consensus"))
        await streams[-1].write(b"x", 5)
        assert await streams[-1].read(10, 5) == b"x"
    third = await a.open(b.me, "consensus")
    with pytest.raises(Unreachable):
        await third.read(10, 5)


async def test_writer_whose_bytes_nobody_reads_gets_an_error_and_not_a_hang(world, nursery):
    async def never_read(peer, stream):
        await trio.sleep_forever()

    a, b = await world.start(nursery, 2, accepting(never_read))
    stream = await a.open(b.me, "consensus")

    async def write_on():
        while True:
            await stream.write(bytes(1 << 19), 1)

    with trio.fail_after(10), pytest.raises((TooSlow, Unreachable)):
        await write_on()
    assert admitted(a) == 1


# --- peers


async def test_peer_of_another_chain_is_not_admitted(world, nursery):
    inboxes = []
    (a,) = await world.start(nursery, 1, gossiping(inboxes))
    (b,) = await world.start(nursery, 1, gossiping(inboxes), chain_id=bytes(32))
    await wait_until(
        lambda: (
            b.statistics().requests.get(("status", "asked", 6), 0) >= 1
            or a.statistics().requests.get(("status", "asked", 6), 0) >= 1
        )
    )
    assert admitted(a) == admitted(b) == 0


async def test_events_tell_who_joined_and_who_left(world, nursery):
    (a,) = await world.start(nursery, 1)
    events = a.events()
    async with trio.open_nursery() as inner:
        (b,) = await world.start(inner, 1)
        await wait_until(lambda: admitted(b) == 1)
        with trio.fail_after(10):
            joined = await anext(events)
        assert isinstance(joined, Joined)
        assert joined.peer == b.me
        assert (await anext(a.events())).peer == b.me  # told anew to each new reader
        inner.cancel_scope.cancel()
    with trio.fail_after(10):
        assert await anext(events) == Left(b.me)


@pytest.fixture
def redials_soon(monkeypatch):
    """Who was disconnected tries again within REDIALLED_S."""
    monkeypatch.setattr("p2p.discovery.BACKOFF_FIRST_S", 0.2)
    monkeypatch.setattr("p2p.memory.REDIAL_S", 0.2)


REDIALLED_S = 0.5


async def test_peer_at_100_points_is_disconnected_and_stays_away(redials_soon, world, nursery):
    a, b = await world.start(nursery, 2, serving())
    a.penalise(b.me, 99, "forged")
    assert admitted(a) == 1
    a.penalise(b.me, 50, "forged")
    await wait_until(lambda: not a.peers())
    assert a.statistics().bans == 1
    await trio.sleep(REDIALLED_S)
    assert not a.peers()
    with pytest.raises(Unreachable):
        await a.request(b.me, "blocks", b"x", **ASK)


async def test_banned_peer_is_gone_until_it_is_let_in_again(redials_soon, world, nursery):
    a, b = await world.start(nursery, 2, serving())
    a.ban(b.me, 3_600)
    await wait_until(lambda: not a.peers())
    assert 3_590 < a.bans()[b.me] <= 3_600
    await trio.sleep(REDIALLED_S)
    assert not a.peers()
    assert a.unban(b.me)
    await wait_until(lambda: admitted(a) == 1)
    a.penalise(b.me, 40, "forged")
    assert not a.unban(b.me)
    assert a.peers()[0].score >= 39, "no ban, so nothing is forgiven"


async def test_binding_is_shown_only_if_the_owner_judges_it_good(world, nursery):
    def judge(peer, binding):
        return binding == b"true"

    a, b, c = [
        (await world.start(nursery, 1, binding=binding, judge_binding=judge, is_met=False))[0]
        for binding in (b"true", b"false", b"")
    ]
    await wait_until(lambda: all(admitted(n) == 2 for n in (a, b, c)))
    assert dict(c.bindings()) == {a.me: b"true"}
    assert {view.peer: view.binding for view in c.peers()} == {a.me: b"true", b.me: b""}


async def test_heights_told_in_status_are_shown(world, nursery):
    facts = StatusFacts(roles=3, height=7, block_id=bytes(32), earliest=1, snapshot_height=5)
    a, b = await world.start(nursery, 2, facts=lambda: facts)
    assert a.peers()[0].facts == b.peers()[0].facts == facts


async def test_registering_twice_is_our_bug(world, nursery):
    (a,) = await world.start(nursery, 1, serving())
    with pytest.raises(ValueError, match="served already"):
        a.serve("blocks", echo, BLOCKS)
    a.subscribe("votes", accept_all, TOPICS["votes"])
    with pytest.raises(ValueError, match="twice"):
        a.subscribe("votes", accept_all, TOPICS["votes"])


async def test_what_is_registered_while_running_works_too(world, nursery):
    a, b = await world.start(nursery, 2)
    b.serve("blocks", echo, BLOCKS)
    inboxes = [n.subscribe("votes", accept_all, TOPICS["votes"]) for n in (a, b)]
    await meshed(a, b)
    assert await a.request(b.me, "blocks", b"x", **ASK) == b"x"
    await a.publish("votes", b"v")
    with trio.fail_after(5):
        assert (await anext(inboxes[1])).data == b"v"


async def test_codes_that_a_peer_makes_up_are_counted_as_one(world, nursery):
    """Each would be a line of our metrics for ever."""
    made_up = iter((12, 2**40, 2**62))

    async def refuse(peer, body):
        raise Refused(next(made_up))

    a, b = await world.start(nursery, 2, lambda n: n.serve("blocks", refuse, PROTOCOLS["blocks"]))
    for code in (12, 2**40, 2**62):
        with pytest.raises(Refused) as caught:
            await a.request(b.me, "blocks", b"x", timeout_s=5, bytes_max=9)
        assert caught.value.code == code
    asked = {key: n for key, n in a.statistics().requests.items() if key[:2] == ("blocks", "asked")}
    assert asked == {("blocks", "asked", UNKNOWN_CODE): 3}
