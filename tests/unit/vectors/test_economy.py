"""Bundles, payouts, stakes and data of chance: as a plain model foretells, with promised roots."""

import json
import random
from typing import Any

import pytest
from economy_kit import Market
from salt_kit import printed
from vectors.make import COMMAND, HERE

from node.ledger import tables

TEXT = (HERE / "economy.json").read_text(encoding="utf-8")
PROMISED = json.loads(TEXT)
CHANGED = f"other roots? if they are meant: `{COMMAND}`, and tell it in CHANGELOG.md"
TYPES = (
    "Transfer", "OpenChannel", "TopUpChannel", "CloseChannel", "CoopClose", "RegisterProvider",
    "UpdateProvider", "Bond", "Unbond", "Contribute", "Curate", "WithdrawContribution", "Snapshot",
    "PublishVersion", "FundMaintenance", "FraudProof", "Unjail",
)  # fmt: skip


@pytest.mark.parametrize("salt", ["1", "2"])
def test_the_ledger_is_the_models_whatever_the_salt_of_hashes(salt: str) -> None:
    """All that is held anywhere is compared after each block of both runs."""
    assert printed("economy", salt) == TEXT, CHANGED


def test_the_program_is_long_and_all_happens_in_it() -> None:
    assert PROMISED["transactions"] >= 10_000
    assert PROMISED["receipts"] >= 2_000
    assert PROMISED["refused_bundles"] >= 50
    codes = {"0", "20", "21", "22", "23", "24", "25", "26", "27", "28"}
    assert PROMISED["codes"].keys() == codes
    kinds = {f"matured {kind}" for kind in range(1, 7)}
    assert PROMISED["done"].keys() == {*TYPES, *kinds, "slashed"}


@pytest.fixture(scope="module")
def market() -> Market:
    """With channels, something that waits, and something that has matured."""
    made = Market(random.Random(1))
    for step_ms in (1_000, 1_000, 61_000, 1_000):
        for _ in range(60):
            made.transact()
        for _ in range(40):
            made.answer()
        made.block(step_ms)
    return made


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (tables.ACCOUNT, "balance"), (tables.CHANNEL, "paid"), (tables.LANE, "cumulative"),
        (tables.MATURING, "amount"), (tables.FUND, "balance"), (tables.BOND, "amount"),
        (tables.BOND, "entry"), (tables.STAKE, "per_grain"), (tables.STAKE, "undistributed"),
        (tables.CONTRIBUTION, "earned"), (tables.CONTRIBUTION, "stake"), (tables.DATANET, "pool"),
        (tables.VERSION, "deposit"), (tables.PROVIDER, "bundle_seq"), (tables.POOL, "balance"),
    ],
)  # fmt: skip
def test_a_grain_too_much_is_seen(
    market: Market, monkeypatch: pytest.MonkeyPatch, table: Any, field: str
) -> None:
    """The tester, tested: one number changed behind the model's back."""
    market.compare()
    changed = market.chain.state()
    key, record = changed.scan(table)[0]
    changed.put(table, tuple(key), record._replace(**{field: getattr(record, field) + 1}))
    monkeypatch.setattr(market.chain, "state", lambda: changed)
    with pytest.raises(AssertionError):
        market.compare()
