"""Asking the running daemon over its socket: the standard library's HTTP, one call at a time.

Why not a client library: importing one costs more than the whole answer. File rights on the
socket are admin rights, so there is no token.
What it does not know: what the routes mean.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from node.cli.frame import FAILED, FUNDS, NOT_VERIFIED, UNREACHABLE, CommandError

ANSWER_BYTES_MAX: Final = 64 << 20
TIMEOUT_S: Final = 30
STREAM_TIMEOUT_S: Final = 300  # between two pieces of an answer
EXIT_OF_STATUS: Final = {402: FUNDS, 502: NOT_VERIFIED}


class Refused(CommandError):
    """The daemon answered with a refusal; `http_status` and `code` are the daemon's."""

    def __init__(self, http_status: int, code: str, message: str) -> None:
        status = EXIT_OF_STATUS.get(http_status, FAILED)
        super().__init__(message, status=status, code=code)
        self.http_status = http_status


class Daemon:
    """The daemon of one home. Raises CommandError 4 when nobody listens."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def get(self, path: str) -> Any:
        """The JSON answer to GET `path`; raises Refused."""
        return self._whole("GET", path, None, None)

    def find(self, path: str) -> Any | None:
        """As `get`, but None where there is no such thing (404)."""
        try:
            return self.get(path)
        except Refused as error:
            if error.http_status == 404:
                return None
            raise

    def get_file(self, path: str, media_type: str) -> bytes | None:
        """The bytes of GET `path` in a media type; None on 404; raises Refused."""
        connection = self._connect(TIMEOUT_S)
        try:
            response = self._ask(connection, "GET", path, None, {"Accept": media_type})
            raw = response.read(ANSWER_BYTES_MAX)
            if response.status == 404:
                return None
            _check(response.status, raw)
            return raw
        finally:
            connection.close()

    def post(self, path: str, body: bytes = b"", media_type: str = "application/json") -> Any:
        """The JSON answer to POST `path`; raises Refused."""
        return self._whole("POST", path, body, media_type)

    def stream(self, path: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of the answer to a POST; raises Refused, also for an error midway."""
        connection = self._connect(STREAM_TIMEOUT_S)
        try:
            head = {"Content-Type": "application/json"}
            response = self._ask(connection, "POST", path, json.dumps(asked).encode(), head)
            if response.status != 200:
                _check(response.status, response.read(ANSWER_BYTES_MAX))
            while line := response.readline(ANSWER_BYTES_MAX):
                told = json.loads(line)
                if "error" in told:
                    error = told["error"]
                    raise Refused(error.get("status", 400), error["code"], error["message"])
                yield told
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _cut(error) from None
        finally:
            connection.close()

    def _whole(self, method: str, path: str, body: bytes | None, media_type: str | None) -> Any:
        connection = self._connect(TIMEOUT_S)
        try:
            head = {"Content-Type": media_type} if media_type else {}
            response = self._ask(connection, method, path, body, head)
            raw = response.read(ANSWER_BYTES_MAX)
            _check(response.status, raw)
            return json.loads(raw)
        except (http.client.HTTPException, ValueError) as error:
            raise _cut(error) from None
        finally:
            connection.close()

    def _connect(self, timeout_s: int) -> "_SocketConnection":
        connection = _SocketConnection(self._path, timeout_s)
        try:
            connection.connect()
        except OSError as error:
            raise CommandError(
                "no olnode runs on this home",
                status=UNREACHABLE,
                mend="olnode start",
                why=f"{self._path}: {error.strerror}",
            ) from None
        return connection

    def _ask(
        self,
        connection: "_SocketConnection",
        method: str,
        path: str,
        body: bytes | None,
        head: dict[str, str],
    ) -> http.client.HTTPResponse:
        try:
            connection.request(method, path, body, {"Host": "olnode", **head})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _cut(error) from None


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: int) -> None:
        super().__init__("olnode", timeout=timeout_s)
        self._socket_path = path

    def connect(self) -> None:
        """Connect to the socket file; raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


def _check(status: int, raw: bytes) -> None:
    if status < 400:
        return
    try:
        error = json.loads(raw)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "request.internal", f"the daemon answered with status {status}"
    raise Refused(status, code, message)


def _cut(error: Exception) -> CommandError:
    return CommandError(
        "the daemon stopped answering", status=UNREACHABLE, why=str(error), mend="olnode status"
    )
