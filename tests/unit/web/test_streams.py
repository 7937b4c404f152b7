"""An answer as lines while it is made: whole, or with its error as the last line; never in vain."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from consensus.primitives.errors import Invalid
from node.web.streams import LineStream, Tell

Work = Callable[[Tell], Awaitable[None]]


class Reader:
    """The other end of an ASGI response; `leave` hangs up."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = trio.Event()
        self.blocks_at: int | None = None

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if self.blocks_at is not None and len(self.sent) >= self.blocks_at:
            await trio.sleep_forever()  # its buffers are full
        self.sent.append(message)

    async def read(self, work: Work) -> "Reader":
        with trio.fail_after(5):
            await LineStream(work, where="/x")({"type": "http"}, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        (start,) = [m for m in self.sent if m["type"] == "http.response.start"]
        return int(start["status"])

    @property
    def lines(self) -> list[Any]:
        body = b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")
        return [json.loads(line) for line in body.splitlines()]

    @property
    def is_ended(self) -> bool:
        return not self.sent[-1].get("more_body", False)


def work_of(*lines: dict[str, Any], error: Exception | None = None) -> Work:
    async def work(tell: Tell) -> None:
        for line in lines:
            await tell(line)
        if error is not None:
            raise error

    return work


async def test_each_told_object_is_a_line(autojump_clock: Any) -> None:
    reader = await Reader().read(work_of({"text": "a\nb"}, {"text": "é"}))
    assert (reader.status, reader.is_ended) == (200, True)
    assert reader.lines == [{"text": "a\nb"}, {"text": "é"}]


async def test_nothing_told_is_an_empty_answer_and_not_a_hanging_one(autojump_clock: Any) -> None:
    reader = await Reader().read(work_of())
    assert (reader.status, reader.lines, reader.is_ended) == (200, [], True)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("payer.unknown_model"), 404, "payer.unknown_model"),
        (ExceptionGroup("nursery", [Invalid("payer.fee_max")]), 402, "payer.fee_max"),
        (RuntimeError("a secret"), 500, "request.internal"),
    ],
)
async def test_error_before_the_first_line_is_a_status(
    autojump_clock: Any, error: Exception, status: int, code: str
) -> None:
    reader = await Reader().read(work_of(error=error))
    assert (reader.status, reader.lines[0]["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("payer.check_failed"), 502, "payer.check_failed"),
        (RuntimeError("a secret"), 500, "request.internal"),
    ],
)
async def test_error_after_it_is_the_last_line_with_its_status(
    autojump_clock: Any, error: Exception, status: int, code: str
) -> None:
    reader = await Reader().read(work_of({"text": "a"}, error=error))
    told = reader.lines[-1]["error"]
    assert (reader.status, told["status"], told["code"]) == (200, status, code)
    assert "secret" not in json.dumps(reader.lines)
    assert reader.is_ended


@pytest.mark.parametrize("when", ["before a line", "after a line", "while sending"])
async def test_reader_that_leaves_cancels_the_work(autojump_clock: Any, when: str) -> None:
    reader, cancelled = Reader(), trio.Event()
    reader.blocks_at = 2 if when == "while sending" else None

    async def work(tell: Tell) -> None:
        try:
            while True:
                if when != "before a line":
                    await tell({"text": "a"})
                if when != "while sending":
                    await trio.sleep_forever()
        finally:
            cancelled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read, work)
        await trio.testing.wait_all_tasks_blocked()
        assert not cancelled.is_set()
        reader.left.set()
    assert cancelled.is_set()


async def test_work_that_ends_does_not_wait_for_its_reader_to_leave(autojump_clock: Any) -> None:
    reader = await Reader().read(work_of({"text": "a"}))
    assert not reader.left.is_set()
