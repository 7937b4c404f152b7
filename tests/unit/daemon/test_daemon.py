"""What the composition root decides by itself, which is little."""

import pytest

from node.daemon import LAG_BLOCKS_MAX, is_behind

AT = 100
NEAR, FAR = AT + LAG_BLOCKS_MAX, AT + LAG_BLOCKS_MAX + 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], False),  # alone: there is nobody to be behind of
        ([NEAR], False),
        ([FAR], True),
        ([AT - 50], False),
        ([AT, 2**62], False),
        ([AT, FAR, FAR], True),
        ([AT, AT, 2**62], False),
    ],
)
def test_node_is_behind_when_most_peers_are_far_ahead(told: list[int], expected: bool) -> None:
    """One liar among the peers must neither close a provider's shop nor keep it open."""
    assert is_behind(told, AT) is expected
