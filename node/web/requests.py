"""Requests at the door: bodies with a size and a deadline, parameters by name, refusals as JSON.

Why here: hypercorn bounds neither a body nor the time it takes to arrive. And a handler that
raises must never end the daemon, so every route is built by `route`.
What it does not know: what any route does.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from consensus.primitives.errors import Invalid
from node.observe import count_contained, get_log
from node.web.errors import error_body, error_response, find_refusal

BODY_TIMEOUT_S: Final = 10
NUMBER_DIGITS_MAX: Final = 19  # of 2^63

S = TypeVar("S", bound=msgspec.Struct)

Handler = Callable[[Request], Awaitable[Response]]


def route(method: str, path: str, handler: Handler) -> Route:
    """A route whose refusals are answers and whose own faults are a logged, counted 500."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001  # a route's fault must not end the daemon
            return answer_to(error, path)

    return Route(path, guarded, methods=[method])


def answer_to(error: Exception, where: str) -> JSONResponse:
    """A refusal with its code, or 500 `request.internal` with the trace in the log only."""
    refused = find_refusal(error)
    if refused is not None:
        return error_response(refused)
    count_contained("web")
    get_log("web").error("route failed", where=where, exc_info=error)
    return JSONResponse(error_body("request.internal", {}), 500)


async def read_body(request: Request, bytes_max: int, media_type: str) -> bytes:
    """The whole body, read within `BODY_TIMEOUT_S` seconds.

    Raises Invalid `request.media_type`, `request.too_large` (before reading on),
    `request.too_slow`, `request.cut_short`.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise Invalid("request.media_type", wanted=media_type)
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_S) as scope:
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > bytes_max:
                    raise Invalid("request.too_large", bytes_max=bytes_max)
        except ClientDisconnect:
            raise Invalid("request.cut_short") from None
    if scope.cancelled_caught:
        raise Invalid("request.too_slow", seconds=BODY_TIMEOUT_S)
    return bytes(body)


async def read_struct(request: Request, shape: type[S], bytes_max: int) -> S:
    """The JSON body as `shape`; raises Invalid as `read_body` does, or `request.invalid_value`."""
    return struct_of(await read_body(request, bytes_max, "application/json"), shape)


def struct_of(raw: bytes, shape: type[S]) -> S:
    """The same of bytes that have come."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid("request.invalid_value", why=str(error)[:200]) from None


def check_parameters(request: Request, *known: str) -> None:
    """Refuse a query parameter that the route does not read: a typo would pass as its default."""
    for name in request.query_params:
        if name not in known:
            raise Invalid("request.unknown_parameter", param=name[:64])


def number_of(text: str, param: str, largest: int = 2**63 - 1) -> int:
    """A plain decimal number 0..`largest` from a path or query."""
    if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX:
        number = int(text)
        if number <= largest:
            return number
    raise Invalid("request.bad_parameter", param=param)


def number_in(request: Request, param: str) -> int:
    """A number of the query; 0 where it is not given."""
    return number_of(request.query_params.get(param, "0"), param)


async def not_found(_request: Any, _error: Exception) -> Response:
    """No such path."""
    return error_response(Invalid("request.unknown_path"))


async def wrong_method(_request: Any, _error: Exception) -> Response:
    """The path is there, the method is not."""
    return error_response(Invalid("request.method"))
