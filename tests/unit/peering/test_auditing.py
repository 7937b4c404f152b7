"""The node's own recomputation, over a real index."""

import random
from pathlib import Path

from attribution_kit import VERSION, mix_rows, open_index
from bundle_kit import some_receipt

from node.attribution.attribute import attribute
from node.ledger.wire.receipts import encode_credits
from node.peering.auditing import IndexAuditor
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
