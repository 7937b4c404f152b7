"""Four real processes meet by bootstrap and exchange, hear all, and survive a kill -9 of one."""

import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))
from hostile_kit import Node  # found by the line above


async def heard_by_all(nodes, at_least, seconds=20):
    """Until each has heard `at_least` messages more of each other one."""
    before = [await node.tell() for node in nodes]
    with trio.fail_after(seconds):
        while True:
            now = [await node.tell() for node in nodes]
            if all(
                now[i]["heard"].get(other.key.hex(), 0)
                >= before[i]["heard"].get(other.key.hex(), 0) + at_least
                for i, node in enumerate(nodes)
                for other in nodes
                if other is not node
            ):
                return now
            await trio.sleep(0.2)


async def all_linked(nodes, seconds=20):
    """Until each has admitted each other one: gossip may come round by a third before that."""
    with trio.fail_after(seconds):
        while {(await node.tell())["admitted"] for node in nodes} != {len(nodes) - 1}:  # noqa: ASYNC110
            await trio.sleep(0.2)


@pytest.fixture
def nodes():
    first = Node(50)
    made = [first, *(Node(number, first.address) for number in (51, 52, 53))]
    yield made
    for node in made:
        node.end()


async def test_four_processes_hear_each_other_and_go_on_after_a_kill(nodes):
    first = nodes[0]
    await heard_by_all(nodes, 5)
    await all_linked(nodes)
    nodes[1].end()
    others = [nodes[0], nodes[2], nodes[3]]
    told = await heard_by_all(others, 5)
    assert all(node["restarts"] == 0 for node in told)
    nodes[1] = Node(51, first.address)
    told = await heard_by_all(nodes, 5)  # new sequence numbers: nobody takes it for a replay
    assert all(node["restarts"] == node["bans"] == 0 for node in told)
