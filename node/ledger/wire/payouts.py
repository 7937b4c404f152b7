"""Leaves of a block's `payouts_root`: who gets what part of a version's fees, and why so much.

Why each leaf carries its weight and the part: `amount` is the floor of part × weight ÷
weight_total, or one more, so one leaf and one path show a payee that the split was kept
(page 30 §9, §10). That the weights are complete is what the quorum asserts.
What this file does not know: how the weights came about (`rules/payout.py`).
"""

from typing import Final, NamedTuple

from consensus.primitives.encoding import U8, U32, U63, WIDE, Either, Record, decode, encode
from consensus.primitives.encoding import from_wide as _from_wide
from consensus.primitives.encoding import wide as _wide
from consensus.primitives.errors import Invalid

LEAF_BYTES_MAX: Final = 256
TOTAL: Final = 0  # kind of the leaf that carries all fees of a version, and its receipt count

_LEAF: Final = Record(U8, Either(0, 8, 32), U63, U32, WIDE, WIDE, U63, U63, U63)


class PayoutLeaf(NamedTuple):
    """One payee of one kind (`tables.KIND_…`; 0: the total) for one version in one block.

    `payee`: account (32), number of contribution or model (8, big-endian), or empty for a pool.
    """

    kind: int
    payee: bytes
    model: int
    version: int
    weight: int
    weight_total: int
    part: int
    amount: int
    matures_ms: int


def encode_payout(leaf: PayoutLeaf) -> bytes:
    """Canonical bytes, the weights as wides."""
    return encode(
        leaf._replace(weight=_wide(leaf.weight), weight_total=_wide(leaf.weight_total))  # type: ignore[arg-type]  # as they travel
    )


def decode_payout(raw: bytes) -> PayoutLeaf:
    """Raises Invalid `payout.too_large|malformed|not_canonical`."""
    fields = PayoutLeaf(*decode(raw, _LEAF, LEAF_BYTES_MAX, "payout"))
    weight, total = _from_wide(fields.weight), _from_wide(fields.weight_total)  # type: ignore[arg-type]  # as they travel
    return fields._replace(weight=weight, weight_total=total)


def check_amount(leaf: PayoutLeaf) -> None:
    """Raise Invalid `payout.amount` unless the amount is its share of the part, or a grain more."""
    if not 0 < leaf.weight <= leaf.weight_total:
        raise Invalid("payout.amount", why="weight")
    floor = leaf.part * leaf.weight // leaf.weight_total
    if leaf.amount not in (floor, floor + 1) or leaf.amount > leaf.part:
        raise Invalid("payout.amount", amount=leaf.amount, floor=floor)
