"""The slow link: nothing comes early, nothing is lost or reordered, an end ends both sides."""

import time
from functools import partial
from pathlib import Path

import trio
from bench.links import HOST, slowed

from node.devnet.children import Child

DELAY_S = 0.05
PORT_LINE = 'listen = ["/ip4/127.0.0.1/tcp/{}"]\n'


async def _echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


def _inner(child: Child) -> int:
    text = (child.home / "config.toml").read_text("utf-8")
    return int(text.split("listen = ")[1].split("/tcp/")[1].split('"')[0])


async def test_each_way_takes_the_delay_and_keeps_the_bytes(tmp_path: Path) -> None:
    (outer_probe,) = await trio.open_tcp_listeners(0, host=HOST)
    outer = outer_probe.socket.getsockname()[1]
    await outer_probe.aclose()
    (tmp_path / "config.toml").write_text("[p2p]\n" + PORT_LINE.format(outer), "utf-8")
    child = Child("n0", tmp_path, ("validator",))
    async with slowed([child], DELAY_S), trio.open_nursery() as nursery:
        assert f"tcp/{outer}" in (tmp_path / "config.toml").read_text("utf-8"), "announced"
        await nursery.start(partial(trio.serve_tcp, host=HOST), _echo, _inner(child))
        stream, sent, back = await trio.open_tcp_stream(HOST, outer), bytes(range(256)) * 400, b""
        began_s = time.monotonic()
        await stream.send_all(sent)
        while len(back) < len(sent):
            back += await stream.receive_some()
        assert back == sent
        assert time.monotonic() - began_s >= 2 * DELAY_S
        await stream.send_eof()
        assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
