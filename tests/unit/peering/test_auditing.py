"""The node's own recomputation, over a real index."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest
from attribution_kit import VERSION, mix_rows, open_index
from bundle_kit import some_receipt

from consensus.primitives import merkle
from node.attribution.attribute import attribute
from node.attribution.index import Index
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
    unknown = receipt._replace(model_version=1)
    found = auditor.recheck(
        [
            (receipt, made.credits, stated),
            (receipt, ((7, 10_000),), stated),
            (unknown, ((7, 10_000),), stated),
            (receipt, made.credits, stated._replace(sketch=b"")),
            (receipt, made.credits, stated),
        ]
    )
    assert [false and false.code for false in found] == [
        None, "claim.credits", None, "claim.hash", None
    ]  # fmt: skip
    held.clear()  # no accusation without the index
    assert auditor.recheck([(receipt, ((7, 10_000),), stated)]) == [None]
    assert auditor.recheck([]) == []


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


def test_as_many_trees_are_kept_as_fit_and_the_last_however_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their rows: of three small models none is hashed anew at each question of a stranger."""
    sizes = (2, 3, 4, 20)
    held = {index.root: index for index in (open_index(tmp_path / str(n), n) for n in sizes)}
    two, three, four, twenty = held
    opener = RowOpener(held.get)
    monkeypatch.setattr(auditing, "HASHED_ROWS_MAX", 9)
    for root in (two, three, four, two):
        opener.open(root, (0,))
    assert list(opener._levels) == [three, four, two]
    monkeypatch.setattr(auditing, "HASHED_ROWS_MAX", 8)
    opener.open(two, (0,))
    assert list(opener._levels) == [four, two], "the longest unused goes"
    opener.open(twenty, (0,))
    assert list(opener._levels) == [twenty]


def test_many_that_ask_at_once_have_a_tree_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(tmp_path, 40)
    made, hash_levels = [], index.hash_levels
    everybody = Barrier(4)

    def slowly(self: Index) -> merkle.Levels:
        made.append(self)
        with contextlib.suppress(BrokenBarrierError):  # that all are in here ends it at once
            everybody.wait(0.5)
        return hash_levels()

    monkeypatch.setattr(Index, "hash_levels", slowly)
    opener = RowOpener({index.root: index}.get)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: opener.open(index.root, (row,)), range(4)))
    assert None not in found
    assert len(made) == 1
