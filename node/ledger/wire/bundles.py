"""Many receipts under one provider signature, checked as a whole or not at all.

Why one signature serves all: the payer's last voucher acknowledges every receipt of its section by
the lane's accumulator, so a section costs two signatures at most, however long it is.
Why two stages: what is here (A1 to A7 of page 30 §8) needs only keys, so it is done once and
cached; what needs the state, the lane's stored sum and accumulator among it, is
`rules/channels.apply_bundle`.
What this file does not know: balances, prices, models, time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import eq, itemgetter
from typing import Final, NamedTuple

from consensus.primitives.digest import hash_each, sha256, signing_bytes
from consensus.primitives.encoding import (
    DECODED_TOGETHER_MAX,
    SIG,
    U8,
    U16,
    U32,
    U63,
    Bytes,
    Decoder,
    Either,
    H,
    ListOf,
    Record,
    decode,
    encode,
    makes_each,
)
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import SIGNATURE_BYTES, is_signed_by
from consensus.primitives.merkle import leaf_hashes, root, root_of_hashes
from node.ledger.wire.orders import (
    VERSION,
    VOUCHER_BYTES_MAX,
    Voucher,
    decode_vouchers,
    voucher_message,
)
from node.ledger.wire.receipts import (
    BPS,
    CREDITS_BYTES_MAX,
    NO_CONTRIBUTION,
    RECEIPT_BYTES_MAX,
    Credits,
    Place,
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
ServedVersion = tuple[int, int]  # model, model version


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
    with empty credits, and Σ fee × what others leave the fund.
    """

    fees: int
    receipts: int
    weights: dict[int, int]
    unattributed: int


class CheckedBundle(NamedTuple):
    """A bundle that has passed A1 to A7; its sums and its receipts by version, too."""

    hash: bytes
    header: BundleHeader
    sections: tuple[CheckedSection, ...]
    versions: dict[ServedVersion, VersionFees]
    receipts: dict[ServedVersion, tuple[Receipt, ...]]


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


def decode_sections(raws: Sequence[bytes]) -> list[Section]:
    """The same of many, quicker; raises the reason of the first that is none."""
    return _SECTIONS.decode(raws)


def encode_body(parts: Sequence[BodyPart]) -> bytes:
    """Canonical bytes of a bundle's body."""
    return encode(parts)


def decode_body(raw: bytes) -> tuple[BodyPart, ...]:
    """Raises Invalid `bundle_body.too_large|malformed|not_canonical`."""
    return tuple(_make_parts(decode(raw, BODY, BODY_BYTES_MAX, "bundle_body")))


_make_parts: Final = makes_each(BodyPart)
_SECTIONS: Final = Decoder(SECTION, SECTION_BYTES_MAX, makes_each(Section), decode_section)


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
    """A1 to A7 of page 30 §8, each step of the whole bundle before the next.

    Pure given the keys; the costliest checks come last in each step. `provider_key(account)` is
    None unless registered and not jailed; `spender_key(channel)` is None for an unknown channel.
    Raises Invalid with a word of `wire/codes.BUNDLE_CODES`, the reason in its facts.
    """
    header, parts = check_bytes(bundle)
    key = provider_key(header.provider)
    if key is None:
        raise Invalid("bundle.provider", provider=header.provider)
    if not is_signed_by(key, bundle_message(chain_id, bundle.header), bundle.signature):
        raise FalseSignature(bundle)
    sections = _check_sections(parts)
    vouchers = _verify_vouchers(chain_id, spender_key, sections)
    receipts, credits = _check_receipts(sections, parts)
    leaves = tuple(leaf_hashes(raw for part in parts for raw in part.receipts))
    checked, start = [], 0
    for section, voucher, part in zip(sections, vouchers, parts, strict=True):
        own = slice(start, start + len(part.receipts))
        start = own.stop
        sums = _check_acknowledgement(chain_id, key, section, voucher, receipts[own], part)
        checked.append(
            CheckedSection(section, voucher, receipts[own], credits[own], leaves[own], *sums)
        )
    served = _by_version(receipts, credits)
    versions = {which: _sum_fees(*own) for which, own in served.items()}
    _check_totals(header, parts, leaves, versions, min_receipt_fee)
    by_version = {which: tuple(own) for which, (own, _) in served.items()}
    return CheckedBundle(bundle.hash, header, tuple(checked), versions, by_version)


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


def _check_sections(parts: Sequence[BodyPart]) -> list[Section]:
    """A3: ordered by lane, and as many receipts and credits as numbers."""
    try:
        sections = decode_sections([part.section for part in parts])
    except Invalid as error:
        raise Invalid("bundle.sections", why=error.code) from None
    last: tuple[bytes, int] = (b"", -1)
    for section, part in zip(sections, parts, strict=True):
        lane = (section.channel, section.lane)
        if lane <= last:
            raise Invalid("bundle.sections", why="order")
        last = lane
        count = section.to_seq - section.from_seq + 1
        if not 1 <= count == len(part.receipts) == len(part.credits):
            raise Invalid("bundle.sections", why="count")
    return sections


def _verify_vouchers(
    chain_id: bytes, spender_key: Callable[[bytes], bytes | None], sections: Sequence[Section]
) -> list[Voucher]:
    """A4."""
    try:
        vouchers = decode_vouchers([section.voucher for section in sections])
    except Invalid as error:
        raise Invalid("bundle.voucher", why=error.code) from None
    for voucher, section in zip(vouchers, sections, strict=True):
        if (voucher.channel, voucher.lane) != (section.channel, section.lane):
            raise Invalid("bundle.voucher", why="another lane")
        spender = spender_key(section.channel)
        if spender is None:
            raise Invalid("bundle.voucher", why="unknown channel")
        message = voucher_message(chain_id, section.voucher)
        if not is_signed_by(spender, message, section.voucher_sig):
            raise Invalid("bundle.voucher", why="signature")
    return vouchers


def _check_receipts(
    sections: Sequence[Section], parts: Sequence[BodyPart]
) -> tuple[tuple[Receipt, ...], tuple[Credits, ...]]:
    """A5: the receipts are of their lanes, in order, and each has the credits that it names.

    Why some at a time: each step finds in the processor's cache what the step before has made.
    """
    raws = [raw for part in parts for raw in part.receipts]
    credits_raws = [raw for part in parts for raw in part.credits]
    places = _places_of(sections)  # as many as receipts: A3
    receipts: list[Receipt] = []
    credits: list[Credits] = []
    try:
        for start in range(0, len(raws), DECODED_TOGETHER_MAX):
            some = slice(start, start + DECODED_TOGETHER_MAX)
            more = decode_receipts(raws[some])
            # `more` ends first, so the places behind it stay for the receipts behind it.
            if not all(map(eq, map(_PLACE, more), places)):
                raise Invalid("receipt.place")
            if [*map(_ATTRIBUTION_ROOT, more)] != hash_each(credits_raws[some]):
                raise Invalid("receipt.credits")
            receipts += more
            credits += decode_many_credits(credits_raws[some])
    except Invalid as error:
        raise Invalid("bundle.receipt", **{**error.facts, "why": error.code}) from None
    return tuple(receipts), tuple(credits)


def _places_of(sections: Sequence[Section]) -> Iterator[Place]:
    for section in sections:
        numbers = range(section.from_seq, section.to_seq + 1)
        yield from zip(repeat(section.channel), repeat(section.lane), numbers, strict=False)


def _check_acknowledgement(
    chain_id: bytes,
    provider_key: bytes,
    section: Section,
    voucher: Voucher,
    receipts: Sequence[Receipt],
    part: BodyPart,
) -> tuple[int, int, bool]:
    """A6; gives the fees, what the lane must have reached before, whether all is acknowledged."""
    fees = promised = sum(map(_FEE, receipts))
    acknowledged = voucher.seq == section.to_seq + 1
    if not acknowledged:
        _verify_claim(chain_id, provider_key, section, voucher, receipts[-1], part.receipts[-1])
        promised -= receipts[-1].fee
    elif section.last_receipt_sig:
        raise Invalid("bundle.acknowledgement", why="surplus signature")
    start = voucher.cumulative - promised
    if start < 0:
        raise Invalid("bundle.acknowledgement", why="cumulative")
    return fees, start, acknowledged


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


def _by_version(
    receipts: Sequence[Receipt], credits: Sequence[Credits]
) -> dict[ServedVersion, tuple[list[Receipt], list[Credits]]]:
    found: dict[ServedVersion, tuple[list[Receipt], list[Credits]]] = {}
    last = None
    for which, receipt, shares in zip(map(_VERSION, receipts), receipts, credits, strict=True):
        if which != last:  # most often, one version's receipts stand together
            own_receipts, own_credits = found.setdefault(which, ([], []))
            last = which
        own_receipts.append(receipt)
        own_credits.append(shares)
    return found


def _sum_fees(receipts: Sequence[Receipt], credits: Sequence[Credits]) -> VersionFees:
    fees = [*map(_FEE, receipts)]
    weights: defaultdict[int, int] = defaultdict(int)
    unattributed = 0
    for fee, shares in zip(fees, credits, strict=True):
        if not shares:
            unattributed += fee * BPS
        for contribution, share_bps in shares:
            weights[contribution] += fee * share_bps
    unattributed += weights.pop(NO_CONTRIBUTION, 0)
    return VersionFees(sum(fees), len(fees), dict(weights), unattributed)


def _check_totals(
    header: BundleHeader,
    parts: Sequence[BodyPart],
    leaves: Sequence[bytes],
    versions: dict[ServedVersion, VersionFees],
    min_receipt_fee: int,
) -> None:
    """A7: the header says what the body holds."""
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
