"""Questions through the payer's wallet: asked again until there is a receipt, and who is paid."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stored_kit import CREDITS, Told
from unit.devnet.selling import SellingNode, a_good, a_land, answer_lines

from consensus.primitives.errors import Invalid
from node.devnet import children as processes
from node.devnet.asking import ASK_S, ask, contributor_shares, signers, top_payee
from node.web.ask import Refusal, Unreachable

GOOD = a_good()
FACT = GOOD.world.facts[0]
QUESTION = FACT.held_back_questions()[0]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("home"))


@pytest.fixture
def node(told: Told, monkeypatch: pytest.MonkeyPatch) -> SellingNode:
    monkeypatch.setattr(processes, "POLL_S", 0)  # threads take real time: no clock jumps here
    return SellingNode(told)


async def test_answer_comes_with_its_receipt(node: SellingNode, tmp_path: Path) -> None:
    node.lines = [answer_lines(node, FACT)]
    asked = await ask(a_land(node, tmp_path).payer, GOOD, FACT, QUESTION)
    assert asked.answer == FACT.answer()
    assert asked.is_right
    assert asked.receipt["receipt"] == node.told.receipt.hex()
    (sent,) = node.asked
    assert (sent["route"], sent["model"], sent["prompt"]) == ("/infer", "contracts", QUESTION)


async def test_answer_that_breaks_off_is_asked_for_again(node: SellingNode, tmp_path: Path) -> None:
    """As after a `kill -9` of the payer in mid-answer: its stream only ends."""
    whole = answer_lines(node, FACT)
    node.lines = [whole[:1], [], whole[:2], whole]
    asked = await ask(a_land(node, tmp_path).payer, GOOD, FACT, QUESTION)
    assert asked.answer == FACT.answer(), "no piece of a broken answer is left in it"
    assert len(node.asked) == 4


async def test_refused_question_is_asked_again(node: SellingNode, tmp_path: Path) -> None:
    no_provider = Refusal(503, "payer.no_provider", "no provider is ready", {})
    node.lines = [[no_provider], [Unreachable(node.path, "away")], answer_lines(node, FACT)]
    assert (await ask(a_land(node, tmp_path).payer, GOOD, FACT, QUESTION)).is_right


async def test_question_in_vain_ends_with_the_last_word(
    node: SellingNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.devnet.asking.ASK_S", 0.2)
    node.lines = [[{"text": "half"}] for _ in range(100_000)]
    with pytest.raises(Invalid, match="no node answers") as refusal:
        await ask(a_land(node, tmp_path).payer, GOOD, FACT, QUESTION)
    assert refusal.value.code == "devnet.in_vain"
    assert ASK_S >= 60, "an engine may load meanwhile"


def test_shares_of_one_contributor_are_added_and_the_largest_comes_first(
    node: SellingNode, tmp_path: Path
) -> None:
    people = a_land(node, tmp_path).people
    shown = node.receipt(node.told.receipt.hex())
    shares = contributor_shares(people, shown)
    assert list(shares.items()) == [
        (people.contributors[number - 1].name, bps)
        for number, bps in sorted(CREDITS, key=lambda credit: -credit[1])
    ]
    assert top_payee(people, shown) == ("contributor-02", 7_500)
    twice = {"credits": [*shown["credits"], *shown["credits"]]}
    assert contributor_shares(people, twice) == {name: 2 * bps for name, bps in shares.items()}


def test_answer_that_leans_on_nobody_pays_the_fund(node: SellingNode, tmp_path: Path) -> None:
    people = a_land(node, tmp_path).people
    assert top_payee(people, {"credits": []}) == ("the model's fund", 10_000)


async def test_signers_are_named_and_a_stranger_by_its_key(
    node: SellingNode, tmp_path: Path
) -> None:
    """One child is asked here, and it says that it is the first validator."""
    n0 = a_land(node, tmp_path).validators[0]
    land: Any = SimpleNamespace(validators=[n0])
    (own,) = [r["key"] for r in n0.node.get("/ledger/validators")["validators"] if r["this_node"]]
    signed = n0.node.get(f"/ledger/blocks/{node.told.paid_height}")["signers"]
    named = await signers(land, node.told.paid_height)
    assert named == sorted("n0" if key == own else key for key in signed)
    assert (len(named), named[0]) == (3, "n0")
