"""No opening refutes an honest statement; one row refutes each lie about one (page 60 §10)."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attribution_kit import VERSION, mix_rows, open_index, sound_rows, write_index
from fraud_kit import leave_out, lower_floors, raise_score

from consensus.primitives.errors import Invalid
from node.attribution.attribute import Attribution, attribute
from node.attribution.audit import Claim, find_fraud, recheck, release_of
from node.attribution.index import Index
from node.ledger.rules import refuting, shares
from node.ledger.rules.refuting import OpenedRow
from node.ledger.wire import claims
from node.ledger.wire.claims import Statement
from node.ledger.wire.openings import ROW, RowOpened

SIZES = (1, 2, 40, 127, 200)


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> list[Index]:
    """All rows in the panel, and not; one alone; one whose rows are alike, so that caps are met."""
    folder = tmp_path_factory.mktemp("indices")
    made = [open_index(folder / str(rows), rows) for rows in SIZES]
    alike = np.repeat(sound_rows(1), 90, axis=0)
    some = np.concatenate([sound_rows(400, 5), alike])
    return [*made, Index.open(*write_index(folder / "alike", some))]


def honest_answers(indices: list[Index], count: int) -> Iterator[tuple[Index, Attribution]]:
    """Sketches of noise, of one row, of several, of a row turned round."""
    chance = random.Random("honest answers")
    noise = sound_rows(500, 77).astype(float)
    for number in range(count):
        index = indices[number % len(indices)]
        n = index.header.rows
        leaning = sum(
            (
                chance.choice((-1.0, 0.3, 0.6, 1.0, 2.0))
                * index.rows[chance.randrange(n)].astype(float)
                for _ in range(chance.randrange(4))
            ),
            noise[chance.randrange(len(noise))],
        )
        halves = leaning.reshape(2, 512)
        halves = halves * (np.sqrt(512) * 127 / 4 / np.linalg.norm(halves, axis=1, keepdims=True))
        sketch = np.clip(np.rint(halves), -127, 127).astype(np.int8).tobytes()
        if shares.is_sound_row(sketch):
            yield index, attribute(index, sketch, VERSION)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_opening_refutes_an_honest_statement(indices: list[Index], count: int) -> None:
    """Each against its credits and one row: of the panel, paid, or any."""
    chance, seen, paid = random.Random("openings"), 0, 0
    for index, made in honest_answers(indices, count):
        told = refuting.Claim(made.sketch, made.statement_bytes)
        refuting.check_bound(made.sketch_hash, told)
        assert refuting.find_false_shares(told, index.header, index.root, made.credits) == ""
        listed = [row for row, _, _ in made.statement.paid]
        row = chance.choice((*listed, chance.randrange(index.header.rows)))
        opened = OpenedRow(index.header, index.leaf(row))
        assert refuting.find_false_row(release_of(index, VERSION), told, opened) == ""
        seen, paid = seen + 1, paid + bool(listed)
    assert seen > count * 0.9
    assert count // 10 < paid < seen, "noise pays nobody"


def test_every_row_of_some_honest_statements_refutes_nothing(indices: list[Index]) -> None:
    for index, made in honest_answers(indices, 12):
        told = refuting.Claim(made.sketch, made.statement_bytes)
        for row in range(index.header.rows):
            opened = OpenedRow(index.header, index.leaf(row))
            assert refuting.find_false_row(release_of(index, VERSION), told, opened) == ""
        claim = Claim(made.sketch_hash, made.credits, made.sketch, made.statement_bytes)
        assert find_fraud(index, VERSION, claim) is None


def some_lie(chance: random.Random, statement: Statement, rows: int) -> Statement:
    """One number of a statement is another, or an entry more, or one less."""
    floors, paid = list(statement.floors), list(statement.paid)
    at = chance.randrange(len(floors))
    kinds = ["floor", "invent"] + ["score", "owner", "drop", "swap"] * bool(paid)
    kind = chance.choice(kinds)
    if kind == "floor":
        floors[at] = max(0, floors[at] + chance.choice((-1, 1, -5_000, 5_000, 10**6)))
    elif kind == "invent":
        row = chance.randrange(rows)
        if row not in [entry[0] for entry in paid]:
            paid.append((row, 1 + row // 4, chance.randrange(10**5, 10**7)))
    else:
        place = chance.randrange(len(paid))
        row, owner, score = paid[place]
        if kind == "score":
            paid[place] = (row, owner, score + chance.choice((-1, 1, 10_000)))
        elif kind == "owner":
            paid[place] = (row, owner + 1, score)
        elif kind == "drop":
            del paid[place]
        else:
            paid[place] = (chance.randrange(rows), owner, score)
    return statement._replace(floors=tuple(floors), paid=tuple(sorted(set(paid))))


def test_one_opening_refutes_whatever_the_rescan_finds(indices: list[Index]) -> None:
    """And shows it again to whoever holds the root alone."""
    chance, found = random.Random("lies"), {"shares": 0, "row": 0}
    for index, made in honest_answers(indices, 600):
        rows = index.header.rows
        statement = some_lie(chance, made.statement, rows)
        raw = claims.encode_statement(statement)
        is_ascending = len({row for row, _, _ in statement.paid}) == len(statement.paid)
        credits = shares.credits_of(statement, rows) if is_ascending else ()
        claim = Claim(claims.sketch_hash(made.sketch, raw), credits, made.sketch, raw)
        is_lie = recheck(index, VERSION, claim) is not None
        fraud = find_fraud(index, VERSION, claim)
        assert is_lie == (fraud is not None)
        if fraud is None:
            continue
        kind, opened = fraud
        found["row" if kind == ROW else "shares"] += 1
        told = refuting.Claim(claim.sketch, claim.statement)
        if isinstance(opened, RowOpened):
            row = refuting.open_row(index.root, opened.header, opened.leaf, opened.path)
            assert refuting.find_false_row(release_of(index, VERSION), told, row)
        else:
            assert refuting.find_false_shares(told, index.header, index.root, credits)
    assert min(found.values()) > 5, found


@pytest.mark.parametrize(
    ("lie", "word"),
    [(lower_floors, "row.floor"), (raise_score, "row.paid"), (leave_out, "row.left_out")],
)
def test_each_lie_has_its_word(indices: list[Index], lie, word) -> None:
    index = indices[SIZES.index(200)]
    sketch = mix_rows([(1.0, index.rows[9]), (0.6, index.rows[150])])
    statement = lie(attribute(index, sketch, VERSION).statement)
    told = refuting.Claim(sketch, claims.encode_statement(statement))
    words = {
        refuting.find_false_row(release_of(index, VERSION), told, OpenedRow(index.header, leaf))
        for leaf in map(index.leaf, range(200))
    }
    assert word in words


def test_better_row_left_out_is_a_lie_also_where_the_cap_is_met(tmp_path: Path) -> None:
    """90 equal rows: 64 are paid, the lower ones; the 65th may not stand in for the 64th."""
    alike = np.repeat(sound_rows(1), 90, axis=0)
    rows = np.concatenate([sound_rows(200, 5), alike])
    index = Index.open(*write_index(tmp_path, rows))
    sketch = rows[200].tobytes()
    statement = attribute(index, sketch, VERSION).statement
    assert len(statement.paid) == 64
    *kept, last = statement.paid
    score = last[2]
    other = (last[0] + 1, index.contribution_of(last[0] + 1), score)
    told = refuting.Claim(sketch, claims.encode_statement(statement._replace(paid=(*kept, other))))
    release = release_of(index, VERSION)
    verdicts = {
        row: refuting.find_false_row(release, told, OpenedRow(index.header, index.leaf(row)))
        for row in (last[0], last[0] + 1, last[0] + 2)
    }
    assert verdicts == {last[0]: "row.left_out", last[0] + 1: "", last[0] + 2: ""}


def test_what_the_root_does_not_commit_to_is_not_opened(indices: list[Index]) -> None:
    index = indices[2]
    header, leaf = claims.encode_header(index.header), claims.encode_row_leaf(index.leaf(3))
    path = index.prove_row(3)
    assert refuting.open_row(index.root, header, leaf, path).leaf == index.leaf(3)
    for changed, word in (
        ((bytes(32), header, leaf, path), "opening.root"),
        ((index.root, header[:-1], leaf, path), "opening.root"),
        ((index.root, header, leaf[:-1], path), "row_leaf.length"),
        ((index.root, header, leaf[:-1] + b"\x7f", path), "merkle.root"),
        ((index.root, header, b"\0\0\0\4" + leaf[4:], path), "merkle.root"),
        ((index.root, header, b"\xff" + leaf[1:], path), "merkle.index"),
        ((index.root, header, leaf, path[:-1]), "merkle.path_length"),
    ):
        with pytest.raises(Invalid) as refusal:
            refuting.open_row(*changed)
        assert refusal.value.code == word


def test_row_shows_nothing_of_a_claim_that_does_not_hold_by_itself(indices: list[Index]) -> None:
    index = indices[2]
    made = attribute(index, mix_rows([(1.0, index.rows[3])]), VERSION)
    opened = OpenedRow(index.header, index.leaf(3))
    for told in (
        refuting.Claim(bytes(1_024), made.statement_bytes),
        refuting.Claim(made.sketch, b"\x90"),
    ):
        with pytest.raises(Invalid):
            refuting.find_false_row(release_of(index, VERSION), told, opened)


@pytest.mark.parametrize(("value", "is_false"), [(127, True), (0, True), (-128, True), (30, True)])
def test_row_of_another_length_than_one_is_inflated(indices: list[Index], value, is_false) -> None:
    index = indices[2]
    leaf = index.leaf(3)
    assert not refuting.is_inflated(OpenedRow(index.header, leaf))
    flat = np.full(1_024, value, np.int8).tobytes()
    assert refuting.is_inflated(OpenedRow(index.header, leaf._replace(row=flat))) is is_false
