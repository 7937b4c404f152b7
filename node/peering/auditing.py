"""Recomputing credits with the indices that this node holds.

Why every receipt and not a sample: a full rescan costs milliseconds, and a row left out shows in no
other way (page 60 §9).
What this file does not know: where an index came from, what a finding costs its provider.
"""

from collections.abc import Callable

from node.attribution.attribute import Version
from node.attribution.audit import Claim, recheck
from node.attribution.index import Index
from node.attribution.score import Kernel, integers
from node.ledger.wire.receipts import Credits, Receipt
from node.peering.relay import FalseClaim, StatedClaim

FindIndex = Callable[[int, int], tuple[Index, Version] | None]  # by model and version


class IndexAuditor:
    """The relay's `Auditor` over opened indices."""

    def __init__(self, find_index: FindIndex, kernel: Kernel = integers) -> None:
        self._find_index = find_index
        self._kernel = kernel

    def holds(self, model: int, version: int) -> bool:
        """Whether the index of that version is here."""
        return self._find_index(model, version) is not None

    def recheck(self, receipt: Receipt, credits: Credits, stated: StatedClaim) -> FalseClaim | None:
        """None when the claim is what the index gives for its sketch. Blocks for a scan."""
        found = self._find_index(receipt.model, receipt.model_version)
        if found is None:  # dropped meanwhile: what we cannot recompute we do not accuse
            return None
        index, version = found
        claim = Claim(receipt.sketch_hash, credits, stated.sketch, stated.statement)
        finding = recheck(index, version, claim, self._kernel)
        return None if finding is None else FalseClaim(finding.code, finding.why)
