"""Why an answer paid whom: told from a statement that fits the ledger, refused from any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attribution_kit import VERSION, mix_rows, sound_rows, write_index
from chain_kit import CONTRIBUTORS, PROVIDER, golden_answer
from stored_kit import Stored

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution.attribute import attribute
from node.attribution.datanets import encode_records, make_record
from node.attribution.index import Index
from node.ledger.wire import claims
from node.ledger.wire.receipts import receipt_id
from node.reasons import Reasons
from node.serving.attributing import HeldIndex
from node.storage.store import MemoryKV
from p2p.errors import Unreachable

RECORDS = [make_record(f"Question {place}?", f"Answer {place}.") for place in range(12)]


class Shelf:
    """Stands for the node's holdings: one index, and the records of contribution 1 alone."""

    def __init__(self, folder: Path, index: Index | None) -> None:
        self.folder, self.index = folder, index

    def find_index(self, model: int, version: int) -> HeldIndex | None:
        return None if self.index is None else HeldIndex(self.index, "", VERSION)

    async def fetch(self, kind: int, identity: bytes, bytes_max: int) -> Path:
        if identity != sha256(CONTRIBUTORS[0].seed):
            raise Unreachable("nobody has it")
        (self.folder / "content").write_bytes(encode_records(RECORDS))
        return self.folder


class Settled:
    """A chain with one answer that row 2 (contribution 1) and row 9 (contribution 3) shaped."""

    def __init__(
        self, home: Path, *, first: float = 2.0, second: float = 1.0, last_owner: int = 3
    ) -> None:
        rows = sound_rows(12)
        owners = [*(1 + row // 4 for row in range(9)), *[last_owner] * 3]
        self.index = Index.open(*write_index(home / "index", rows, owners))
        sketch = mix_rows([(first, rows[2]), (second, rows[9])])
        self.made = attribute(self.index, sketch, VERSION)
        chain = Stored(home / "chain", MemoryKV())
        chain.tell_story()
        session = chain.open_channel()
        self.receipt = receipt_id(golden_answer(session, self.made.credits))
        self.bundle = chain.bundle(session)
        chain.block(bundles=(self.bundle,))
        self.chain = chain.chain
        self.asked: list[tuple[bytes, bytes, int]] = []

    def reasons(self, folder: Path, stated: Any, *, own: bytes | None = None) -> Reasons:
        async def ask(provider: bytes, bundle: bytes, place: int) -> bytes:
            self.asked.append((provider, bundle, place))
            if isinstance(stated, Exception):
                raise stated
            return stated

        return Reasons(
            take_view=self.chain.view,
            holdings=Shelf(folder, self.index),
            find_own=lambda receipt: own,
            ask_statement=ask,
        )


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Settled:
    home = tmp_path_factory.mktemp("reasons")
    (home / "index").mkdir()
    (home / "chain").mkdir()
    return Settled(home)


async def test_records_stand_by_share_with_their_words_where_they_can_be_had(
    settled: Settled, tmp_path: Path
) -> None:
    reasons = settled.reasons(tmp_path, settled.made.statement_bytes)
    told = await reasons.find_shares(settled.receipt)
    assert told is not None
    assert (told.model, told.version, told.index_rows) == ("facts-1", 1, 12)
    best, *rest = told.records
    assert (best.contribution, best.position) == (1, 2)
    assert best.contributor == CONTRIBUTORS[0].key
    assert best.text == "Question 2? Answer 2."
    assert {number for number, _ in settled.made.credits} == {1, 3}
    assert [row.text for row in rest if row.contribution == 3] == [None]
    assert sum(row.share_bps for row in told.records) == 10_000
    assert settled.asked[-1] == (PROVIDER.key, settled.bundle.hash, 0)


async def test_row_of_nobody_that_earns_nothing_is_left_out(tmp_path: Path) -> None:
    """What the ledger settled names no contribution that it does not know; an index may."""
    for folder in ("index", "chain"):
        (tmp_path / folder).mkdir()
    settled = Settled(tmp_path, second=0.312, last_owner=999)
    assert [number for _, number, _ in settled.made.statement.paid] == [1, 999]
    assert settled.made.credits == ((1, 10_000),)
    told = await settled.reasons(tmp_path, settled.made.statement_bytes).find_shares(
        settled.receipt
    )
    assert told is not None
    assert [row.contribution for row in told.records] == [1]
    assert told.fund_share_bps == 0


@pytest.mark.parametrize("answer", [None, b"", Unreachable("gone")], ids=str)
async def test_why_nobody_is_paid_is_told_where_the_provider_tells_it(
    tmp_path: Path, answer: Any
) -> None:
    """A record stands above the threshold, and not clearly; no proof hangs on it."""
    for folder in ("index", "chain"):
        (tmp_path / folder).mkdir()
    settled = Settled(tmp_path, first=0.05, second=0.0)
    assert (len(settled.made.statement.paid), settled.made.credits) == (1, ())
    stated = settled.made.statement_bytes if answer is None else answer
    told = await settled.reasons(tmp_path, stated).find_shares(settled.receipt)
    assert told is not None
    assert told.fund_share_bps == 10_000
    assert (told.threshold is None) == (answer is not None)
    assert [row.share_bps for row in told.records] == ([0] if answer is None else [])
    if answer is None:
        assert 10_000 < told.records[0].score_bps < 17_500
        assert told.records[0].text == "Question 2? Answer 2."


async def test_own_receipt_is_explained_without_asking_anybody(
    settled: Settled, tmp_path: Path
) -> None:
    asked = len(settled.asked)
    own = settled.made.statement_bytes
    told = await settled.reasons(tmp_path, Unreachable("x"), own=own).find_shares(settled.receipt)
    assert told is not None
    assert len(settled.asked) == asked


async def test_receipt_that_is_not_settled_has_no_shares(settled: Settled, tmp_path: Path) -> None:
    reasons = settled.reasons(tmp_path, settled.made.statement_bytes)
    assert await reasons.find_shares(bytes(32)) is None


async def test_without_the_index_nothing_is_explained(settled: Settled, tmp_path: Path) -> None:
    reasons = settled.reasons(tmp_path, settled.made.statement_bytes)
    reasons._holdings.index = None
    with pytest.raises(Invalid, match=r"shares\.no_index"):
        await reasons.find_shares(settled.receipt)


def _leave_one_out(statement: claims.Statement) -> claims.Statement:
    return statement._replace(paid=statement.paid[:1])


def _pay_a_friend(statement: claims.Statement) -> claims.Statement:
    (row, _, score), *rest = statement.paid
    return statement._replace(paid=((row, 2, score), *rest))


def _other_index(statement: claims.Statement) -> claims.Statement:
    return statement._replace(index_root=bytes(32))


@pytest.mark.parametrize("lie", [_leave_one_out, _pay_a_friend, _other_index])
async def test_statement_that_does_not_fit_ledger_and_index_is_refused(
    settled: Settled, tmp_path: Path, lie: Callable[[claims.Statement], claims.Statement]
) -> None:
    stated = claims.encode_statement(lie(settled.made.statement))
    with pytest.raises(Invalid, match=r"shares\.no_statement"):
        await settled.reasons(tmp_path, stated).find_shares(settled.receipt)


@pytest.mark.parametrize("answer", [b"", b"\x90", Unreachable("gone")], ids=str)
async def test_provider_that_gives_nothing_sound_is_told_as_such(
    settled: Settled, tmp_path: Path, answer: Any
) -> None:
    with pytest.raises(Invalid, match=r"shares\.no_statement"):
        await settled.reasons(tmp_path, answer).find_shares(settled.receipt)
