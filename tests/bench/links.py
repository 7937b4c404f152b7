"""Slow links between daemons of one machine: a relay before each, which holds every byte a while.

Why relays: they need no privilege and no kernel module. A daemon listens on a port that nobody
knows, and announces its relay's; so both ways of every connection pass through one relay.
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from node.devnet.children import Child

HOST: Final = "127.0.0.1"
CHUNK_BYTES: Final = 65_536
CHUNKS_MAX: Final = 4_096  # on their way in one direction of a connection; then the reader waits


@asynccontextmanager
async def slowed(children: Sequence[Child], delay_s: float) -> AsyncIterator[None]:
    """Every byte between these daemons, none of them started yet, takes `delay_s` longer."""
    if not delay_s:
        yield
        return
    async with trio.open_nursery() as nursery:
        for child in children:
            inner = _free_port()
            outer = _hide(child, inner)
            await nursery.start(_relay, outer, inner, delay_s)
        yield
        nursery.cancel_scope.cancel()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _hide(child: Child, inner: int) -> int:
    """Let the daemon listen on `inner`, and announce where it would have listened: the result."""
    path = child.home / "config.toml"
    lines = path.read_text("utf-8").splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.startswith("listen = ")]
    outer = int(lines[at].rpartition("/tcp/")[2].split('"')[0])
    lines[at] = f'listen = ["/ip4/{HOST}/tcp/{inner}"]'
    lines.insert(at, f'announce = ["/ip4/{HOST}/tcp/{outer}"]')
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return outer


async def _relay(outer: int, inner: int, delay_s: float, *, task_status: object) -> None:
    async def pass_on(caller: trio.SocketStream) -> None:
        try:
            async with (
                caller,
                await trio.open_tcp_stream(HOST, inner) as daemon,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_hold, caller, daemon, delay_s, nursery.cancel_scope)
                nursery.start_soon(_hold, daemon, caller, delay_s, nursery.cancel_scope)
        except OSError:
            pass  # the daemon is not there yet, or no more: as the caller sees it without us

    await trio.serve_tcp(pass_on, outer, host=HOST, task_status=task_status)


async def _hold(
    source: trio.SocketStream, sink: trio.SocketStream, delay_s: float, scope: trio.CancelScope
) -> None:
    """One direction: each chunk goes out `delay_s` after it came in; the end ends both."""
    into, out_of = trio.open_memory_channel[tuple[float, bytes]](CHUNKS_MAX)

    async def read() -> None:
        async with into:
            try:
                while chunk := await source.receive_some(CHUNK_BYTES):
                    await into.send((trio.current_time() + delay_s, chunk))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        try:
            async for due_s, chunk in out_of:
                await trio.sleep_until(due_s)
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
