"""The listener of /metrics: one route, and a taken port is no reason to fall."""

import socket
import urllib.error
import urllib.request
from functools import partial

import pytest
import trio

from node.web import metrics
from node.web.metrics import run_metrics


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def ask(port: int, path: str) -> tuple[int, str]:
    for _ in range(100):  # it is up a moment after it is begun
        try:
            return await trio.to_thread.run_sync(get, port, path)
        except urllib.error.URLError:
            await trio.sleep(0.05)
    raise AssertionError("nobody listens")


async def test_one_route_is_served_and_nothing_else(nursery, free_port) -> None:
    run = partial(run_metrics, lambda: b"olnode_x 1\n", "127.0.0.1", free_port)
    nursery.start_soon(partial(run, wait_for_stop=trio.sleep_forever))
    assert await ask(free_port, "/metrics") == (200, "olnode_x 1\n")
    assert (await ask(free_port, "/status"))[0] == 404
    assert (await ask(free_port, "/metrics?a=b"))[0] == 400
    nursery.cancel_scope.cancel()


async def test_taken_port_is_tried_again(nursery, free_port, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "AGAIN_S", 0.05)
    other = socket.create_server(("127.0.0.1", free_port))
    run = partial(run_metrics, lambda: b"olnode_x 1\n", "127.0.0.1", free_port)
    nursery.start_soon(partial(run, wait_for_stop=trio.sleep_forever))
    await trio.sleep(0.1)
    other.close()
    assert (await ask(free_port, "/metrics"))[0] == 200
    nursery.cancel_scope.cancel()


async def test_error_while_it_reads_is_an_answer_and_no_end(nursery, free_port) -> None:
    texts = iter((None, b"olnode_x 2\n"))

    def text() -> bytes:
        told = next(texts)
        assert told is not None, "a part is broken"
        return told

    run = partial(run_metrics, text, "127.0.0.1", free_port)
    nursery.start_soon(partial(run, wait_for_stop=trio.sleep_forever))
    assert (await ask(free_port, "/metrics"))[0] == 500
    assert await ask(free_port, "/metrics") == (200, "olnode_x 2\n")
    nursery.cancel_scope.cancel()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
