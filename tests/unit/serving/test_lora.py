"""Rows of one adapter share a copy of its matrices, and none gets another's terms."""

import random

import pytest

pytestmark = pytest.mark.ml


@pytest.mark.parametrize("seed", range(40))
def test_chunks_hold_each_row_once_under_its_own_slot(seed: int) -> None:
    from node.serving.lora import Group, chunks_of

    chance = random.Random(seed)
    count = chance.randrange(1, 40)
    slots = tuple(min(chance.randrange(1, 40), chance.randrange(1, 40)) for _ in range(count))
    rows = tuple(sorted(chance.sample(range(64), count))) if seed % 2 else None
    chunks = chunks_of(Group(8, slots, rows))
    own = dict(zip(rows or range(count), slots, strict=True))
    assert sorted((row, chunk.slot) for chunk in chunks for row in chunk.rows) == sorted(
        own.items()
    )
    adapters = len(set(slots))
    assert len(chunks) <= 2 * adapters, "copies that are read"
    assert max(len(chunk.rows) for chunk in chunks) <= -(-count // adapters)


def test_eight_adapters_of_thirty_two_rows_are_read_eight_times() -> None:
    from node.serving.lora import Chunk, Group, chunks_of

    group = Group(8, tuple(row % 8 for row in range(32)), None)
    assert chunks_of(group) == [Chunk(slot, tuple(range(slot, 32, 8))) for slot in range(8)]


@pytest.mark.parametrize(
    "places",
    [
        [1, 2, 3, 4, 5],  # one each, and the batch is padded by a sixth row
        [3, 3, 1, 1, 2, 2],  # chunks of two, all full
        [1, 1, 1, 1, 2, 3],  # chunks of two, two of them short
        [None, 4, None, 4, 4, None],  # one adapter beside the base
        [5, None, 1, 5, 1, 5],
        [2, 2, 2, 2, 2, 2],
    ],
)
def test_each_row_gets_its_own_adapters_terms_and_those_without_get_none(places) -> None:
    """float32 against float64: what rounding leaves is below 10⁻⁵."""
    import torch
    from torch import nn

    from node.serving.lora import LoraStack, groups_of

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.output = nn.Linear(24, 40), nn.Linear(2, 2)

        def get_output_embeddings(self) -> nn.Module:
            return self.output

    torch.manual_seed(0)
    stack = LoraStack(Model(), slots=6)
    linear = stack.linears["one"]
    for slot in range(6):
        flat = torch.randn(stack.layouts[8].elements)
        stack.fill(8, slot, flat, frozenset({"one"}))
    a, b = stack.layouts[8].places["one"].views(stack.pools[8])
    x = torch.randn(6, 3, 24)
    with torch.inference_mode():
        stack.use(groups_of([None if place is None else (8, place) for place in places]))
        mixed = linear(x)
        for row in range(6):
            slot = places[row] if row < len(places) else None
            wanted = linear.base(x[row]).double()
            if slot is not None:
                wanted += (x[row].double() @ a[slot].double().t()) @ b[slot].double()
            assert float((mixed[row] - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
