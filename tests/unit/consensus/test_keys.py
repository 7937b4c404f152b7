"""One rule for signatures: RFC 8032's own values, and the forgeries that other libraries take."""

import pytest

from consensus.primitives import keys
from consensus.primitives.errors import Invalid

# RFC 8032 section 7.1, TEST 1, TEST 2, TEST 3 and TEST SHA(abc): seed, key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize("case", RFC_8032, ids=["1", "2", "3", "sha(abc)"])
def test_values_of_rfc_8032(case: tuple[str, str, str, str]) -> None:
    seed, key, message, signature = map(bytes.fromhex, case)
    assert keys.public_key(seed) == key
    assert keys.sign(seed, message) == signature
    assert keys.is_signed_by(key, message, signature)
    assert keys.is_valid_point(key)


def test_changed_message_key_or_signature_is_refused() -> None:
    _, key, message, signature = map(bytes.fromhex, RFC_8032[2])
    assert not keys.is_signed_by(key, message + b"\0", signature)
    for place in range(64):
        bad = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        assert not keys.is_signed_by(key, message, bad), place
    with pytest.raises(Invalid) as refusal:
        keys.verify_signature(key, b"other", signature, "x.signature")
    assert refusal.value.code == "x.signature"
    keys.verify_signature(key, message, signature, "x.signature")


def test_signature_has_no_second_form() -> None:
    """S + L is the same number to a careless library."""
    _, key, message, signature = map(bytes.fromhex, RFC_8032[1])
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not keys.is_signed_by(key, message, signature[:32] + scalar.to_bytes(32, "little"))


def test_key_of_small_order_signs_nothing_and_enters_no_state() -> None:
    identity = b"\1" + bytes(31)
    assert not keys.is_valid_point(identity)
    assert not keys.is_signed_by(identity, b"anything", identity + bytes(32))


@pytest.mark.parametrize(("key", "signature"), [(b"k" * 31, bytes(64)), (b"k" * 32, bytes(63))])
def test_wrong_lengths_are_refused_and_raise_nothing(key: bytes, signature: bytes) -> None:
    assert not keys.is_signed_by(key, b"", signature)
    assert not keys.is_valid_point(b"k" * 31)


def test_selftest_passes_here() -> None:
    keys.selftest()


def test_selftest_notices_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "is_signed_by", lambda *_: True)
    with pytest.raises(AssertionError):
        keys.selftest()
