"""The node's own recomputation, over a real index."""

import random
from pathlib import Path

import pytest
from attribution_kit import VERSION, mix_rows, open_index
from bundle_kit import some_receipt

from node.attribution.attribute import attribute
from node.ledger.rules import refuting
from node.ledger.wire.receipts import encode_credits
from node.peering import auditing
from node.peering.auditing import IndexAuditor, RowOpener
from node.peering.audits import StatedClaim


def test_what_the_index_gives_stands_and_anything_else_is_false(tmp_path: Path) -> None:
    index = open_index(tmp_path, 200)
    sketch = mix_rows([(1.0, index.rows[9]), (0.6, index.rows[150])])
    made = attribute(index, sketch, VERSION)
    receipt = some_receipt(
        random.Random(1), encode_credits(made.credits), model=3, model_version=2,
        sketch_hash=made.sketch_hash,
    )  # fmt: skip
    held = {(3, 2): (index, VERSION)}
    auditor = IndexAuditor(lambda model, version: held.get((model, version)))
    assert auditor.holds(3, 2)
    assert not auditor.holds(3, 1)
    stated = StatedClaim(made.statement_bytes, sketch)
    assert auditor.recheck(receipt, made.credits, stated) is None
    false = auditor.recheck(receipt, ((7, 10_000),), stated)
    assert false is not None
    assert false.code == "claim.credits"
    hidden = auditor.recheck(receipt, made.credits, stated._replace(sketch=b""))
    assert hidden is not None
    assert hidden.code == "claim.hash"
    held.clear()  # no accusation without the index
    assert auditor.recheck(receipt, ((7, 10_000),), stated) is None


def test_rows_are_opened_under_their_root_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {index.root: index for index in (open_index(tmp_path / str(n), n) for n in (1, 40, 41))}
    opener = RowOpener(held.get)
    one, forty, other = held
    found = opener.open(forty, (39, 0, 7))
    assert found is not None
    numbers = []
    for leaf, path in found.rows:
        numbers.append(refuting.open_row(forty, found.header, leaf, path).leaf.number)
    assert numbers == [39, 0, 7]
    assert opener.open(bytes(32), (0,)) is None
    with pytest.raises(IndexError):
        opener.open(one, (1,))
    monkeypatch.setattr(auditing.Index, "hash_levels", None)
    assert opener.open(forty, (1,)) is not None
    with pytest.raises(TypeError):
        opener.open(other, (1,))


def test_as_many_trees_are_kept_as_fit(tmp_path: Path) -> None:
    held = {index.root: index for index in (open_index(tmp_path / str(n), n) for n in (2, 3, 4))}
    opener = RowOpener(held.get)
    for root in held:
        opener.open(root, (0,))
    assert list(opener._levels) == list(held)[1:]
