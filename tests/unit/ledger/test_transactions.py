"""Transactions on the wire: one encoding, every type known or named as to come."""

import pytest
from bundle_kit import CHAIN, party
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger.wire import transactions as wire
from node.ledger.wire.codes import ENVELOPE_CODES, code_name, effect_code

ANA, BEN = party("ana"), party("ben")
H1, H2 = b"\1" * 32, b"\2" * 32
TERMS = (H1, (1, 2), 0, 1, 10**7, 500, 86_400_000, 0)
PAYLOADS = [
    wire.Transfer(BEN.key, 5, b"thanks"),
    wire.MultiTransfer(((BEN.key, 5),)),
    wire.RotateKey(H1, bytes(64)),
    wire.OpenChannel(BEN.key, ANA.key, 10**9, 0),
    wire.TopUpChannel(H1, 10**9),
    wire.CloseChannel(H1),
    wire.CoopClose(H1, bytes(64), bytes(64)),
    wire.RegisterProvider(H1, BEN.key),
    wire.UpdateProvider(H1, BEN.key, 2),
    wire.Bond(1, ANA.key, 10**9),
    wire.Unbond(1, ANA.key, 10**9),
    wire.Unjail(1),
    wire.CreateDatanet(b"facts", TERMS),
    wire.Contribute(1, 0, H1, H2, 12, 345, 1, 0, b""),
    wire.Curate(1, 1, H1),
    wire.WithdrawContribution(1),
    wire.Snapshot(1, H1, 3, 36),
    wire.RegisterModel(b"facts-1", H1, 7, 1, 1_000),
    wire.PublishVersion(1, H1, 1, H2, H1, b"", 1, 2, 10**6, ((2, 1, 500),)),
    wire.SetPrice(1, 1, 1, 2, 10**6),
    wire.RetireModel(1, 2),
    wire.FundMaintenance(1, 10**9),
    wire.FraudProof(2, b"\1" * 700, b"\2" * 2_600),
    wire.Evidence(b"\1" * 250, bytes(64), b"\2" * 250, bytes(64)),
]


def signed(payload, **fields) -> bytes:
    values = {"nonce": 3, "max_fee": 10**6, "valid_until_ms": 99} | fields
    body = wire.encode_body(ANA.key, payload=payload, **values)
    return wire.sign_transaction(CHAIN, ANA.seed, body)


def raw_body(version=1, kind=1, payload=None) -> bytes:
    inner = encode(wire.Transfer(BEN.key, 5, b"")) if payload is None else payload
    body = encode((version, kind, ANA.key, 0, 1, 1, inner))
    return wire.encode_transaction(body, bytes(64))


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_each_type_comes_back_as_it_was(payload) -> None:
    raw = signed(payload)
    tx = wire.decode_transaction(raw)
    assert tx.payload == payload
    assert type(tx.payload) is type(payload)
    assert (tx.sender, tx.nonce, tx.raw) == (ANA.key, 3, raw)
    assert wire.encode_transaction(tx.body, tx.signature) == raw
    assert tx.weight > len(raw) + 500


def test_every_type_of_the_design_is_known_or_named_as_to_come() -> None:
    known = {row.number for row in wire.TYPES}
    assert not known & set(wire.LATER)
    assert len(known | set(wire.LATER)) == 36


@pytest.mark.parametrize("number", [0, 99, *wire.LATER])
def test_a_type_to_come_is_refused_by_code_4_and_named(number) -> None:
    with pytest.raises(Invalid) as refusal:
        wire.decode_transaction(raw_body(kind=number))
    assert ENVELOPE_CODES[refusal.value.code] == 4
    assert refusal.value.facts["name"] == wire.LATER.get(number, ("none",))[0]


def test_the_id_does_not_depend_on_the_signature() -> None:
    tx = wire.decode_transaction(signed(PAYLOADS[0]))
    other = wire.decode_transaction(wire.encode_transaction(tx.body, bytes(64)))
    assert tx.tx_id == other.tx_id == sha256(tx.body)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (bytes(65_537), "tx.too_large"),
        (b"", "tx.malformed"),
        (raw_body(version=2), "tx.version"),
        (raw_body(payload=encode(wire.Transfer(BEN.key, 5, bytes(65)))), "tx.malformed"),
        (raw_body(payload=encode((BEN.key, 5))), "tx.malformed"),
        (raw_body(payload=encode((BEN.key[:31], 5, b""))), "tx.malformed"),
        (raw_body(payload=b"\x93\xc4\x20" + BEN.key + b"\xcd\x00\x05\xc4\x00"), "tx.not_canonical"),
    ],
)
def test_bad_bytes_are_refused_by_their_word(raw, code) -> None:
    with pytest.raises(Invalid) as refusal:
        wire.decode_transaction(raw)
    assert refusal.value.code == code
    assert code in ENVELOPE_CODES


def test_a_memo_of_64_bytes_passes() -> None:
    wire.decode_transaction(signed(wire.Transfer(BEN.key, 5, bytes(64))))


@given(st.binary(max_size=300))
def test_nothing_but_invalid_escapes_the_decoder(raw) -> None:
    try:
        wire.decode_transaction(raw)
    except Invalid:
        return


@given(st.integers(0, 400), st.integers(0, 255))
def test_no_flipped_byte_gives_the_same_transaction(place, value) -> None:
    raw = bytearray(signed(PAYLOADS[6]))
    place %= len(raw)
    if raw[place] == value:
        return
    raw[place] = value
    try:
        tx = wire.decode_transaction(bytes(raw))
    except Invalid:
        return
    assert tx.raw == bytes(raw)
    assert wire.encode_transaction(tx.body, tx.signature) == bytes(raw)


@pytest.mark.parametrize("name", [b"abc", b"a-9", b"x" * 32])
def test_good_names_pass(name) -> None:
    wire.check_name(name, "tx.bad_value")


@pytest.mark.parametrize("name", [b"ab", b"x" * 33, b"Abc", b"a b", "١٢٣".encode(), b"a_c"])
def test_bad_names_are_refused(name) -> None:
    with pytest.raises(Invalid, match=r"tx\.bad_value"):
        wire.check_name(name, "tx.bad_value")


def test_codes_have_words() -> None:
    assert [code_name(code) for code in (0, 7, 20, 26, 99)] == [
        "ok", "tx.nonce", "tx.insufficient", "tx.bad_value", "code 99",
    ]  # fmt: skip
    assert effect_code(Invalid("amount.out_of_range")) == 26
    with pytest.raises(AssertionError):
        effect_code(Invalid("tx.nonce"))
