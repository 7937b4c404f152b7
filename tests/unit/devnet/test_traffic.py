"""Light traffic: one question after another at its pace, and no refusal ends it."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from unit.devnet.selling import some_goods

from consensus.primitives.errors import Invalid
from node.devnet import traffic
from node.devnet.traffic import PAUSE_S, TELL_S, questions, run_traffic

GOODS = some_goods("contracts", "cooking")
LAND: Any = SimpleNamespace(payer="payer", validators=["n0"])


class World:
    """What is answered, and when it was asked by the test's clock."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []
        self.told: list[str] = []
        self.answers: deque[bool | Invalid] = deque()  # then only right ones
        self.status: dict[str, Any] | Invalid = {"height": 7}

    async def ask(self, payer: Any, good: Any, fact: Any, question: str) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), good.name))
        answer = self.answers.popleft() if self.answers else True
        if isinstance(answer, Invalid):
            raise answer
        return SimpleNamespace(is_right=answer, receipt={"fee": "2200000"})

    async def read(self, child: Any, route: str) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self.status, Invalid):
            raise self.status
        return self.status

    def say(self, label: str, text: str) -> None:
        assert label == "traffic"
        self.told.append(text)

    async def run(self, seconds: float, per_s: float) -> None:
        with trio.move_on_after(seconds):
            await run_traffic(LAND, GOODS, per_s, self.say)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(traffic, "ask", made.ask)
    monkeypatch.setattr(traffic, "read", made.read)
    return made


async def test_questions_keep_their_pace_and_take_turns(world: World, autojump_clock: Any) -> None:
    await world.run(3.9, per_s=2.0)
    times = [at - world.asked[0][0] for at, _ in world.asked]
    assert times == pytest.approx([0.5 * i for i in range(8)])
    assert [name for _, name in world.asked[:4]] == ["contracts", "cooking"] * 2


async def test_line_each_ten_seconds_tells_the_sums(world: World, autojump_clock: Any) -> None:
    world.answers.extend([False, Invalid("payer.no_provider")])
    await world.run(2 * TELL_S + 3, per_s=1.0)
    refused, *lines = world.told
    assert refused.startswith("refused: payer.no_provider")
    assert lines[0] == "10 answers, 9 right, 1 refused, 0.022 OPEN of fees, block 7"
    assert len(lines) == 2


async def test_no_traffic_is_asked_for_and_none_comes(world: World, autojump_clock: Any) -> None:
    await world.run(100, per_s=0.0)
    assert (world.asked, world.told) == ([], [])


async def test_refusal_makes_it_pause_and_go_on(world: World, autojump_clock: Any) -> None:
    world.answers.extend([Invalid("devnet.in_vain")] * 3)
    await world.run(10, per_s=100.0)
    times = [at - world.asked[0][0] for at, _ in world.asked]
    assert times[:4] == pytest.approx([i * PAUSE_S for i in range(4)])
    assert len(times) > 100


async def test_node_that_does_not_tell_its_height_ends_nothing(
    world: World, autojump_clock: Any
) -> None:
    """One read in vain once ended the whole devnet."""
    world.status = Invalid("devnet.in_vain", what="/status")
    await world.run(TELL_S + 5, per_s=1.0)
    assert len(world.asked) >= 15
    assert world.told[-1].endswith("block unknown")


def test_questions_go_round_in_phrasings_that_no_record_has() -> None:
    facts = GOODS.goods[0].world.facts
    rounds = questions(GOODS)
    first = [next(rounds) for _ in range(2 * len(facts))]
    second = [next(rounds) for _ in range(2 * len(facts))]
    assert [fact for good, fact, _ in first if good.name == "contracts"] == list(facts)
    for (_, fact, question), (_, again, other) in zip(first, second, strict=True):
        assert fact == again
        assert question != other
        assert {question, other} == set(fact.held_back_questions())
