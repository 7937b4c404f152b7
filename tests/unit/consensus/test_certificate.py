"""Certificates: who is named by which bit, how much power is enough, and what is looked at first.

`test_messages.py` tampers with their bytes and fields.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus import certificate as certificates
from consensus.certificate import (
    PRECOMMIT,
    PREVOTE,
    Certificate,
    bitmap_of,
    bits,
    check_certificate,
    decode_certificate,
    encode_certificate,
    make_certificate,
    verify_certificate,
    vote_body,
)
from consensus.params import CERTIFICATE_BYTES_MAX, VALIDATORS_MAX
from consensus.primitives.digest import sha256, signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key, sign
from consensus.validators import ValidatorSet

CHAIN_ID, ID = b"c" * 32, b"i" * 32


def seed(number: int) -> bytes:
    return sha256(b"signer %d" % number)


def members(*powers: int) -> ValidatorSet:
    """A set whose members stand in the order of these falling powers."""
    return ValidatorSet.found({public_key(seed(n)): power for n, power in enumerate(powers)})


SEED_OF = {public_key(seed(n)): seed(n) for n in range(VALIDATORS_MAX)}


def signed(validators: ValidatorSet, *places: int, kind: int = PRECOMMIT) -> Certificate:
    message = signing_bytes(b"vote", CHAIN_ID, vote_body(kind, 5, 2, ID))
    by = {place: sign(SEED_OF[validators.members[place].key], message) for place in places}
    return make_certificate(kind, 5, 2, ID, by, len(validators))


def refused(certificate: Certificate, validators: ValidatorSet) -> str:
    with pytest.raises(Invalid) as refusal:
        verify_certificate(certificate, validators, CHAIN_ID)
    return refusal.value.code


@given(st.sets(st.integers(0, 99)), st.integers(0, 7))
def test_bitmap_names_its_members_and_nobody_else(places: set[int], more: int) -> None:
    size = max(places, default=0) + 1 + more
    bitmap = bitmap_of(dict.fromkeys(places), size)
    assert len(bitmap) == (size + 7) // 8
    assert bits(bitmap) == tuple(sorted(places))


def test_low_bit_comes_first() -> None:
    assert bitmap_of({0: None}, 9) == b"\x01\x00"
    assert bitmap_of({7: None}, 9) == b"\x80\x00"
    assert bitmap_of({8: None}, 9) == b"\x00\x01"


def test_signatures_stand_in_the_order_of_the_members_however_they_came() -> None:
    by = {9: b"9" * 64, 0: b"0" * 64, 4: b"4" * 64}
    made = make_certificate(PREVOTE, 1, 0, ID, by, 10)
    assert made.signatures == b"0" * 64 + b"4" * 64 + b"9" * 64
    assert made.by_member() == by


@pytest.mark.parametrize(
    ("powers", "places", "is_enough"),
    [
        ((1, 1, 1), (0, 1), False),
        ((1, 1, 1), (0, 1, 2), True),
        ((3, 2, 1), (0, 2), False),  # 4 of 6, exactly two thirds
        ((3, 2, 1), (0, 1), True),
        ((100, 30, 20), (0,), False),  # 100 of 150
        ((101, 30, 20), (0,), True),  # 101 of 151
        ((2**59, 2**58, 2**57), (0, 2), True),
    ],
)
def test_power_decides_and_not_heads(
    powers: tuple[int, ...], places: tuple[int, ...], is_enough: bool
) -> None:
    validators = members(*powers)
    made = signed(validators, *places)
    if is_enough:
        verify_certificate(made, validators, CHAIN_ID)
    else:
        assert refused(made, validators) == "certificate.power"


def test_certificate_of_a_larger_set_is_refused() -> None:
    eight, nine = members(*[1] * 8), members(*[1] * 9)
    verify_certificate(signed(eight, *range(8)), eight, CHAIN_ID)
    assert refused(signed(nine, *range(9)), eight) == "certificate.bitmap"
    assert refused(signed(eight, *range(8)), nine) == "certificate.bitmap"


def test_nobody_is_no_quorum() -> None:
    empty = make_certificate(PRECOMMIT, 5, 2, ID, {}, 3)
    assert decode_certificate(encode_certificate(empty)) == empty
    assert refused(empty, members(1, 1, 1)) == "certificate.power"


def test_no_signature_is_checked_before_all_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """43 µs each: a liar chooses how many there are."""
    looked: list[bytes] = []

    def look(key: bytes, message: bytes, signature: bytes, code: str) -> None:
        looked.append(key)
        raise Invalid(code)

    monkeypatch.setattr(certificates, "verify_signature", look)
    validators = members(1, 1, 1, 1)
    good = signed(validators, 0, 1, 2)
    for bad in (
        signed(validators, 0, 1),
        replace(good, bitmap=b"\x17"),
        replace(good, bitmap=b"\x07\x00"),
        replace(good, signatures=good.signatures + bytes(64)),
    ):
        assert refused(bad, validators) != "certificate.signature"
    assert looked == []
    assert refused(good, validators) == "certificate.signature"
    assert len(looked) == 1, "and none after the first false one"


@pytest.mark.parametrize("place", range(3))
def test_each_signature_counts(place: int) -> None:
    validators = members(1, 1, 1)
    good = signed(validators, 0, 1, 2)
    start = 64 * place
    torn = good.signatures[:start] + bytes(64) + good.signatures[start + 64 :]
    assert refused(replace(good, signatures=torn), validators) == "certificate.signature"


def test_prevotes_are_no_precommits() -> None:
    validators = members(1, 1, 1)
    polka = signed(validators, 0, 1, 2, kind=PREVOTE)
    verify_certificate(polka, validators, CHAIN_ID)
    assert refused(replace(polka, kind=PRECOMMIT), validators) == "certificate.signature"


def test_check_alone_believes_any_signature() -> None:
    """It says what it does: power and shape, for callers that verify elsewhere."""
    validators = members(1, 1, 1)
    check_certificate(replace(signed(validators, 0, 1, 2), signatures=bytes(192)), validators)


def test_certificate_of_the_greatest_set_fits_and_one_more_member_does_not() -> None:
    largest = Certificate(
        PRECOMMIT, 2**63 - 1, 2**31 - 1, ID, b"\xff" * 12 + b"\x0f", bytes(64 * VALIDATORS_MAX)
    )
    raw = encode_certificate(largest)
    assert len(raw) <= CERTIFICATE_BYTES_MAX
    assert decode_certificate(raw) == largest
    more = replace(largest, bitmap=b"\xff" * 12 + b"\x1f", signatures=bytes(64 * 101))
    with pytest.raises(Invalid) as refusal:
        decode_certificate(encode_certificate(more))
    assert refusal.value.code == "certificate.malformed"


def test_certificate_has_one_encoding() -> None:
    """Its SHA-256 stands in the next header, so no second form may decode to it."""
    raw = encode_certificate(signed(members(1, 1, 1), 0, 1, 2))
    for other in (raw + b"\0", raw[:-1], b"\xdc\x00\x06" + raw[1:]):
        with pytest.raises(Invalid):
            decode_certificate(other)
