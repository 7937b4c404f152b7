"""Every number that a vote may change: name, default, page; what a devnet sets instead.

Why one table: a rule reads `state.parameter("…")` and never a constant, the genesis writes each
one into the state, and `params_hash` in every header commits to them all.
Amounts are grains, times milliseconds. Defaults and reasons: page 40; (C) there means: chosen.
"""

from typing import Final

from consensus.primitives.errors import Invalid
from node.ledger.amounts import BPS, GRAINS_PER_OPEN

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
MONTH_MS: Final = 2_629_746_000  # 365.2425 d / 12

_OPEN: Final = GRAINS_PER_OPEN
SPLIT_KINDS: Final = 7  # provider, data, creator, stakers, fund, treasury, burn

SPLITS: Final = {
    "default": (2_000, 4_000, 1_500, 1_000, 1_000, 500, 0),
    # The only published example, 10/20/20/50 of 1 OPEN: hosts 20 % = creator + provider.
    "whitepaper": (1_000, 5_000, 1_000, 2_000, 800, 200, 0),
}

# name -> value: an int, or the seven of a split.
DEFAULTS: Final[dict[str, int | tuple[int, ...]]] = {
    # fees and payouts, page 40 §2-§4
    "split_bps": SPLITS["default"],
    "platform_fee": 1_000_000,
    "min_receipt_fee": 100_000,
    "challenge_window_ms": DAY_MS,
    "trainer_bps": 5_000,
    "correction_bps": 5_000,
    "min_base_price": 100,
    "tx_burn_bps": 5_000,
    "tx_weight_target": 2_000_000,
    # channels, page 30 §7
    "channel_close_ms": DAY_MS,
    "channel_forget_ms": 7 * DAY_MS,
    "channel_cap_min": 10 * 1_000_000,
    # staking, page 40 §6
    "validator_bond_min": 10_000 * _OPEN,
    "provider_bond_min": 1_000 * _OPEN,
    "auditor_bond_min": 500 * _OPEN,
    "delegation_min": 100 * _OPEN,
    "provider_deposit": 1 * _OPEN,
    "unbonding_ms": 21 * DAY_MS,
    "operator_bps": 1_000,
    "validator_set_ms": HOUR_MS,
    # offences, page 40 §6
    "double_vote_slash_bps": 500,
    "double_vote_power_factor": 3,  # more bps for each bps of power that offends together
    "double_vote_jail_ms": 21 * DAY_MS,
    "offence_window_ms": DAY_MS,
    "double_receipt_slash_bps": 500,
    "double_receipt_finder_bps": 500,  # of what the payer has not got of it
    "double_receipt_jail_ms": DAY_MS,
    # failures of providers and proofs of fraud, page 40 §6, §11
    "failure_slash_bps": (100, 500, 1_000),  # the first, the second, each later one
    "failure_window_ms": 90 * DAY_MS,
    "failure_limit_bps": 3_000,  # of all failures within a day
    "failure_jail_ms": 7 * DAY_MS,  # from the third on
    "fraud_bond": 1 * _OPEN,
    "fraud_finder_bps": 2_500,
    # Datanets, page 40 §4, §7
    "datanet_deposit": 100 * _OPEN,
    "datanet_fee": 5 * _OPEN,
    "datanet_fee_pool_bps": 8_000,
    "contribution_bond": 1 * _OPEN,
    "stake_per_record_min": 10_000_000,
    "stake_per_record_max": 1 * _OPEN,
    "stake_hold_ms": 90 * DAY_MS,
    "review_fee": 50_000_000,
    "review_ms_min": DAY_MS,
    "review_ms_max": 30 * DAY_MS,
    "snapshot_interval_ms": DAY_MS,
    "withdrawn_version_ms": 180 * DAY_MS,
    "curation_bps_max": 1_000,
    # models, page 40 §4, §8
    "model_deposit": 100 * _OPEN,
    "model_fee": 10 * _OPEN,
    "model_fee_fund_bps": 8_000,
    "version_deposit": 10 * _OPEN,
    "version_fee": 3 * _OPEN,
    "version_record_fee": 100_000,
    "version_deposit_ms": 90 * DAY_MS,
    "superseded_ms": DAY_MS,
    "price_notice_ms": HOUR_MS,
    "price_interval_ms": DAY_MS,
    "retire_notice_ms": 30 * DAY_MS,
    "model_deposit_ms": 30 * DAY_MS,  # after its end
    "royalty_bps_max": 5_000,
    # consensus, page 20
    "payload_bytes_max": 1 << 20,
    "validators_max": 48,
    "precision_ms": 500,
    "delay_ms": 5_000,
    "heartbeat_ms": 30_000,
    "evidence_age_ms_max": 21 * DAY_MS,
}

_DEVNET_DIVIDED: Final = (
    "validator_bond_min", "provider_bond_min", "auditor_bond_min", "delegation_min",
    "provider_deposit", "datanet_deposit", "contribution_bond", "stake_per_record_min",
    "stake_per_record_max", "model_deposit", "version_deposit", "fraud_bond",
)  # fmt: skip
_DEVNET_MINUTES: Final = {
    "challenge_window_ms": 1, "channel_close_ms": 1, "channel_forget_ms": 5, "stake_hold_ms": 5,
    "review_ms_min": 1, "snapshot_interval_ms": 0, "superseded_ms": 10,
    "version_deposit_ms": 10, "validator_set_ms": 1, "price_notice_ms": 1,
    "withdrawn_version_ms": 10, "price_interval_ms": 2, "retire_notice_ms": 10,
    "model_deposit_ms": 10,
}  # fmt: skip
DEVNET_DIVISOR: Final = 1_000  # bonds and deposits; nothing else but windows differs (page 40 §4)


def devnet_parameters() -> dict[str, int | tuple[int, ...]]:
    """The defaults with bonds and deposits ÷ 1,000 and windows of minutes."""
    values = dict(DEFAULTS)
    for name in _DEVNET_DIVIDED:
        value = values[name]
        assert isinstance(value, int)
        values[name] = value // DEVNET_DIVISOR
    for name, minutes in _DEVNET_MINUTES.items():
        values[name] = minutes * MINUTE_MS
    return values


def check_parameter(name: str, values: tuple[int, ...]) -> None:
    """Raise `Invalid` `parameter.…` unless a parameter of that name may have these values."""
    default = DEFAULTS.get(name)
    if default is None:
        raise Invalid("parameter.unknown", name=name)
    arity = len(default) if isinstance(default, tuple) else 1
    if len(values) != arity:
        raise Invalid("parameter.arity", name=name, arity=arity)
    if name == "split_bps" and sum(values) != BPS:
        raise Invalid("parameter.split", total=sum(values))
    if name.endswith("_bps") and any(value > BPS for value in values):
        raise Invalid("parameter.bps", name=name)
