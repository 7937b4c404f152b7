"""From gradients to rows: seeded signs, whitening, unit halves within the norm's bounds."""

from pathlib import Path

import numpy as np
import pytest
from attribution_kit import sound_rows, write_index

from consensus.primitives.digest import sha256
from node.attribution.index import IndexInvalid
from node.ledger.rules import shares
from node.ledger.wire import claims

pytestmark = pytest.mark.ml

A, B = "model.layers.0.q_proj.lora_A", "model.layers.0.q_proj.lora_B"
HASHES = {"base": b"\1" * 32, "early": b"\2" * 32, "middle": b"\3" * 32}


def draw(records: int = 64, seed: int = 0):
    import torch

    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.1, 3.0, 32)
    return {
        A: torch.randn(records, 8, 32, generator=generator) * spread,
        B: torch.randn(records, 40, 8, generator=generator),
    }


def fitted(gradients, narrow: int = 128):
    """A basis with both halves fitted on the same gradients."""
    from node.attribution import basis

    sums = basis.add_sums(basis.covariance_sums(half, gradients) for half in (0, 1))
    bases = basis.eigenbases(sums)
    moments = basis.add_sums(basis.moment_sums(half, gradients, bases) for half in (0, 1))
    count = len(next(iter(gradients.values())))
    return {**bases, **basis.weights(moments, count)}


def make_sketcher(gradients, **fields):
    from node.attribution.basis import Sketcher

    return Sketcher(**{**HASHES, "narrow": 128, "basis": fitted(gradients), **fields})


def test_words_are_those_of_shake_256() -> None:
    """The page's generator, not a framework's: these bytes must never change."""
    from node.attribution.basis import Checkpoint, stream_words

    seed = Checkpoint(b"\1" * 32, b"\2" * 32, 1, 128).seed(b"project")
    assert seed == b"olnode/1/project\0" + b"\1" * 32 + b"\2" * 32 + b"\1"
    assert stream_words(seed, 4).tolist() == [21971, 64567, 9037, 58788]


def test_rows_are_the_formula_in_plain_numpy() -> None:
    """page 60 §1, written a second time: rotate, weigh, sign into buckets, unit, round."""
    from node.attribution.basis import Checkpoint, stream_words

    gradients = draw()
    basis = fitted(gradients)
    rows = make_sketcher(gradients).rows(1, gradients).numpy()
    words = stream_words(Checkpoint(HASHES["base"], HASHES["middle"], 1, 128).seed(b"project"), 576)
    for record in (0, 63):
        flat = []
        for name in (A, B):
            left, right, weight = (
                basis[f"1/{name}/{part}"].double().numpy() for part in ("left", "right", "weight")
            )
            flat.append(
                ((left.T @ gradients[name][record].double().numpy() @ right) * weight).ravel()
            )
        sums = np.zeros(512)
        for value, word in zip(np.concatenate(flat), words.tolist(), strict=True):
            sums[word & 511] += value if word >> 15 else -value
        exact = sums / np.linalg.norm(sums) * np.sqrt(512) * 127 / 4
        wanted = np.clip(np.rint(exact), -127, 127)
        assert np.abs(rows[record] - wanted).max() <= 1  # float32 against float64, at a half
        assert (rows[record] != wanted).mean() <= 0.01


def test_names_of_the_adapter_file_are_accepted() -> None:
    import torch

    gradients = draw()
    sketcher = make_sketcher(gradients)
    named = {f"base_model.model.{name}.weight": tensor for name, tensor in gradients.items()}
    assert torch.equal(sketcher.rows(0, named), sketcher.rows(0, gradients))
    assert not torch.equal(sketcher.rows(0, gradients), sketcher.rows(1, gradients))


def test_index_that_does_not_fit_the_gradients_is_refused() -> None:
    """An index may be published with an adapter it was not made of: no provider's worker dies."""
    gradients = draw()
    sketcher = make_sketcher(gradients)
    wider = {**gradients, A: gradients[A].repeat(1, 1, 2)}
    for wrong in ({A: gradients[A]}, wider):
        with pytest.raises(IndexInvalid) as refusal:
            sketcher.rows(0, wrong)
        assert refusal.value.code == "index.basis"


def test_scale_of_a_gradient_does_not_matter() -> None:
    import torch

    gradients = draw()
    sketcher = make_sketcher(gradients)
    louder = {name: tensor * 1024 for name, tensor in gradients.items()}
    assert torch.equal(sketcher.rows(0, louder), sketcher.rows(0, gradients))


def test_double_precision_moves_hardly_an_entry() -> None:
    gradients = draw()
    sketcher = make_sketcher(gradients)
    rows = sketcher.rows(0, gradients)
    double = sketcher.rows(0, {name: tensor.double() for name, tensor in gradients.items()})
    assert (rows != double).float().mean() <= 0.001


def test_every_half_keeps_the_norm_bounds() -> None:
    rows = make_sketcher(draw()).rows(0, draw(seed=5)).numpy()
    norms = np.einsum("nk,nk->n", rows, rows, dtype=np.int64)
    assert shares.NORM_MIN <= norms.min() <= norms.max() <= shares.NORM_MAX
    assert not (rows == -128).any()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_or_broken_gradient_gives_no_row(value: float) -> None:
    gradients = draw(records=3)
    sketcher = make_sketcher(draw())
    for tensor in gradients.values():
        tensor[1] = value
    rows = sketcher.rows(0, gradients)
    assert rows.any(dim=1).tolist() == [True, False, True]


def test_row_of_too_few_entries_is_none() -> None:
    import torch

    from node.attribution.basis import quantise

    sums = torch.zeros(4, 512, dtype=torch.float64)
    for row, entries in enumerate((0, 28, 29, 500)):  # clamped to 127 each: 29 reach the norm
        sums[row, :entries] = 1.0
    assert quantise(sums).any(dim=1).tolist() == [False, False, True, True]


def test_row_that_clamping_shortens_is_lifted_to_the_least_norm() -> None:
    """Its clamped entries stay, the others grow alike; who keeps the norm is left as it is."""
    import torch

    from node.attribution.basis import QUANTUM, quantise
    from node.ledger.rules.shares import NORM_MAX, NORM_MIN

    plain = torch.randn(4, 512, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for loud in (1, 2, 3):
        plain[loud, : 8 * loud] *= 12
    lifted = quantise(plain).double()
    unlifted = (plain / plain.norm(dim=1, keepdim=True) * QUANTUM).round().clamp(-127, 127)
    assert torch.equal(lifted[0], unlifted[0])
    assert (unlifted[1:].square().sum(1) < NORM_MIN).all()
    norms = lifted.square().sum(1)
    assert ((norms >= NORM_MIN) & (norms <= NORM_MAX)).all()
    assert (norms[1:] < NORM_MIN + 6_000).all()
    assert torch.equal(lifted.sign() * unlifted.sign() < 0, torch.zeros_like(lifted, dtype=bool))
    cosines = torch.nn.functional.cosine_similarity(lifted, unlifted)
    assert (cosines > 0.9).all()


# --- narrowing


def test_side_wider_than_four_times_narrow_is_narrowed() -> None:
    import torch

    from node.attribution.basis import Checkpoint, Narrowing

    narrowing = Narrowing(Checkpoint(b"\1" * 32, b"\2" * 32, 0, 8))
    wide, tall = torch.randn(3, 4, 33), torch.randn(3, 33, 4)
    assert narrowing.apply(A, wide).shape == (3, 4, 8)
    assert narrowing.apply(B, tall).shape == (3, 8, 4)
    at_limit = torch.randn(3, 4, 32)
    assert narrowing.apply(A, at_limit) is at_limit


def test_narrowing_twice_is_narrowing_once() -> None:
    import torch

    from node.attribution.basis import Checkpoint, Narrowing

    narrowing = Narrowing(Checkpoint(b"\1" * 32, b"\2" * 32, 0, 8))
    once = narrowing.apply(A, torch.randn(3, 4, 40))
    assert narrowing.apply(A, once) is once


def test_narrowing_is_the_low_bit_of_shake_256_over_root_narrow() -> None:
    import hashlib

    import torch

    from node.attribution.basis import Checkpoint, Narrowing

    stream = hashlib.shake_256(
        b"olnode/1/narrow\0" + b"\1" * 32 + b"\2" * 32 + b"\0" + A.encode()
    ).digest(40 * 8)
    signs = np.array([1.0 if byte & 1 else -1.0 for byte in stream]).reshape(40, 8) / np.sqrt(8)
    gradient = torch.randn(1, 4, 40)
    found = Narrowing(Checkpoint(b"\1" * 32, b"\2" * 32, 0, 8)).apply(A, gradient)
    np.testing.assert_allclose(found[0].numpy(), gradient[0].numpy() @ signs, atol=1e-5)


# --- the basis on disk


def test_whitened_moments_are_flat() -> None:
    """Rotated into its basis and weighed, every coordinate has about the same mean square."""
    gradients = draw(records=4_096)
    basis = fitted(gradients)
    rotated = basis[f"0/{A}/left"].T @ gradients[A] @ basis[f"0/{A}/right"]
    moments = (rotated * basis[f"0/{A}/weight"]).square().mean(0)
    assert 0.2 <= moments.min() <= moments.max() <= 1.0


def test_matrix_without_gradients_weighs_nothing() -> None:
    import torch

    from node.attribution.basis import weights

    assert weights({"0/m/weight": torch.zeros(2, 2, dtype=torch.float64)}, 5)[
        "0/m/weight"
    ].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_sums_of_shards_are_the_sum_of_all() -> None:
    import torch

    from node.attribution import basis

    gradients = draw()
    parts = [{name: t[a : a + 16] for name, t in gradients.items()} for a in range(0, 64, 16)]
    whole = basis.covariance_sums(0, gradients)
    summed = basis.add_sums(basis.covariance_sums(0, part) for part in parts)
    decoded = basis.decode_tensors(basis.encode_tensors(summed))
    assert decoded.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(decoded[name], tensor)


def with_basis(home: Path, data: bytes) -> Path:
    """An index folder whose header names `data` as its basis."""
    folder, _ = write_index(home, sound_rows(3))
    header = claims.decode_header((folder / "header").read_bytes())
    (folder / "header").write_bytes(claims.encode_header(header._replace(basis_hash=sha256(data))))
    (folder / "basis.safetensors").write_bytes(data)
    return folder


def test_sketcher_loads_the_basis_of_an_index(tmp_path: Path) -> None:
    from node.attribution.basis import Sketcher, encode_tensors

    folder = with_basis(tmp_path, encode_tensors(fitted(draw())))
    assert Sketcher.load(folder).matrices(0) == (A, B)


@pytest.mark.parametrize(
    ("desc", "change"),
    [
        ("a half is missing", lambda basis: [basis.pop(n) for n in list(basis) if n[0] == "1"]),
        ("a part is missing", lambda basis: basis.pop(f"0/{A}/weight")),
        ("a name too many", lambda basis: basis.update({"2": basis[f"0/{A}/weight"].clone()})),
        ("not finite", lambda basis: basis[f"0/{A}/weight"].fill_(float("inf"))),
        ("not orthonormal", lambda basis: basis[f"1/{B}/left"].mul_(1.01)),
        ("not fp32", lambda basis: basis.update({f"0/{A}/left": basis[f"0/{A}/left"].double()})),
        ("wrong shape", lambda basis: basis.update({f"0/{A}/left": basis[f"0/{B}/left"]})),
    ],
)
def test_bad_basis_is_refused(tmp_path: Path, desc: str, change) -> None:
    from node.attribution.basis import Sketcher, encode_tensors

    basis = fitted(draw())
    change(basis)
    folder = with_basis(tmp_path, encode_tensors(basis))
    with pytest.raises(IndexInvalid) as refusal:
        Sketcher.load(folder)
    assert refusal.value.reason == "basis", desc


def test_basis_that_is_no_safetensors_or_of_another_index_is_refused(tmp_path: Path) -> None:
    from node.attribution.basis import Sketcher

    folder = with_basis(tmp_path, b"no tensors at all")
    with pytest.raises(IndexInvalid) as refusal:
        Sketcher.load(folder)
    assert refusal.value.reason == "basis"
    (folder / "basis.safetensors").write_bytes(b"other bytes")
    with pytest.raises(IndexInvalid) as refusal:
        Sketcher.load(folder)
    assert refusal.value.reason == "basis_hash"
