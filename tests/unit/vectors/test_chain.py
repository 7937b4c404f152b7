"""A small chain gives the promised roots at every height, whatever the salt of the process."""

import json

import pytest
from salt_kit import printed
from vectors.make import COMMAND, HERE
from vectors.small_chain import Story

from node.ledger import tables, tree
from node.ledger.genesis import decode_genesis, start
from node.ledger.wire.payouts import TOTAL, check_amount, decode_payout
from node.ledger.wire.transactions import TYPES, decode_transaction

TEXT = (HERE / "chain.json").read_text(encoding="utf-8")
PROMISED = json.loads(TEXT)
CHANGED = f"other roots? if they are meant: `{COMMAND}`, and tell it in CHANGELOG.md"
BLOCKS = PROMISED["blocks"]


@pytest.fixture(scope="module")
def story() -> Story:
    return Story()


def test_every_height_has_the_promised_roots(story: Story) -> None:
    told = story.told()
    assert told["genesis"] == PROMISED["genesis"], CHANGED
    for block, promised in zip(told["blocks"], BLOCKS, strict=True):
        assert block == promised, f"height {promised['height']}: {CHANGED}"


@pytest.mark.parametrize("salt", ["1", "2"])
def test_roots_do_not_depend_on_the_salt_of_hashes(salt: str) -> None:
    """Sets and dicts of bytes are ordered by PYTHONHASHSEED, which differs between processes."""
    assert printed("chain", salt) == TEXT, CHANGED


def test_the_promised_genesis_begins_the_chain(story: Story) -> None:
    genesis = decode_genesis(bytes.fromhex(PROMISED["genesis"]))
    assert genesis.chain_id.hex() == PROMISED["chain_id"]
    assert start(genesis).tree.root == tree.root_hash(story.chain.records[0])


def test_the_story_says_every_type_and_meets_refusals(story: Story) -> None:
    """A rule that the story never touches is not held by its roots."""
    said = {type(decode_transaction(raw).payload) for raw in story.transactions}
    assert said == {row.make for row in TYPES}
    codes = {code for block in BLOCKS for code in block["codes"]}
    assert codes >= {0, 20, 21, 22, 23, 24, 26}
    assert len(story.transactions) >= 36


def test_the_story_moves_every_kind_of_money_and_time(story: Story) -> None:
    leaves = [decode_payout(bytes.fromhex(raw)) for b in BLOCKS for raw in b["payouts"]]
    kinds = {leaf.kind for leaf in leaves}
    assert kinds == {TOTAL, 1, 2, 3, 4, 5, 6}
    for leaf in leaves:
        check_amount(leaf)
    state = story.chain.state()
    assert state.totals().maturing == 0
    assert state.scan(tables.CHANNEL) == []
    assert all(record.earned for _, record in state.scan(tables.CONTRIBUTION)[:3])
    assert len({block["validators_hash"] for block in BLOCKS}) > 1
    assert BLOCKS[-1]["supply"] == state.supply() == sum(state.totals())
