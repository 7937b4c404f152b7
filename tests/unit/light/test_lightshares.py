"""Shares checked by a few rows: what holds, each lie that they show, and givers that lie."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from attribution_kit import VERSION, mix_rows, open_unchecked, sound_rows, write_index
from bundle_kit import some_receipt
from fraud_kit import LIES, OWNERS, ROWS, leave_out

from consensus.primitives.errors import Invalid
from node.attribution.attribute import attribute
from node.attribution.audit import release_of
from node.attribution.index import Index
from node.ledger.rules import refuting, shares
from node.ledger.rules.refuting import Claim
from node.ledger.rules.reversals import Answer
from node.ledger.wire import claims, openings
from node.ledger.wire.openings import RawRows, RowOpened, SharesOpened
from node.ledger.wire.receipts import encode_credits
from node.lightshares import OWN_ROWS, PANEL_ROWS, CheckedShares, Lie, check_shares


class Holder:
    """Opens rows of an index, and counts what it gave."""

    def __init__(self, folder: Path) -> None:
        self.index = Index.open(*write_index(folder, sound_rows(ROWS), OWNERS))
        self.given: list[int] = []

    async def ask(self, rows: Sequence[int]) -> RawRows:
        self.given += rows
        opened = tuple(
            (claims.encode_row_leaf(self.index.leaf(row)), self.index.prove_row(row))
            for row in rows
        )
        return RawRows(claims.encode_header(self.index.header), opened)


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    return Holder(tmp_path)


def drawing(seed: int = 1):
    chance = random.Random(seed)
    return lambda rows, count: chance.sample(list(rows), min(count, len(rows)))


def told(holder: Holder, lie=None, **fields: object) -> tuple[Answer, Claim]:
    sketch = mix_rows([(1.0, holder.index.rows[9]), (0.6, holder.index.rows[150])])
    statement = attribute(holder.index, sketch, VERSION).statement
    raw = claims.encode_statement(lie(statement) if lie else statement)
    credits = shares.credits_of(claims.decode_statement(raw), ROWS)
    made = {"sketch_hash": claims.sketch_hash(sketch, raw)} | fields
    receipt = some_receipt(random.Random(1), encode_credits(credits), **made)
    return Answer(receipt, credits), Claim(sketch, raw)


async def check(holder: Holder, answer: Answer, claim: Claim, seed: int = 1) -> CheckedShares:
    release = release_of(holder.index, VERSION)
    return await check_shares(release, answer, claim, holder.ask, drawing(seed))


async def test_honest_shares_hold_by_every_paid_row_and_some_others(holder: Holder) -> None:
    answer, claim = told(holder)
    paid = [row for row, _, _ in claims.decode_statement(claim.statement).paid]
    for seed in range(5):
        holder.given.clear()
        found = await check(holder, answer, claim, seed)
        assert found == CheckedShares(ROWS, len(paid), PANEL_ROWS, OWN_ROWS)
        assert set(paid) <= set(holder.given)
        assert len(holder.given) <= 1 + len(paid) + PANEL_ROWS + OWN_ROWS


@pytest.mark.parametrize("name", [name for name in LIES if name != "leave_out"])
async def test_lie_about_what_was_paid_is_shown_by_a_paid_row(holder: Holder, name: str) -> None:
    """Lower floors are shown by a row of the panel; the others by the paid row itself."""
    answer, claim = told(holder, LIES[name])
    with pytest.raises(Lie) as lie:
        await check(holder, answer, claim)
    assert lie.value.kind == openings.ROW
    opened = lie.value.opened
    assert isinstance(opened, RowOpened)
    row = refuting.open_row(holder.index.root, opened.header, opened.leaf, opened.path)
    assert refuting.find_false_row(release_of(holder.index, VERSION), claim, row) == lie.value.word


async def test_row_left_out_is_shown_when_it_is_drawn(holder: Holder) -> None:
    answer, claim = told(holder, leave_out)
    words = []
    for seed in range(40):
        try:
            await check(holder, answer, claim, seed)
        except Lie as lie:
            words.append(lie.word)
    assert set(words) == {"row.left_out"}
    assert len(words) < 20, "one of 200 rows, 16 drawn"


async def test_statement_that_pays_otherwise_is_shown_by_itself(holder: Holder) -> None:
    answer, claim = told(holder)
    with pytest.raises(Lie) as lie:
        await check(holder, answer._replace(credits=((1, 10_000),)), claim)
    assert (lie.value.word, lie.value.kind) == ("claim.credits", openings.SHARES)
    assert isinstance(lie.value.opened, SharesOpened)


async def test_credits_that_nothing_binds_are_a_lie_and_none_are_not(holder: Holder) -> None:
    answer, _ = told(holder, sketch_hash=bytes(32))
    nothing = Claim(b"", b"")
    with pytest.raises(Lie) as lie:
        await check(holder, answer, nothing)
    assert lie.value.word == "credits.unbound"
    assert await check(holder, answer._replace(credits=()), nothing) == CheckedShares()
    assert holder.given == []


async def test_inflated_row_is_shown_though_the_index_commits_to_it(tmp_path: Path) -> None:
    """It is paid what it scores, so that only its length tells."""
    rows = sound_rows(ROWS)
    rows[9] = np.where(rows[9] < 0, -127, 127)
    holder = Holder.__new__(Holder)
    holder.index = open_unchecked(*write_index(tmp_path, rows, OWNERS))
    holder.given = []
    answer, claim = told(holder)
    with pytest.raises(Lie) as lie:
        await check(holder, answer, claim)
    assert (lie.value.word, lie.value.kind) == ("row.inflated", openings.NORM)
    opened = refuting.open_row(holder.index.root, *lie.value.opened)
    assert (opened.leaf.number, refuting.is_inflated(opened)) == (9, True)


async def test_claim_that_the_receipt_does_not_bind_accuses_nobody(holder: Holder) -> None:
    answer, claim = told(holder)
    with pytest.raises(Invalid, match=r"opening\.claim"):
        await check(holder, answer, claim._replace(sketch=bytes(1_024)))


@pytest.mark.parametrize("fault", ["header", "leaf", "path", "another", "fewer"])
async def test_giver_that_lies_is_refused_and_accuses_nobody(holder: Holder, fault: str) -> None:
    answer, claim = told(holder)
    honest = holder.ask

    async def lying(rows: Sequence[int]) -> RawRows:
        found = await honest(rows)
        (leaf, path), *rest = found.rows
        if fault == "header":
            return found._replace(header=found.header[:-1] + b"\1")
        if fault == "leaf":
            return found._replace(rows=((leaf[:-1] + bytes([leaf[-1] ^ 1]), path), *rest))
        if fault == "path":
            return found._replace(rows=((leaf, path[1:]), *rest))
        if fault == "another" and rest:
            return found._replace(rows=(rest[0], *rest))
        return found._replace(rows=tuple(rest)) if fault == "fewer" else found

    holder.ask = lying  # type: ignore[method-assign]
    with pytest.raises(Invalid):
        await check(holder, answer, claim)
