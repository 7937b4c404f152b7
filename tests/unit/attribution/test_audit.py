"""Every lie about credits is found by a node that holds the index; no honest claim ever is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from attribution_kit import VERSION, mix_rows, open_index

from node.attribution.attribute import NO_SKETCH, attribute
from node.attribution.audit import Claim, recheck, recheck_all
from node.attribution.index import Index
from node.ledger.rules import shares
from node.ledger.wire import claims
from node.ledger.wire.claims import Statement

Lie = Callable[[Statement, Index], Statement]


def claim_of(sketch: bytes, statement: Statement, rows: int) -> Claim:
    """A claim that is consistent in itself, whatever the statement says."""
    raw = claims.encode_statement(statement)
    credits = shares.credits_of(statement, rows)
    return Claim(claims.sketch_hash(sketch, raw), credits, sketch, raw)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_index(tmp_path, 200)


def sketch_of(index: Index) -> bytes:
    return mix_rows([(1.0, index.rows[9]), (0.6, index.rows[150])])


def test_honest_claims_stand(index: Index) -> None:
    for seed in range(50):
        row = (seed * 37) % 200
        sketch = mix_rows([(seed / 25, index.rows[row])], seed=100 + seed)
        made = attribute(index, sketch, VERSION)
        claim = Claim(made.sketch_hash, made.credits, sketch, made.statement_bytes)
        assert recheck(index, VERSION, claim) is None


def test_no_sketch_and_no_credits_stands(index: Index) -> None:
    assert recheck(index, VERSION, Claim(NO_SKETCH, (), b"", b"")) is None


def lower_floors(statement: Statement, index: Index) -> Statement:
    return statement._replace(floors=tuple(floor // 2 for floor in statement.floors))


def raise_score(statement: Statement, index: Index) -> Statement:
    first, *rest = statement.paid
    return statement._replace(paid=((first[0], first[1], first[2] + 1), *rest))


def leave_out(statement: Statement, index: Index) -> Statement:
    return statement._replace(paid=statement.paid[1:])


def pay_a_friend(statement: Statement, index: Index) -> Statement:
    first, *rest = statement.paid
    return statement._replace(paid=((first[0], 4_711, first[2]), *rest))


def invent_a_row(statement: Statement, index: Index) -> Statement:
    return statement._replace(paid=tuple(sorted((*statement.paid, (77, 20, 400_000)))))


@pytest.mark.parametrize("lie", [lower_floors, raise_score, leave_out, pay_a_friend, invent_a_row])
def test_lie_that_is_consistent_in_itself_is_found_by_the_rescan(index: Index, lie: Lie) -> None:
    sketch = sketch_of(index)
    statement = lie(attribute(index, sketch, VERSION).statement, index)
    shares.check_statement(statement, index.header, index.root)
    finding = recheck(index, VERSION, claim_of(sketch, statement, 200))
    assert finding is not None
    assert finding.code == "claim.scores"


def test_panel_of_another_version_is_found(index: Index) -> None:
    sketch = sketch_of(index)
    made = attribute(index, sketch, VERSION._replace(version=3))
    claim = Claim(made.sketch_hash, made.credits, sketch, made.statement_bytes)
    finding = recheck(index, VERSION, claim)
    assert finding is not None
    assert finding.code == "claim.scores"
    assert finding.why.startswith("floor 0 is")


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("claim.no_sketch", lambda c: c._replace(sketch_hash=NO_SKETCH)),
        ("claim.hash", lambda c: c._replace(sketch=bytes(1_024))),
        ("claim.hash", lambda c: c._replace(statement=c.statement + b"\0")),
        ("claim.credits", lambda c: c._replace(credits=((5, 10_000),))),
        ("claim.credits", lambda c: c._replace(credits=())),
    ],
)
def test_claim_at_odds_with_itself_is_found_by_its_code(
    index: Index, code: str, change: Callable[[Claim], Claim]
) -> None:
    made = attribute(index, sketch_of(index), VERSION)
    honest = Claim(made.sketch_hash, made.credits, made.sketch, made.statement_bytes)
    finding = recheck(index, VERSION, change(honest))
    assert finding is not None
    assert finding.code == code


def test_many_claims_are_found_as_each_alone(index: Index) -> None:
    """Lies of every kind among more honest claims than one scan takes."""
    sketch = sketch_of(index)
    made = attribute(index, sketch, VERSION)
    honest = Claim(made.sketch_hash, made.credits, made.sketch, made.statement_bytes)
    told = [honest] * 80
    for place, lie in ((0, lower_floors), (33, raise_score), (34, leave_out), (79, pay_a_friend)):
        told[place] = claim_of(sketch, lie(made.statement, index), 200)
    told[5] = honest._replace(credits=((5, 10_000),))
    told[6] = Claim(NO_SKETCH, (), b"", b"")
    told[7] = Claim(NO_SKETCH, ((5, 10_000),), b"", b"")
    told[8] = honest._replace(sketch=bytes(1_024))
    found = recheck_all(index, VERSION, told)
    assert found == [recheck(index, VERSION, claim) for claim in told]
    assert [place for place, one in enumerate(found) if one] == [0, 5, 7, 8, 33, 34, 79]
    assert recheck_all(index, VERSION, []) == []


@pytest.mark.parametrize(
    ("code", "sketch", "change"),
    [
        ("sketch.malformed", bytes(1_024), lambda raw: raw),
        ("statement.malformed", None, lambda raw: b"\x90"),
        ("statement.too_large", None, lambda raw: bytes(4_097)),
    ],
)
def test_malformed_claim_is_found_and_never_raises(
    index: Index, code: str, sketch: bytes | None, change: Callable[[bytes], bytes]
) -> None:
    made = attribute(index, sketch_of(index), VERSION)
    told, raw = sketch or made.sketch, change(made.statement_bytes)
    finding = recheck(index, VERSION, Claim(claims.sketch_hash(told, raw), made.credits, told, raw))
    assert finding is not None
    assert finding.code == code


def test_statement_of_another_index_is_found(index: Index, tmp_path: Path) -> None:
    other = open_index(tmp_path / "other", 199)
    made = attribute(other, sketch_of(index), VERSION)
    claim = Claim(made.sketch_hash, made.credits, made.sketch, made.statement_bytes)
    finding = recheck(index, VERSION, claim)
    assert finding is not None
    assert finding.code == "statement.index_root"
