"""A promise that is broken is found at once: what watches the whole nodes is watched here."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_kit import party
from evidence_kit import raw_double_vote
from simulation.cluster import Cluster
from simulation.nodes import Node
from simulation.outcomes import BROKEN, FORK, Violation

from consensus.certificate import PREVOTE, vote_body
from node.ledger.genesis import encode_genesis
from node.storage.chain import Chain
from node.storage.views import Tip

LIAR = 3


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Four nodes with their chains, of which the last one lies; nothing runs."""
    made = Cluster(tmp_path, seed=1, lies={LIAR: ["equivocate"]})
    genesis = encode_genesis(made.genesis)
    with ExitStack() as chains:
        for node in made.nodes:
            opened = Chain.open(node.home, genesis, store=node.kv)
            node.chain = chains.enter_context(closing(opened))
        yield made


def _tip(node: Node, name: bytes) -> Tip:
    """As if the node had decided a block of that name."""
    return replace(node.chain.tip, height=1, block_id=name * 32)


def test_second_decision_at_a_height_is_a_fork(cluster: Cluster) -> None:
    one, other, liar = cluster.nodes[0], cluster.nodes[1], cluster.nodes[LIAR]
    cluster.promises.note_committed(liar, _tip(liar, b"b"))
    cluster.promises.note_committed(one, _tip(one, b"a"))
    cluster.promises.note_committed(other, _tip(other, b"a"))
    with pytest.raises(Violation) as raised:
        cluster.promises.note_committed(other, _tip(other, b"b"))
    assert raised.value.end == FORK


def test_two_bodies_of_one_head_are_found_of_the_honest_only(cluster: Cluster) -> None:
    bodies = [vote_body(PREVOTE, 1, 0, name * 32) for name in (b"a", b"b")]
    for body in bodies:
        cluster.promises.note_signed(cluster.nodes[LIAR], body)
    for node in cluster.nodes[:LIAR]:
        cluster.promises.note_signed(node, bodies[0])
        cluster.promises.note_signed(node, bodies[0])
    with pytest.raises(Violation) as raised:
        cluster.promises.note_signed(cluster.nodes[0], bodies[1])
    assert raised.value.end == BROKEN


def test_accusing_the_honest_is_found_and_a_liar_or_a_twin_may_be_accused(
    tmp_path: Path, cluster: Cluster
) -> None:
    accuser = cluster.nodes[0]
    validators = accuser.chain.validators(1)
    assert validators is not None

    def accuse(number: int) -> None:
        offender = party(f"validator {number}")
        raw = raw_double_vote(offender, validators, cluster.chain_id, 1)
        cluster.promises.note_accused(accuser, raw)

    accuse(LIAR)
    with pytest.raises(Violation) as raised:
        accuse(2)
    assert raised.value.end == BROKEN
    twinned = cluster.nodes[2].identity
    cluster.nodes.append(Node(cluster, 4, tmp_path / "twin", votes=True, voter=twinned))
    accuse(2)
