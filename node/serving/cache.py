"""Keys and values of the rows in flight: one slot per row, kept dense at the front.

Why slots and not pages: a row is one slice per layer, a finished row is overwritten by the last,
and attention of an unmodified model reads one contiguous view. Padded memory is the price.
To transformers this is a cache with `update`, `get_seq_length` and two flags: a private surface,
pinned by version and by a contract test.
What this file does not know: tokens, adapters, requests.
"""

from typing import Any, Final

import torch
from torch import Tensor

LENGTH_START: Final = 256  # on a CPU the length doubles from here
ROWS_MIN: Final = 4  # fewer rows take another kernel on CPUs, with other rounding


def row_bytes(model: Any, length: int) -> int:
    """Keys and values of one row of `length` positions."""
    weight = next(model.parameters())
    layers: int = model.config.num_hidden_layers
    heads, head_dim = _heads_of(model.config)
    return 2 * layers * heads * head_dim * length * int(weight.element_size())


def _heads_of(settings: Any) -> tuple[int, int]:
    """How many there are of keys and values, and how wide."""
    head_dim = getattr(settings, "head_dim", None) or (
        settings.hidden_size // settings.num_attention_heads
    )
    return settings.num_key_value_heads, head_dim


class SlotCache:
    """KV of `rows` rows. Aim it by `decode` or `prefill` before each forward."""

    is_compileable = False

    def __init__(self, model: Any, rows: int, max_model_len: int) -> None:
        heads, head_dim = _heads_of(model.config)
        weight = next(model.parameters())
        self._rows, self._max = max(rows, ROWS_MIN), max_model_len
        self._length = min(LENGTH_START, max_model_len)
        shape = (self._rows, heads, self._length, head_dim)
        layers = range(model.config.num_hidden_layers)
        self.is_sliding = [False]
        self._keys = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in layers]
        self._values = [torch.zeros_like(keys) for keys in self._keys]
        self._at: tuple[Tensor, Tensor] | None = None  # decode: rows, positions
        self._row = self._start = self._stop = self._batch = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing is implied by the cache: positions and mask are given."""
        return 0

    def decode(self, positions: Tensor, batch: int, longest: int) -> None:
        """Next: one token for rows 0..len(positions)−1, in a batch padded to `batch` rows."""
        self.reserve(longest)
        self._at = torch.arange(len(positions), device=positions.device), positions
        self._batch, self._stop = batch, longest

    def prefill(self, row: int, start: int, stop: int) -> None:
        """Next: tokens start..stop−1 of one row."""
        self.reserve(stop)
        self._at, self._row, self._start, self._stop = None, row, start, stop

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store this forward's keys and values; give all that attention may read."""
        own_k, own_v = self._keys[layer], self._values[layer]
        if self._at is None:
            row = slice(self._row, self._row + 1)
            own_k[row, :, self._start : self._stop] = keys
            own_v[row, :, self._start : self._stop] = values
            return own_k[row, :, : self._stop], own_v[row, :, : self._stop]
        rows, positions = self._at
        # Padding rows are computed, never stored: their slots may hold a waiting request.
        own_k[rows, :, positions] = keys[: len(rows), :, 0]
        own_v[rows, :, positions] = values[: len(rows), :, 0]
        return own_k[: self._batch, :, : self._stop], own_v[: self._batch, :, : self._stop]

    def move(self, source: int, target: int, length: int) -> None:
        """Overwrite row `target` by the first `length` positions of `source`."""
        for tensor in (*self._keys, *self._values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows' first `length` positions."""
        for tensor in (*self._keys, *self._values):
            kept = tensor[one, :, :length].clone()
            tensor[one, :, :length] = tensor[other, :, :length]
            tensor[other, :, :length] = kept

    def reserve(self, length: int) -> None:
        """Room for `length` positions: doubled until it fits, never beyond the model's length."""
        assert length <= self._max
        if length <= self._length:
            return
        while self._length < length:
            self._length = min(self._length * 2, self._max)
        for tensors in (self._keys, self._values):
            for at, old in enumerate(tensors):
                rows, heads, filled, width = old.shape
                grown = old.new_zeros((rows, heads, self._length, width))
                grown[:, :, :filled] = old
                tensors[at] = grown
