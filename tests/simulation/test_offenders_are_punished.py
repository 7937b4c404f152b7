"""One key run by two nodes: found out, accused, slashed, jailed; and the others go on."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from bundle_kit import party
from evidence_kit import raw_double_vote
from simulation.cluster import OPEN, Cluster, run_script
from simulation.nodes import Node

from consensus.evidence import DuplicateProposal, DuplicateVote, decode_evidence
from consensus.messages import EVIDENCE
from node.ledger import tables
from node.ledger.rules import staking
from node.peering.topics import VOTES, encode_vote_message
from node.storage.signer import SignerFile

TWINNED = 3
ROLE = tables.ROLE_VALIDATOR


class Twinned(Cluster):
    """Four validators, and a fifth node that runs the key of one of them."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        super().__init__(folder, seed=seed)
        voter = self.nodes[TWINNED].identity
        self.nodes.append(Node(self, 4, folder / "twin", votes=True, voter=voter))
        self.offender = voter.key
        self.honest = [node for node in self.nodes if node.voter.key != voter.key]


def accusations(node: Node) -> dict[int, tuple[bytes, ...]]:
    """Height → evidence of the blocks that hold some."""
    view = node.chain.view()
    payloads = {height: view.payload(height) for height in range(1, node.chain.height + 1)}
    return {height: p.evidence for height, p in payloads.items() if p is not None and p.evidence}


async def _until_accused(cluster: Twinned) -> int:
    with trio.fail_after(60):
        while not all(accusations(node) for node in cluster.honest):
            cluster.pay_next()
            await trio.sleep(0.4)
    return min(accusations(cluster.honest[0]))


def ignore_the_twin(node: Node) -> None:
    """Take out the guard that stops a validator as soon as it hears its own key elsewhere."""
    assert callable(node.replica._voter.is_double)
    node.replica._voter.is_double = lambda message, validators: False


async def _equivocate(cluster: Twinned) -> None:
    for node in cluster.nodes:
        if node not in cluster.honest:
            ignore_the_twin(node)
    await trio.sleep(1)
    height = await _until_accused(cluster)
    await cluster.honest[0].replica.wait_height(height)
    top = cluster.honest[0].chain.height
    for _ in range(6):
        cluster.pay_next()
        await trio.sleep(0.6)
    cluster.assert_agreed()
    for node in cluster.honest:
        check_punished(node, cluster.offender, height)
        assert node.chain.height > top, "the rest goes on"
        assert node.replica.statistics().state == "validating"
        assert len(node.accusing) == 0, "nothing is left to say"


def check_punished(node: Node, offender: bytes, height: int) -> None:
    chain = node.chain
    before, after = chain.validators(height), chain.validators(height + 1)
    assert before is not None
    assert after is not None
    assert before.index(offender) is not None
    assert after.index(offender) is None, "out at the next height"
    assert len(after) == 3
    (raw, *_) = accusations(node)[height]
    assert isinstance(decode_evidence(raw), DuplicateVote | DuplicateProposal)
    state = chain.state()
    assert staking.bonded(state, ROLE, offender) == 20 * OPEN * 2_000 // 10_000
    assert state.get(tables.CONDUCT, ROLE, offender).jailed_until_ms > chain.tip.time_ms
    assert sum(state.totals()) == state.supply() < 10**18


@pytest.mark.parametrize("seed", range(21, 25))
def test_key_that_runs_twice_is_slashed_and_out_at_the_next_height(
    tmp_path: Path, seed: int
) -> None:
    cluster = Twinned(tmp_path, seed=seed)
    run_script(cluster, seed, _equivocate)


async def _listen_first(cluster: Twinned) -> None:
    owner, twin = cluster.nodes[TWINNED], cluster.nodes[4]
    assert twin.replica.statistics().state == "waiting"
    for _ in range(15):
        cluster.pay_next()
        await trio.sleep(1)
    cluster.assert_agreed()
    assert twin.replica.statistics().state == "doubled"
    assert signed_nothing(twin)
    for node in (owner, *cluster.honest):
        assert node.replica.statistics().state == "validating"
        assert node.replica.counters["accused"] == 0
    assert twin.chain.height >= 8, "it follows all the same"


def signed_nothing(node: Node) -> bool:
    signer = SignerFile(node.home / "signer", node.cluster.chain_id, node.voter.key)
    signer.close()
    return signer.record is None


def test_second_home_of_a_key_hears_the_first_and_signs_nothing(tmp_path: Path) -> None:
    """An export that was imported twice: the wait is what keeps the bonds."""
    cluster = Twinned(tmp_path, seed=31)
    twin = cluster.nodes[4]
    twin.settings = replace(twin.settings, doppelganger_wait_s=10.0)
    run_script(cluster, 31, _listen_first)


async def _told_by_a_follower(cluster: Cluster) -> None:
    """What only a node without a vote knows: true evidence, and a forgery."""
    await trio.sleep(1)
    cluster.pay_next()
    await cluster.wait_all(1)
    chain, follower = cluster.nodes[0].chain, cluster.nodes[4]
    validators = chain.validators(1)
    assert validators is not None
    liar, framed = (party(f"validator {number}") for number in (2, 3))
    good = raw_double_vote(liar, validators, cluster.chain_id, 1)
    forged = bytearray(raw_double_vote(framed, validators, cluster.chain_id, 1))
    forged[-1] ^= 1
    for raw in (bytes(forged), good):
        await follower.network.publish(VOTES, encode_vote_message(EVIDENCE, raw))
    await trio.sleep(4)
    cluster.assert_agreed()
    for node in cluster.nodes:
        assert [raw for raws in accusations(node).values() for raw in raws] == [good]
        assert staking.is_jailed(node.chain.state(), ROLE, liar.key)
        assert not staking.is_jailed(node.chain.state(), ROLE, framed.key)
    refused = sum(node.accusing.counters["vote.signature"] for node in cluster.nodes)
    assert refused > 0
    assert len(chain.tip.validators) == 3


def test_evidence_that_gossip_brings_is_punished_and_a_forgery_is_not(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=32, followers=1), 32, _told_by_a_follower)


async def _honest_faults(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.pay_next()
        await trio.sleep(0.7)
        for node in cluster.nodes:
            node.crash()
        await trio.sleep(0.1)
        for node in cluster.nodes:
            await cluster.start(node)
        await trio.sleep(2)
    assert cluster.nodes[0].chain.height >= 3
    for node in cluster.nodes:
        assert node.replica.counters["accused"] == 0
        assert not accusations(node)


def test_validators_that_only_crash_accuse_nobody(tmp_path: Path) -> None:
    run_script(Cluster(tmp_path, seed=23), 23, _honest_faults)
