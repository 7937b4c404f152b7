"""A running provider whose stream `infer` is attacked: it lives, stays small, and sells answers.

The quick test of the service alone is `test_provider_under_attack.py`; here two daemons start, an
engine computes, and a wallet pays, so it has its own mark.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attackers import Attackers  # found by the line above
from attacks import ON_A_PROVIDER
from attacks_on_infer import LEFT_ALONE
from selling import Buyer, Shop

pytestmark = [pytest.mark.load, pytest.mark.ml]

PEACE_S: Final = 3.0
ATTACK_S: Final = 8.0
QUESTIONS_MIN: Final = 5
LEFT_MIN: Final = 1  # answers that are made, signed and owed, though nobody waits for them
SERVED_SHARE_MIN: Final = 0.8  # of what is answered in peace
PEAK_MB_MAX: Final = 100  # of the daemon, above what it held before, at any moment of an attack
GROWTH_MB_MAX: Final = 40  # from peace to the end of all attacks


class Scene(NamedTuple):
    """All who take part, and what was measured in peace."""

    shop: Shop
    attackers: Attackers
    buyer: Buyer
    share: float
    resident_mb: float


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    attackers, buyer = Attackers(), None
    try:
        shop.start()
        attackers.meet(shop)
        shop.publish()
        buyer = Buyer(shop)
        buyer.start()
        peace = buyer.work(PEACE_S)
        assert peace.asked >= QUESTIONS_MIN
        yield Scene(shop, attackers, buyer, peace.answered / peace.asked, shop.resident_mb())
    finally:
        attackers.kill()
        if buyer is not None:
            buyer.child.kill()
        shop.child.kill()


@pytest.mark.parametrize("name", ON_A_PROVIDER)
def test_provider_under_attack_lives_and_sells(scene: Scene, name: str) -> None:
    shop, before, resident_mb = scene.shop, scene.shop.status(), scene.shop.resident_mb()
    guilty_before, signed_before = shop.guilty(), shop.answers_signed()
    shop.forget_peak()
    scene.attackers.begin(name)
    sold = scene.buyer.work(ATTACK_S)
    guilty = shop.newly_guilty(guilty_before) if ON_A_PROVIDER[name].has_points else set()
    told = scene.attackers.end()
    assert not told["why"], told["why"]
    assert told["sent"] > 0, "nobody was attacked"
    assert shop.is_alive()
    assert shop.unforeseen() == []
    assert sold.asked >= QUESTIONS_MIN
    assert sold.answered >= SERVED_SHARE_MIN * scene.share * sold.asked, sold
    signed = shop.answers_signed() - signed_before
    assert signed - sold.answered >= (LEFT_MIN if name == LEFT_ALONE else 0), "what nobody took"
    assert shop.resident_mb("VmHWM") <= resident_mb + PEAK_MB_MAX
    assert shop.status()["height"] > before["height"], "it decides blocks meanwhile"
    assert bool(guilty) == ON_A_PROVIDER[name].has_points
    assert guilty <= set(told["peers"]), "nobody else is to blame"


def test_what_the_attacks_on_a_provider_left_behind_is_little(scene: Scene) -> None:
    """Its engine is the one it began with, and who pays is answered as before."""
    assert scene.shop.resident_mb() <= scene.resident_mb + GROWTH_MB_MAX
    peace = scene.buyer.work(PEACE_S)
    assert peace.answered >= SERVED_SHARE_MIN * scene.share * peace.asked
