"""Rows of the ledger by what people call them: Datanets, models, snapshots, by name or number.

Why here: a transaction carries numbers, and nobody should have to look one up by hand; what is not
there is told before anything is signed.
What it does not know: transactions, keys.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from node.cli.frame import CommandError

if TYPE_CHECKING:
    from node.web.ask import Node

ROWS_A_PAGE: Final = 100  # what the route gives at most
PAGES_MAX: Final = 10_000
NUMBER_DIGITS_MAX: Final = 18
UNSETTLED: Final = ("receipt.not_found", "ledger.no_proof")
NOUN_OF: Final = {"datanets": "Datanet", "models": "model", "snapshots": "snapshot"}

R = TypeVar("R")


def settled(receipt: str, ask: Callable[[], R]) -> R:
    """What `ask` gives of a receipt; who asks of one just bought is told that a block must come."""
    from node.web.ask import Refusal

    try:
        return ask()
    except Refusal as error:
        if error.code not in UNSETTLED:
            raise
        raise CommandError(
            f"no block has settled receipt {receipt}",
            mend="if it was bought just now, the same command in some seconds",
            code=error.code,
        ) from None


def rows_of(node: "Node", route: str, name: str) -> Iterator[dict[str, Any]]:
    """Every row of the list `name` at `route`, page after page, by number."""
    after = 0
    for _ in range(PAGES_MAX):
        told = node.get(f"{route}?after={after}&limit={ROWS_A_PAGE}")
        page = told[name]
        yield from page
        last = page[-1]["number"] if len(page) == ROWS_A_PAGE else 0
        after = told.get("more_after", last)  # where a short page need not be the last
        if not after:
            return
    raise CommandError(f"{route} has more than {PAGES_MAX * ROWS_A_PAGE} rows")


def find_row(node: "Node", kind: str, called: str) -> dict[str, Any]:
    """The row of `kind` (`datanets`, `models`, `snapshots`) with that name or number.

    Digits are a number, never a name: else a Datanet that is named 7 would get what is meant for
    number 7. Raises CommandError for none.
    """
    found: dict[str, Any] | None
    if called.isascii() and called.isdigit() and len(called) <= NUMBER_DIGITS_MAX:
        before = max(int(called) - 1, 0)
        rows = iter(node.get(f"/ledger/{kind}?after={before}&limit=1")[kind])
        found = next((row for row in rows if row["number"] == int(called)), None)
    else:
        every = rows_of(node, f"/ledger/{kind}", kind)
        found = next((row for row in every if row.get("name") == called), None)
    if found is None:
        noun = NOUN_OF[kind]
        raise CommandError(
            f"the ledger has no {noun} {called}",
            mend=f"olnode query {kind}",
            code=f"{noun.lower()}.not_found",
        )
    return found
