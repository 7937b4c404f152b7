"""An answer as lines of JSON while it is made, cancelled when its reader goes away.

Why an own response: Starlette does not close a generator when `send` is cancelled, and on this
server `request.is_disconnected()` never turns true; a task that awaits `receive()` notices within
10 ms (measured). The work is one function in one nursery: it ends when the reader has gone.
What it does not know: what the lines say.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.web.errors import error_body, find_refusal
from node.web.requests import answer_to

Tell = Callable[[dict[str, Any]], Awaitable[None]]


class LineStream(Response):
    """Runs `work(tell)`; each told object is a line. An error before the first line is a status.

    After the first line it is a last line `{"error": …}`, never a silent end.
    """

    media_type = "application/x-ndjson"

    def __init__(self, work: Callable[[Tell], Awaitable[None]], where: str) -> None:
        super().__init__()
        self._work = work
        self._where = where
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines; returns when the work is done or the reader has gone."""
        async with trio.open_nursery() as nursery:

            async def watch_reader() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_reader)
            await self._run(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(line: dict[str, Any]) -> None:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            body = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            await self._work(tell)
        except Exception as error:  # noqa: BLE001  # a route's fault must not end the daemon
            answer = answer_to(error, self._where)
            if not self._begun:
                await answer(scope, receive, send)
                return
            refused = find_refusal(error)
            code, facts = (refused.code, refused.facts) if refused else ("request.internal", {})
            await tell(error_body(code, facts))
        if not self._begun:  # nothing to tell is an empty answer, not a hanging one
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_HEADERS = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
