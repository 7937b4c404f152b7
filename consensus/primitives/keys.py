"""Ed25519 by one rule: a signature is good when libsodium, through PyNaCl, accepts it.

Why one library and never a batch: libsodium and OpenSSL disagree on 4 of the 12 cases of
ed25519-speccheck, so a network that mixes them forks. `selftest` runs at every start and stops
the node when the installed libsodium judges differently.
What this file does not know: whose key it is, and where private keys are kept.
"""

from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from consensus.primitives.errors import Invalid

KEY_BYTES: Final = 32
SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_ORDER: Final = 2**252 + 27742317777372353535851937790883648493  # of the prime subgroup


def public_key(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte seed."""
    assert len(seed) == SEED_BYTES
    key: bytes = bindings.crypto_sign_seed_keypair(seed)[0]
    return key


def sign(seed: bytes, message: bytes) -> bytes:
    """The 64-byte signature of `message`; deterministic (RFC 8032)."""
    assert len(seed) == SEED_BYTES
    secret = bindings.crypto_sign_seed_keypair(seed)[1]
    signed: bytes = bindings.crypto_sign(message, secret)
    return signed[:SIGNATURE_BYTES]


def is_signed_by(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether libsodium accepts `signature` of `message` under `key`. Never raises."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, key)
    except CryptoError:
        return False
    return True


def verify_signature(key: bytes, message: bytes, signature: bytes, code: str) -> None:
    """Raise `Invalid(code)` unless `key` signed `message`."""
    if not is_signed_by(key, message, signature):
        raise Invalid(code, key=key)


def is_valid_point(key: bytes) -> bool:
    """Whether `key` may enter the state: on the curve, canonical, not of small order."""
    return len(key) == KEY_BYTES and bool(bindings.crypto_core_ed25519_is_valid_point(key))


def selftest() -> None:
    """Assert that the installed libsodium judges as all nodes must. A few milliseconds."""
    _check_rfc8032()
    _check_malleability()
    _check_low_order_keys()


def _check_rfc8032() -> None:
    for seed, key, message, signature in _RFC8032:
        assert public_key(seed) == key, "libsodium derives another public key"
        assert sign(seed, message) == signature, "libsodium signs differently"
        assert is_signed_by(key, message, signature), "libsodium refuses RFC 8032"
        assert not is_signed_by(key, message + b"\0", signature), "libsodium accepts a forgery"


def _check_malleability() -> None:
    seed, key, message, signature = _RFC8032[1]
    assert len(seed) == SEED_BYTES
    scalar = int.from_bytes(signature[32:], "little") + _ORDER
    twin = signature[:32] + scalar.to_bytes(32, "little")
    assert not is_signed_by(key, message, twin), "libsodium accepts S + L"


def _check_low_order_keys() -> None:
    forged = bytes([1]) + bytes(63)  # R = identity, S = 0: valid for every low-order key
    for key in _LOW_ORDER:
        assert not is_valid_point(key), "libsodium admits a key of small order"
        assert not is_signed_by(key, b"olnode", forged), "libsodium accepts a low-order key"


# RFC 8032 section 7.1, tests 1 to 3: seed, public key, message, signature.
_RFC8032: Final = tuple(
    tuple(bytes.fromhex(field) for field in case)
    for case in (
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
    )
)

# The eight points of small order in their canonical encodings, and two that are not canonical.
_LOW_ORDER: Final = tuple(
    bytes.fromhex(key)
    for key in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
