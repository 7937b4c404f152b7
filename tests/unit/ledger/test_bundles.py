"""Bundles: A1 to A7 of page 30 §8, each refusal by its word, and no flipped bit accepted."""

import contextlib
import random
from collections import Counter, defaultdict

import pytest
from bundle_kit import (
    CHAIN,
    EXPIRES_MS,
    LaneSession,
    Made,
    party,
    some_bundle,
    some_credits,
)

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger.wire import bundles
from node.ledger.wire.bundles import BodyPart, Bundle, decode_section, encode_section
from node.ledger.wire.codes import find_code
from node.ledger.wire.orders import decode_voucher, encode_voucher, voucher_message
from node.ledger.wire.receipts import decode_credits, decode_receipt, encode_receipt

FEE_MIN = 100_000


def verify(made: Made, bundle: Bundle | None = None, fee_min: int = FEE_MIN):
    return bundles.verify(
        bundle or made.bundle, chain_id=CHAIN, min_receipt_fee=fee_min, **made.keys
    )


def refusal_of(made: Made, bundle: Bundle | None = None, fee_min: int = FEE_MIN) -> str:
    with pytest.raises(Invalid) as refusal:
        verify(made, bundle, fee_min)
    assert find_code(refusal.value), refusal.value
    return refusal.value.code


def signed(made: Made, parts: list[BodyPart], **header: object) -> Bundle:
    """A bundle that its provider really signed over `parts` as they are, in the order given."""
    body = bundles.encode_body(parts)
    fields = bundles.decode_header(made.bundle.header)._replace(
        body_len=len(body), body_hash=sha256(body)
    )
    raw = encode(fields._replace(**header))
    return Bundle(raw, made.provider.sign(bundles.bundle_message(CHAIN, raw)), body)


def with_section(made: Made, change, at: int = 0) -> Bundle:
    parts = list(bundles.decode_body(made.bundle.body))
    section = change(decode_section(parts[at].section))
    parts[at] = parts[at]._replace(section=encode_section(section))
    return signed(made, parts)


def with_voucher(made: Made, **fields: object) -> Bundle:
    """The first section's payer signs a voucher with other fields."""

    def change(section: bundles.Section) -> bundles.Section:
        raw = encode_voucher(decode_voucher(section.voucher)._replace(**fields))
        payer = next(
            p for n in range(3) if (p := party(f"payer {n}")).key == made.spenders[section.channel]
        )
        return section._replace(voucher=raw, voucher_sig=payer.sign(voucher_message(CHAIN, raw)))

    return with_section(made, change)


@pytest.mark.parametrize("from_hold", [False, True])
def test_an_honest_bundle_passes_with_its_sums(from_hold: bool) -> None:
    made = some_bundle(1, from_hold=from_hold)
    checked = verify(made)
    assert checked.header.count == 12
    assert checked.hash == sha256(made.bundle.header)
    assert sum(s.fees for s in checked.sections) == checked.header.fee_total
    assert [s.start_cumulative for s in checked.sections] == [0, 0, 0]
    assert all(s.acknowledged is not from_hold for s in checked.sections)
    assert sum(fee for _, _, fee in checked.header.totals) == checked.header.fee_total


@pytest.mark.parametrize("from_hold", [False, True])
def test_no_flipped_bit_is_accepted(from_hold: bool) -> None:
    made = some_bundle(2, from_hold=from_hold)
    rng = random.Random(5)
    for _ in range(700):
        pieces = [bytearray(piece) for piece in made.bundle]
        for _ in range(rng.choice((1, 1, 2))):
            piece = rng.choice(pieces)
            piece[rng.randrange(len(piece))] ^= 1 << rng.randrange(8)
        bad = Bundle(*(bytes(piece) for piece in pieces))
        if bad != made.bundle:
            assert refusal_of(made, bad)


def test_no_flipped_bit_that_the_provider_signs_for_is_accepted() -> None:
    """A lying provider may sign any body: payers' signatures and roots must still stop it."""
    made = some_bundle(3, sections=1)
    rng = random.Random(6)
    for _ in range(700):
        body = bytearray(made.bundle.body)
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        fields = bundles.decode_header(made.bundle.header)
        raw = encode(fields._replace(body_hash=sha256(bytes(body))))
        bad = Bundle(raw, made.provider.sign(bundles.bundle_message(CHAIN, raw)), bytes(body))
        assert refusal_of(made, bad)


# A1


def test_a_body_that_is_not_the_headers_is_refused() -> None:
    made = some_bundle(1)
    assert refusal_of(made, made.bundle._replace(body=made.bundle.body + b"\0")) == (
        "bundle.malformed"
    )
    assert refusal_of(made, made.bundle._replace(header=b"")) == "bundle.malformed"


def test_a_header_that_promises_too_much_is_refused_before_any_work() -> None:
    made = some_bundle(1)
    fields = bundles.decode_header(made.bundle.header)
    for wrong in ({"body_len": 2 * 2**20 + 1}, {"count": 4_097}, {"count": 0}, {"version": 2}):
        bad = made.bundle._replace(header=encode(fields._replace(**wrong)))
        assert refusal_of(made, bad) == "bundle.malformed"


# A2


def test_an_unknown_provider_and_a_strangers_signature_are_refused() -> None:
    made = some_bundle(1)
    message = bundles.bundle_message(CHAIN, made.bundle.header)
    stranger = made.bundle._replace(signature=party("stranger").sign(message))
    assert refusal_of(made, stranger) == "bundle.provider"
    with pytest.raises(Invalid, match=r"bundle\.provider"):
        bundles.verify(
            made.bundle, chain_id=CHAIN, min_receipt_fee=0,
            provider_key=lambda account: None, spender_key=made.spenders.get,
        )  # fmt: skip


def test_a_bundle_of_another_chain_is_refused() -> None:
    made = some_bundle(1)
    with pytest.raises(Invalid, match=r"bundle\.provider"):
        bundles.verify(made.bundle, chain_id=bytes(32), min_receipt_fee=0, **made.keys)


# A3


def test_sections_out_of_order_or_twice_are_refused() -> None:
    made = some_bundle(1)
    parts = list(bundles.decode_body(made.bundle.body))
    assert refusal_of(made, signed(made, parts[::-1])) == "bundle.sections"
    assert refusal_of(made, signed(made, [parts[0], *parts])) == "bundle.sections"


def test_as_many_receipts_and_credits_as_numbers_or_refused() -> None:
    made = some_bundle(1)
    longer = with_section(made, lambda s: s._replace(to_seq=s.to_seq + 1))
    assert refusal_of(made, longer) == "bundle.sections"
    backward = with_section(made, lambda s: s._replace(from_seq=s.to_seq + 1))
    assert refusal_of(made, backward) == "bundle.sections"
    parts = list(bundles.decode_body(made.bundle.body))
    parts[0] = parts[0]._replace(credits=parts[0].credits[:-1])
    assert refusal_of(made, signed(made, parts)) == "bundle.sections"


def test_a_section_that_is_none_is_refused_wherever_it_stands() -> None:
    made = some_bundle(6, sections=66, receipts=1)
    parts = list(bundles.decode_body(made.bundle.body))
    for at in (0, 63, 64, 65):
        section = decode_section(parts[at].section)
        for wrong in ({"last_receipt_sig": bytes(63)}, {"lane": 2**16}, {"channel": b""}):
            bad = parts[at]._replace(section=encode(section._replace(**wrong)))
            changed = [*parts[:at], bad, *parts[at + 1 :]]
            assert refusal_of(made, signed(made, changed)) == "bundle.sections"


# A4


def test_a_voucher_of_another_lane_channel_or_signer_is_refused() -> None:
    made = some_bundle(1)
    assert refusal_of(made, with_voucher(made, lane=1)) == "bundle.voucher"
    assert refusal_of(made, with_voucher(made, channel=bytes(32))) == "bundle.voucher"
    forged = with_section(made, lambda s: s._replace(voucher_sig=bytes(64)))
    assert refusal_of(made, forged) == "bundle.voucher"
    made.spenders.clear()
    assert refusal_of(made) == "bundle.voucher"


# A5


def test_a_receipt_out_of_place_is_refused() -> None:
    made = some_bundle(1)
    for wrong in ({"seq": 9}, {"lane": 1}, {"channel": bytes(32)}, {"status": 3}):
        parts = list(bundles.decode_body(made.bundle.body))
        raw = encode(decode_receipt(parts[0].receipts[0])._replace(**wrong))
        parts[0] = parts[0]._replace(receipts=(raw, *parts[0].receipts[1:]))
        assert refusal_of(made, signed(made, parts)) == "bundle.receipt"


def test_credits_that_are_not_the_receipts_are_refused() -> None:
    made = some_bundle(1)
    parts = list(bundles.decode_body(made.bundle.body))
    other = encode(some_credits(random.Random(9), 2))
    parts[0] = parts[0]._replace(credits=(other, *parts[0].credits[1:]))
    assert refusal_of(made, signed(made, parts)) == "bundle.receipt"


def test_credits_that_the_receipt_names_must_still_sum_to_the_whole() -> None:
    made = some_bundle(1)
    parts = list(bundles.decode_body(made.bundle.body))
    short = encode(((1, 9_999),))
    raw = encode(decode_receipt(parts[0].receipts[0])._replace(attribution_root=sha256(short)))
    parts[0] = parts[0]._replace(
        credits=(short, *parts[0].credits[1:]), receipts=(raw, *parts[0].receipts[1:])
    )
    assert refusal_of(made, signed(made, parts)) == "bundle.receipt"


@pytest.mark.parametrize("number", [0, 7, 8, 63, 64, 65, 71])
def test_a_receipt_out_of_place_is_found_wherever_it_stands(number: int) -> None:
    """Receipts are checked many at a time, over the ends of sections."""
    made = some_bundle(5, sections=9, receipts=8)
    parts = list(bundles.decode_body(made.bundle.body))
    at, place = divmod(number, 8)
    receipts = list(parts[at].receipts)
    for wrong in ({"seq": 9}, {"lane": 1}, {"channel": bytes(32)}):
        raw = encode(decode_receipt(receipts[place])._replace(**wrong))
        bad = (*receipts[:place], raw, *receipts[place + 1 :])
        changed = [*parts[:at], parts[at]._replace(receipts=bad), *parts[at + 1 :]]
        with pytest.raises(Invalid, match=r"bundle\.receipt") as refusal:
            verify(made, signed(made, changed))
        assert refusal.value.facts["why"] == "receipt.place"


@pytest.mark.parametrize("swapped", [(0, 1), (7, 8), (63, 64), (0, 71)])
def test_two_receipts_that_change_places_are_refused(swapped: tuple[int, int]) -> None:
    made = some_bundle(5, sections=9, receipts=8)
    parts = list(bundles.decode_body(made.bundle.body))
    raws = [raw for part in parts for raw in part.receipts]
    one, other = swapped
    raws[one], raws[other] = raws[other], raws[one]
    changed = [
        part._replace(receipts=tuple(raws[8 * at : 8 * at + 8])) for at, part in enumerate(parts)
    ]
    assert refusal_of(made, signed(made, changed)) == "bundle.receipt"


@pytest.mark.parametrize(("bad_receipt", "bad_voucher"), [(0, 2), (2, 0)])
def test_all_vouchers_are_looked_at_before_any_receipt(bad_receipt: int, bad_voucher: int) -> None:
    made = some_bundle(1)
    parts = list(bundles.decode_body(made.bundle.body))
    raw = encode(decode_receipt(parts[bad_receipt].receipts[0])._replace(status=1))
    receipts = (raw, *parts[bad_receipt].receipts[1:])
    parts[bad_receipt] = parts[bad_receipt]._replace(receipts=receipts)
    assert refusal_of(made, signed(made, parts)) == "bundle.receipt"
    section = decode_section(parts[bad_voucher].section)._replace(voucher_sig=bytes(64))
    parts[bad_voucher] = parts[bad_voucher]._replace(section=encode_section(section))
    assert refusal_of(made, signed(made, parts)) == "bundle.voucher"


# A6


def test_a_voucher_that_neither_acknowledges_nor_holds_is_refused() -> None:
    made = some_bundle(1)
    for seq in (1, 3, 6):
        assert refusal_of(made, with_voucher(made, seq=seq)) == "bundle.acknowledgement"


def test_a_voucher_for_less_than_the_fees_is_refused() -> None:
    made = some_bundle(1, sections=1)
    fees = decode_section(bundles.decode_body(made.bundle.body)[0].section).amount
    assert refusal_of(made, with_voucher(made, cumulative=fees - 1)) == "bundle.acknowledgement"


def test_a_fee_at_the_hold_is_paid_and_one_above_is_refused() -> None:
    """A payer never loses more than the hold it signed."""
    made = some_bundle(4, sections=1, from_hold=True)
    raw = bundles.decode_body(made.bundle.body)[0].receipts[-1]
    fee = decode_receipt(raw).fee
    verify(made, with_voucher(made, hold=fee))
    assert refusal_of(made, with_voucher(made, hold=fee - 1)) == "bundle.acknowledgement"


def test_a_claim_needs_its_own_order_and_the_providers_signature() -> None:
    made = some_bundle(4, sections=1, from_hold=True)
    assert refusal_of(made, with_voucher(made, order_hash=bytes(32))) == "bundle.acknowledgement"
    for signature in (b"", bytes(64)):
        bad = with_section(made, lambda s, x=signature: s._replace(last_receipt_sig=x))
        assert refusal_of(made, bad) == "bundle.acknowledgement"


def test_an_acknowledged_section_carries_no_surplus_signature() -> None:
    made = some_bundle(1)
    bad = with_section(made, lambda s: s._replace(last_receipt_sig=bytes(64)))
    assert refusal_of(made, bad) == "bundle.acknowledgement"


# A7


def test_every_figure_of_the_header_is_checked() -> None:
    made = some_bundle(1)
    parts = list(bundles.decode_body(made.bundle.body))
    fields = bundles.decode_header(made.bundle.header)
    model, version, fee = fields.totals[0]
    for wrong in (
        {"count": fields.count + 1},
        {"fee_total": fields.fee_total + 1},
        {"totals": ((model, version, fee + 1), *fields.totals[1:])},
        {"totals": fields.totals[::-1]},
        {"receipts_root": bytes(32)},
        {"sections_root": bytes(32)},
    ):
        assert refusal_of(made, signed(made, parts, **wrong)) == "bundle.totals"


def served_by_turns(seed: int) -> Made:
    """Versions that take turns in each lane; no fee to great ones, no credits to nine."""
    rng, parts, spenders = random.Random(seed), [], {}
    provider = party("provider")
    for number in range(7):
        payer = party(f"payer {number}")
        lane = LaneSession(rng.randbytes(32), 0, payer, provider, rng)
        spenders[lane.channel] = payer.key
        for _ in range(rng.randrange(1, 24)):
            shares = [share for _, share in some_credits(rng, rng.choice((0, 1, 4, 9)))]
            # So few that receipts share them; 0 is the fund, which never has all.
            few = sorted(rng.sample(range(len(shares) < 2, 12), len(shares)))
            lane.serve(
                tuple(zip(few, shares, strict=True)),
                model=rng.choice((1, 1, 2)),
                model_version=rng.randrange(3),
                fee=rng.choice((0, 1, rng.randrange(10**9), rng.randrange(2**63 // 40))),
            )
        parts.append(lane.cut())
    bundle = bundles.build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=1, parts=parts, sign=provider.sign
    )
    return Made(bundle, provider, spenders)


@pytest.mark.parametrize("seed", range(5))
def test_sums_by_version_are_those_of_receipt_by_receipt(seed: int) -> None:
    made = served_by_turns(seed)
    checked = verify(made, fee_min=0)
    served, weights = defaultdict(list), defaultdict(Counter)
    for part in bundles.decode_body(made.bundle.body):
        for raw, credits_raw in zip(part.receipts, part.credits, strict=True):
            receipt, credits = decode_receipt(raw), decode_credits(credits_raw)
            which = (receipt.model, receipt.model_version)
            served[which].append(receipt)
            for contribution, share in credits or ((0, 10_000),):
                weights[which][contribution] += receipt.fee * share
    assert len(served) == 6
    assert max(max(each.values()) for each in weights.values()) > 2**64  # beyond any amount
    assert checked.receipts == {which: tuple(own) for which, own in served.items()}
    for which, own in served.items():
        unattributed = weights[which].pop(0, 0)
        fees = sum(receipt.fee for receipt in own)
        expected = bundles.VersionFees(fees, len(own), dict(weights[which]), unattributed)
        assert checked.versions[which] == expected
    assert checked.versions.keys() == served.keys()


def test_the_mean_fee_may_be_at_the_minimum_and_not_below() -> None:
    made = some_bundle(1)
    fields = bundles.decode_header(made.bundle.header)
    mean = fields.fee_total // fields.count
    verify(made, fee_min=mean)
    assert refusal_of(made, fee_min=mean + 1) == "bundle.totals"


def test_later_sections_start_where_the_lane_stands() -> None:
    rng = random.Random(8)
    payer, provider = party("payer 0"), party("provider")
    session = LaneSession(rng.randbytes(32), 3, payer, provider, rng)
    session.serve()
    session.cut()
    before = session.cumulative
    session.serve()
    session.serve()
    bundle = bundles.build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=2, parts=[session.cut()],
        sign=provider.sign,
    )  # fmt: skip
    section = verify(Made(bundle, provider, {session.channel: payer.key})).sections[0]
    assert (section.section.from_seq, section.section.to_seq) == (2, 3)
    assert section.start_cumulative == before
    assert section.voucher.expires_ms == EXPIRES_MS


def test_nothing_but_invalid_escapes_the_decoders() -> None:
    made = some_bundle(1)
    section = bundles.decode_body(made.bundle.body)[0].section
    rng = random.Random(7)
    for good, decode_it in (
        (made.bundle.header, bundles.decode_header),
        (made.bundle.body, bundles.decode_body),
        (section, bundles.decode_section),
    ):
        for _ in range(1_000):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(Invalid):
                assert encode(decode_it(bytes(bad))) == bytes(bad)


def test_receipts_are_told_apart_by_every_field() -> None:
    raw = bundles.decode_body(some_bundle(1).bundle.body)[0].receipts[0]
    receipt = decode_receipt(raw)
    for field, value in receipt._asdict().items():
        other = value + 1 if isinstance(value, int) else bytes(reversed(value))
        assert encode_receipt(receipt._replace(**{field: other})) != raw
