"""Prefixes keep apart what is hashed and what is signed, by purpose and by chain."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.digest import domain_hash, hash_each, sha256, signing_bytes


def test_sha256_is_that_of_the_standard() -> None:
    """FIPS 180-4, the example "abc"."""
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc").hex() == sha256(b"a", b"bc").hex() == expected


@given(st.lists(st.binary(max_size=300), max_size=9), st.binary(max_size=70))
def test_each_of_many_is_hashed_as_alone(datas: list[bytes], prefix: bytes) -> None:
    assert hash_each(datas) == [sha256(data) for data in datas]
    assert hash_each(iter(datas), prefix) == [sha256(prefix, data) for data in datas]


def test_domain_hash_is_of_prefix_word_and_parts() -> None:
    assert domain_hash(b"chan", b"x", b"y") == hashlib.sha256(b"olnode/1/chan\0xy").digest()
    assert domain_hash(b"chan", b"x") != domain_hash(b"acc", b"x")


def test_signed_bytes_name_purpose_and_chain() -> None:
    chain = b"c" * 32
    assert signing_bytes(b"vote", chain, b"body") == b"olnode/1/vote\0" + chain + b"body"
    with pytest.raises(AssertionError):
        signing_bytes(b"vote", b"short", b"body")
