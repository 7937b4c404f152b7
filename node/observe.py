"""Logs and contained errors: the one place that sets structlog up.

Why events and fields, never prose: an operator greps for a phrase and a program reads JSON. An
event costs about 17 µs, so nothing logs per receipt; what is dropped is counted instead.
Never logged: keys, passphrases, prompts, answers, vouchers, callers' tokens.
What it does not know: any part's meaning; a part gives its name and gets its log.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, ParamSpec

import structlog

P = ParamSpec("P")

TOLD_EVERY_S: Final = 10.0  # of a long job
Format = Literal["auto", "text", "json"]
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_levels: dict[str, int] = {}
_default_level = LEVELS["info"]
_contained: Counter[str] = Counter()


def set_up(level: str, format: Format, levels: Mapping[str, str]) -> None:
    """Send every part's events to stderr; `levels` names parts that differ from `level`.

    May be called again (a HUP re-reads the levels). Raises KeyError for an unknown level.
    """
    global _default_level
    _default_level = LEVELS[level]
    _levels.clear()
    _levels.update({part: LEVELS[name] for part, name in levels.items()})
    as_text = format == "text" or (format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The default one prints locals: prompts and keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if as_text
        else structlog.processors.JSONRenderer(default=_plain)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _drop_below_level,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            _show_bytes,
            renderer,
        ],
        # Looked up anew each time: a test, or a log that is rotated, may replace the stream.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Libraries speak through logging; what they warn of is shown beside our own events.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)


def seldom(tell: Callable[P, None]) -> Callable[P, None]:
    """`tell`, but only each TOLD_EVERY_S: for who waits for a long job."""
    told_s = time.monotonic()

    def tell_seldom(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(*args, **kwargs)

    return tell_seldom


def get_log(part: str) -> Any:
    """The log of one part; `log.info("block committed", height=h)`."""
    if not structlog.is_configured():
        set_up("warning", "json", {})
    return structlog.get_logger(part=part)


async def contained(where: str, work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run `work`; an error that escapes it is logged and counted, and ends only this task.

    For tasks whose failure must not end the daemon: answers to outside callers. A cancel passes
    through. A failed assertion inside is our fault and is counted too: `statistics()` shows it.
    """
    try:
        await work(*args)
    except Exception:  # noqa: BLE001  # the edge this function exists for; cancels pass
        _contained[where] += 1
        get_log("observe").exception("error contained", where=where)


def count_contained(where: str) -> None:
    """Count an error that the caller has already answered and logged."""
    _contained[where] += 1


def statistics() -> Mapping[str, int]:
    """How many errors were contained, by place."""
    return dict(_contained)


def _drop_below_level(_logger: Any, method: str, event: Any) -> Any:
    wanted = _levels.get(event.get("part", ""), _default_level)
    if LEVELS.get("error" if method in ("exception", "critical") else method, 0) < wanted:
        raise structlog.DropEvent
    return event


def _show_bytes(_logger: Any, _method: str, event: Any) -> Any:
    for name, value in event.items():
        if isinstance(value, bytes):
            event[name] = value.hex()
    return event


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
