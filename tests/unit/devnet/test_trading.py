"""A round of trade over a real chain: what is owed is what matures after the first balance."""

from pathlib import Path
from typing import Any

import pytest
from chain_kit import CONTRIBUTORS, FAUCET
from stored_kit import Told
from unit.devnet.selling import SellingNode, a_land, answer_lines, provider_of, some_goods

from consensus.primitives.errors import Invalid
from node.devnet import children as processes
from node.devnet import trading
from node.devnet.checking import Checker
from node.devnet.telling import Ending
from node.devnet.trading import Trade
from node.ledger.wire.transactions import Transfer

FEE = 27_309_200
LATE_MS = 120_000  # past the devnet's challenge window


class Lines:
    """A teller that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.rows: list[Any] = []

    def say(self, label: str, text: str) -> None:
        self.said.append((label, text))

    def table(self, head: Any, rows: Any) -> None:
        self.rows += [tuple(row) for row in rows]

    def progress(self, what: str, done: int, total: int) -> None: ...


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SellingNode:
    monkeypatch.setattr(processes, "POLL_S", 0)  # threads take real time: no clock jumps here
    monkeypatch.setattr(trading, "node_of", provider_of)
    return SellingNode(Told(tmp_path / "chain"))


def a_trade(node: SellingNode, tmp_path: Path, *names: str) -> tuple[Trade, Lines, Ending]:
    """One that asks each model once; each gets the chain's one receipt."""
    goods, land, lines, ending = some_goods(*names), a_land(node, tmp_path), Lines(), Ending()
    facts = goods.goods[0].world.facts
    node.lines = [
        answer_lines(node, facts[trading.FACTS_APART * place]) for place in range(len(names))
    ]
    checker = Checker(land.genesis, tmp_path / "proofs", land.validators[2])
    return Trade(land, goods, checker, lines, ending), lines, ending


async def test_answer_is_told_with_its_fee_to_the_grain(node: SellingNode, tmp_path: Path) -> None:
    trade, lines, ending = a_trade(node, tmp_path, "contracts")
    await trade.run()
    assert sum(map(int, ending.facts["split"].values())) == int(ending.facts["fee"]) == FEE
    said = dict(lines.said)
    assert "fee 0.027309200 OPEN" in said["receipt"]
    assert "VERIFIED" in said["proof"]
    assert ("provider", "0.005461840") in lines.rows
    assert ending.facts["contributors"][0] == {
        "name": "contributor-02", "share_bps": 7_500, "record": "record 4",
    }  # fmt: skip
    assert trade.example().startswith('contracts "')


async def test_sketch_is_made_again_from_what_the_payer_discloses(
    node: SellingNode, tmp_path: Path
) -> None:
    trade, lines, ending = a_trade(node, tmp_path, "contracts")
    await trade.run()
    receipt = node.told.receipt.hex()
    asked = {"route": f"/receipts/{receipt}/audit", "receipt": receipt, "prompt": "00000001"}
    assert asked in node.asked
    assert "0.999999, 2 bps" in dict(lines.said)["sketch"]
    assert ending.facts["sketch"]["verdict"] == "pass"


async def test_sketch_that_is_another_fails_the_story(node: SellingNode, tmp_path: Path) -> None:
    trade, _, _ = a_trade(node, tmp_path, "contracts")
    node.audit = {**node.audit, "verdict": "fail", "why": "sketch"}
    with pytest.raises(Invalid) as refusal:
        await trade.run()
    assert refusal.value.code == "devnet.sketch"


async def test_balance_grows_by_what_the_proofs_owe(node: SellingNode, tmp_path: Path) -> None:
    trade, lines, ending = a_trade(node, tmp_path, "contracts")
    await trade.run()
    await trade.prove_credit(is_alone=True)
    gained = int(ending.facts["balance_after"]) - int(ending.facts["balance_before"])
    assert gained == int(ending.facts["credited_grains"]) > 0
    assert ending.facts["credited"] == "contributor-02"
    assert node.looks >= 2, "the window has passed, and was waited for"
    assert "VERIFIED" in dict(lines.said)["credited"]


async def test_pay_that_matures_while_further_questions_are_asked_is_seen(
    node: SellingNode, tmp_path: Path
) -> None:
    """A question may take 90 s and the window is 60 s: slow machines failed here."""
    trade, _, ending = a_trade(node, tmp_path, "contracts", "cooking")

    def take_long() -> None:
        if len(node.asked) > 1:
            node.told.made.block(later_ms=LATE_MS)

    node.on_ask = take_long
    await trade.run()
    trade._proofs = trade._proofs[:1]  # both questions have the chain's one receipt
    await trade.prove_credit(is_alone=True)
    assert ending.facts["verified"] is True
    assert int(ending.facts["balance_after"]) > int(ending.facts["balance_before"])


async def test_pay_that_matured_before_the_balance_was_seen_is_not_owed(
    node: SellingNode, tmp_path: Path
) -> None:
    node.told.made.block(later_ms=LATE_MS)
    trade, lines, _ = a_trade(node, tmp_path, "contracts")
    await trade.run()
    with pytest.raises(Invalid) as refusal:
        await trade.prove_credit(is_alone=True)
    assert refusal.value.code == "devnet.matured_before"
    assert "had matured at height" in lines.said[-1][1]


def _pay_more(node: SellingNode) -> None:
    made = node.told.made
    made.block(made.tx(FAUCET, Transfer(CONTRIBUTORS[2].key, 1, b"")))


async def test_other_pay_is_a_fault_only_of_one_that_is_alone(
    node: SellingNode, tmp_path: Path
) -> None:
    """With traffic in the background a balance may gain more than the first round owes."""
    trade, _, ending = a_trade(node, tmp_path, "contracts")
    await trade.run()
    _pay_more(node)
    await trade.prove_credit(is_alone=False)
    gained = int(ending.facts["balance_after"]) - int(ending.facts["balance_before"])
    assert gained == int(ending.facts["credited_grains"]) + 1
    with pytest.raises(Invalid) as refusal:
        await trade.prove_credit(is_alone=True)
    assert refusal.value.code == "devnet.credited_otherwise"


async def test_less_than_what_is_owed_is_always_a_fault(node: SellingNode, tmp_path: Path) -> None:
    trade, _, _ = a_trade(node, tmp_path, "contracts")
    await trade.run()
    trade._proofs *= 2  # as if it were owed twice
    with pytest.raises(Invalid) as refusal:
        await trade.prove_credit(is_alone=False)
    assert refusal.value.code == "devnet.credited_otherwise"


async def test_answer_that_pays_nobody_proves_nothing(node: SellingNode, tmp_path: Path) -> None:
    trade, _, _ = a_trade(node, tmp_path, "contracts")
    await trade.run()
    trade._payee = None
    with pytest.raises(Invalid) as refusal:
        await trade.prove_credit(is_alone=True)
    assert refusal.value.code == "devnet.nobody_credited"


@pytest.mark.parametrize(
    ("grains", "text"),
    [
        (0, "0.000000000"),
        ("1", "0.000000001"),
        (10**9, "1.000000000"),
        (2**63 - 1, "9223372036.854775807"),
    ],
)
def test_amounts_are_exact_to_the_grain(grains: int | str, text: str) -> None:
    """A float has 53 bits, the supply has more."""
    assert trading._open(grains) == text
