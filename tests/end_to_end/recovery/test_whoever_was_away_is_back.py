"""Stopped, killed, moved, cut off: each node is meshed again and at the tip within 40 seconds.

One story over one set of processes, told by several tests: while one node is stopped and another
has lost its cable, a third is killed, started again, killed and moved to another address. What is
shown is how they come back. That a devnet's own keepalive misses a stopped peer within 15 s is in
`tests/unit/p2p/test_memory.py`; here it is shorter.
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))
from town import (  # found by the line above
    Placed,
    Town,
    height,
    linked,
    living,
    move,
    wait_alone,
    wait_at_tip,
    wait_dropped,
    wait_height,
    wait_linked,
)

from node.devnet.children import read, wait_answering

BACK_S = 40.0
KEEPALIVE = {"p2p.keepalive_s": 1, "p2p.keepalive_misses": 1}  # 7 s at most to miss a peer
NOTICED_S = 40.0  # the machine may be busy
STORY_S = 300.0
MISSED_BLOCKS_MIN = 2


@dataclass
class Story:
    """What was seen, by scene; and what was true at the end."""

    why_no_cables: str = ""
    noticed_s: dict[str, float] = field(default_factory=dict)
    back_s: dict[str, float] = field(default_factory=dict)
    told_address: set[str] = field(default_factory=set)  # of the moved node, by all others
    configured: str = ""  # what the moved node was told to listen on
    ids: set[str] = field(default_factory=set)  # of one height at the end, by all
    is_whole: bool = False
    logs: str = ""


class Teller:
    """Plays the scenes; `away` are the nodes that nobody can be linked with now."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._first = town.nodes[0]
        self._away: list[str] = []
        self.story = Story(why_no_cables=town.why_no_cables)

    async def play(self) -> Story:
        _, second, third, fourth = self._town.nodes
        async with trio.open_nursery() as scenes:
            scenes.start_soon(self._stopped, second)
            scenes.start_soon(self._killed_then_moved, fourth)
            if self._town.cables is not None:
                scenes.start_soon(self._cut_off, third, 2)
        await self._end(fourth)
        return self.story

    async def _stopped(self, node: Placed) -> None:
        """SIGSTOP until the others have dropped it, then SIGCONT."""
        node.signal(signal.SIGSTOP)
        await self._noticed("stopped", node)
        node.signal(signal.SIGCONT)
        await self._back("stopped", node)

    async def _cut_off(self, node: Placed, place: int) -> None:
        """Its cable is pulled until both sides have dropped each other."""
        assert self._town.cables is not None
        self._town.cables.pull(place)
        await self._noticed("cut off", node)
        await wait_alone(node)
        self._town.cables.plug(place)
        await self._back("cut off", node)

    async def _killed_then_moved(self, node: Placed) -> None:
        """kill -9 and a start with the same key; again, and the start is at another address."""
        node.kill()
        await self._noticed("killed", node)
        await self._started_again("killed", node)
        node.kill()
        await self._noticed("moved", node)
        move(node)
        await self._started_again("moved", node)

    async def _started_again(self, scene: str, node: Placed) -> None:
        node.stopping = False
        node.start()
        await wait_answering(node)
        await self._back(scene, node)

    async def _noticed(self, scene: str, node: Placed) -> None:
        """Until the first node has dropped it, and has made blocks without it."""
        began_s = trio.current_time()
        self._away.append(node.name)
        with trio.move_on_after(NOTICED_S):
            await wait_dropped(node, self._first)
            self.story.noticed_s[scene] = trio.current_time() - began_s
        await wait_height(self._first, await height(self._first) + MISSED_BLOCKS_MIN)

    async def _back(self, scene: str, node: Placed) -> None:
        """Until all who are here are linked with it, and it signs at the tip."""
        began_s = trio.current_time()
        with trio.move_on_after(BACK_S):
            await wait_linked(node, [n for n in self._others(node) if n.name not in self._away])
            await wait_at_tip(node, self._first)
            self.story.back_s[scene] = trio.current_time() - began_s
        self._away.remove(node.name)

    async def _end(self, moved: Placed) -> None:
        """Nobody is away: all are linked with all, and agree."""
        nodes, story = self._town.nodes, self.story
        with trio.move_on_after(BACK_S):
            for node in nodes:
                await wait_linked(node, self._others(node))
            story.is_whole = True
        route = f"/ledger/blocks/{min([await height(node) for node in nodes])}"
        story.ids = {(await read(node, route))["block_id"] for node in nodes}
        for node in self._others(moved):
            peers = await linked(node)
            story.told_address.add(peers[moved.peer_id]["address"])
        story.configured = (moved.home / "config.toml").read_text("utf-8")
        story.logs = "\n\n".join(f"{node.name}: {node.last_lines()}" for node in nodes)

    def _others(self, node: Placed) -> list[Placed]:
        return [other for other in self._town.nodes if other is not node]


async def tell(folder: Path) -> Story:
    with trio.fail_after(STORY_S):
        async with living(folder, KEEPALIVE) as town, trio.open_nursery() as nursery:
            nursery.start_soon(town.pay_on)
            for node in town.nodes:
                await wait_linked(node, [other for other in town.nodes if other is not node])
            story = await Teller(town).play()
            nursery.cancel_scope.cancel()
    return story


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return trio.run(tell, tmp_path_factory.mktemp("town"))


@pytest.mark.parametrize("scene", ["stopped", "killed", "moved", "cut off"])
def test_node_that_was_away_is_meshed_and_at_the_tip_again(story: Story, scene: str) -> None:
    if scene == "cut off" and story.why_no_cables:
        pytest.skip(story.why_no_cables)
    assert scene in story.noticed_s, f"never missed\n{story.logs}"
    assert scene in story.back_s, f"not back within {BACK_S} s\n{story.logs}"


def test_all_are_linked_with_all_and_agree(story: Story) -> None:
    assert story.is_whole, story.logs
    assert len(story.ids) == 1


def test_others_learn_the_new_address_of_a_node_that_moved(story: Story) -> None:
    (address,) = story.told_address
    assert f'"{address}"' in story.configured
