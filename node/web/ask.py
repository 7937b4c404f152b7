"""Asking a running daemon over its socket: what the command line and the devnet speak through.

Why the standard library: `olnode status` must be quick, and an HTTP package costs 0.15 s to
import. Calls block; the devnet makes them in threads.
What this file does not know: any route, any schema.
"""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024
PROOF_TYPE: Final = "application/vnd.olnode"


class Unreachable(Exception):
    """No daemon answers on this home's socket.

    `was_asked`: somebody took the call, so what it asked for may have been done all the same.
    """

    exit_status = 4

    def __init__(self, path: Path, why: str, *, was_asked: bool = True) -> None:
        super().__init__(f"no node answers at {path}")
        self.what = f"no node answers at {path}"
        self.why = why
        self.was_asked = was_asked
        self.mend = "olnode start"


class Refusal(Exception):
    """The daemon refused: its stable `code`, its sentence, the HTTP status and the facts."""

    def __init__(self, status: int, code: str, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.what = message
        self.facts = facts

    @property
    def mend(self) -> str:
        """What the operator may do, if the daemon said."""
        return str(self.facts.get("mend", ""))

    @property
    def exit_status(self) -> int:
        """Funds and failed checks have their own exit status (page 80 §3)."""
        return {402: 5, 502: 6}.get(self.status, 1)  # 502: a provider failed a check


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Node:
    """A daemon behind the socket `path`; one connection a call, `timeout_s` for each wait."""

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def get(self, route: str) -> dict[str, Any]:
        """The JSON answer. Raises Unreachable or Refusal."""
        return self._json_of(self._call("GET", route, b"", {}))

    def get_bytes(self, route: str) -> bytes:
        """The answer as the bytes of a proof file. Raises Unreachable or Refusal."""
        return self._call("GET", route, b"", {"Accept": PROOF_TYPE})

    def post(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send JSON. Raises Unreachable or Refusal."""
        raw = b"" if body is None else json.dumps(body).encode()
        return self._json_of(self._call("POST", route, raw, {"Content-Type": "application/json"}))

    def post_bytes(self, route: str, raw: bytes) -> dict[str, Any]:
        """Send the bytes of a transaction. Raises Unreachable or Refusal."""
        head = {"Content-Type": "application/octet-stream"}
        return self._json_of(self._call("POST", route, raw, head))

    def stream(self, route: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send JSON; a JSON object per line of the answer, as they come.

        Raises Unreachable, or Refusal at the start or midway (a line with `error`). Closing the
        iterator hangs up, which the daemon takes as a cancel. A stream that breaks off between two
        lines only ends: what its last line should be is the caller's to know.
        """
        connection = _Connection(self.path, self._timeout_s)
        try:
            response = self._send(
                connection,
                "POST",
                route,
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            self._refuse_unless_ok(response)
            while line := self._line(response):
                told = self._json_of(line)
                if "error" in told:
                    raise _refusal(told["error"].get("status", 502), told)
                yield told
        finally:
            connection.close()

    def _call(self, method: str, route: str, body: bytes, head: dict[str, str]) -> bytes:
        connection = _Connection(self.path, self._timeout_s)
        try:
            response = self._send(connection, method, route, body, head)
            self._refuse_unless_ok(response)
            return self._body(response)
        finally:
            connection.close()

    def _send(
        self, connection: _Connection, method: str, route: str, body: bytes, head: dict[str, str]
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(self.path, str(error), was_asked=False) from None
        try:
            connection.request(method, route, body=body, headers=head)
            return connection.getresponse()
        except TimeoutError:
            raise Unreachable(self.path, f"silent for {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(self.path, str(error) or type(error).__name__) from None

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        return self._heard(lambda: response.readline(LINE_BYTES_MAX))

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        raw = self._heard(lambda: response.read(ANSWER_BYTES_MAX))
        if response.length:  # what its head promised and we did not get
            raise Unreachable(self.path, "its answer is not whole")
        return raw

    def _heard(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except TimeoutError:
            raise Unreachable(self.path, f"silent for {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(self.path, f"hung up: {type(error).__name__}") from None

    def _refuse_unless_ok(self, response: http.client.HTTPResponse) -> None:
        if response.status >= 400:
            raise _refusal(response.status, self._json_of(self._body(response)))

    def _json_of(self, raw: bytes) -> dict[str, Any]:
        """The object in `raw`; a daemon that was killed midway leaves half of one."""
        try:
            told = json.loads(raw)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise Unreachable(self.path, "its answer is not whole")
        return told


def _refusal(status: int, told: dict[str, Any]) -> Refusal:
    error = told.get("error", {})
    code, message = error.get("code", "node.refused"), error.get("message", "refused")
    return Refusal(status, code, message, error.get("facts", {}))
