"""The devnet's light client: a true file shows what it says, a false one is refused."""

from pathlib import Path

import pytest
from chain_kit import CONTRIBUTORS, devnet
from stored_kit import CREDITS, Told
from unit.devnet.selling import SellingNode, a_land

from consensus.primitives.errors import Invalid
from node.devnet.checking import Checker
from node.ledger import tables
from node.ledger.genesis import encode_genesis


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> SellingNode:
    return SellingNode(Told(tmp_path_factory.mktemp("home")))


@pytest.fixture
def checker(node: SellingNode, tmp_path: Path) -> Checker:
    land = a_land(node, tmp_path)
    return Checker(land.genesis, tmp_path / "proofs", land.validators[2])


async def test_what_was_verified_is_the_file_that_can_be_given_away(
    checker: Checker, node: SellingNode
) -> None:
    route = f"/ledger/receipts/{node.told.receipt.hex()}/proof"
    proved = await checker.verify_route("receipt.proof", route)
    assert proved.path == checker.folder / "receipt.proof"
    assert proved.path.read_bytes() == node.get_bytes(route)
    assert (proved.size, proved.height) == (proved.path.stat().st_size, node.told.paid_height)
    payouts = proved.data_payouts()
    assert payouts.keys() == {number for number, _ in CREDITS}
    assert all(leaf.kind == tables.KIND_DATA for leaf in payouts.values())


async def test_account_is_shown_and_an_absent_one_has_nothing(
    checker: Checker, node: SellingNode
) -> None:
    who = CONTRIBUTORS[0].key
    proved = await checker.verify_account("account.proof", who)
    assert proved.account() == node.told.made.state().account(who)
    assert proved.account().balance > 0
    assert (await checker.verify_account("none.proof", b"\7" * 32)).account() == tables.Account()


async def test_contribution_is_shown_and_an_absent_one_refused(checker: Checker) -> None:
    proved = await checker.verify_route("one.proof", "/ledger/contributions/1/proof")
    assert proved.contribution().contributor == CONTRIBUTORS[0].key
    absent = await checker.verify_route("no.proof", "/ledger/contributions/999/proof")
    with pytest.raises(Invalid) as refusal:
        absent.contribution()
    assert refusal.value.code == "check.absent"


async def test_receipt_is_no_account(checker: Checker, node: SellingNode) -> None:
    route = f"/ledger/receipts/{node.told.receipt.hex()}/proof"
    proved = await checker.verify_route("receipt.proof", route)
    with pytest.raises(Invalid) as refusal:
        proved.account()
    assert refusal.value.code == "check.not_a_state_proof"


async def test_changed_byte_is_refused(checker: Checker, node: SellingNode) -> None:
    raw = bytearray(node.get_bytes("/ledger/contributions/1/proof"))
    raw[len(raw) // 2] ^= 1
    with pytest.raises(Invalid):
        checker.verify("forged.proof", bytes(raw))


async def test_proof_of_another_chain_is_refused(node: SellingNode, tmp_path: Path) -> None:
    other = encode_genesis(devnet(split="whitepaper"))
    checker = Checker(other, tmp_path, a_land(node, tmp_path).validators[2])
    with pytest.raises(Invalid) as refusal:
        await checker.verify_route("one.proof", "/ledger/contributions/1/proof")
    assert refusal.value.code == "proof.chain"
