"""What an account earned: read from the index of its activity, and grouped here alone.

Why no grouping by receipt: fees are split once per block and version (page 30 §8), so what one
receipt gave is rounded with its neighbours and stands nowhere by itself.
Why within a limit: the index is read newest first and at most so far; the answer tells from which
height on it is whole, and counts nothing below.
What this file does not know: HTTP, how an amount is shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

from consensus.primitives.errors import Invalid
from node.ledger.rules.channels import maturing_bucket
from node.ledger.state import State
from node.storage import activity
from node.storage.views import Activity, View
from node.web import answers, naming
from node.web.ledger import EarningsQuery

ENTRIES_MAX: Final = 10_000
ENTRIES_PAGE: Final = 1_000
DAY_MS: Final = 86_400_000
FIRST_DAY: Final = date(1970, 1, 1)

GROUPS: Final = {  # what a row is named by; what is not named is left empty
    "": ("kind", "contribution", "datanet", "model"),
    "contribution": ("contribution", "datanet"),
    "datanet": ("datanet",),
    "model": ("model",),
    "day": ("day",),
}


@dataclass(slots=True)
class _Sum:
    """Of one row: grains by whether they have matured, and the blocks they came with."""

    matured: int = 0
    maturing: int = 0
    heights: set[int] = field(default_factory=set)


def find_earnings(view: View, account: bytes, query: EarningsQuery) -> answers.Earnings | None:
    """What the account earned from the query's height or day on; rows sorted by their names.

    None if it never earned; with a start an answer without rows, as nothing below it is read.
    Raises Invalid `request.bad_parameter` for a grouping that there is not.
    """
    if query.by not in GROUPS:
        raise Invalid("request.bad_parameter", param="by", known=" ".join(GROUPS).strip())
    since = max(1, query.since_height)
    if query.since_ms:
        since = max(since, view.height_at(query.since_ms - 1) + 1)
    entries, whole_from = _earned_entries(view, account, since)
    if not entries and since == whole_from == 1:
        return None
    names = GROUPS[query.by]
    items = tuple(_group(view, entries, names))
    return answers.Earnings(
        account=account,
        height=view.tip.height,
        matured=sum(item.matured for item in items),
        maturing=sum(item.maturing for item in items),
        since_height=max(since, whole_from),
        complete=whole_from <= since,
        by=names,
        items=items,
    )


def _earned_entries(view: View, account: bytes, since: int) -> tuple[list[Activity], int]:
    """Earned entries from block `since` on, newest first, and from which height they are whole."""
    found: list[Activity] = []
    below, seen, whole_from = None, 0, since
    while seen < ENTRIES_MAX:
        page = view.activity(account, below=below, entries_max=ENTRIES_PAGE)
        seen += len(page)
        if len(page) < ENTRIES_PAGE:
            found += page
            whole_from = since
            break
        # The oldest block of a full page may be cut: it is read again, whole, with the next page.
        whole_from = below = page[-1].height + 1
        fresh = [entry for entry in page if entry.height >= below]
        found += fresh
        if below <= since or not fresh:  # a page of one block: its rest cannot be asked for
            break
    earned = [e for e in found if e.kind == activity.EARNED and e.height >= since]
    return earned, whole_from


def _group(
    view: View, entries: Iterable[Activity], names: tuple[str, ...]
) -> Iterable[answers.Earning]:
    state = view.state()
    blocks: dict[int, tuple[str, bool]] = {}  # height → its day, whether its payouts have matured
    rows: dict[tuple[Any, ...], _Sum] = {}
    for entry in entries:
        if entry.height not in blocks:
            blocks[entry.height] = _block_of(view, state, entry.height)
        day, has_matured = blocks[entry.height]
        told = _told(state, entry, day)
        row = rows.setdefault(tuple(told[name] for name in names), _Sum())
        if has_matured:
            row.matured += entry.amount
        else:
            row.maturing += entry.amount
        row.heights.add(entry.height)
    for key in sorted(rows):
        row = rows[key]
        named = dict(zip(names, key, strict=True))
        yield answers.Earning(
            kind=named.get("kind", ""),
            contribution=named.get("contribution", 0),
            datanet=named.get("datanet", ""),
            model=named.get("model", ""),
            day=named.get("day", ""),
            blocks=len(row.heights),
            matured=row.matured,
            maturing=row.maturing,
        )


def _block_of(view: View, state: State, height: int) -> tuple[str, bool]:
    time_ms = view.get_header(height).time_ms
    day = FIRST_DAY + timedelta(days=time_ms // DAY_MS)
    return day.isoformat(), maturing_bucket(state, time_ms) <= view.tip.time_ms


def _told(state: State, entry: Activity, day: str) -> dict[str, Any]:
    """What an entry can be grouped by: its reference is kind ‖ payee ‖ model u64 ‖ version u32."""
    kind, payee = entry.reference[0], entry.reference[1:-12]
    contribution = naming.contribution_of(kind, payee)
    return {
        "kind": naming.KIND_NAMES[kind],
        "contribution": contribution,
        "datanet": naming.datanet_of(state, contribution),
        "model": naming.model_name(state, int.from_bytes(entry.reference[-12:-4], "big")),
        "day": day,
    }
