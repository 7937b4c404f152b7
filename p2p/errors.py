"""What a peer or the network can do to a caller, and the reply codes that both sides agree on.

Why four classes: each has its own answer. `Misbehaving` counts against the peer, `Unreachable`
and `TooSlow` mean another peer, `Refused` is an honest no with a time to come back.
Our own faults are never one of these.
"""

from enum import IntEnum
from typing import Final


class Code(IntEnum):
    """The first field of every reply (page 70 §6); codes we do not know count as a refusal."""

    OK = 0
    MALFORMED = 1
    NOT_FOUND = 2
    BUSY = 3
    REPLY_TOO_LARGE = 4
    RATE_EXCEEDED = 5
    WRONG_CHAIN = 6
    NOT_ALLOWED = 7
    NOT_ADMITTED = 8
    EXPIRED = 9
    OUR_FAILURE = 10
    CLOSING = 11


UNKNOWN_CODE: Final = -2  # in our counters, for any that a peer makes up


class NetworkError(Exception):
    """The fault of a peer or of the network; a caller's bounded retry loop handles it."""


class Misbehaving(NetworkError):
    """The peer broke the protocol: a malformed, oversized, non-canonical or unasked-for frame."""


class Unreachable(NetworkError):
    """Not connected, or the connection or stream broke."""


class EndOfStream(Unreachable):
    """The other side closed the stream in order, between two frames."""


class TooSlow(NetworkError):
    """The deadline passed; the stream was reset, the connection stays."""


class Refused(NetworkError):
    """An honest no: `code` of the table, `retry_ms` until it is worth asking again (0: not told).

    A handler raises it to refuse; the caller of `request` gets the same one raised.
    """

    def __init__(self, code: int, retry_ms: int = 0, body: bytes = b"") -> None:
        super().__init__(code, retry_ms)
        self.code = code
        self.retry_ms = retry_ms
        self.body = body

    def __str__(self) -> str:
        known = next((code.name.lower() for code in Code if code == self.code), "unknown")
        again = f", again in {self.retry_ms} ms" if self.retry_ms else ""
        return f"refused: code {int(self.code)} ({known}){again}"


class ListenError(Exception):
    """A listening address cannot be used at first start: the operator's fault, told in one line."""

    exit_status = 1
    mend = "change `listen` of [p2p] in config.toml, or stop the program that listens there"
