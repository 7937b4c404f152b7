"""Tables of the state: keys in order, records in one form, bytes that are page 30 §4's."""

from typing import Any

import pytest

from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.tables import ANY, Table

H = b"\1" * 32
ALL: dict[str, Table[Any]] = {
    name: value for name, value in vars(tables).items() if isinstance(value, Table)
}
BYTES = {
    0x01: "ACCOUNT", 0x02: "VESTING", 0x03: "CHANNEL", 0x04: "LANE", 0x06: "PROVIDER",
    0x07: "VALIDATOR", 0x08: "BOND", 0x09: "UNBONDING", 0x0A: "STAKE", 0x0B: "DATANET",
    0x0C: "DATANET_NAME", 0x0D: "CONTRIBUTION", 0x0E: "SNAPSHOT", 0x0F: "MODEL",
    0x10: "MODEL_NAME", 0x11: "VERSION", 0x12: "PRICE", 0x13: "FUND", 0x15: "MATURING",
    0x19: "PARAMETER", 0x1A: "POOL", 0x1B: "DUE", 0x1D: "SEAT", 0x1E: "REVIEW", 0x20: "SETTLED",
}  # fmt: skip


@pytest.mark.parametrize(("prefix", "name"), BYTES.items(), ids=BYTES.values())
def test_each_table_has_its_byte(prefix: int, name: str) -> None:
    assert ALL[name].prefix == bytes([prefix])


def test_only_the_singletons_share_a_byte() -> None:
    """`totals`, `validators`, counters, evidence and so on: each has names of its own."""
    prefixes = [table.prefix for table in ALL.values()]
    shared = {name for name, table in ALL.items() if prefixes.count(table.prefix) > 1}
    of_evidence = {"USED_EVIDENCE", "DOUBLE", "DEPARTURES", "FORMER_KEY"}
    of_disputes = {"REFUTED", "INCOME"}
    assert shared == {"TOTALS", "COUNTER", "MEMBERS", "TAKEN", *of_evidence, *of_disputes}
    assert {ALL[name].prefix for name in shared} == {b"\x1c"}


def parts_for(table: Table[Any]) -> tuple[bytes, ...]:
    return tuple(b"name" if width == ANY else bytes(range(width)) for width in table.widths)


@pytest.mark.parametrize("name", ALL)
def test_a_key_gives_its_parts_back(name: str) -> None:
    table = ALL[name]
    parts = parts_for(table)
    key = table.flat_key(parts)
    assert key == table.prefix + b"".join(parts)
    assert table.parts_of(key) == parts


@pytest.mark.parametrize("name", ALL)
def test_a_key_of_fewer_parts_is_a_prefix_of_the_whole(name: str) -> None:
    """That is what a scan goes by."""
    table = ALL[name]
    parts = parts_for(table)
    for count in range(len(parts) + 1):
        assert table.flat_key(parts).startswith(table.flat_key(parts[:count]))


def test_keys_are_in_the_order_of_their_numbers() -> None:
    numbers = [0, 1, 2, 255, 256, 65_535, 65_536, 2**32, 2**63 - 1]
    keys = [tables.MODEL.flat_key((number,)) for number in numbers]
    assert keys == sorted(keys)
    due = [tables.DUE.flat_key((time, kind, b"x")) for time in (1, 256) for kind in (1, 9)]
    assert due == sorted(due)


def test_a_number_in_a_key_has_the_width_of_its_part() -> None:
    assert tables.VERSION.flat_key((7, 2)) == b"\x11" + (7).to_bytes(8, "big") + bytes((0, 0, 0, 2))
    assert tables.BOND.flat_key((1, H, H)) == b"\x08\x01" + H + H


@pytest.mark.parametrize("parts", [(bytes(31),), (H, H)])
def test_a_key_of_another_length_is_our_own_fault(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(AssertionError):
        tables.ACCOUNT.flat_key(parts)


def test_numbers_beyond_63_bits_are_kept_as_wides() -> None:
    bond = tables.Bond(5, 2**128 - 1, 9)
    raw = tables.BOND.encode(bond)
    assert raw == encode((5, b"\xff" * 16, 9))
    assert tables.BOND.decode(raw) == bond


@pytest.mark.parametrize(
    ("desc", "raw", "code"),
    [
        ("empty", b"", "state.malformed"),
        ("a field too few", encode((0, 0, b"")), "state.malformed"),
        ("a field too many", encode((0, 0, b"", 0, 0)), "state.malformed"),
        ("a key of 31 bytes", encode((0, 0, bytes(31), 0)), "state.malformed"),
        ("an amount above 2^63-1", encode((0, 2**63, b"", 0)), "state.malformed"),
        ("a longer form", b"\x94\x00\xcc\x05\xc4\x00\x00", "state.not_canonical"),
        ("a record above 16 KiB", bytes(tables.RECORD_BYTES_MAX + 1), "state.too_large"),
    ],
)
def test_a_record_that_rotted_is_refused_by_its_word(desc: str, raw: bytes, code: str) -> None:
    with pytest.raises(Invalid) as refusal:
        tables.ACCOUNT.decode(raw)
    assert refusal.value.code == code, desc


def test_an_account_that_nobody_touched_is_all_zero() -> None:
    assert tables.ACCOUNT.encode(tables.Account()) == encode((0, 0, b"", 0))


def test_the_terms_of_a_transaction_fit_the_record() -> None:
    """Both name one shape; a charter that a Datanet could not keep must not be accepted."""
    licences = tuple(range(1, 9))
    terms = tables.Terms(H, licences, 1, 7, 10**9, 1_000, 10**9, 1)
    datanet = tables.Datanet(H, b"n" * 32, tuple(terms), bytes(256), 1, 1, 1, 1, 1, 1, 1, 1)
    assert tables.DATANET.decode(tables.DATANET.encode(datanet)) == datanet
    for wrong in ((), tuple(range(9))):
        broken = datanet._replace(terms=tuple(terms._replace(licences=wrong)))
        with pytest.raises(Invalid, match=r"state\.malformed"):
            tables.DATANET.decode(tables.DATANET.encode(broken))
