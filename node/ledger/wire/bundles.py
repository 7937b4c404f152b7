"""Many receipts under one provider signature, checked as a whole or not at all.

Why one signature serves all: the payer's last voucher acknowledges every receipt of its section by
the lane's accumulator, so a section costs two signatures at most, however long it is.
Why two stages: what is here (A1 to A7 of page 30 §8) needs only keys, so it is done once and
cached; what needs the state, the lane's stored sum and accumulator among it, is
`rules/channels.apply_bundle`.
What this file does not know: balances, prices, models, time.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import sha256 as _sha256
from operator import itemgetter
from typing import Final, NamedTuple

from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.encoding import (
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import SIGNATURE_BYTES, is_signed_by
from consensus.primitives.merkle import leaf_hashes, root, root_of_hashes
from node.ledger.wire.orders import (
    VERSION,
    VOUCHER_BYTES_MAX,
    Voucher,
    decode_voucher,
    voucher_message,
)
from node.ledger.wire.receipts import (
    BPS,
    CREDITS_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    Credits,
    Receipt,
    decode_many_credits,
    decode_receipt,
    decode_receipts,
    receipt_message,
)

HEADER_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 2 * 2**20
SECTION_BYTES_MAX: Final = 1_024
RECEIPTS_MAX: Final = 4_096
SECTIONS_MAX: Final = 1_024
TOTALS_MAX: Final = 256

Total = tuple[int, int, int]  # model, model version, sum of fees


class Section(NamedTuple):
    """The part of a bundle from one lane; `voucher` is the last one the payer gave."""

    channel: bytes
    lane: int
    from_seq: int
    to_seq: int
    amount: int
    voucher: bytes
    voucher_sig: bytes
    last_receipt_sig: bytes


class BundleHeader(NamedTuple):
    """What the provider signs once for all receipts."""

    version: int
    provider: bytes
    bundle_seq: int
    receipts_root: bytes
    count: int  # type: ignore[assignment]  # the overview's word; hides tuple.count
    fee_total: int
    totals: tuple[Total, ...]
    sections_root: bytes
    body_len: int
    body_hash: bytes


class Bundle(NamedTuple):
    """A bundle as it travels."""

    header: bytes
    signature: bytes
    body: bytes

    @property
    def hash(self) -> bytes:
        """SHA-256 of the header: what a payload names."""
        return sha256(self.header)


class BodyPart(NamedTuple):
    """One section with its receipts and credits, all as bytes."""

    section: bytes
    receipts: tuple[bytes, ...]
    credits: tuple[bytes, ...]


class CheckedSection(NamedTuple):
    """A section whose signatures hold; `leaves` are the receipts' leaf hashes.

    `start_cumulative` is what the lane must have reached before; `acknowledged` tells whether the
    voucher's accumulator covers the last receipt too.
    """

    section: Section
    voucher: Voucher
    receipts: tuple[Receipt, ...]
    credits: tuple[Credits, ...]
    leaves: tuple[bytes, ...]
    fees: int
    start_cumulative: int
    acknowledged: bool


class VersionFees(NamedTuple):
    """What one bundle brings to one model version.

    `weights`: contribution → Σ fee × share in bps. `unattributed`: Σ fee × 10,000 of receipts
    with empty credits.
    """

    fees: int
    receipts: int
    weights: dict[int, int]
    unattributed: int


class CheckedBundle(NamedTuple):
    """A bundle that has passed A1 to A7; `versions` by (model, version)."""

    hash: bytes
    header: BundleHeader
    sections: tuple[CheckedSection, ...]
    versions: dict[tuple[int, int], VersionFees]


# A receipt's fields by position: by name, ten thousand receipts would take a fifth longer.
_PLACE: Final = itemgetter(*map(Receipt._fields.index, ("channel", "lane", "seq")))
_ATTRIBUTION_ROOT: Final = itemgetter(Receipt._fields.index("attribution_root"))
_VERSION: Final = itemgetter(*map(Receipt._fields.index, ("model", "model_version")))
_FEE: Final = itemgetter(Receipt._fields.index("fee"))

_TOTAL: Final = Record(U63, U32, U63)
HEADER: Final = Record(U8, H, U63, H, U32, U63, ListOf(_TOTAL, TOTALS_MAX, 1), H, U32, H)
SECTION: Final = Record(
    H, U16, U63, U63, U63, Bytes(VOUCHER_BYTES_MAX), SIG, Either(0, SIGNATURE_BYTES)
)
BODY: Final = ListOf(
    Record(
        Bytes(SECTION_BYTES_MAX),
        ListOf(Bytes(RECEIPT_BYTES_MAX), RECEIPTS_MAX, 1),
        ListOf(Bytes(CREDITS_BYTES_MAX), RECEIPTS_MAX, 1),
    ),
    SECTIONS_MAX,
    1,
)


def encode_header(header: BundleHeader) -> bytes:
    """Canonical bytes: what the provider signs and whose SHA-256 is the bundle's hash."""
    return encode(header)


def decode_header(raw: bytes) -> BundleHeader:
    """Raises Invalid `bundle_header.too_large|malformed|not_canonical|version|body_len|count`."""
    fields = BundleHeader(*decode(raw, HEADER, HEADER_BYTES_MAX, "bundle_header"))
    if fields.version != VERSION:
        raise Invalid("bundle_header.version", version=fields.version)
    if fields.body_len > BODY_BYTES_MAX:
        raise Invalid("bundle_header.body_len", body_len=fields.body_len)
    if not 1 <= fields.count <= RECEIPTS_MAX:
        raise Invalid("bundle_header.count", count=fields.count)
    return fields


def encode_section(section: Section) -> bytes:
    """Canonical bytes: a leaf of `sections_root`."""
    return encode(section)


def decode_section(raw: bytes) -> Section:
    """Raises Invalid `section.too_large|malformed|not_canonical`."""
    return Section(*decode(raw, SECTION, SECTION_BYTES_MAX, "section"))


def encode_body(parts: Sequence[BodyPart]) -> bytes:
    """Canonical bytes of a bundle's body."""
    return encode(parts)


def decode_body(raw: bytes) -> tuple[BodyPart, ...]:
    """Raises Invalid `bundle_body.too_large|malformed|not_canonical`."""
    return tuple(BodyPart(*part) for part in decode(raw, BODY, BODY_BYTES_MAX, "bundle_body"))


def bundle_message(chain_id: bytes, header_raw: bytes) -> bytes:
    """The bytes that a bundle's signature covers."""
    return signing_bytes(b"bundle", chain_id, header_raw)


# --- making one


def build_bundle(
    *,
    chain_id: bytes,
    provider: bytes,
    bundle_seq: int,
    parts: Sequence[BodyPart],
    sign: Callable[[bytes], bytes],
) -> Bundle:
    """A signed bundle over `parts`, which are put in order of (channel, lane).

    `sign(message)` gives the provider's 64 bytes. The limits are the caller's to keep: asserted.
    """
    ordered = sorted(parts, key=lambda part: decode_section(part.section)[:2])
    receipts = [raw for part in ordered for raw in part.receipts]
    sums: dict[tuple[int, int], int] = {}
    for raw in receipts:
        receipt = decode_receipt(raw)
        which = (receipt.model, receipt.model_version)
        sums[which] = sums.get(which, 0) + receipt.fee
    body = encode_body(ordered)
    assert 1 <= len(receipts) <= RECEIPTS_MAX
    assert len(ordered) <= SECTIONS_MAX
    assert len(sums) <= TOTALS_MAX
    assert len(body) <= BODY_BYTES_MAX
    header = encode_header(
        BundleHeader(
            version=VERSION,
            provider=provider,
            bundle_seq=bundle_seq,
            receipts_root=root(receipts),
            count=len(receipts),
            fee_total=sum(sums.values()),
            totals=tuple((model, version, fee) for (model, version), fee in sorted(sums.items())),
            sections_root=root(part.section for part in ordered),
            body_len=len(body),
            body_hash=sha256(body),
        )
    )
    return Bundle(header, sign(bundle_message(chain_id, header)), body)


# --- believing one


class FalseSignature(Invalid):
    """A bundle under another signature than its provider's; its hash does not bind that."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__("bundle.provider", why="signature")
        self.bundle_hash = bundle.hash


def verify(
    bundle: Bundle,
    *,
    chain_id: bytes,
    provider_key: Callable[[bytes], bytes | None],
    spender_key: Callable[[bytes], bytes | None],
    min_receipt_fee: int,
) -> CheckedBundle:
    """A1 to A7 of page 30 §8. Pure given the keys; the costliest checks come last in each step.

    `provider_key(account)` is None unless registered and not jailed; `spender_key(channel)` is
    None for an unknown channel. Raises Invalid with a word of
    `wire/codes.BUNDLE_CODES`, the reason in its facts.
    """
    header, parts = check_bytes(bundle)
    key = provider_key(header.provider)
    if key is None:
        raise Invalid("bundle.provider", provider=header.provider)
    if not is_signed_by(key, bundle_message(chain_id, bundle.header), bundle.signature):
        raise FalseSignature(bundle)
    places = _check_sections(parts)
    checked = tuple(
        _verify_section(chain_id, key, spender_key, section, part)
        for section, part in zip(places, parts, strict=True)
    )
    versions = _sum_fees(checked)
    _check_totals(header, parts, checked, versions, min_receipt_fee)
    return CheckedBundle(bundle.hash, header, checked, versions)


def check_bytes(bundle: Bundle) -> tuple[BundleHeader, tuple[BodyPart, ...]]:
    """A1: sizes, shapes, canonical bytes, and the body that the header names."""
    header = check_header(bundle)
    try:
        return header, decode_body(bundle.body)
    except Invalid as error:
        raise Invalid("bundle.malformed", why=error.code) from None


def check_header(bundle: Bundle) -> BundleHeader:
    """The part of A1 that needs no look into the body: header, `body_len`, `body_hash`."""
    try:
        header = decode_header(bundle.header)
    except Invalid as error:
        raise Invalid("bundle.malformed", why=error.code) from None
    if len(bundle.body) != header.body_len or sha256(bundle.body) != header.body_hash:
        raise Invalid("bundle.malformed", why="body differs from the header")
    return header


def _check_sections(parts: Sequence[BodyPart]) -> tuple[Section, ...]:
    """A3: ordered by lane, and as many receipts and credits as numbers."""
    sections = []
    last: tuple[bytes, int] = (b"", -1)
    for part in parts:
        try:
            section = decode_section(part.section)
        except Invalid as error:
            raise Invalid("bundle.sections", why=error.code) from None
        if (section.channel, section.lane) <= last:
            raise Invalid("bundle.sections", why="order")
        last = (section.channel, section.lane)
        count = section.to_seq - section.from_seq + 1
        if not 1 <= count == len(part.receipts) == len(part.credits):
            raise Invalid("bundle.sections", why="count")
        sections.append(section)
    return tuple(sections)


def _verify_section(
    chain_id: bytes,
    provider_key: bytes,
    spender_key: Callable[[bytes], bytes | None],
    section: Section,
    part: BodyPart,
) -> CheckedSection:
    voucher = _verify_voucher(chain_id, spender_key, section)
    receipts, credits = _check_receipts(section, part)
    fees = sum(map(_FEE, receipts))
    acknowledged = voucher.seq == section.to_seq + 1
    if acknowledged:
        if section.last_receipt_sig:
            raise Invalid("bundle.acknowledgement", why="surplus signature")
        start = voucher.cumulative - fees
    else:
        _verify_claim(chain_id, provider_key, section, voucher, receipts[-1], part.receipts[-1])
        start = voucher.cumulative - (fees - receipts[-1].fee)
    if start < 0:
        raise Invalid("bundle.acknowledgement", why="cumulative")
    leaves = tuple(leaf_hashes(part.receipts))
    return CheckedSection(section, voucher, receipts, credits, leaves, fees, start, acknowledged)


def _verify_voucher(
    chain_id: bytes, spender_key: Callable[[bytes], bytes | None], section: Section
) -> Voucher:
    """A4."""
    try:
        voucher = decode_voucher(section.voucher)
    except Invalid as error:
        raise Invalid("bundle.voucher", why=error.code) from None
    if (voucher.channel, voucher.lane) != (section.channel, section.lane):
        raise Invalid("bundle.voucher", why="another lane")
    spender = spender_key(section.channel)
    if spender is None:
        raise Invalid("bundle.voucher", why="unknown channel")
    if not is_signed_by(spender, voucher_message(chain_id, section.voucher), section.voucher_sig):
        raise Invalid("bundle.voucher", why="signature")
    return voucher


def _check_receipts(
    section: Section, part: BodyPart
) -> tuple[tuple[Receipt, ...], tuple[Credits, ...]]:
    """A5: the receipts are of this lane, in order, and each has the credits that it names."""
    channel, lane = section.channel, section.lane
    try:
        receipts = decode_receipts(part.receipts)
        places = [(channel, lane, seq) for seq in range(section.from_seq, section.to_seq + 1)]
        if [*map(_PLACE, receipts)] != places:
            raise Invalid("receipt.place")
        if [*map(_ATTRIBUTION_ROOT, receipts)] != [_sha256(raw).digest() for raw in part.credits]:
            raise Invalid("receipt.credits")
        return tuple(receipts), tuple(decode_many_credits(part.credits))
    except Invalid as error:
        raise Invalid("bundle.receipt", **{**error.facts, "why": error.code}) from None


def _verify_claim(
    chain_id: bytes,
    provider_key: bytes,
    section: Section,
    voucher: Voucher,
    receipt: Receipt,
    raw: bytes,
) -> None:
    """A6 for a last receipt that nobody acknowledged: it is paid out of the voucher's hold."""
    if voucher.seq != section.to_seq:
        raise Invalid("bundle.acknowledgement", why="voucher number")
    if voucher.order_hash != receipt.order_hash:
        raise Invalid("bundle.acknowledgement", why="another order")
    if receipt.fee > voucher.hold:
        raise Invalid("bundle.acknowledgement", why="fee above hold")
    message = receipt_message(chain_id, raw)
    if not is_signed_by(provider_key, message, section.last_receipt_sig):
        raise Invalid("bundle.acknowledgement", why="receipt signature")


class _Sums:
    """`VersionFees` in the making: a new tuple for each receipt would cost more than its sums."""

    __slots__ = ("fees", "receipts", "unattributed", "weights")

    def __init__(self) -> None:
        self.fees = self.receipts = self.unattributed = 0
        self.weights: defaultdict[int, int] = defaultdict(int)


def _sum_fees(checked: Sequence[CheckedSection]) -> dict[tuple[int, int], VersionFees]:
    found: defaultdict[tuple[int, int], _Sums] = defaultdict(_Sums)
    for section in checked:
        for receipt, credits in zip(section.receipts, section.credits, strict=True):
            sums, fee = found[_VERSION(receipt)], receipt.fee
            sums.fees += fee
            sums.receipts += 1
            if not credits:
                sums.unattributed += fee * BPS
            weights = sums.weights
            for contribution, share_bps in credits:
                weights[contribution] += fee * share_bps
    return {
        which: VersionFees(sums.fees, sums.receipts, dict(sums.weights), sums.unattributed)
        for which, sums in found.items()
    }


def _check_totals(
    header: BundleHeader,
    parts: Sequence[BodyPart],
    checked: Sequence[CheckedSection],
    versions: dict[tuple[int, int], VersionFees],
    min_receipt_fee: int,
) -> None:
    """A7: the header says what the body holds."""
    leaves = [leaf for section in checked for leaf in section.leaves]
    totals = tuple((*which, versions[which].fees) for which in sorted(versions))
    fee_total = sum(sums.fees for sums in versions.values())
    if len(leaves) != header.count or fee_total != header.fee_total or totals != header.totals:
        raise Invalid("bundle.totals", why="sums")
    if fee_total < min_receipt_fee * len(leaves):
        raise Invalid("bundle.totals", why="below the minimum fee")
    if root_of_hashes(leaves) != header.receipts_root:
        raise Invalid("bundle.totals", why="receipts_root")
    if root(part.section for part in parts) != header.sections_root:
        raise Invalid("bundle.totals", why="sections_root")
