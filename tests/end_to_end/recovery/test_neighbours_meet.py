"""Two daemons on one wire that know nobody find each other by multicast DNS.

Only where the machine makes network namespaces for us: each listens on every address it has.
"""

import sys
import time
from pathlib import Path

import pytest
import trio
from namespaces_kit import Cables, NoNamespaces

sys.path.insert(0, str(Path(__file__).parent))
from town import Placed, linked, until  # found by the line above

from consensus.primitives.keys import public_key
from node.devnet.children import read, stop_all, wait_answering
from node.home import make_home
from node.ledger.genesis import devnet_genesis, encode_genesis

pytestmark = pytest.mark.slow

MET_S = 60.0


def found(folder: Path, cables: Cables) -> list[Placed]:
    """A validator and a payer without a bootstrap."""
    validator = b"\7" * 32
    genesis = encode_genesis(
        devnet_genesis(
            name="neighbours",
            time_ms=time.time_ns() // 1_000_000,
            accounts={},
            validators={public_key(validator): 10_000 * 10**9},
        )
    )
    nodes = []
    for number, role in enumerate(("validator", "payer")):
        seeds = {"node": bytes([number + 1]) * 32, "validator": validator, "spending": b"\x08" * 32}
        chosen = {
            "profile": "devnet", "name": f"n{number}", "roles": [role], "engine.kind": "none",
            "p2p.network": "lan", "p2p.mdns": True, "p2p.listen": ["/ip4/0.0.0.0/tcp/7017"],
        }  # fmt: skip
        home = folder / f"n{number}"
        make_home(home, genesis=genesis, chosen=chosen, password=None, seeds=seeds)
        nodes.append(Placed(f"n{number}", home, (role,), prefix=cables.prefix(number)))
    return nodes


async def story(folder: Path, cables: Cables) -> list[str]:
    """Who of them dialled, once they are linked."""
    nodes = found(folder, cables)

    async def have_met() -> bool:
        return all([await linked(node) for node in nodes])

    try:
        for node in nodes:
            node.start()
        for node in nodes:
            await wait_answering(node)
        with trio.fail_after(MET_S):
            await until(have_met)
        told = [(await read(node, "/peers"))["peers"] for node in nodes]
        return [peers[0]["direction"] for peers in told]
    finally:
        await stop_all(list(nodes))


def test_neighbours_meet_without_a_bootstrap(tmp_path: Path) -> None:
    try:
        cables = Cables(2)
    except NoNamespaces as error:
        pytest.skip(str(error))
    try:
        directions = trio.run(story, tmp_path, cables)
    finally:
        cables.close()
    assert "out" in directions
