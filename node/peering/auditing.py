"""Recomputing credits with the indices that this node holds, and opening their rows.

Why every receipt and not a sample: a full rescan costs milliseconds, and a row left out shows in no
other way (page 60 §9). Why hashes of an index are kept: a path needs all of them, 0.2 s per 100,000
rows, and whoever checks shares asks for twenty.
What this file does not know: where an index came from, what a finding costs its provider.
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from consensus.primitives import merkle
from node.attribution.attribute import Version
from node.attribution.audit import Claim, find_fraud, recheck_all
from node.attribution.index import Index
from node.ledger.wire import claims
from node.ledger.wire.openings import Opened, RawRows
from node.ledger.wire.receipts import Credits, Receipt
from node.peering.audits import StatedClaim
from node.peering.relay import FalseClaim, Told

HASHED_ROWS_MAX: Final = 2**20  # of indices whose hashes are kept, 155 bytes a row; or of one

FindIndex = Callable[[int, int], tuple[Index, Version] | None]  # by model and version


class IndexAuditor:
    """The relay's `Auditor` over opened indices."""

    def __init__(self, find_index: FindIndex) -> None:
        self._find_index = find_index

    def holds(self, model: int, version: int) -> bool:
        """Whether the index of that version is here."""
        return self._find_index(model, version) is not None

    def recheck(self, told: Sequence[Told]) -> list[FalseClaim | None]:
        """None for each claim that is what the index gives for its sketch. Blocks for a scan of
        each version's index, whatever the number of claims."""
        findings: dict[int, FalseClaim] = {}
        for which, places in _by_version(told).items():
            found = self._find_index(*which)
            if found is None:  # dropped meanwhile: what we cannot recompute we do not accuse
                continue
            rechecked = recheck_all(*found, [_claim(*told[x]) for x in places])
            for place, finding in zip(places, rechecked, strict=True):
                if finding is not None:
                    findings[place] = FalseClaim(finding.code, finding.why)
        return [findings.get(place) for place in range(len(told))]

    def refute(
        self, receipt: Receipt, credits: Credits, stated: StatedClaim
    ) -> tuple[int, Opened] | None:
        """Kind and opening that show a false claim to everybody, if any does. Blocks for a scan."""
        found = self._find_index(receipt.model, receipt.model_version)
        if found is None:
            return None
        return find_fraud(*found, _claim(receipt, credits, stated))


class RowOpener:
    """Opens rows of the indices that `find_index` knows by their roots. Blocks, in any thread; one
    makes hashes while others wait for them: strangers ask."""

    def __init__(self, find_index: Callable[[bytes], Index | None]) -> None:
        self._find_index = find_index
        self._lock = Lock()
        self._levels: dict[bytes, merkle.Levels] = {}  # the longest unused first

    def open(self, root: bytes, rows: Sequence[int]) -> RawRows | None:
        """Header, then leaf and path of each row; None for an index that is not here.

        Raises IndexError for a row that it does not have.
        """
        index = self._find_index(root)
        if index is None:
            return None
        if any(row >= index.header.rows for row in rows):
            raise IndexError(max(rows))
        levels = self._levels_of(index)
        opened = tuple(
            (claims.encode_row_leaf(index.leaf(row)), merkle.path_in(levels, row)) for row in rows
        )
        return RawRows(claims.encode_header(index.header), opened)

    def _levels_of(self, index: Index) -> merkle.Levels:
        with self._lock:
            levels = self._levels.pop(index.root, None) or index.hash_levels()
            self._levels[index.root] = levels
            rows = sum(len(kept[0]) for kept in self._levels.values())
            while rows > HASHED_ROWS_MAX and len(self._levels) > 1:
                rows -= len(self._levels.pop(next(iter(self._levels)))[0])
        return levels


def _by_version(told: Sequence[Told]) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for place, (receipt, _, _) in enumerate(told):
        found.setdefault((receipt.model, receipt.model_version), []).append(place)
    return found


def _claim(receipt: Receipt, credits: Credits, stated: StatedClaim) -> Claim:
    return Claim(receipt.sketch_hash, credits, stated.sketch, stated.statement)
