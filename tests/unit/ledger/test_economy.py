"""Hypothesis drives the ledger beside a plain model of its economy, and shrinks where they part.

`tests/unit/vectors/test_economy.py` plays ten thousand transactions of one seed on the same kit;
here the search is Hypothesis's, by steps of its own choice.
"""

import random

from economy_kit import LONG_STEP_MS, STEPS_MS, Market
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

CHANCE = st.randoms(use_true_random=False)


class LedgerBesideModel(RuleBasedStateMachine):
    """Every rule adds to the next block; `block` makes it, foretold and compared."""

    @initialize()
    def begin(self) -> None:
        """After the story; with a channel or two."""
        self.market = Market(random.Random(0))
        for _ in range(40):
            self.market.transact()
        self.market.block(1_000)

    @rule(chance=CHANCE, count=st.integers(1, 12))
    def transact(self, chance: random.Random, count: int) -> None:
        self.market.chance = chance
        for _ in range(count):
            self.market.transact()

    @rule(chance=CHANCE, count=st.integers(1, 12))
    def answer(self, chance: random.Random, count: int) -> None:
        self.market.chance = chance
        for _ in range(count):
            self.market.answer()

    @rule(chance=CHANCE)
    def replay(self, chance: random.Random) -> None:
        self.market.chance = chance
        self.market.replay()

    @rule(chance=CHANCE)
    def accuse(self, chance: random.Random) -> None:
        self.market.chance = chance
        self.market.accuse()

    @rule(chance=CHANCE, later_ms=st.sampled_from((*STEPS_MS, LONG_STEP_MS)))
    def block(self, chance: random.Random, later_ms: int) -> None:
        self.market.chance = chance
        self.market.block(later_ms)

    def teardown(self) -> None:
        """What still waits is settled and compared too; then all that waits has matured."""
        if hasattr(self, "market"):
            self.market.chance = random.Random(0)
            self.market.block(1_000)
            self.market.block(LONG_STEP_MS)
            assert not self.market.model.maturing


TestLedgerBesideModel = LedgerBesideModel.TestCase
TestLedgerBesideModel.settings = settings(
    max_examples=20, stateful_step_count=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
