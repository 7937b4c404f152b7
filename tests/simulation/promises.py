"""What honest nodes of a simulated network promise, checked as each promise could be broken.

One decision at a height; no two bodies signed with one head; nobody honest accused. What a height
takes after everything is healed is the campaign's to ask. What this file does not know: faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.outcomes import BROKEN, FORK, Violation

from consensus.evidence import accused_members, decode_evidence, evidence_height
from consensus.messages import VOTE_BODY_BYTES
from node.storage.views import Tip

if TYPE_CHECKING:
    from simulation.nodes import Node


class Promises:
    """Told what each node does; raises `Violation` at once, inside the node that broke it."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._decided: dict[int, bytes] = {}  # height → the one block that honest nodes committed
        self._said: dict[tuple[bytes, bytes], bytes] = {}

    def note_committed(self, node: Node, tip: Tip) -> None:
        """No two honest nodes have different blocks at one height."""
        if node.lies:
            return
        known = self._decided.setdefault(tip.height, tip.block_id)
        if known != tip.block_id:
            raise Violation(FORK, f"at height {tip.height}")

    def note_signed(self, node: Node, body: bytes) -> None:
        """An honest node never signs two bodies with one head."""
        if node.lies:
            return
        head = body[:13] if len(body) == VOTE_BODY_BYTES else body[:12]
        if self._said.setdefault((node.peer, head), body) != body:
            raise Violation(BROKEN, f"node {node.number} signed two bodies")

    def note_accused(self, node: Node, raw: bytes) -> None:
        """Evidence that honest nodes hold is of liars only, and of keys that run twice."""
        evidence = decode_evidence(raw)
        validators = node.chain.validators(evidence_height(evidence))
        if node.lies or validators is None:  # None: of a height that this node has yet to reach
            return
        if any(self._is_innocent(key) for key in accused_members(evidence, validators)):
            raise Violation(BROKEN, "an honest validator is accused")

    def _is_innocent(self, key: bytes) -> bool:
        voters = [node for node in self._nodes if node.votes and node.voter.key == key]
        return len(voters) == 1 and not voters[0].lies
