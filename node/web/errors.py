"""Refusals as HTTP: which status a code gets, and the one shape of every error body.

Why by the code's last word: parts name their refusals `part.reason`, and the reason alone says
whose turn it is (the caller's, the purse's, a provider's), so a new part needs no new row.
What it does not know: routes, sockets.
"""

from typing import Any, Final

from starlette.responses import JSONResponse

from consensus.primitives.errors import Invalid
from node.wallet.buying import PaymentFailed

Refusal = Invalid | PaymentFailed

# fmt: off
STATUS_OF: Final = {  # page 80, "Answer"; any other reason is the caller's: 400
    "not_found": 404, "model_not_found": 404, "unknown_model": 404, "unknown_path": 404,
    "method": 405, "too_large": 413, "media_type": 415,
    "payment_required": 402, "budget_exhausted": 402, "channel_exhausted": 402,
    "fee_max": 402, "locked_max": 402, "insufficient": 402, "cannot_pay": 402,
    "already_charged": 409, "record_changed": 409, "pruned": 410,
    "check_failed": 502,
    "no_provider": 503, "refused": 503, "channel": 503, "no_statement": 503, "no_rows": 503,
    "no_index": 404, "no_engine": 503,
    "not_ready": 503, "draining": 503, "no_proof": 404,
    "lost": 504, "not_settled": 504,
    "internal": 500,
}
# fmt: on


def status_of(code: str) -> int:
    """The HTTP status of a refusal's code."""
    return STATUS_OF.get(code.rsplit(".", 1)[-1], 400)


def error_body(code: str, facts: dict[str, object]) -> dict[str, Any]:
    """`{"error": {"code", "message", "status", "facts"}}`; facts as text, bytes in hex.

    The status stands inside too: an error midway through a stream has no status line. A `mend`
    is a fact, and no part of the message.
    """
    told = {name: v.hex() if isinstance(v, bytes) else v for name, v in facts.items()}
    shown = {n: v if isinstance(v, (int, str, bool)) else str(v) for n, v in told.items()}
    message = str(Invalid(code, **{n: v for n, v in facts.items() if n != "mend"}))
    return {"error": {"code": code, "message": message, "status": status_of(code), "facts": shown}}


def error_response(error: Refusal) -> JSONResponse:
    """The answer to a refused request."""
    return JSONResponse(error_body(error.code, error.facts), status_of(error.code))


def find_refusal(error: BaseException) -> Refusal | None:
    """The refusal inside nursery groups, if one stands alone there; None for our own faults."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, (Invalid, PaymentFailed)) else None
