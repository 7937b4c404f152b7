"""What an account earned: grouped without losing a grain, and whole from the height it tells."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chain_kit import CONTRIBUTORS, CREATOR, PROVIDER, START_MS
from stored_kit import Told

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.wire.payouts import PayoutLeaf
from node.storage import activity
from node.storage.views import Activity
from node.web import answers, earnings
from node.web.earnings import ENTRIES_MAX, ENTRIES_PAGE, GROUPS, find_earnings
from node.web.ledger import EarningsQuery

WINDOW_MS = 130_000  # past the devnet's challenge window of a minute
MIDNIGHT_MS = START_MS - START_MS % earnings.DAY_MS


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    made = Told(tmp_path_factory.mktemp("home"))
    yield made
    made.made.chain.close()


def ask(told: Any, account: bytes, **query: Any) -> answers.Earnings:
    found = find_earnings(told.view(), account, EarningsQuery(**query))
    assert found is not None
    return found


@pytest.mark.parametrize("by", sorted(GROUPS))
def test_every_grouping_has_the_same_sum(told: Told, by: str) -> None:
    for who in (CONTRIBUTORS[2], CREATOR, PROVIDER):
        whole, grouped = ask(told, who.key), ask(told, who.key, by=by)
        assert (grouped.matured, grouped.maturing) == (whole.matured, whole.maturing)
        assert sum(item.maturing for item in grouped.items) == whole.maturing > 0
        assert grouped.by == GROUPS[by]


def test_row_holds_only_what_it_is_named_by(told: Told) -> None:
    giver = CONTRIBUTORS[2].key
    rows = {by: ask(told, giver, by=by).items for by in GROUPS}
    named = {
        by: [(i.kind, i.contribution, i.datanet, i.model, i.day, i.blocks) for i in items]
        for by, items in rows.items()
    }
    assert named == {
        "": [("data", 3, "facts", "facts-1", "", 1)],
        "contribution": [("", 3, "facts", "", "", 1)],
        "datanet": [("", 0, "facts", "", "", 1)],
        "model": [("", 0, "", "facts-1", "", 1)],
        "day": [("", 0, "", "", "2023-11-14", 1)],
    }


def test_what_is_no_data_has_no_contribution_and_no_datanet(told: Told) -> None:
    (row,) = ask(told, PROVIDER.key, by="datanet").items
    assert (row.datanet, row.maturing > 0) == ("", True)


def test_unknown_grouping_is_refused(told: Told) -> None:
    """A receipt's part is rounded with its block's: there is no exact answer to give."""
    with pytest.raises(Invalid) as refused:
        ask(told, PROVIDER.key, by="receipt")
    assert (refused.value.code, refused.value.facts["param"]) == ("request.bad_parameter", "by")


def test_height_counts_its_own_block_and_nothing_below(told: Told) -> None:
    at = told.paid_height
    here, above = (ask(told, PROVIDER.key, since_height=height) for height in (at, at + 1))
    assert here.items == ask(told, PROVIDER.key).items
    assert (here.since_height, here.complete) == (at, True)
    assert (above.items, above.maturing, above.since_height) == ((), 0, at + 1)


def test_time_counts_the_blocks_made_at_it_or_later(told: Told) -> None:
    paid_ms = told.view().get_header(told.paid_height).time_ms
    at, later = (ask(told, PROVIDER.key, since_ms=ms) for ms in (paid_ms, paid_ms + 1))
    assert (at.since_height, len(at.items)) == (told.paid_height, 1)
    assert (later.since_height, later.items) == (told.paid_height + 1, ())
    assert ask(told, PROVIDER.key, since_ms=MIDNIGHT_MS).since_height == 1


def test_later_of_height_and_time_counts(told: Told) -> None:
    paid_ms = told.view().get_header(told.paid_height).time_ms
    found = ask(told, PROVIDER.key, since_height=2, since_ms=paid_ms)
    assert found.since_height == told.paid_height
    found = ask(told, PROVIDER.key, since_height=told.paid_height + 5, since_ms=paid_ms)
    assert found.since_height == told.paid_height + 5


def test_days_are_those_of_the_blocks_in_utc(tmp_path: Path) -> None:
    """The payout of 23:59:59.999 is of that day, whatever the reader's zone."""
    made = Told(tmp_path)
    last = made.view().tip.time_ms
    session = made.made.open_channel()
    made.made.block(later_ms=MIDNIGHT_MS + 2 * earnings.DAY_MS - made.view().tip.time_ms - 1)
    session.serve((), model=1, model_version=1, tokens_in=10, tokens_out=10, fee=1_848_000)
    made.made.block(bundles=(made.made.bundle(session, bundle_seq=2),), later_ms=1)
    days = [item.day for item in ask(made, PROVIDER.key, by="day").items]
    assert last < MIDNIGHT_MS + earnings.DAY_MS
    assert days == ["2023-11-14", "2023-11-16"]
    made.made.chain.close()


def test_matured_and_maturing_stand_apart_in_one_row(tmp_path: Path) -> None:
    made = Told(tmp_path)
    first = ask(made, PROVIDER.key).maturing
    session = made.made.open_channel()
    session.serve((), model=1, model_version=1, tokens_in=10, tokens_out=10, fee=1_848_000)
    bundle = made.made.bundle(session, bundle_seq=2)
    made.made.block(bundles=(bundle,), later_ms=WINDOW_MS)
    (row,) = ask(made, PROVIDER.key, by="model").items
    assert (row.matured, row.blocks) == (first, 2)
    assert 0 < row.maturing < first
    made.made.chain.close()


# --- many entries: a table in place of a chain


def entry(height: int, index: int = 0, kind: int = activity.EARNED, version: int = 1) -> Activity:
    leaf = PayoutLeaf(tables.KIND_PROVIDER, PROVIDER.key, 1, version, 1, 1, 1, 1, 0)
    return Activity(height, index, kind, 1, activity.payout_reference(leaf))


class Table:
    """As much of a view as earnings are read from; every payout is one grain and has matured."""

    def __init__(self, told: Told, entries: list[Activity]) -> None:
        self.entries = sorted(entries, key=lambda e: (-e.height, e.index))
        self.tip = SimpleNamespace(height=10**6, time_ms=START_MS + WINDOW_MS)
        self.state = told.view().state
        self.view = lambda: self

    def get_header(self, height: int) -> Any:
        return SimpleNamespace(time_ms=START_MS)

    def activity(
        self, account: bytes, *, below: int | None = None, entries_max: int = 100
    ) -> tuple[Activity, ...]:
        found = [e for e in self.entries if below is None or e.height < below]
        return tuple(found[:entries_max])


def test_two_versions_in_one_block_are_one_block(told: Told) -> None:
    table = Table(told, [entry(5, 0), entry(5, 1, version=2), entry(6)])
    (row,) = ask(table, PROVIDER.key).items
    assert (row.blocks, row.matured) == (2, 3)


@pytest.mark.parametrize("per_block", [1, 3, 7])
def test_entries_over_several_pages_are_counted_once(told: Told, per_block: int) -> None:
    blocks = 2 * ENTRIES_PAGE // per_block + 5
    table = Table(told, [entry(1 + h, i) for h in range(blocks) for i in range(per_block)])
    found = ask(table, PROVIDER.key)
    assert (found.matured, found.since_height, found.complete) == (blocks * per_block, 1, True)


def test_beyond_its_limit_the_answer_tells_from_where_it_is_whole(told: Told) -> None:
    table = Table(told, [entry(1 + h, i) for h in range(ENTRIES_MAX) for i in range(2)])
    found = ask(table, PROVIDER.key)
    counted = 2 * (ENTRIES_MAX - found.since_height + 1)
    assert not found.complete
    assert found.since_height > 1
    assert found.matured == counted
    asked = ask(table, PROVIDER.key, since_height=found.since_height)
    assert (asked.complete, asked.matured) == (True, counted)


def test_block_with_more_entries_than_a_page_is_left_out_whole(told: Told) -> None:
    """A part of a block counted would be an amount that stands on no block."""
    crowd = [entry(7, i) for i in range(ENTRIES_PAGE)]
    found = ask(Table(told, [entry(8), *crowd, entry(2)]), PROVIDER.key)
    assert (found.matured, found.since_height, found.complete) == (1, 8, False)
    alone = ask(Table(told, [*crowd, entry(2)]), PROVIDER.key)
    assert (alone.matured, alone.since_height, alone.complete) == (0, 8, False)


def test_other_entries_are_no_earnings(told: Told) -> None:
    table = Table(told, [entry(5), entry(5, 1, kind=activity.PAID), entry(6, 0, activity.SENT)])
    assert ask(table, PROVIDER.key).matured == 1
    nothing = Table(told, [entry(5, kind=activity.PAID)])
    assert find_earnings(nothing, PROVIDER.key, EarningsQuery()) is None
