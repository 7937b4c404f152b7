"""A running `olnode start` under one attack after another: it lives, stays small, and serves.

The attackers are a process of their own with bare libp2p and raw sockets; an honest peer asks and
pays meanwhile at a fixed rate. One node takes all attacks, so what one of them leaves behind is in
the way of the next.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attackers import Attackers  # found by the line above
from attacking import protocol_text
from attacks import ON_ANY_NODE
from besieged import Besieged
from honest import Honest

from p2p.limits import PROTOCOLS, TOPICS

# How long the honest peer works, and how often it asks and pays: `txs` takes 10 a second of it, and
# bursts of 50.
PEACE: Final = (0.6, 0.05)
SHORT: Final = (0.3, 0.05)
LONG: Final = (8.0, 0.1)
SERVED_SHARE_MIN: Final = 0.8  # of what is served in peace
PEAK_MB_MAX: Final = 100  # above what it held before, at any moment of an attack
GROWTH_MB_MAX: Final = 40  # from peace to the end of all attacks
FILES_MAX: Final = 400  # open ones, more than in peace: 300 strangers, and peers


class Scene(NamedTuple):
    """All who take part, and what was measured in peace."""

    node: Besieged
    attackers: Attackers
    honest: Honest
    share: float
    resident_mb: float
    files: int
    reached: set[str]  # protocols and topics that were attacked


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    attackers = Attackers()
    node = Besieged(tmp_path_factory.mktemp("siege"))
    honest = Honest(node)
    try:
        node.start()
        attackers.meet(node)
        honest.start()
        node.found_provider()
        honest.wait_in()
        share = honest.work(*PEACE).share
        yield Scene(node, attackers, honest, share, node.resident_mb(), node.open_files(), set())
    finally:
        attackers.kill()
        honest.stop()
        node.child.kill()


def withstand(scene: Scene, name: str, work: tuple[float, float]) -> None:
    """One attack: all that is promised of it holds."""
    node, before, resident_mb = scene.node, scene.node.status(), scene.node.resident_mb()
    guilty_before = node.guilty()
    node.forget_peak()
    scene.attackers.begin(name)
    served = scene.honest.work(*work)
    guilty = node.newly_guilty(guilty_before) if ON_ANY_NODE[name].has_points else set()
    told = scene.attackers.end()
    scene.reached.update(told["reached"])
    assert not told["why"], told["why"]
    assert told["sent"] > 0, "nobody was attacked"
    assert node.is_alive()
    assert node.unforeseen() == []
    assert served.share >= SERVED_SHARE_MIN * scene.share, served
    assert node.resident_mb("VmHWM") <= resident_mb + PEAK_MB_MAX
    assert node.open_files() <= scene.files + FILES_MAX
    now = node.status()
    assert now["height"] > before["height"], "it decides blocks meanwhile"
    assert now["signing"], "and is not talked out of its own voice"
    assert bool(guilty) == ON_ANY_NODE[name].has_points
    assert guilty <= set(told["peers"]), "nobody else is to blame"


@pytest.mark.parametrize("name", ON_ANY_NODE)
def test_node_under_attack_lives_and_serves(scene: Scene, name: str) -> None:
    withstand(scene, name, SHORT)


def test_every_protocol_and_topic_was_attacked(scene: Scene) -> None:
    """But `infer`, which a node without an engine does not speak."""
    wanted = {protocol_text(name) for name in PROTOCOLS if name != "infer"} | set(TOPICS)
    assert wanted <= scene.reached


def test_what_all_attacks_left_behind_is_little(scene: Scene) -> None:
    """No lie was kept, and nobody honest was punished with the rest."""
    assert scene.honest.ask("offers", 0, 64) == ()
    assert scene.node.resident_mb() <= scene.resident_mb + GROWTH_MB_MAX
    assert scene.honest.work(*PEACE).share >= SERVED_SHARE_MIN * scene.share


@pytest.mark.load
@pytest.mark.parametrize("name", ON_ANY_NODE)
def test_node_under_a_long_attack_lives_and_serves(scene: Scene, name: str) -> None:
    withstand(scene, name, LONG)
