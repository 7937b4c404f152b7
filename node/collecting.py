"""How seldom Python looks for cycles among the node's objects.

Why: a node keeps hundreds of thousands of tuples (state, receipts, votes) that never form a cycle,
and Python's collector, by default after each 700 new ones, reads them again and again.
What this file does not know: what the node keeps.
"""

import gc
from typing import Final

NEW_OBJECTS: Final = 50_000  # containers made and not yet freed, before the youngest are read


def collect_seldom() -> None:
    """For the process that asks: Python's rule, with a greater first threshold."""
    _, young, middle = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, young, middle)
