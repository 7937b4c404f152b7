"""A peer that shares no code with us and knows p2p/WIRE.md alone is a peer like any other.

js-libp2p's is slow, and skipped where `npm ci` was not run in `tests/end_to_end/js`: it brings
Node 22 and the libraries.
"""

import sys
from pathlib import Path

import pytest
from foreign_kit import Node, meet

from node.light import examine, trust_genesis

SCRIPT = Path(__file__).with_name("foreign_peer.py")
JS = Path(__file__).with_name("js")
NODE = JS / "node_modules" / ".bin" / "node"


async def test_a_peer_made_from_the_document_is_one(tmp_path: Path) -> None:
    told = await meet(Node(tmp_path), [sys.executable, str(SCRIPT)])
    assert told["ours"] == []


@pytest.mark.slow
@pytest.mark.skipif(not NODE.is_file(), reason="npm ci was not run in tests/end_to_end/js")
async def test_a_peer_of_js_libp2p_is_one(tmp_path: Path) -> None:
    node = Node(tmp_path)
    told = await meet(node, [str(NODE), str(JS / "foreign_peer.mjs")])
    assert told["ping_ms"] >= 0, "libp2p's own ping"
    assert bytes.fromhex(told["header"]) == node.made.decided[-1][0].header
    report = examine(bytes.fromhex(told["proof"]), trust_genesis(node.made.genesis))
    assert report.refusal is None
    (shown,) = report.shown
    assert "is absent" in shown, "the account of a stranger"
