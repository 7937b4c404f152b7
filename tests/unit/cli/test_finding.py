"""Rows are found by name or number, on whatever page they stand."""

from typing import Any

import pytest

from node.cli import finding
from node.cli.finding import find_row, rows_of
from node.cli.frame import CommandError


class Table:
    """A node that has `count` models named m<number>, and gives them as the routes do."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.routes: list[str] = []

    def get(self, route: str) -> dict[str, Any]:
        self.routes.append(route)
        path, _, query = route.partition("?")
        asked = dict(pair.split("=") for pair in query.split("&"))
        first = int(asked["after"]) + 1
        numbers = range(first, min(first + int(asked["limit"]), self.count + 1))
        rows = [{"number": number, "name": f"m{number}"} for number in numbers]
        return {path.rpartition("/")[2]: rows}


def find(table: Table, called: str) -> int:
    number: int = find_row(table, "models", called)["number"]  # type: ignore[arg-type]  # all of Node that is used
    return number


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_every_row_comes_once_and_in_order(count: int) -> None:
    table = Table(count)
    rows = rows_of(table, "/ledger/models", "models")  # type: ignore[arg-type]  # as above
    assert [row["number"] for row in rows] == list(range(1, count + 1))
    assert len(table.routes) == count // 100 + 1


class ShortPages(Table):
    """A node that looks at seven rows for a page, and gives every third."""

    def get(self, route: str) -> dict[str, Any]:
        path, _, query = route.partition("?")
        after = int(dict(pair.split("=") for pair in query.split("&"))["after"])
        ((name, rows),) = super().get(f"{path}?after={after}&limit=7").items()
        told = [row for row in rows if row["number"] % 3 == 0]
        return {name: told, "more_after": after + 7 if after + 7 < self.count else 0}


@pytest.mark.parametrize("count", [0, 6, 7, 8, 30])
def test_short_page_is_not_the_last_where_the_node_says_so(count: int) -> None:
    rows = rows_of(ShortPages(count), "/ledger/models", "models")  # type: ignore[arg-type]  # as above
    assert [row["number"] for row in rows] == list(range(3, count + 1, 3))


def test_list_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "PAGES_MAX", 2)
    rows = rows_of(Table(10**6), "/ledger/models", "models")  # type: ignore[arg-type]  # as above
    with pytest.raises(CommandError, match="more than 200 rows"):
        list(rows)


def test_name_is_found_on_a_later_page_and_number_at_once() -> None:
    table = Table(250)
    assert find(table, "m203") == 203
    assert len(table.routes) == 3
    assert find(table, "203") == 203
    assert len(table.routes) == 4


@pytest.mark.parametrize(
    "called", ["0", "251", "m251", "M1", "", "9" * 18, "9" * 19, "\u0661", "1.0"]
)
def test_what_is_not_there_is_told_with_the_command_that_lists(called: str) -> None:
    with pytest.raises(CommandError) as caught:
        find(Table(250), called)
    assert (caught.value.code, caught.value.mend) == ("model.not_found", "olnode query models")


def test_digits_are_a_number_though_a_row_has_them_as_its_name() -> None:
    class Posing(Table):
        def get(self, route: str) -> dict[str, Any]:
            told = super().get(route)
            for row in told["models"]:
                row["name"] = "2" if row["number"] == 1 else row["name"]
            return told

    assert find(Posing(3), "2") == 2
