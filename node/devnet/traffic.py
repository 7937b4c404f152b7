"""Light traffic for a devnet that stays: questions through the payer's wallet, one after another.

Why real questions: what a newcomer wants to watch is fees that flow, and only answers make fees.
What this file does not know: how long the devnet stays.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.devnet.asking import ask
from node.devnet.children import read
from node.devnet.goods import Good, Goods
from node.devnet.people import Settled
from node.ledger.amounts import open_text
from node.training.demo_world import Fact

TELL_S: Final = 10.0
PAUSE_S: Final = 1.0  # after a refusal

Say = Callable[[str, str], None]


async def run_traffic(land: Settled, goods: Goods, per_s: float, say: Say) -> None:
    """Ask at most `per_s` questions a second until cancelled; a line each TELL_S."""
    if per_s <= 0:
        await trio.sleep_forever()
    asked = right = refused = 0
    fees = 0
    told_s = trio.current_time()
    for good, fact, question in questions(goods):
        began_s = trio.current_time()
        try:
            answer = await ask(land.payer, good, fact, question)
            asked, right = asked + 1, right + answer.is_right
            fees += int(answer.receipt["fee"])
        except Invalid as error:
            refused += 1
            say("traffic", f"refused: {error}")
            await trio.sleep(PAUSE_S)
        if trio.current_time() - told_s >= TELL_S:
            told_s = trio.current_time()
            say(
                "traffic",
                f"{asked} answers, {right} right, {refused} refused, {open_text(fees)} of "
                f"fees, block {await _height(land)}",
            )
        await trio.sleep_until(began_s + 1 / per_s)


async def _height(land: Settled) -> str:
    """For a line that is only news: a node that does not answer must not end the devnet."""
    try:
        return str((await read(land.validators[0], "/status"))["height"])
    except Invalid:
        return "unknown"


def questions(goods: Goods) -> Iterator[tuple[Good, Fact, str]]:
    """Every fact of every Datanet in a phrasing that no record has, round and round."""
    rounds = zip(*(itertools.cycle(good.world.facts) for good in goods.goods), strict=True)
    for number, facts in enumerate(rounds):
        for good, fact in zip(goods.goods, facts, strict=True):
            held_back = fact.held_back_questions()
            yield good, fact, held_back[number // len(good.world.facts) % len(held_back)]
