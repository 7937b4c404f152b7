"""Who may stay connected: limits per address, per group and in all; who goes when it is full."""

import random

import pytest
import trio
from network_kit import CHAIN

from p2p.counters import Counters
from p2p.limits import CONNECTIONS_MAX, INBOUND_MAX, PER_ADDRESS_MAX, PER_GROUP_MAX
from p2p.membership import Membership
from p2p.memory import _Identity
from p2p.peers import PeerId, StatusFacts
from p2p.records import make_record


def key(number):
    return PeerId(number.to_bytes(32, "big"))


async def nobody_answers(peer, protocol, body, *, timeout_s, bytes_max):
    await trio.sleep_forever()


@pytest.fixture
async def hall(nursery):
    """Makes the membership of one node, whose `gone` are those it asked to leave."""

    async def make(*, private_allowed=False, reserved=()):
        gone = []
        me = _Identity(key(0))
        members = Membership(
            identity=me,
            chain_id=CHAIN,
            software="t",
            facts=StatusFacts,
            own_record=lambda: make_record(me, CHAIN, seq_ms=1, addresses=(), roles=0, binding=b""),
            judge_binding=lambda peer, binding: False,
            reserved=reserved,
            counters=Counters(),
            ask=nobody_answers,
            disconnect=gone.append,
            now_ms=lambda: 1,
            ping_every_s=15,
            private_allowed=private_allowed,
            rng=random.Random(1),
        )
        nursery.start_soon(members.run, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        return members, gone

    return make


def come(members, numbers, host, *, outbound=False):
    """How many of them were let in."""
    return sum(members.connected(key(n), outbound=outbound, host=host(n)) for n in numbers)


async def test_one_address_and_one_group_have_their_share(autojump_clock, hall):
    members, _ = await hall()
    assert come(members, range(1, 9), lambda n: "8.8.8.8") == PER_ADDRESS_MAX
    assert come(members, range(20, 40), lambda n: f"8.8.8.{n}") == PER_GROUP_MAX - PER_ADDRESS_MAX
    assert come(members, range(50, 60), lambda n: f"2001:db8:1:{n}::1") == PER_GROUP_MAX
    assert come(members, [70], lambda n: "8.8.9.8") == 1


async def test_outbound_peers_count_in_their_group_too(autojump_clock, hall):
    members, _ = await hall()
    assert come(members, range(1, 9), lambda n: "8.8.8.8", outbound=True) == PER_ADDRESS_MAX
    assert come(members, [20], lambda n: "8.8.8.8") == 0


async def test_where_private_is_allowed_all_may_come_from_one_address(autojump_clock, hall):
    members, _ = await hall(private_allowed=True)
    assert come(members, range(1, 20), lambda n: "127.0.0.1") == 19


async def test_reserved_peers_are_beyond_every_limit(autojump_clock, hall):
    friends = [key(n) for n in range(1, 20)]
    members, gone = await hall(reserved=friends)
    assert come(members, range(1, 20), lambda n: "8.8.8.8") == 19
    assert come(members, range(100, 200), lambda n: f"9.{n}.0.1") == INBOUND_MAX
    assert not set(gone) & set(friends)


async def test_newest_of_the_fullest_group_makes_room(autojump_clock, hall):
    members, gone = await hall()
    crowd, others = 5, INBOUND_MAX - 5
    for number in range(1, crowd + 1):
        assert come(members, [number], lambda n: f"8.8.8.{n}") == 1
        await trio.sleep(0.1)
    assert come(members, range(100, 100 + others), lambda n: f"9.{n}.0.1") == others
    assert come(members, [50], lambda n: "8.8.8.50") == 0, "it would be the newest of the fullest"
    assert come(members, [200], lambda n: "7.7.7.7") == 1
    assert gone == [key(crowd)]


async def test_all_connections_together_have_a_limit(autojump_clock, hall):
    members, _ = await hall()
    let_in = come(members, range(1, 100), lambda n: f"9.{n}.0.1", outbound=True)
    assert let_in == CONNECTIONS_MAX


async def test_banned_peer_is_not_let_in(autojump_clock, hall):
    members, gone = await hall()
    members.ban(key(1), 60)
    assert come(members, [1], lambda n: "8.8.8.8") == 0
    await trio.sleep(61)
    assert come(members, [1], lambda n: "8.8.8.8") == 1
    assert gone == [key(1)]


async def test_bindings_are_read_in_a_thread_while_others_come(autojump_clock, hall):
    """Whoever may see sketches is asked of them in worker threads."""
    members, _ = await hall()

    class Told(bytes):
        """A binding in whose moment of being looked at another peer's comes."""

        def __bool__(self) -> bool:
            members._bindings[key(2)] = (1, b"second")
            return True

    members._bindings[key(1)] = (1, Told(b"first"))
    assert members.bindings() == {key(1): b"first"}
    assert members.bindings().keys() == {key(1), key(2)}
