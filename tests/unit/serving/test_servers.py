"""Adapters stay at their servers, unless one is lost or runs hot."""

from collections import Counter

from consensus.primitives.digest import sha256
from node.serving.servers import FAILURES_MAX, Server, choose

ADAPTERS = [sha256(bytes([n])) for n in range(200)]


def servers(count: int) -> list[Server]:
    return [Server(f"http://127.0.0.1:{8_000 + n}") for n in range(count)]


def homes(all: list[Server]) -> dict[bytes, str]:
    found = {adapter: choose(all, adapter) for adapter in ADAPTERS}
    return {adapter: server.url for adapter, server in found.items() if server is not None}


def test_adapters_are_spread_and_stay() -> None:
    all = servers(4)
    assert min(Counter(homes(all).values()).values()) > 25
    assert homes(all) == homes(all[::-1])


def test_lost_server_moves_its_own_adapters_alone() -> None:
    all = servers(4)
    before = homes(all)
    all[1].failures = FAILURES_MAX
    after = homes(all)
    moved = {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]}
    assert moved == {adapter for adapter in ADAPTERS if before[adapter] == all[1].url}
    assert choose([server for server in all if server is all[1]], ADAPTERS[0]) is None


def test_hot_server_spills_to_the_least_busy() -> None:
    all = servers(3)
    home = choose(all, ADAPTERS[0])
    assert home is not None
    home.running = 1
    assert choose(all, ADAPTERS[0]) is home, "a little work moves nobody"
    home.running = 30
    others = [server for server in all if server is not home]
    others[0].running, others[1].running = 2, 1
    assert choose(all, ADAPTERS[0]) is others[1]
