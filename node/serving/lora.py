"""Batched LoRA on an unmodified model: one adapter per row, stacked matrices, few kernels.

Why wrap each linear: the base's weights are shared by all rows, and a row's own matrices are
added after the base's product. A is kept [slot, r, in], B [slot, r, out], transposed and
multiplied by alpha/r in float64, then cast. A rank is padded with zeros to its bucket.
Kernels (page 50 §3): `segment` when all rows have one adapter (two plain products), `active` per
bucket when they differ (matrices gathered once per change of rows), `leaves` for gradients.
Why `active` in chunks: a step's time goes into reading matrices, not into multiplying by them, so
rows of one adapter share a copy as far as chunks of one width allow.
What this file does not know: requests, tokens, which adapter is wanted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from node.serving.adapters import BUCKETS, PREFIX, SIDES, AdapterFile
from node.serving.engine import Unsupported, WrongBase

F32 = npt.NDArray[np.float32]
DTYPES: Final = (torch.float32, torch.bfloat16)  # as `flat_bytes` writes them


@dataclass(frozen=True, slots=True)
class Place:
    """Where one linear's A and B lie in a flat adapter of a bucket."""

    module: str
    inputs: int
    outputs: int
    at: int
    bucket: int

    def views(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """A [..., r, in] and B [..., r, out] inside `flat` [..., elements]."""
        middle = self.at + self.bucket * self.inputs
        stop = middle + self.bucket * self.outputs
        a = flat[..., self.at : middle].view(*flat.shape[:-1], self.bucket, self.inputs)
        b = flat[..., middle:stop].view(*flat.shape[:-1], self.bucket, self.outputs)
        return a, b


@dataclass(frozen=True, slots=True)
class Layout:
    """Every linear's place in a flat adapter of `bucket`; `elements` in all."""

    bucket: int
    places: Mapping[str, Place]
    elements: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a batch whose adapters share a bucket. `rows` None: the first `len(slots)` rows."""

    bucket: int
    slots: tuple[int, ...]
    rows: tuple[int, ...] | None


class Chunk(NamedTuple):
    """Rows of a batch that share one copy of an adapter's matrices."""

    slot: int
    rows: tuple[int, ...]


class Picked:
    """Chunks for the kernel, which wants one width: a short one is filled up with its first row,
    computed for nothing."""

    def __init__(self, chunks: Sequence[Chunk], device: torch.device) -> None:
        width = max(len(chunk.rows) for chunk in chunks)
        take: list[int] = []  # rows of x
        real: list[int] = []  # places in `take` that count
        for chunk in chunks:
            real += range(len(take), len(take) + len(chunk.rows))
            take += [*chunk.rows, *chunk.rows[:1] * (width - len(chunk.rows))]
        self._take = torch.tensor(take, device=device)
        self._real = torch.tensor(real, device=device) if len(real) < len(take) else None
        self._into = torch.tensor([take[place] for place in real], device=device)

    def add(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
        """Add to y [rows, length, out] the terms of x [rows, length, in]; A^T [chunks, in, r] and
        B [chunks, r, out]."""
        taken = x.index_select(0, self._take).view(len(a), -1, x.shape[-1])
        terms = torch.bmm(torch.bmm(taken, a), b).view(-1, *y.shape[1:])
        if self._real is not None:
            terms = terms.index_select(0, self._real)
        y.index_add_(0, self._into, terms)


class LoraLinear(nn.Module):
    """A base linear with the rows' low-rank terms; `LoraStack` tells it which."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.segment: tuple[int, Tensor, Tensor] | None = None  # rows, A^T [in, r], B [r, out]
        # Where nothing is picked, the first rows have an adapter each.
        self.active: list[tuple[Picked | None, Tensor, Tensor]] = []
        self.leaves: tuple[Tensor, Tensor] | None = None  # A^T [n, in, r], B [n, r, out]

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, length, in] → [rows, length, out]."""
        base = self.base
        y: Tensor = (
            base(x) if x.dtype is base.weight.dtype else upcast_product(x, base.weight, base.bias)
        )
        if self.leaves is not None:
            a, b = self.leaves
            return y + torch.bmm(torch.bmm(x, a), b)
        if self.segment is not None:
            count, a, b = self.segment
            y[:count].add_((x[:count] @ a) @ b)
        for picked, a, b in self.active:
            if picked is None:
                count = a.shape[0]
                y[:count].baddbmm_(torch.bmm(x[:count], a), b)
            else:
                picked.add(y, x, a, b)
        return y


class _Upcast(torch.autograd.Function):
    """A product with weights of fewer bits, which are upcast only while they are used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.float(), None if bias is None else bias.float())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight.float(), None, None


def upcast_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """float32 x [..., in] with a frozen weight [out, in] of any dtype → float32 [..., out].

    For gradients: no float32 copy of the weights outlives its layer, in either direction.
    """
    apply: Any = _Upcast.apply  # torch's has no annotations
    product: Tensor = apply(x, weight, bias)
    return product


class LoraStack:
    """All wrapped linears of one model, and the flat slot pools behind them."""

    def __init__(self, model: Any, slots: int, pool_bytes_max: int = 0) -> None:
        """`pool_bytes_max`: of each bucket's pool, which then has fewer than `slots`; 0: any."""
        self.linears = _wrap(model)
        weight = next(model.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        assert self.dtype in DTYPES, "load_base offers no other"
        self.layouts = {bucket: _layout(self.linears, bucket) for bucket in BUCKETS}
        self.slots = dict.fromkeys(BUCKETS, slots)
        if pool_bytes_max:
            for bucket, layout in self.layouts.items():
                most = pool_bytes_max // (layout.elements * weight.element_size())
                self.slots[bucket] = min(slots, most)
        self.pools: dict[int, Tensor] = {}  # bucket → [slots, elements], made when first needed
        self.has: dict[tuple[int, int], frozenset[str]] = {}  # (bucket, slot) → adapted linears

    def pack(self, adapter: AdapterFile) -> Tensor:
        """The adapter as one flat tensor of its bucket, in RAM.

        Raises WrongBase naming the tensor, Unsupported where its bucket has no slot. Any thread
        may call; it computes with numpy alone, since torch would bring threads of its own.
        """
        self.check_slots(adapter.bucket)
        layout = self.layouts[adapter.bucket]
        flat = np.zeros(layout.elements, np.float32)
        for module, (rank, scale) in adapter.modules.items():
            place = layout.places.get(module)
            if place is None:
                raise WrongBase(key=module)
            a, b = adapter.pair(module)
            if a.shape[1] != place.inputs or b.shape[0] != place.outputs:
                raise WrongBase(key=PREFIX + module + SIDES[0])
            middle = place.at + place.bucket * place.inputs
            flat[place.at : place.at + rank * place.inputs] = a.reshape(-1)
            into = flat[middle : middle + rank * place.outputs].reshape(rank, place.outputs)
            into[:] = (b.astype(np.float64) * scale).T
        return self.from_bytes(flat_bytes(flat, self.dtype))

    def check_slots(self, bucket: int) -> None:
        """Raise Unsupported where the bucket has no slot: its requests would wait for ever."""
        if not self.slots[bucket]:
            raise Unsupported(what=f"a rank of {bucket}: slot_budget_mb has no room for one")

    def from_bytes(self, raw: npt.NDArray[np.uint8]) -> Tensor:
        """The flat tensor whose bytes these are; for a GPU in memory that it can copy from."""
        flat = torch.from_numpy(raw).view(self.dtype)
        return flat.pin_memory() if self.device.type == "cuda" else flat

    @staticmethod
    def to_bytes(flat: Tensor) -> npt.NDArray[np.uint8]:
        """The bytes of a flat tensor in RAM, where they lie."""
        raw: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
        return raw

    def fill(self, bucket: int, slot: int, packed: Tensor, modules: frozenset[str]) -> None:
        """Copy a packed adapter into a slot: one copy."""
        if bucket not in self.pools:
            shape = (self.slots[bucket], self.layouts[bucket].elements)
            self.pools[bucket] = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.pools[bucket][slot].copy_(packed)
        self.has[bucket, slot] = modules

    def use(self, groups: Sequence[Group]) -> None:
        """Choose kernels for a batch's rows; call it when the composition changes.

        Rows in no group run on the base alone. No groups: LoRA is off.
        """
        self.off()
        for group in groups:
            pool, layout = self.pools[group.bucket], self.layouts[group.bucket]
            one = group.rows is None and len(set(group.slots)) == 1
            chunks = chunks_of(group)
            slots = torch.tensor([chunk.slot for chunk in chunks], device=self.device)
            is_each = [chunk.rows for chunk in chunks] == [(row,) for row in range(len(chunks))]
            picked = None if is_each else Picked(chunks, self.device)
            used = frozenset().union(*(self.has[group.bucket, slot] for slot in group.slots))
            for module in used:  # absent targets are skipped, not multiplied by zero
                linear = self.linears[module]
                a, b = layout.places[module].views(pool)
                if one:
                    slot = group.slots[0]
                    linear.segment = len(group.slots), a[slot].t(), b[slot]
                else:
                    gathered = a.index_select(0, slots).transpose(1, 2)
                    linear.active.append((picked, gathered, b.index_select(0, slots)))

    def off(self) -> None:
        """The base alone."""
        for linear in self.linears.values():
            linear.segment, linear.leaves = None, None
            linear.active = []

    def use_rows(self, bucket: int, packed: Sequence[Tensor], modules: frozenset[str]) -> None:
        """Give each row its own packed adapter, without a slot."""
        self.off()
        stacked = torch.stack([flat.to(self.device) for flat in packed])
        for module in modules:
            a, b = self.layouts[bucket].places[module].views(stacked)
            self.linears[module].leaves = a.transpose(1, 2), b

    def use_leaves(
        self, bucket: int, packed: Sequence[Tensor], modules: frozenset[str]
    ) -> dict[str, Tensor]:
        """The same in float32; each A^T, by sorted module name, is a leaf that asks for its
        gradient."""
        self.use_rows(bucket, packed, modules)
        leaves = {}
        for module in sorted(modules):
            linear = self.linears[module]
            assert linear.leaves is not None
            a, b = linear.leaves
            leaves[module] = a.float().contiguous().requires_grad_()
            linear.leaves = leaves[module], b.float()
        return leaves


def flat_bytes(flat: F32, dtype: torch.dtype) -> npt.NDArray[np.uint8]:
    """The bytes of float32 numbers in `dtype`; bfloat16 rounds to nearest, ties to even."""
    if dtype is torch.float32:
        return flat.view(np.uint8)
    words = flat.view(np.uint32)
    rounded = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    return rounded.astype(np.uint16).view(np.uint8)


def groups_of(rows: Sequence[tuple[int, int] | None]) -> list[Group]:
    """Groups by bucket of a batch; per row (bucket, slot), or None for the base alone."""
    by_bucket: dict[int, tuple[list[int], list[int]]] = {}
    for row, place in enumerate(rows):
        if place is not None:
            at, slots = by_bucket.setdefault(place[0], ([], []))
            at.append(row)
            slots.append(place[1])
    groups = []
    for bucket, (at, slots) in sorted(by_bucket.items()):
        everyone = at == list(range(len(rows)))
        groups.append(Group(bucket, tuple(slots), None if everyone else tuple(at)))
    return groups


def chunks_of(group: Group) -> list[Chunk]:
    """The chunks of a group's rows, by slot and then by row.

    None is wider than the mean adapter has rows: narrower ones would be more copies to read, wider
    ones more rows computed for nothing. So there are at most twice as many chunks as adapters.
    """
    by_slot: dict[int, list[int]] = {}
    for row, slot in zip(group.rows or range(len(group.slots)), group.slots, strict=True):
        by_slot.setdefault(slot, []).append(row)
    width = -(-len(group.slots) // len(by_slot))
    return [
        Chunk(slot, tuple(rows[at : at + width]))
        for slot, rows in by_slot.items()
        for at in range(0, len(rows), width)
    ]


def _wrap(model: Any) -> dict[str, LoraLinear]:
    """Replace every linear but the output layer; names as in the unwrapped model."""
    output = model.get_output_embeddings()
    wrapped = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not output:
            parent, _, last = name.rpartition(".")
            wrapped[name] = LoraLinear(module)
            setattr(model.get_submodule(parent), last, wrapped[name])
    return wrapped


def _layout(linears: Mapping[str, LoraLinear], bucket: int) -> Layout:
    places, at = {}, 0
    for name, linear in linears.items():
        inputs, outputs = linear.base.in_features, linear.base.out_features
        places[name] = Place(name, inputs, outputs, at, bucket)
        at += bucket * (inputs + outputs)
    return Layout(bucket, places, at)
