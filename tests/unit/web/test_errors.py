"""Each refusal has its status, by the last word of its code, and one shape of body."""

import json

import pytest

from consensus.primitives.errors import Invalid
from node.cli.faults import FUNDS_REASONS
from node.wallet.buying import PaymentFailed
from node.web.ask import Refusal
from node.web.errors import STATUS_OF, error_body, error_response, find_refusal, status_of

CODES = [
    ("request.invalid_value", 400),
    ("request.bad_parameter", 400),
    ("request.unknown_parameter", 400),
    ("request.cut_short", 400),
    ("request.too_slow", 400),
    ("tx.nonce", 400),
    ("address.length", 400),
    ("payer.fee_max", 402),
    ("payer.locked_max", 402),
    ("tx.insufficient", 402),
    ("tx.cannot_pay", 402),
    ("payer.unknown_model", 404),
    ("transaction.not_found", 404),
    ("request.unknown_path", 404),
    ("ledger.no_proof", 404),
    ("request.method", 405),
    ("payer.already_charged", 409),
    ("ledger.record_changed", 409),
    ("ledger.pruned", 410),
    ("block.pruned", 410),
    ("request.too_large", 413),
    ("request.media_type", 415),
    ("request.internal", 500),
    ("payer.check_failed", 502),
    ("payer.no_provider", 503),
    ("payer.not_ready", 503),
    ("payer.refused", 503),
    ("payer.channel", 503),
    ("payer.lost", 504),
    ("payer.not_settled", 504),
    ("a word that nobody knows", 400),
]


@pytest.mark.parametrize(("code", "status"), CODES)
def test_code_has_its_status_in_head_and_body(code: str, status: int) -> None:
    answer = error_response(Invalid(code, why="x"))
    told = json.loads(answer.body)["error"]
    assert (answer.status_code, told["status"], told["code"]) == (status, status, code)
    assert answer.status_code == status_of(code)


def test_every_status_of_the_table_is_one_that_a_code_is_tested_with() -> None:
    assert set(STATUS_OF.values()) <= {status for _, status in CODES}


def test_what_the_command_line_calls_funds_is_402_here() -> None:
    """A refusal ends a command with 5 whether it was found here or in the daemon."""
    for reason in FUNDS_REASONS:
        assert Refusal(status_of(f"any.{reason}"), "", "", {}).exit_status == 5


def test_facts_are_text_that_json_can_hold_exactly() -> None:
    facts = {"key": b"\xab", "n": 2**63, "flag": True, "rows": (1, 2), "none": None, "text": "é"}
    told = error_body("x.y", facts)["error"]
    assert told["facts"] == {
        "key": "ab", "n": 2**63, "flag": True, "rows": "(1, 2)", "none": "None", "text": "é"
    }  # fmt: skip
    assert told["message"].startswith("x.y")
    json.dumps(told)


def test_refusal_is_found_in_nested_groups() -> None:
    failed = PaymentFailed("payer.lost")
    assert find_refusal(ExceptionGroup("a", [ExceptionGroup("b", [failed])])) is failed
    assert find_refusal(Invalid("x.y")).code == "x.y"


def test_own_fault_is_no_refusal_even_beside_one() -> None:
    """Two errors at once, one of them ours: the caller is told of neither."""
    assert find_refusal(RuntimeError("ours")) is None
    assert find_refusal(ExceptionGroup("a", [RuntimeError("ours")])) is None
    assert find_refusal(ExceptionGroup("a", [Invalid("x.y"), RuntimeError("ours")])) is None
