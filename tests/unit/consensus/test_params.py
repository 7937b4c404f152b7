"""The numbers of agreement: what the ledger may say of them, and that the caps fit together."""

from dataclasses import fields
from pathlib import Path

import pytest

from consensus import params
from consensus.params import PAYLOAD_BYTES_MAX, VALIDATORS_MAX, ConsensusParams
from consensus.records import NOWHERE, SignerRecord

SOURCE = Path(params.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("field", [field.name for field in fields(ConsensusParams)])
def test_every_parameter_is_at_least_one(field: str) -> None:
    assert getattr(ConsensusParams(**{field: 1}), field) == 1
    with pytest.raises(AssertionError):
        ConsensusParams(**{field: 0})


@pytest.mark.parametrize(
    ("field", "cap"), [("payload_bytes_max", PAYLOAD_BYTES_MAX), ("validators_max", VALIDATORS_MAX)]
)
def test_no_parameter_passes_its_cap(field: str, cap: int) -> None:
    assert getattr(ConsensusParams(**{field: cap}), field) == cap
    with pytest.raises(AssertionError):
        ConsensusParams(**{field: cap + 1})


def test_defaults_are_those_of_the_design() -> None:
    made = ConsensusParams()
    assert (made.payload_bytes_max, made.validators_max) == (1 << 20, 48)
    assert (made.precision_ms, made.delay_ms, made.heartbeat_ms) == (500, 5_000, 30_000)
    assert made.unbonding_ms == 21 * 24 * 3_600_000


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        ("CERTIFICATE_BYTES_MAX: Final = 8 * KIB", "CERTIFICATE_BYTES_MAX: Final = 6 * KIB"),
        ("PROPOSAL_BYTES_MAX: Final = 16 * KIB", "PROPOSAL_BYTES_MAX: Final = 9 * KIB"),
        ("VALIDATORS_MAX: Final = 100", "VALIDATORS_MAX: Final = 130"),
    ],
)
def test_caps_that_do_not_fit_together_stop_the_import(written: str, changed: str) -> None:
    """A full set whose certificate fits no frame could never agree."""
    assert SOURCE.count(written) == 1
    exec(compile(SOURCE, "params", "exec"), {"__name__": "params"})
    with pytest.raises(AssertionError):
        exec(compile(SOURCE.replace(written, changed), "params", "exec"), {"__name__": "params"})


def test_words_of_a_validator_go_up_by_height_then_round_then_kind() -> None:
    places = [
        SignerRecord(kind, height, round, b"").place()
        for height in (1, 2)
        for round in (0, 1)
        for kind in (0, 1, 2)
    ]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_record_without_locks_has_none() -> None:
    made = SignerRecord(1, 1, 0, b"")
    assert made.locked == made.valid == NOWHERE == (-1, bytes(32))
