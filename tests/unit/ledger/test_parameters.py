"""Parameters: page 40's defaults, what a devnet changes, and what a value may be."""

import re
from pathlib import Path

import pytest

from consensus.primitives.encoding import INT_MAX
from consensus.primitives.errors import Invalid
from node.ledger.amounts import BPS, GRAINS_PER_OPEN
from node.ledger.parameters import (
    DAY_MS,
    DEFAULTS,
    HOUR_MS,
    MINUTE_MS,
    MONTH_MS,
    SPLITS,
    WEEK_MS,
    check_parameter,
    devnet_parameters,
)

OPEN = GRAINS_PER_OPEN
ROOT = Path(__file__).resolve().parents[3]


def values_of(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_may_stand_in_a_genesis(name: str) -> None:
    values = values_of(DEFAULTS[name])
    check_parameter(name, values)
    assert re.fullmatch(r"[a-z_]{1,64}", name)
    assert 1 <= len(values) <= 16
    assert all(0 <= value <= INT_MAX for value in values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("platform_fee", 1_000_000),
        ("min_receipt_fee", 100_000),
        ("challenge_window_ms", DAY_MS),
        ("tx_burn_bps", 5_000),
        ("min_base_price", 100),
        ("validator_bond_min", 10_000 * OPEN),
        ("provider_bond_min", 1_000 * OPEN),
        ("auditor_bond_min", 500 * OPEN),
        ("delegation_min", 100 * OPEN),
        ("unbonding_ms", 21 * DAY_MS),
        ("operator_bps", 1_000),
        ("model_deposit", 100 * OPEN),
        ("model_fee", 10 * OPEN),
        ("datanet_deposit", 100 * OPEN),
        ("datanet_fee", 5 * OPEN),
        ("contribution_bond", OPEN),
        ("version_deposit", 10 * OPEN),
        ("version_fee", 3 * OPEN),
        ("withdrawn_version_ms", 180 * DAY_MS),
        ("price_notice_ms", HOUR_MS),
        ("price_interval_ms", DAY_MS),
        ("retire_notice_ms", 30 * DAY_MS),
        ("model_deposit_ms", 30 * DAY_MS),
    ],
)
def test_defaults_are_those_of_the_design(name: str, value: int) -> None:
    assert DEFAULTS[name] == value


def test_both_splits_are_those_of_the_design() -> None:
    """Provider, data, creator, stakers, fund, treasury, burn."""
    assert SPLITS["default"] == (2_000, 4_000, 1_500, 1_000, 1_000, 500, 0)
    assert SPLITS["whitepaper"] == (1_000, 5_000, 1_000, 2_000, 800, 200, 0)
    assert DEFAULTS["split_bps"] == SPLITS["default"]
    for split in SPLITS.values():
        check_parameter("split_bps", split)


def test_a_month_is_a_twelfth_of_the_mean_year() -> None:
    assert MONTH_MS * 12 == 365_2425 * DAY_MS // 10_000
    assert (HOUR_MS, DAY_MS, WEEK_MS) == (60 * MINUTE_MS, 24 * HOUR_MS, 7 * DAY_MS)


def test_a_devnet_divides_bonds_and_shortens_windows_and_changes_nothing_else() -> None:
    """Page 40 §4: fees, splits and rules are the real ones."""
    devnet = devnet_parameters()
    assert devnet.keys() == DEFAULTS.keys()
    for name, value in DEFAULTS.items():
        if devnet[name] == value:
            continue
        assert isinstance(value, int)
        is_money = re.search(r"_(bond|deposit)(_min)?$|^(delegation|stake_per_record)_", name)
        is_window = name.endswith(("_ms", "_ms_min"))
        assert is_money or is_window, f"{name} differs"
        if is_money and not is_window:
            assert devnet[name] == value // 1_000
        else:
            assert devnet[name] < value
            assert devnet[name] % MINUTE_MS == 0
    assert devnet["challenge_window_ms"] == MINUTE_MS
    assert devnet["provider_bond_min"] == OPEN
    assert devnet["platform_fee"] == DEFAULTS["platform_fee"]


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("nothing", (1,), "parameter.unknown"),
        ("platform_fee", (), "parameter.arity"),
        ("platform_fee", (1, 2), "parameter.arity"),
        ("split_bps", (BPS,), "parameter.arity"),
        ("split_bps", (BPS, 0, 0, 0, 0, 0, 1), "parameter.split"),
        ("split_bps", (BPS - 1, 0, 0, 0, 0, 0, 0), "parameter.split"),
        ("tx_burn_bps", (BPS + 1,), "parameter.bps"),
    ],
)
def test_each_refusal_has_its_word(name: str, values: tuple[int, ...], code: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_parameter(name, values)
    assert refusal.value.code == code


def test_a_share_may_be_the_whole() -> None:
    check_parameter("tx_burn_bps", (BPS,))
    check_parameter("tx_burn_bps", (0,))
    check_parameter("split_bps", (0, 0, 0, 0, 0, 0, BPS))


def test_every_parameter_that_a_rule_reads_exists() -> None:
    """A misspelt name would stop the chain at the first block that reads it."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "node/ledger").rglob("*.py")]
    read = set(re.findall(r'\bparameter(?:_values)?\("([a-z_]+)"\)', "\n".join(sources)))
    assert len(read) > 20
    assert read - DEFAULTS.keys() == set()
