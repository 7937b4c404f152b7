"""Twenty thousand sessions with a villain: nobody loses more than was put at risk (page 30 §7).

`python tests/simulation/session_mutants.py` shows what these sessions would notice.
"""

from collections import Counter

import pytest
from simulation.outcomes import Played, failures
from simulation.sessions import GRAINS_LOST, HOLDS_LOST, VILLAINS, session_run

HAPPENED = (  # each often enough that a fault in its way is met
    ("served", 8_000), ("ticks", 500), ("partial", 500), ("again", 500), ("refused", 2_000),
    ("over the cap", 200), ("caught", 100), ("second orders", 50), ("late", 20), ("claims", 1_000),
    ("expired claims", 20), ("restarts", 100), ("power lost", 100), ("pruned", 100),
    ("TopUpChannel", 50), ("CloseChannel", 500), ("CoopClose", 10), ("silences", 20),
)  # fmt: skip


def test_nobody_loses_more_than_one_hold(played: Played) -> None:
    """The payer's loss ≤ one hold, the provider's 0, the cap never passed."""
    assert failures("session", played("session")) == []


def test_there_are_twenty_thousand_sessions_and_all_happens_in_them(played: Played) -> None:
    """Faults that never happen would show nothing."""
    total: Counter[str] = Counter()
    for outcome in played("session").values():
        total.update(dict(outcome.facts))
    assert total["sessions"] >= 20_000
    assert [what for what, least in HAPPENED if total[what] < least] == []


def test_the_payer_is_at_risk_and_never_for_more(played: Played) -> None:
    losses = [dict(outcome.facts)[HOLDS_LOST] for outcome in played("session").values()]
    assert max(losses) == 1
    assert not any(dict(outcome.facts)[GRAINS_LOST] for outcome in played("session").values())


@pytest.mark.parametrize("seed", range(3))
def test_same_seed_gives_the_same_trace(seed: int) -> None:
    first = session_run(seed)
    assert first == session_run(seed)
    assert VILLAINS[seed] in ("payer", "wire", "provider")
