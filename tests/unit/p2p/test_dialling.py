"""Whom the dialler takes, in which order and how often; what it never dials, keeps or tells."""

import hashlib
import random
from itertools import pairwise

import pytest
import trio
from network_kit import CHAIN, wait_until

from p2p.addresses import Address, Reach, parse_address
from p2p.counters import Counters
from p2p.discovery import Discovery
from p2p.errors import Unreachable
from p2p.framing import decode, encode
from p2p.limits import (
    ANCHORS_MAX,
    BACKOFF_FAR_S,
    BACKOFF_JITTER,
    BACKOFF_NEAR_S,
    BACKOFF_NEAR_TRIES,
    EXCHANGE_RECORDS_MAX,
    OUTBOUND_MAX,
    OUTBOUND_TARGET,
    PASSED_OVER_S,
    WRONG_CHAIN_S,
)
from p2p.membership import Membership
from p2p.memory import _Identity
from p2p.network import denied_of
from p2p.peers import PeerId, StatusFacts, peer_id_text
from p2p.records import make_record

NOW_MS = 1_700_000_000_000


def key(number):
    return PeerId(hashlib.sha256(b"dialled %d" % number).digest())


def at(host, number=None):
    text = f"/ip4/{host}/tcp/7017"
    return parse_address(text + (f"/p2p/{peer_id_text(key(number))}" if number else ""))


def record_of(number, *hosts, seq_ms=NOW_MS):
    addresses = tuple(at(host) for host in hosts)
    return make_record(
        _Identity(key(number)), CHAIN, seq_ms=seq_ms, addresses=addresses, roles=0, binding=b""
    )


async def nobody_answers(peer, protocol, body, *, timeout_s, bytes_max):
    await trio.sleep_forever()


class Caller:
    """A dialler over a wire that is only told of: `dialled` are its calls, with their times."""

    def __init__(
        self, reach: Reach = "public", *, reserved=(), deny=(), book=None, bootstrap=(), target=8
    ):
        self.dialled: list[tuple[PeerId, Address, float]] = []
        self.is_there = True  # whether dials succeed
        self.in_use: set[PeerId] = set()
        self.counters = counters = Counters()
        self.answer: bytes | None = None  # what peers say when they are asked for others
        denied_peers, denied_networks = denied_of(deny)
        self.members = Membership(
            identity=_Identity(key(0)),
            chain_id=CHAIN,
            software="t",
            facts=StatusFacts,
            own_record=lambda: record_of(0),
            judge_binding=lambda peer, binding: False,
            reserved=[address.peer for address in reserved],
            counters=counters,
            ask=nobody_answers,
            disconnect=lambda peer: None,
            now_ms=lambda: NOW_MS,
            ping_every_s=15,
            private_allowed=reach != "public",
            rng=random.Random(1),
        )
        self.discovery = Discovery(
            identity=_Identity(key(0)),
            chain_id=CHAIN,
            members=self.members,
            counters=counters,
            ask=self._answer,
            reach=reach,
            bootstrap=[*reserved, *bootstrap],
            book_path=book,
            is_denied=lambda peer, host: (
                peer in denied_peers or any(ip_of(host) in network for network in denied_networks)
            ),
            is_in_use=lambda peer: peer in self.in_use,
            now_ms=lambda: NOW_MS,
            outbound_target=target,
        )

    def knows(self, number, *hosts, teller=None, seq_ms=NOW_MS):
        record = record_of(number, *hosts, seq_ms=seq_ms)
        self.members.learn_record(record, teller or record.peer)

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.members.run, lambda: None)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(self.discovery.run, self._dial)
            task_status.started()

    async def _answer(self, peer, protocol, body, *, timeout_s, bytes_max):
        if self.answer is None:
            await trio.sleep_forever()
        return self.answer

    async def _dial(self, peer, address):
        self.dialled.append((peer, address, trio.current_time()))
        if not self.is_there:
            raise Unreachable("nobody there")
        self.members.connected(peer, outbound=True, host=address.host)

    def peers(self):
        return [peer for peer, _, _ in self.dialled]

    def due(self):
        """Whom it would dial now, in its order: the calls themselves begin in any."""
        return [entry.peer for entry, _ in self.discovery._due()]

    def hosts(self):
        return {address.host for _, address, _ in self.dialled}


def ip_of(host):
    return parse_address(f"/ip4/{host}/tcp/1").ip()


async def started(nursery, caller, seconds=3.0):
    await nursery.start(caller.run)
    await trio.sleep(seconds)
    return caller


async def test_reserved_first_then_anchors_then_the_book(autojump_clock):
    caller = Caller("lan", reserved=[at("10.0.0.9", 9)])
    for number in range(1, 6):
        caller.knows(number, f"10.0.0.{number}")
    for number in (3, 4):
        caller.discovery._book.find(key(number)).is_anchor = True
    due = caller.due()
    assert due[0] == key(9)
    assert set(due[1:3]) == {key(3), key(4)}
    assert set(due[3:]) == {key(1), key(2), key(5)}


async def test_longest_outbound_peers_are_the_anchors_of_the_next_run(autojump_clock, tmp_path):
    """Also when the links end before the book is saved, as they do at a stop."""
    path, count = tmp_path / "peers.msgpack", ANCHORS_MAX + 2
    first = Caller("lan", book=path)
    async with trio.open_nursery() as inner:
        await inner.start(first.run)
        for number in reversed(range(count)):
            first.knows(number + 1, f"10.0.0.{number + 1}")
            await trio.sleep(1)
        for number in range(count):
            first.members.disconnected(key(number + 1))
        inner.cancel_scope.cancel()
    due = Caller("lan", book=path).due()
    assert set(due[:ANCHORS_MAX]) == {key(n) for n in range(count, count - ANCHORS_MAX, -1)}
    assert len(due) == count


async def test_anchors_outlive_a_run_in_which_nobody_was_there(autojump_clock, nursery, tmp_path):
    path = tmp_path / "peers.msgpack"
    for is_there in (True, False):
        async with trio.open_nursery() as inner:
            caller = Caller("lan", book=path)
            caller.is_there = is_there
            caller.knows(1, "10.0.0.1")
            await started(inner, caller, 100)
            inner.cancel_scope.cancel()
    assert [entry.is_anchor for entry in Caller("lan", book=path).discovery._book.entries()] == [
        True
    ]


@pytest.mark.parametrize(("reach", "dialled"), [("public", 2), ("lan", 4)])
async def test_outbound_peers_of_a_public_network_stand_in_different_16s(
    autojump_clock, nursery, reach, dialled
):
    caller = Caller(reach)
    for number, host in enumerate(("8.8.1.1", "8.8.2.2", "8.8.3.3", "9.9.1.1"), 1):
        caller.knows(number, host)
    await started(nursery, caller, 60)
    assert len(caller.members.views()) == dialled
    assert "9.9.1.1" in caller.hosts()


async def test_book_full_of_peers_in_a_taken_16_is_not_gone_through_at_each_look(
    autojump_clock, monkeypatch
):
    """On the loop it took up to 0.7 s, four times a second."""
    caller, looked_at = Caller(), []
    for number in range(1, 101):
        caller.knows(number, f"8.8.{number}.1")
    find_address = caller.discovery._find_address

    def note(entry, *more):
        looked_at.append(entry.peer)
        return find_address(entry, *more)

    monkeypatch.setattr(caller.discovery, "_find_address", note)
    monkeypatch.setattr("p2p.discovery.LOOKED_AT_MAX", 30)
    monkeypatch.setattr("p2p.records.is_usable", None)  # what is in the book was judged already
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.members.run, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        caller.members.connected(key(500), outbound=True, host="8.8.8.8")
        counts = []
        for _ in range(6):
            assert caller.due() == []
            counts.append(len(looked_at))
        assert counts == [30, 60, 90, 100, 100, 100]
        caller.discovery.want(key(7), (), 10)
        assert caller.due() == [key(7)]
        caller.discovery._book.find(key(7)).wanted_until_s = 0.0
        caller.members.disconnected(key(500))
        await trio.sleep(PASSED_OVER_S * (1 + BACKOFF_JITTER))
        assert len(caller.due()) == 1, "when the /16 is free again"
        nursery.cancel_scope.cancel()


async def test_operators_own_peers_may_share_a_16(autojump_clock, nursery):
    caller = Caller(reserved=[at("8.8.1.1", 1), at("8.8.2.2", 2)], bootstrap=[at("8.8.3.3", 3)])
    await started(nursery, caller)
    assert set(caller.peers()) == {key(1), key(2), key(3)}


async def test_target_counts_without_the_reserved(autojump_clock, nursery):
    caller = Caller(reserved=[at("5.0.0.1", 100), at("5.0.0.2", 101)])
    for number in range(1, OUTBOUND_TARGET + 5):
        caller.knows(number, f"8.{number}.0.1")
    await started(nursery, caller, 60)
    assert len(caller.members.views()) == OUTBOUND_TARGET + 2


async def test_operator_says_how_many_outbound_peers_there_are(autojump_clock, nursery):
    """`outbound_min` of the config."""
    caller = Caller("lan", target=3)
    for number in range(1, 10):
        caller.knows(number, f"10.0.0.{number}")
    await started(nursery, caller, 60)
    assert len(caller.members.views()) == 3


async def test_private_addresses_are_neither_dialled_nor_told_on_a_public_network(
    autojump_clock, nursery
):
    caller = Caller()
    caller.knows(1, "10.0.0.1")
    caller.knows(2, "10.0.0.2", "8.8.8.8", "127.0.0.1")
    caller.is_there = False
    await started(nursery, caller, 300)
    assert caller.hosts() == {"8.8.8.8"}
    assert caller.discovery.known() == 1
    caller.discovery._book.find(key(2)).failures = 0
    assert await asked(caller) == set(), "a record holds all its addresses or none"
    caller.knows(3, "9.9.9.9")
    assert await asked(caller) == {key(3)}


async def asked(caller):
    raw = await caller.discovery.answer_peers(key(77), encode((64,)))
    return {record[0][1] for record in decode(raw, 64 * 1_024)}


def signed(number, host="8.8.8.8"):
    return record_of(number, host).value


FORGED = (signed(1)[0], bytes(64))


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        (encode((signed(1), signed(2, "9.9.9.9"))), 2),
        (encode(()), 0),
        (encode((signed(0),)), 0),  # our own
        (encode((signed(1, "10.0.0.1"),)), 0),
    ],
    ids=["two", "none", "our own", "a private one"],
)
async def test_honest_exchange_is_learned_from(autojump_clock, answer, learned):
    caller = Caller()
    caller.answer = answer
    await caller.discovery._exchange(key(50))
    assert caller.discovery.known() == learned
    assert not caller.counters.penalties


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        (b"rubbish", 0),
        (encode(7), 0),
        (encode((FORGED,)), 0),
        (encode((signed(2, "9.9.9.9"), FORGED)), 1),
        (encode(tuple(signed(n, f"8.{n}.0.1") for n in range(1, EXCHANGE_RECORDS_MAX + 2))), 0),
    ],
    ids=["rubbish", "no list", "forged", "one forged", "more than asked"],
)
async def test_bad_exchange_is_its_tellers_fault(autojump_clock, answer, learned):
    caller = Caller()
    caller.answer = answer
    await caller.discovery._exchange(key(50))
    assert caller.discovery.known() == learned
    assert caller.counters.penalties == {"malformed": 1}


async def test_denied_network_is_passed_over_for_the_peers_other_address(autojump_clock, nursery):
    caller = Caller(deny=["8.8.0.0/16", peer_id_text(key(2))])
    caller.knows(1, "8.8.8.8", "9.9.9.9")
    caller.knows(2, "7.7.7.7")
    caller.knows(3, "8.8.4.4")
    await started(nursery, caller, 60)
    assert caller.hosts() == {"9.9.9.9"}


@pytest.mark.parametrize(
    ("who", "most_s"),
    [
        ("reserved", BACKOFF_NEAR_S),
        ("of the operator", BACKOFF_NEAR_S),
        ("linked before", BACKOFF_NEAR_S),
        ("told of", BACKOFF_FAR_S),
    ],
)
async def test_back_off_grows_with_jitter_up_to_its_limit(autojump_clock, nursery, who, most_s):
    own = [at("10.0.0.1", 1)]
    caller = Caller(
        "lan",
        reserved=own if who == "reserved" else (),
        bootstrap=own if who == "of the operator" else (),
    )
    caller.knows(1, "10.0.0.1")
    caller.discovery._book.find(key(1)).was_linked = who == "linked before"
    caller.is_there = False
    await started(nursery, caller, 8 * most_s)
    waits = [after - before for before, after in pairwise(at_s for _, _, at_s in caller.dialled)]
    late = waits[-5:]
    assert waits[0] < 4
    assert most_s * (1 - BACKOFF_JITTER) <= min(late)
    assert max(late) <= most_s * (1 + BACKOFF_JITTER) + 0.5
    assert max(late) - min(late) > 0.01 * most_s, "no two nodes keep in step"


async def test_peer_that_stays_away_is_no_longer_missed(autojump_clock, nursery):
    caller = Caller("lan")
    caller.knows(1, "10.0.0.1")
    caller.discovery._book.find(key(1)).was_linked = True
    caller.is_there = False
    await started(nursery, caller, BACKOFF_NEAR_S * BACKOFF_NEAR_TRIES * 5)
    waits = [after - before for before, after in pairwise(at_s for _, _, at_s in caller.dialled)]
    assert max(waits[: BACKOFF_NEAR_TRIES - 1]) <= BACKOFF_NEAR_S * (1 + BACKOFF_JITTER) + 0.5
    assert min(waits[BACKOFF_NEAR_TRIES:]) >= BACKOFF_FAR_S * (1 - BACKOFF_JITTER)


async def test_wanted_peer_is_dialled_at_once_beyond_the_target(autojump_clock, nursery):
    caller = await started(nursery, Caller())
    for number in range(1, OUTBOUND_TARGET + 1):
        caller.knows(number, f"8.{number}.0.1")
    caller.knows(99, "8.1.7.7")  # in a /16 that is taken
    await trio.sleep(60)
    assert len(caller.members.views()) == OUTBOUND_TARGET
    caller.discovery.want(key(99), (), 10)
    caller.discovery.want(key(98), (at("9.9.9.9"),), 10)
    await trio.sleep(1)
    assert caller.dialled[-1][2] <= trio.current_time() - 1 + 0.1
    assert {(peer, address.host) for peer, address, _ in caller.dialled[-2:]} == {
        (key(99), "8.1.7.7"),
        (key(98), "9.9.9.9"),
    }


async def test_nobody_waits_for_a_peer_for_ever(autojump_clock, nursery):
    caller = Caller()
    for number in range(1, OUTBOUND_TARGET + 1):
        caller.knows(number, f"8.{number}.0.1")
    await started(nursery, caller, 60)
    caller.is_there = False
    caller.discovery.want(key(98), (at("9.9.9.9"),), 10)
    await trio.sleep(600)
    assert max(at_s for peer, _, at_s in caller.dialled if peer == key(98)) < 63 + 10


async def test_wanted_peers_push_each_other_out_and_not_the_oldest(autojump_clock, nursery):
    caller = Caller("lan")
    caller.members._disconnect = caller.members.disconnected
    for number in range(1, OUTBOUND_TARGET + 1):
        caller.knows(number, f"8.{number}.0.1")
    await started(nursery, caller, 60)
    for number in range(100, 100 + OUTBOUND_MAX):
        caller.discovery.want(key(number), (at(f"9.{number}.9.9"),), 10)
        await trio.sleep(1)
    linked = {view.peer for view in caller.members.views()}
    assert len(linked) == OUTBOUND_MAX
    assert {key(number) for number in range(1, OUTBOUND_TARGET + 1)} <= linked
    assert key(100 + OUTBOUND_MAX - 1) in linked


async def test_link_in_use_is_not_ended_for_another(autojump_clock, nursery):
    """A payer that asks many providers must not cut its own running answer."""
    caller = Caller("lan", target=OUTBOUND_MAX - 2)
    caller.members._disconnect = caller.members.disconnected
    for number in range(1, OUTBOUND_MAX - 1):
        caller.knows(number, f"8.{number}.0.1")
    await started(nursery, caller, 60)
    for number in (100, 101):
        assert caller.discovery.want(key(number), (at(f"9.{number}.9.9"),), 10)
        await trio.sleep(1)
    caller.in_use = {key(100)}
    assert caller.discovery.want(key(102), (at("9.102.9.9"),), 10)
    await trio.sleep(1)
    linked = {view.peer for view in caller.members.views()}
    assert {key(100), key(102)} <= linked
    assert key(101) not in linked
    caller.in_use = {key(100), key(102)}
    assert not caller.discovery.want(key(103), (at("9.103.9.9"),), 10)
    await trio.sleep(1)
    assert {view.peer for view in caller.members.views()} == linked
    assert key(103) not in caller.peers()


async def test_target_of_all_outbound_links_ends_none_of_them(autojump_clock, nursery):
    caller = Caller("lan", target=OUTBOUND_MAX)
    for number in range(1, OUTBOUND_MAX + 1):
        caller.knows(number, f"8.{number}.0.1")
    await started(nursery, caller, 60)
    assert not caller.discovery.want(key(100), (at("9.9.9.9"),), 10)


async def test_peer_that_moved_is_dialled_at_its_new_address_at_once(autojump_clock, nursery):
    caller = Caller("lan")
    caller.is_there = False
    caller.knows(1, "10.0.0.1")
    await started(nursery, caller, 300)
    caller.is_there = True
    began_s = trio.current_time()
    caller.knows(1, "10.0.0.2", teller=key(5), seq_ms=NOW_MS + 1)
    await wait_until(lambda: bool(caller.members.views()), 60)
    assert trio.current_time() - began_s < 1
    assert caller.dialled[-1][1].host == "10.0.0.2"


async def test_peer_of_another_chain_is_left_alone_for_an_hour(autojump_clock, nursery):
    caller = Caller("lan")
    caller.knows(1, "10.0.0.1")
    await started(nursery, caller)
    caller.discovery._set_aside(key(1))
    caller.members.disconnected(key(1))
    await trio.sleep(WRONG_CHAIN_S - 60)
    assert len(caller.dialled) == 1
    await trio.sleep(120)
    assert len(caller.dialled) == 2


async def test_banned_peer_is_not_dialled_until_its_ban_ends(autojump_clock, nursery):
    caller = Caller("lan")
    caller.knows(1, "10.0.0.1")
    caller.members.scores.ban(key(1), 300, trio.current_time())
    await started(nursery, caller, 290)
    assert not caller.dialled
    await trio.sleep(20)
    assert caller.peers() == [key(1)]
