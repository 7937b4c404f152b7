"""Requests at the door: a body's size and time, parameters by name, numbers that are numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from starlette.requests import Request

from consensus.primitives.errors import Invalid
from node.web.requests import BODY_TIMEOUT_S, check_parameters, number_of, read_body

JSON = "application/json"
Receive = Callable[[], Any]


def request(receive: Receive | None = None, media_type: str = JSON, query: str = "") -> Request:
    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": query.encode(),
        "headers": [(b"content-type", media_type.encode())] if media_type else [],
    }  # fmt: skip
    return Request(scope, receive or told())


def told(*chunks: bytes, every_s: float = 0.0, leaves: bool = False) -> Receive:
    """A body in pieces; `leaves` hangs up instead of ending."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        await trio.sleep(every_s)
        if waiting:
            chunk = waiting.pop(0)
            more = bool(waiting) or leaves
            return {"type": "http.request", "body": chunk, "more_body": more}
        return {"type": "http.disconnect"}

    return receive


async def refusal(asked: Request, bytes_max: int = 10) -> str:
    with pytest.raises(Invalid) as refused:
        await read_body(asked, bytes_max, JSON)
    return refused.value.code


@pytest.mark.parametrize("chunks", [(b"",), (b"0123456789",), (b"01234", b"", b"56789")])
async def test_body_at_its_limit_is_read_whole(chunks: tuple[bytes, ...]) -> None:
    assert await read_body(request(told(*chunks)), 10, JSON) == b"".join(chunks)


@pytest.mark.parametrize("chunks", [(b"0123456789a",), (b"0123456789", b"a"), (b"x",) * 11])
async def test_body_one_byte_over_is_refused(chunks: tuple[bytes, ...]) -> None:
    assert await refusal(request(told(*chunks))) == "request.too_large"


async def test_endless_body_is_refused_before_it_is_read_on() -> None:
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": b"x" * 6, "more_body": True}

    assert await refusal(request(receive)) == "request.too_large"
    assert asked == 2


async def test_slow_body_ends_by_its_deadline(autojump_clock: Any) -> None:
    """A byte now and then must not hold a connection for ever."""
    began = trio.current_time()
    slow = told(*(b"x",) * 8, every_s=BODY_TIMEOUT_S / 4 + 0.1)
    assert await refusal(request(slow)) == "request.too_slow"
    assert trio.current_time() - began == pytest.approx(BODY_TIMEOUT_S)


async def test_body_within_its_deadline_is_read(autojump_clock: Any) -> None:
    slow = told(b"a", b"b", b"c", every_s=BODY_TIMEOUT_S / 3 - 0.1)
    assert await read_body(request(slow), 10, JSON) == b"abc"


async def test_caller_that_hangs_up_midway_is_cut_short() -> None:
    assert await refusal(request(told(b"ab", leaves=True))) == "request.cut_short"


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/jsonx", "json"])
async def test_other_type_is_refused_before_a_byte_is_read(media_type: str) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("not to be read")

    assert await refusal(request(receive, media_type)) == "request.media_type"


@pytest.mark.parametrize("media_type", [JSON, "Application/JSON ; charset=utf-8"])
async def test_type_is_read_without_its_case_and_parameters(media_type: str) -> None:
    assert await read_body(request(told(b"{}"), media_type), 10, JSON) == b"{}"


def test_parameter_that_is_not_read_is_refused_by_its_name() -> None:
    check_parameters(request(query="after=1&limit=2"), "after", "limit")
    with pytest.raises(Invalid) as refused:
        check_parameters(request(query="after=1&limt=2"), "after", "limit")
    assert (refused.value.code, refused.value.facts["param"]) == (
        "request.unknown_parameter",
        "limt",
    )
    with pytest.raises(Invalid) as refused:
        check_parameters(request(query="x" * 1_000 + "=1"))
    assert len(refused.value.facts["param"]) == 64


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), (str(2**63 - 1), 2**63 - 1)])
def test_number_is_read(text: str, number: int) -> None:
    assert number_of(text, "n") == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1_0", "1.0", "0x1", "\u0661", "²", str(2**63), "0" * 20]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match=r"request\.bad_parameter"):
        number_of(text, "n")
