"""Whatever the bytes, a parser says `Invalid` and nothing else; what it takes is its own encoding.

Every `decode_` of the pure floors is in `parsers.py`: a new one fails the first test until it is.
"""

import importlib
import json
import pkgutil
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from vectors.agreement import PEOPLE, TRUST
from vectors.fuzzing import attack
from vectors.hostile import hostile
from vectors.parsers import EXAMPLES, OURS, PARSERS, Parser, goods_of, names, word
from vectors.small_chain import Story

import consensus
import node.ledger
from node import light
from node.ledger import proofs, tables
from node.ledger.tables import Table

INPUTS = 20_000  # of each parser (page 30 §12)
RECORD_INPUTS = 4_000
FILE_INPUTS = 4_000


def all_decoders() -> set[Callable[..., Any]]:
    found = set()
    for package in (consensus, node.ledger):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            held = vars(importlib.import_module(module.name))
            found |= {
                value
                for name, value in held.items()
                if name.startswith("decode_") and value.__module__ == module.name
            }
    return found


def test_every_decoder_of_the_pure_floors_is_attacked() -> None:
    assert {word(f) for f in all_decoders()} == {word(f) for f in {*PARSERS, *OURS}}


@pytest.mark.parametrize("function", PARSERS, ids=word)
def test_nothing_but_invalid_escapes(function: Callable[..., Any]) -> None:
    parser = PARSERS[function]
    goods = goods_of(parser)
    for good in goods:
        assert parser.encode(parser.decode(good)) == good
    found = attack(word(function), parser, goods, INPUTS)
    assert not found.escaped
    assert found.taken + found.refused == INPUTS
    assert min(found.taken, found.refused) > INPUTS // 100, "neither only noise nor only harmless"


# ---- records of the state: read back from a disk that may have rotted, and shown by proofs


@cache
def records() -> dict[str, list[bytes]]:
    """Values by the name of their table, from the small chain, and of tables it never writes."""
    shared = {b"totals": "totals", b"validators": "members"}
    by_prefix = {table.prefix: table.name for table in all_tables() if table.prefix != b"\x1c"}
    found: dict[str, list[bytes]] = {table.name: [] for table in all_tables()}
    chain = Story().chain
    for outcome in chain.outcomes:
        for key, value in outcome.changes:
            prefix, rest = key[:1], key[1:]
            name = by_prefix.get(prefix) or shared.get(rest, "counter")
            if rest.startswith(b"leaving/"):
                name = "departures"
            if value is not None and len(found[name]) < 50:
                found[name].append(value)
    owner = PEOPLE[0].key
    for table, record in (
        (tables.VESTING, tables.Vesting(10**9, 5, 1, 12, 36)),
        (tables.UNBONDING, tables.Unbonding(0, owner, owner, 9, 1, 2)),
        (tables.SEAT, tables.Seat(1, 2)),
        (tables.PARAMETER, tables.Parameter((1, 2, 3))),
        (tables.USED_EVIDENCE, tables.UsedEvidence(1, 2, ((owner, 2_500),), 1)),
        (tables.CONDUCT, tables.Conduct(7, 1, 5, (1, 2), ((0, 1, 2, 3),), (1, 0))),
        (tables.FUND, tables.Fund(3, (1, 2), (0, 1), (4,), 5, 6)),
    ):
        found[table.name].append(table.encode(record))
    return found


def all_tables() -> list[Table[Any]]:
    return [value for value in vars(tables).values() if isinstance(value, Table)]


@pytest.mark.parametrize(
    "table", all_tables(), ids=lambda table: f"{table.prefix.hex()}-{table.name}"
)
def test_records_of_the_state_are_read_as_strictly(table: Table[Any]) -> None:
    goods = records()[table.name]
    assert goods, f"no record of {table.name}: give one"
    parser = Parser(table.decode, table.encode, ())
    found = attack(table.name, parser, goods, RECORD_INPUTS)
    assert not found.escaped
    assert found.taken + found.refused == RECORD_INPUTS
    assert min(found.taken, found.refused) > RECORD_INPUTS // 100


# ---- whole proof files


@pytest.mark.parametrize("name", names("proof_"))
def test_a_hostile_proof_file_is_refused_and_raises_nothing(name: str) -> None:
    """Through all steps: body, root, certificate or history. What holds shows what was shown, or
    that another key is absent, which is another true statement."""
    good = EXAMPLES[name].raw
    shown = [proof.shown for proof in light.verify_file(good, TRUST).proofs]
    held = 0
    for raw in hostile(random.Random(f"file {name}"), [good], FILE_INPUTS):
        report = light.examine(raw, TRUST)
        held += report.refusal is None
        for proof in report.proofs if report.refusal is None else ():
            assert proof.shown in shown or is_absence(proof.shown), raw.hex()
    assert 0 < held < FILE_INPUTS // 10


def is_absence(shown: proofs.Shown) -> bool:
    return isinstance(shown, proofs.StateShown) and shown.value is None


# ---- the tester tested


def test_a_parser_that_lets_something_else_out_is_caught() -> None:
    careless = Parser(lambda raw: json.loads(raw), lambda value: b"", ())
    assert attack("careless", careless, [bytes(8)], 100).escaped.startswith("careless, input ")


def test_a_parser_that_takes_a_second_form_is_caught() -> None:
    lenient = Parser(lambda raw: raw.rstrip(b"\0"), lambda value: value, ())
    assert "another form" in attack("lenient", lenient, [bytes(8)], 100).escaped
