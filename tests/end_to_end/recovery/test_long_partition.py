"""A minute apart, or deaf for one: the back-off has grown, and all meet again within 40 s.

Longer than `make test` allows, and only where the machine makes network namespaces for us.
"""

import sys
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
    wait_at_tip,
    wait_dropped,
    wait_height,
    wait_linked,
)

from node.devnet.children import wait_answering

pytestmark = pytest.mark.slow

APART_S = 60.0
BACK_S = 40.0
STORY_S = 400.0
MISSED_BLOCKS_MIN = 20


def others_of(town: Town, node: Placed) -> list[Placed]:
    return [other for other in town.nodes if other is not node]


async def all_linked(town: Town) -> None:
    for node in town.nodes:
        await wait_linked(node, others_of(town, node))


async def parted(town: Town, places: list[int], *, is_deaf: bool) -> float:
    """Seconds from the heal until all are linked with all and those who were away sign again."""
    assert town.cables is not None
    part, join = town.cables.pull, town.cables.plug
    if is_deaf:
        part, join = town.cables.deafen, town.cables.undeafen
    first, before = town.nodes[0], await height(town.nodes[0])
    for place in places:
        part(place)
    began_s = trio.current_time()
    for place in places:
        await wait_dropped(town.nodes[place], first)
    await wait_height(first, before + MISSED_BLOCKS_MIN)
    await trio.sleep_until(began_s + APART_S)
    for place in places:
        join(place)
    healed_s = trio.current_time()
    await all_linked(town)
    for place in places:
        await wait_at_tip(town.nodes[place], first)
    return trio.current_time() - healed_s


async def cut_from_power(town: Town, place: int) -> float:
    """Seconds from the start of a node whose end nobody has heard of until it signs again."""
    assert town.cables is not None
    node, first = town.nodes[place], town.nodes[0]
    town.cables.pull(place)
    node.kill()
    town.cables.plug(place)
    assert node.peer_id in await linked(first), "half-open: nothing has told it"
    await wait_height(first, await height(first) + 2)
    node.stopping = False
    node.start()
    began_s = trio.current_time()
    await wait_answering(node)
    await wait_at_tip(node, first)
    await all_linked(town)
    return trio.current_time() - began_s


async def tell(folder: Path) -> tuple[str, dict[str, float]]:
    took: dict[str, float] = {}
    with trio.fail_after(STORY_S):
        async with living(folder) as town, trio.open_nursery() as nursery:
            if town.cables is not None:
                nursery.start_soon(town.pay_on)
                await all_linked(town)
                took["power cut"] = await cut_from_power(town, 3)
                took["two alone"] = await parted(town, [1, 2], is_deaf=False)
                took["deaf"] = await parted(town, [3], is_deaf=True)
            nursery.cancel_scope.cancel()
    return town.why_no_cables, took


def test_who_was_apart_for_a_minute_is_back_within_40_seconds(tmp_path: Path) -> None:
    why_not, took = trio.run(tell, tmp_path)
    if why_not:
        pytest.skip(why_not)
    assert max(took.values()) <= BACK_S, took
