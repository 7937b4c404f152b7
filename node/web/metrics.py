"""`GET /metrics` on a listener of its own, so that a scraper gets at nothing else.

Why a failed bind is only warned of: a node that does not start since another program took the port
of its telemetry is worse than one without telemetry. It is tried again.
What this file does not know: what is measured.
"""

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from node.observe import contained, get_log
from node.web.app import serve_listener
from node.web.requests import check_parameters, not_found, route, wrong_method

TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
AGAIN_S: Final = 60.0

log = get_log("metrics")


def make_metrics_app(text: Callable[[], bytes]) -> Starlette:
    """The one route."""

    async def metrics(request: Request) -> Response:
        check_parameters(request)
        return Response(text(), media_type=TEXT_FORMAT)

    missing: Any = {404: not_found, 405: wrong_method}  # Starlette types its handlers too narrowly
    return Starlette(routes=[route("GET", "/metrics", metrics)], exception_handlers=missing)


async def run_metrics(
    text: Callable[[], bytes],
    host: str,
    port: int,
    *,
    wait_for_stop: Callable[[], Awaitable[None]],
) -> None:
    """Forever: serve at `host` and `port`; what goes wrong is told, and tried again."""
    app = make_metrics_app(text)
    while True:
        try:
            listener = socket.create_server((host, port), family=_family_of(host))
        except OSError as error:
            log.warning(
                "metrics are not served",
                host=host,
                port=port,
                why=str(error),
                mend='another listen under [metrics] in config.toml; "" is off',
            )
        else:
            serve = partial(serve_listener, app, listener, wait_for_stop=wait_for_stop)
            await contained("metrics", serve)
        await trio.sleep(AGAIN_S)


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
