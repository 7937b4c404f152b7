"""Asking a daemon that answers, refuses, falls silent, hangs up or speaks something else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.web import ask
from node.web.ask import Node, Refusal, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def daemon(folder: Path, answer: bytes, *, holds: bool = False) -> Iterator[Node]:
    """A socket that answers its first caller with these bytes and hangs up, or holds the line."""
    path = folder / "sock"
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heard = b""
                while not heard.endswith((b"{}", b"\r\n\r\n") if b"GET" in heard else b"{}"):
                    piece = connection.recv(65_536)
                    assert piece, "hung up before it had asked"
                    heard += piece
                connection.sendall(answer)
                if holds:
                    over.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Node(path, timeout_s=0.05 if holds else 5.0)
        finally:
            over.set()
            thread.join()


def sized(body: bytes, head: bytes = OK, length: int | None = None) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def chunked(*lines: bytes, ends: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + (b"0\r\n\r\n" if ends else b"")


def why(node: Node, call: Any = lambda node: node.get("/status")) -> str:
    with pytest.raises(Unreachable) as unreachable:
        call(node)
    assert (unreachable.value.exit_status, unreachable.value.mend) == (4, "olnode start")
    assert unreachable.value.was_asked == node.path.is_socket()
    return unreachable.value.why


def test_object_is_read(tmp_path: Path) -> None:
    with daemon(tmp_path, sized(b'{"a": 1}')) as node:
        assert node.get("/status") == {"a": 1}


REFUSALS = [(402, 5), (502, 6), (400, 1), (404, 1), (500, 1), (503, 1)]


@pytest.mark.parametrize(("status", "exit_status"), REFUSALS)
def test_refusal_has_code_facts_and_an_exit_status(
    tmp_path: Path, status: int, exit_status: int
) -> None:
    head = b"HTTP/1.1 %d Refused\r\n" % status
    body = b'{"error": {"code": "a.b", "message": "a.b (x=1)", "facts": {"x": 1}}}'
    with daemon(tmp_path, sized(body, head)) as node, pytest.raises(Refusal) as refusal:
        node.get("/status")
    told = refusal.value
    assert (told.status, told.code, told.what, told.facts) == (status, "a.b", "a.b (x=1)", {"x": 1})
    assert told.exit_status == exit_status


@pytest.mark.parametrize(
    "answer",
    [
        sized(b'{"a": 1'),
        sized(b"not json"),
        sized(b"[1]"),
        sized(b""),
        sized(b"\xff"),
        sized(b'{"a": 1}', length=100),
        sized(b"oops", b"HTTP/1.1 500 Oops\r\n"),
        sized(b"[" * 100_000),
    ],
)
def test_answer_that_is_not_whole_is_told_as_unreachable(tmp_path: Path, answer: bytes) -> None:
    """As when the daemon is killed while it answers: one sentence, and no crash file."""
    with daemon(tmp_path, answer) as node:
        assert why(node) == "its answer is not whole"


def test_what_speaks_no_http_is_unreachable(tmp_path: Path) -> None:
    with daemon(tmp_path, b"SSH-2.0-x\r\n") as node:
        assert "SSH" in why(node)


def test_silent_daemon_is_given_up_after_its_time(tmp_path: Path) -> None:
    with daemon(tmp_path, b"", holds=True) as node:
        assert why(node) == "silent for 0.05 s"


def test_daemon_that_falls_silent_within_its_answer_is_given_up(tmp_path: Path) -> None:
    with daemon(tmp_path, sized(b'{"a"', length=100), holds=True) as node:
        assert why(node) == "silent for 0.05 s"


def test_path_without_a_daemon_is_unreachable(tmp_path: Path) -> None:
    assert "No such file" in why(Node(tmp_path / "none"))
    (tmp_path / "file").write_bytes(b"")
    assert why(Node(tmp_path / "file"))


# --- streams


def lines(node: Node) -> list[dict[str, Any]]:
    return list(node.stream("/infer", {}))


def test_lines_come_one_by_one(tmp_path: Path) -> None:
    with daemon(tmp_path, chunked(b'{"a": 1}\n', b'{"b": 2}\n')) as node:
        assert lines(node) == [{"a": 1}, {"b": 2}]


def test_line_with_an_error_is_a_refusal_with_its_status(tmp_path: Path) -> None:
    last = b'{"error": {"code": "payer.check_failed", "message": "m", "status": 502}}\n'
    heard: list[Any] = []
    with daemon(tmp_path, chunked(b'{"a": 1}\n', last)) as node, pytest.raises(Refusal) as refusal:
        heard.extend(node.stream("/infer", {}))
    assert (refusal.value.code, refusal.value.exit_status) == ("payer.check_failed", 6)


def test_stream_that_breaks_off_gives_what_came(tmp_path: Path) -> None:
    """The standard library hides the missing end; whoever asks knows the last line by itself."""
    with daemon(tmp_path, chunked(b'{"a": 1}\n', ends=False)) as node:
        assert lines(node) == [{"a": 1}]


def test_proof_that_is_cut_short_is_no_proof(tmp_path: Path) -> None:
    with daemon(tmp_path, sized(b"\0half a proof", length=100)) as node:
        assert why(node, lambda node: node.get_bytes("/proof")) == "its answer is not whole"


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    with daemon(tmp_path, chunked(b'{"a": 1}\n', b'{"b": ')) as node:
        assert why(node, lines) == "its answer is not whole"


def test_line_beyond_its_limit_is_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_limit = b'{"a": "x"}'
    monkeypatch.setattr(ask, "LINE_BYTES_MAX", len(at_limit))
    with daemon(tmp_path, chunked(at_limit)) as node:
        assert lines(node) == [{"a": "x"}]
    (tmp_path / "sock").unlink()
    with daemon(tmp_path, chunked(b'{"a": "xy"}\n')) as node:
        assert why(node, lines) == "its answer is not whole"


def test_answer_beyond_its_limit_is_not_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "ANSWER_BYTES_MAX", 8)
    with daemon(tmp_path, sized(b'{"a": 1}')) as node:
        assert node.get("/status") == {"a": 1}
    (tmp_path / "sock").unlink()
    with daemon(tmp_path, sized(b'{"a": 10}')) as node:
        assert why(node) == "its answer is not whole"
