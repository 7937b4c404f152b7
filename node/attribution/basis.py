"""From gradients to int8 rows: narrowing, eigenbases, whitening, count-sketch, rounding.

EK-FAC's idea on LoRA matrices (design page 60 §1): rotate each matrix's gradient into the
eigenbases of its two covariances, weigh every coordinate by the inverse root of its damped
second moment, add all coordinates with signs into 512 buckets, keep the unit vector as int8.
All randomness is SHAKE-256 of committed hashes, never a framework's generator.
One `Sketcher` makes the index's rows and the answers' sketches, so that they are alike.
Needs torch: import this file lazily. What it does not know: models, records, rows of others.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from consensus.primitives.digest import PROJECT, sha256
from node.attribution.index import IndexInvalid, read_basis, read_header
from node.ledger.rules.shares import NORM_MAX, NORM_MIN
from node.ledger.wire.claims import HALF_BYTES

DAMPING: Final = 0.01
ENTRY_MAX: Final = 127
QUANTUM: Final = sqrt(HALF_BYTES) * ENTRY_MAX / 4  # a unit vector's typical entry becomes 127/4
LIFTED: Final = NORM_MIN + 3_000  # what rounding moves it by has a deviation of some 400
LIFTS_MAX: Final = 16  # more than a gradient's entries take to reach the clamp in turns
NARROW_FACTOR: Final = 4  # sides wider than narrow × 4 are narrowed
ORTHONORMAL_WITHIN: Final = 1e-4
HALVES: Final = (0, 1)  # early, middle

Gradients = Mapping[str, Tensor]  # canonical matrix name → (records, out, in)
Tensors = dict[str, Tensor]


_WRAPPERS: Final = re.compile(r"^base_model\.model\.")
_TAIL: Final = re.compile(r"\.(lora_[AB])(\.[^.]+)?(\.weight)?$")


def canonical_matrix_name(tensor_name: str) -> str:
    """The one name of a LoRA matrix: `model.layers.0.self_attn.q_proj.lora_A`.

    Takes a name in the adapter's file, or a peft parameter or module (`….lora_A.default.weight`).
    Sorting canonical names sorts as the file's names do.
    """
    return _TAIL.sub(r".\1", _WRAPPERS.sub("", tensor_name))


def is_matrix_name(name: str) -> bool:
    """Whether `name` (of a tensor, parameter or module) is of a LoRA matrix."""
    return _TAIL.search(name) is not None


def is_sketched(name: str) -> bool:
    """Whether rows are made of the gradients of `name`: of lora_A's, which see all of a layer's
    input. lora_B's see the few numbers that lora_A makes of it: ARCHITECTURE.md §6 has figures."""
    tail = _TAIL.search(name)
    return tail is not None and tail.group(1) == "lora_A"


class MatrixBasis(NamedTuple):
    """fp32: `left` (out, out), `right` (in, in), eigenvectors as columns; `weight` (out, in)."""

    left: Tensor
    right: Tensor
    weight: Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums then have one order, so every machine of a type agrees.

    Two threads on a loaded two-core machine were also six times slower (page 60 §13).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream_words(seed: bytes, count: int) -> Tensor:
    """`count` big-endian 16-bit words of SHAKE-256, as int64."""
    raw = hashlib.shake_256(seed).digest(2 * count)
    return torch.from_numpy(np.frombuffer(raw, ">u2").astype(np.int64))


class Checkpoint(NamedTuple):
    """What seeds one half's random signs: the base, its checkpoint, which half, and `narrow`."""

    base: bytes
    adapter: bytes
    half: int
    narrow: int

    def seed(self, word: bytes, matrix: str = "") -> bytes:
        """The bytes that SHAKE-256 stretches into signs or buckets."""
        identity = self.base + self.adapter + self.half.to_bytes(1)
        return PROJECT + word + b"\0" + identity + matrix.encode()


class Narrowing:
    """Multiplies the wide side of a matrix by seeded ±1/√narrow; leaves others as they are.

    Narrowing what is narrow already changes nothing, so it may be applied early to save memory.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._signs: dict[tuple[str, int], Tensor] = {}

    def apply(self, matrix: str, gradient: Tensor) -> Tensor:
        """(records, out, in) → the same with each side at most narrow × 4."""
        limit = self._checkpoint.narrow * NARROW_FACTOR
        if gradient.shape[2] > limit:
            gradient = gradient @ self._matrix(matrix, gradient, 2)
        if gradient.shape[1] > limit:
            gradient = self._matrix(matrix, gradient, 1).T @ gradient
        return gradient

    def _matrix(self, matrix: str, gradient: Tensor, side: int) -> Tensor:
        width = gradient.shape[side]
        signs = self._signs.get((matrix, width))
        if signs is None:
            narrow = self._checkpoint.narrow
            raw = hashlib.shake_256(self._checkpoint.seed(b"narrow", matrix)).digest(width * narrow)
            bits = np.frombuffer(raw, np.uint8).reshape(width, narrow) & 1
            values = (bits.astype(np.float32) * 2 - 1) / np.float32(sqrt(narrow))
            signs = torch.from_numpy(values)
            self._signs[matrix, width] = signs
        return signs.to(gradient)


# --- fitting: sums over shards of drawn rows, added in shard order


def covariance_sums(half: int, gradients: Gradients) -> Tensors:
    """float64 ΣGGᵀ and ΣGᵀG of narrowed gradients, by `<half>/<matrix>/left|right`."""
    sums = {}
    for matrix, gradient in gradients.items():
        g = gradient.double()
        sums[f"{half}/{matrix}/left"] = torch.einsum("noi,npi->op", g, g)
        sums[f"{half}/{matrix}/right"] = torch.einsum("noi,noj->ij", g, g)
    return sums


def add_sums(parts: Iterable[Tensors]) -> Tensors:
    """Tensor by tensor, in the order of `parts`."""
    total: Tensors = {}
    for part in parts:
        for name, tensor in part.items():
            total[name] = total[name] + tensor if name in total else tensor
    return total


def eigenbases(sums: Tensors) -> Tensors:
    """fp32 eigenvectors of every sum, columns ascending by eigenvalue, under the same names."""
    return {name: torch.linalg.eigh(tensor)[1].float() for name, tensor in sums.items()}


def moment_sums(half: int, gradients: Gradients, bases: Tensors) -> Tensors:
    """float64 Σ (UoᵀGUi)², elementwise, by `<half>/<matrix>/weight`."""
    return {
        f"{half}/{matrix}/weight": _rotate(
            gradient, bases[f"{half}/{matrix}/left"], bases[f"{half}/{matrix}/right"]
        )
        .double()
        .square()
        .sum(0)
        for matrix, gradient in gradients.items()
    }


def weights(moments: Tensors, count: int) -> Tensors:
    """w = (m + 0.01·mean(m))^-½ with m the mean over `count` rows; fp32, same names.

    A matrix that no row has a gradient for weighs nothing, instead of infinitely much.
    """
    assert count > 0
    made = {}
    for name, total in moments.items():
        mean = total / count
        damped = mean + DAMPING * mean.mean()
        made[name] = torch.where(damped > 0, damped.rsqrt(), 0.0).float()
    return made


def _rotate(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.T @ gradient.float() @ right


def encode_tensors(tensors: Tensors) -> bytes:
    """safetensors bytes; equal tensors give equal bytes."""
    data: bytes = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def decode_tensors(data: bytes) -> Tensors:
    """The tensors of `encode_tensors`; raises IndexInvalid `basis`."""
    try:
        tensors: Tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IndexInvalid("basis", why=str(error)) from None
    return tensors


# --- rows


def quantise(buckets: Tensor) -> Tensor:
    """int8 (records, 512) of float64 sums: unit length, scaled, rounded half to even, clamped.

    Where clamping takes so much that the norm falls below its bound, the entries that are not
    clamped are lifted until it does not: see `_lift`. A row of zeros stands for none: the gradient
    was zero or not finite, fewer than 29 entries carry it, or so many equal ones do that rounding
    alone passes the other bound.
    """
    norm = buckets.norm(dim=1, keepdim=True)
    is_finite = torch.isfinite(norm) & (norm > 0)
    scaled = torch.where(is_finite, buckets / norm, 0.0) * QUANTUM
    rows = _rounded(scaled)
    is_short = is_finite[:, 0] & (rows.square().sum(1) < NORM_MIN)
    if is_short.any():
        rows[is_short] = _rounded(_lift(scaled[is_short]))
    squares = rows.square().sum(1, keepdim=True)
    is_sound = is_finite & (squares >= NORM_MIN) & (squares <= NORM_MAX)
    return torch.where(is_sound, rows, 0).to(torch.int8)


def _rounded(scaled: Tensor) -> Tensor:
    return scaled.round().clamp(-ENTRY_MAX, ENTRY_MAX).long()


def _lift(scaled: Tensor) -> Tensor:
    """Rows times the factor that brings their norm, once clamped, to its least: `LIFTED`.

    Every pass solves for the entries that are below the clamp, and may bring some more to it.
    """
    for _ in range(LIFTS_MAX):
        is_free = scaled.abs() < ENTRY_MAX
        free = (scaled * is_free).square().sum(1, keepdim=True)
        missing = LIFTED - ENTRY_MAX**2 * (~is_free).sum(1, keepdim=True)
        factor = (missing.clamp(min=0) / free.clamp(min=1e-12)).sqrt()
        scaled = torch.where(is_free, scaled * factor.clamp(min=1), scaled)
    return scaled


class Sketcher:
    """Makes int8 halves from gradients with one index's basis; the same for rows and answers."""

    def __init__(
        self, *, base: bytes, early: bytes, middle: bytes, narrow: int, basis: Tensors
    ) -> None:
        checkpoints = [
            Checkpoint(base, adapter, half, narrow)
            for half, adapter in zip(HALVES, (early, middle), strict=True)
        ]
        self._narrowing = [Narrowing(checkpoint) for checkpoint in checkpoints]
        self._bases = [_half_of(basis, half) for half in HALVES]
        self._buckets: list[dict[str, tuple[Tensor, Tensor]]] = []
        for checkpoint, matrices in zip(checkpoints, self._bases, strict=True):
            count = sum(matrix.weight.numel() for matrix in matrices.values())
            words = stream_words(checkpoint.seed(b"project"), count)
            sizes = [matrix.weight.numel() for matrix in matrices.values()]
            parts = zip(matrices, torch.split(words, sizes), strict=True)
            self._buckets.append(
                {name: (part % HALF_BYTES, ((part >> 15) * 2 - 1).double()) for name, part in parts}
            )

    @classmethod
    def load(cls, index_folder: str | Path) -> "Sketcher":
        """The sketcher of an index; raises IndexInvalid for a bad header or basis."""
        folder = Path(index_folder)
        header = read_header(folder)
        data = read_basis(folder)
        if sha256(data) != header.basis_hash:
            raise IndexInvalid("basis_hash")
        basis = decode_tensors(data)
        check_basis(basis)
        return cls(
            base=header.base,
            early=header.early,
            middle=header.middle,
            narrow=header.narrow,
            basis=basis,
        )

    def matrices(self, half: int) -> tuple[str, ...]:
        """The canonical names of the matrices that `rows` wants a gradient of, sorted."""
        return tuple(self._bases[half])

    def rows(self, half: int, gradients: Gradients) -> Tensor:
        """int8 (records, 512) from {matrix name: (records, rank, in)}, any float dtype.

        A row of zeros means that there is none (see `quantise`). Otherwise as `sums`.
        """
        return quantise(self.sums(half, gradients))

    def sums(self, half: int, gradients: Gradients) -> Tensor:
        """float64 (records, 512): what `rows` rounds.

        Names as in the adapter's file, or canonical. `half` 0 is the early checkpoint, 1 the
        middle. Gradients are of the tensors as the adapter's file holds them, not scaled by alpha,
        and of the matrices that are sketched alone. Raises IndexInvalid `basis` where the index
        does not fit these gradients.
        """
        matrices = self._bases[half]
        named = {canonical_matrix_name(name): tensor for name, tensor in gradients.items()}
        if named.keys() != matrices.keys():  # an index published for another adapter
            raise IndexInvalid("basis", why="other matrices than the adapter's")
        records = len(next(iter(named.values())))
        sums = torch.zeros(records, HALF_BYTES, dtype=torch.float64)
        for name, basis in matrices.items():
            gradient = self._narrowing[half].apply(name, named[name].detach().cpu().float())
            if gradient.shape[1:] != basis.weight.shape:
                raise IndexInvalid("basis", tensor=name, why="shape")
            rotated = _rotate(gradient, basis.left, basis.right) * basis.weight
            buckets, signs = self._buckets[half][name]
            sums.index_add_(1, buckets, rotated.flatten(1).double() * signs)
        return sums


def check_basis(basis: Tensors) -> None:
    """Raise IndexInvalid `basis` unless both halves hold complete, finite, orthonormal bases."""
    matrices = [sorted({_matrix_of(name) for name in basis if name[0] == str(h)}) for h in HALVES]
    if not matrices[0] or matrices[0] != matrices[1]:
        raise IndexInvalid("basis", why="the halves differ")
    wanted = {
        f"{h}/{m}/{part}" for h in HALVES for m in matrices[0] for part in MatrixBasis._fields
    }
    if basis.keys() != wanted:
        raise IndexInvalid("basis", why="names")
    for name, tensor in basis.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 2 or not torch.isfinite(tensor).all():
            raise IndexInvalid("basis", tensor=name)
    for half in HALVES:
        for matrix in matrices[0]:
            left, right, weight = (basis[f"{half}/{matrix}/{p}"] for p in MatrixBasis._fields)
            if weight.shape != (len(left), len(right)):
                raise IndexInvalid("basis", tensor=f"{half}/{matrix}", why="shape")
            for side in (left, right):
                if side.shape[0] != side.shape[1] or not _is_orthonormal(side):
                    raise IndexInvalid("basis", tensor=f"{half}/{matrix}", why="not orthonormal")


def _is_orthonormal(side: Tensor) -> bool:
    return bool(((side.T @ side) - torch.eye(len(side))).abs().max() <= ORTHONORMAL_WITHIN)


def _matrix_of(name: str) -> str:
    return name.split("/")[1] if name.count("/") == 2 else ""


def _half_of(basis: Tensors, half: int) -> dict[str, MatrixBasis]:
    names = sorted({_matrix_of(name) for name in basis if name[0] == str(half)})
    return {
        name: MatrixBasis(*(basis[f"{half}/{name}/{part}"] for part in MatrixBasis._fields))
        for name in names
    }
