"""Validators sign another chain for a light client: it sees through them, and the ledger punishes.

What they sign for the chain itself stays honest, so that nothing but the light client's evidence
can show it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
from bundle_kit import Party, party
from evidence_kit import lie
from simulation.cluster import Cluster, run_script
from simulation.nodes import EPOCH_MS, Node

from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock, TrustOptions
from consensus.validators import ValidatorSet
from node.following import Followed, follow, trust_genesis
from node.ledger import tables
from node.ledger.rules import staking
from node.peering.lightsource import PeerSource

ROLE = tables.ROLE_VALIDATOR
LIARS: Final = (0, 1)
LIED_ABOUT = 3
FALSE = b"\7" * 32
LUNATIC, SECOND = "lunatic", "second"


class Liar:
    """A source of the true chain, but for the newest block that it shows."""

    name = "liar"

    def __init__(self, node: Node, newest: LightBlock) -> None:
        self.node, self.newest = node, newest

    async def ask(self, height: int) -> LightBlock:
        await trio.lowlevel.checkpoint()
        if height in (0, self.newest.height):
            return self.newest
        block = self.node.chain.view().light_block(height)
        assert block is not None
        return block

    def blame(self, refusal: Invalid) -> None:
        raise AssertionError("what it shows is believed until a witness speaks")

    async def report(self, evidence: bytes) -> None:
        """It throws away what convicts it."""
        await trio.lowlevel.checkpoint()


def liars() -> list[Party]:
    return [party(f"validator {number}") for number in LIARS]


def false_block(node: Node, kind: str) -> LightBlock:
    """Beside the chain's own: of a set of their own making, or of another state."""
    view = node.chain.view()
    header, validators = view.get_header(LIED_ABOUT), view.validators(LIED_ABOUT)
    own = view.find_decided(LIED_ABOUT)
    assert validators is not None
    assert own is not None
    round = own.certificate.round
    if kind == SECOND:
        return lie(header, validators, liars(), round=round, state_root=FALSE)
    theirs = ValidatorSet.found({who.key: 1 for who in liars()})
    return lie(header, theirs, liars(), state_root=FALSE)


async def pause() -> None:
    await trio.sleep(1)


async def follow_liar(cluster: Cluster, kind: str, witness: Node) -> Followed:
    """What a light client finds that the liar leads."""
    key = party(f"light client of a {kind} block").key
    client = cluster.hub.network(key, chain_id=cluster.chain_id, epoch_ms=EPOCH_MS)
    node = cluster.nodes[LIARS[0]]
    validators = node.chain.validators(1)
    assert validators is not None
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await trio.sleep(10)
        sources = [Liar(node, false_block(node, kind)), PeerSource(client, witness.peer)]
        found = await follow(
            await trust_genesis(sources, cluster.chain_id, validators),
            sources,
            options=TrustOptions(),
            now_ms=witness.now_ms,
            pause=pause,
        )
        nursery.cancel_scope.cancel()
    return found


async def grow(cluster: Cluster, blocks: int) -> None:
    """So many more blocks on every node."""
    top = max(node.chain.height for node in cluster.alive()) + blocks
    with trio.fail_after(60):
        while min(node.chain.height for node in cluster.alive()) < top:
            cluster.pay_next()
            await trio.sleep(0.4)


def check_punished(node: Node, kinds: Sequence[str]) -> None:
    state = node.chain.state()
    used = [record for _, record in state.scan(tables.USED_EVIDENCE, b"evidence/")]
    assert sorted(record.frozen for record in used) == sorted(kind == LUNATIC for kind in kinds)
    for record in used:
        assert {key for key, _ in record.guilty} == {who.key for who in liars()}
        assert sum(power for _, power in record.guilty) > 3_333
    for who in liars():
        conduct = state.get(tables.CONDUCT, ROLE, who.key)
        assert bool(conduct.frozen_ms) == (LUNATIC in kinds)
        assert bool(conduct.tombstone) == (SECOND in kinds)
        assert bool(staking.bonded(state, ROLE, who.key)) == (SECOND not in kinds)
    honest = {party(f"validator {number}").key for number in (2, 3)}
    assert node.chain.tip.validators.powers().keys() == honest
    assert sum(state.totals()) == state.supply()
    assert len(node.accusing) == 0, "nothing is left to say"


# A set of the liars' own making needs a third of the trusted power, a second block a quorum.
@pytest.mark.parametrize(
    ("kinds", "bonds", "seed"),
    [
        ((LUNATIC,), (1, 1, 1, 1), 41),
        ((SECOND,), (3, 3, 1, 1), 42),
        ((LUNATIC, SECOND), (3, 3, 1, 1), 43),
    ],
)
def test_lie_to_a_light_client_is_found_told_and_punished(
    tmp_path: Path, kinds: Sequence[str], bonds: tuple[int, ...], seed: int
) -> None:
    """Its one witness has no vote: what it is told reaches the validators by gossip."""
    cluster = Cluster(tmp_path, seed=seed, bonds=bonds, followers=1)

    async def script(_: Cluster) -> None:
        witness = cluster.nodes[-1]
        await grow(cluster, LIED_ABOUT + 2)
        for kind in kinds:
            found = await follow_liar(cluster, kind, witness)
            (attack,) = found.attacks
            assert found.blocks == (), "neither side is trusted"
            assert attack.witness in attack.reported
        await grow(cluster, 4)
        cluster.assert_agreed()
        for node in cluster.nodes:
            check_punished(node, kinds)
        await grow(cluster, 2)

    run_script(cluster, seed, script)
