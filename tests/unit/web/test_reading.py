"""Answers and proof files from a chain on disk: a story from the genesis to a paid answer."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from bundle_kit import Party, party
from chain_kit import (
    CONTRIBUTORS,
    CREATOR,
    OPEN,
    PAYER,
    PROVIDER,
    TERMS,
    accusation,
    golden_answer,
    rotation,
)
from stored_kit import CREDITS, Stored, Told

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.addresses import account_text
from node.ledger.rules.registry import LICENCES
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import (
    RetireModel,
    SetPrice,
    Transfer,
    decode_transaction,
)
from node.light import examine, trust_genesis
from node.storage.store import MemoryKV
from node.web import answers, channels, proving, reading, standing
from node.web.answers import as_json
from node.web.earnings import find_earnings
from node.web.ledger import EarningsQuery, Ledger

FEE = 27_309_200


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    made = Told(tmp_path_factory.mktemp("home"))
    yield made
    made.made.chain.close()


def by(account: Party, told: Told) -> answers.Earnings:
    found = find_earnings(told.view(), account.key, EarningsQuery())
    assert found is not None
    return found


def test_split_of_the_receipt_sums_to_its_fee(told: Told) -> None:
    found = reading.find_receipt(told.view(), told.receipt)
    assert found is not None
    assert sum(found.split.values()) == found.fee == FEE
    assert (found.provider, found.payer) == (PROVIDER.key, PAYER.key)
    assert (found.model, found.version, found.height) == ("facts-1", 1, told.paid_height)


def test_credits_name_contributor_and_datanet(told: Told) -> None:
    found = reading.find_receipt(told.view(), told.receipt)
    assert found is not None
    told_credits = [(c.contribution, c.contributor, c.share_bps) for c in found.credits]
    assert told_credits == [(1, CONTRIBUTORS[0].key, 2_500), (3, CONTRIBUTORS[2].key, 7_500)]
    assert {c.datanet for c in found.credits} == {"facts"}
    assert sum(c.amount for c in found.credits) <= found.split["data"]


def test_what_nobody_earned_is_the_funds_and_in_no_file(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    made.tell_story()
    session = made.open_channel()
    part, none = (
        receipt_id(golden_answer(session, credits))
        for credits in (((0, 6_000), (1, 3_000), (3, 1_000)), ())
    )
    made.block(bundles=(made.bundle(session),))
    view, trust = made.chain.view(), trust_genesis(made.genesis)
    for receipt, numbers, to_fund in ((part, [1, 3], 6_000), (none, [], 10_000)):
        found = reading.find_receipt(view, receipt)
        assert found is not None
        assert [credit.contribution for credit in found.credits] == numbers
        assert found.fund_share_bps == to_fund
        shares = sum(credit.amount for credit in found.credits)
        assert found.fund_amount + shares == found.split["data"], "to the grain"
        raw = proving.receipt_file(view, receipt)
        assert raw is not None
        report = examine(raw, trust)
        assert report.refusal is None
        told = f"{len(numbers)} contributions credited, {to_fund} bps of the data part to the"
        assert told in report.steps[1].detail
        assert len(report.proofs) == 2 + len(numbers)  # the receipt, its provider, and theirs


def test_earnings_are_what_the_block_pays(told: Told) -> None:
    view = told.view()
    block = reading.find_block(view, told.paid_height)
    assert block is not None
    for who in (*CONTRIBUTORS, CREATOR, PROVIDER):
        paid = sum(row.amount for row in block.payouts if row.account == who.key)
        if paid:
            assert (by(who, told).maturing, by(who, told).matured) == (paid, 0)
        else:
            assert find_earnings(view, who.key, EarningsQuery()) is None
    assert by(CONTRIBUTORS[2], told).items[0].contribution == 3
    assert by(PROVIDER, told).items[0].kind == "provider"


def test_what_an_account_waits_for_is_told_beside_its_balance(told: Told) -> None:
    account = reading.find_account(told.view(), CONTRIBUTORS[2].key, 9)
    assert account is not None
    assert account.next_nonce == 9
    assert account.maturing == by(CONTRIBUTORS[2], told).maturing > 0
    assert reading.find_account(told.view(), b"\xee" * 32, 0) is None


def test_account_names_the_key_that_signs_for_it(tmp_path: Path) -> None:
    made, new = Stored(tmp_path), party("a new key")
    made.block(made.tx(PAYER, rotation(made.chain_id, PAYER.key, 0, new)))
    for who, key in ((PAYER, new), (CREATOR, CREATOR)):
        account = reading.find_account(made.chain.view(), who.key, 0)
        assert account is not None
        assert account.key == key.key
    made.chain.close()


def test_channel_tells_whose_it_is_and_what_it_holds(told: Told) -> None:
    receipt = reading.find_receipt(told.view(), told.receipt)
    assert receipt is not None
    found = channels.find_channel(told.view(), receipt.channel)
    assert found is not None
    assert (found.payer, found.payer_key, found.spender) == (PAYER.key,) * 3
    assert (found.provider, found.provider_key) == (PROVIDER.key,) * 2
    assert (found.state, found.paid, found.close_at_ms) == ("open", FEE, 0)
    assert as_json(found)["cap"] == str(found.cap)
    assert channels.find_channel(told.view(), bytes(32)) is None


def test_channels_of_an_account_are_those_it_pays_or_serves(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who, number in ((PAYER, 1), (PROVIDER, 1), (CREATOR, 0)):
        listed = channels.list_channels(told.view(), who.key)
        assert (len(listed.channels), listed.older) == (number, 0)
        for row in listed.channels:
            assert row == channels.find_channel(told.view(), row.channel)
    monkeypatch.setattr(channels, "CHANNELS_TOLD_MAX", 0)
    listed = channels.list_channels(told.view(), PAYER.key)
    assert (listed.channels, listed.older) == ((), 1)


def test_provider_tells_where_it_is_paid_and_whether_it_takes_channels(told: Told) -> None:
    found = reading.find_provider(told.view(), PROVIDER.key)
    assert found is not None
    assert (found.key, found.reward_account) == (PROVIDER.key,) * 2
    assert (found.status, found.takes_channels, found.channels) == ("active", True, 1)
    assert found.last_bundle == 1
    assert found.bonded > 0
    assert reading.find_provider(told.view(), CREATOR.key) is None


def test_jailed_provider_is_told_with_the_end_of_its_time(tmp_path: Path) -> None:
    own = Told(tmp_path)
    receipt = reading.find_receipt(own.view(), own.receipt)
    assert receipt is not None
    made = own.made
    made.block(made.tx(CREATOR, accusation(made.chain_id, receipt.channel, PROVIDER)))
    found = reading.find_provider(own.view(), PROVIDER.key)
    assert found is not None
    assert (found.status, found.takes_channels) == ("jailed", False)
    assert found.jailed_until_ms == made.chain.tip.time_ms + 86_400_000
    made.chain.close()


def test_earnings_mature_with_their_bucket(tmp_path: Path) -> None:
    made = Told(tmp_path)
    before = by(CONTRIBUTORS[2], made).maturing
    made.made.block(later_ms=130_000)  # past the devnet's window of a minute
    after = by(CONTRIBUTORS[2], made)
    assert (after.matured, after.maturing) == (before, 0)
    account = reading.find_account(made.view(), CONTRIBUTORS[2].key, 0)
    assert account is not None
    assert account.maturing == 0
    made.made.chain.close()


def test_block_names_its_signers_and_all_heights_have_one(told: Told) -> None:
    view = told.view()
    for height in range(1, view.tip.height + 1):
        block = reading.find_block(view, height)
        assert block is not None
        assert len(block.signers) == 3
        assert as_json(block)["height"] == height
    assert reading.find_block(view, 0) is None
    assert reading.find_block(view, view.tip.height + 1) is None


def test_transaction_is_pending_then_settled_with_its_code(tmp_path: Path) -> None:
    made = Stored(tmp_path)
    good = made.tx(PAYER, Transfer(CREATOR.key, OPEN, b""))
    poor = made.tx(PAYER, Transfer(CREATOR.key, 2**62, b""), ahead=1)
    tx_id = decode_transaction(good).tx_id
    pending = reading.find_transaction(made.chain.view(), tx_id, good)
    made.block(good, poor)
    view = made.chain.view()
    settled = reading.find_transaction(view, tx_id, None)
    refused = reading.find_transaction(view, decode_transaction(poor).tx_id, None)
    assert pending is not None
    assert settled is not None
    assert refused is not None
    assert (pending.state, pending.height) == ("pending", 0)
    assert (settled.state, settled.height, settled.code, settled.reason) == ("settled", 1, 0, "")
    assert (refused.code, refused.reason) == (20, "tx.insufficient")
    assert reading.find_transaction(view, bytes(32), None) is None
    made.chain.close()


def test_lists_tell_numbers_names_and_counts(told: Told) -> None:
    view = told.view()
    (model,) = reading.list_models(view, 0, 100, {(1, 1): 2, (1, 2): 9})
    (datanet,) = reading.list_datanets(view, 0, 100)
    assert (model.number, model.name, model.version, model.providers) == (1, "facts-1", 1, 2)
    assert (model.datanet, model.records) == ("facts", 30)
    assert (datanet.contributions, datanet.accepted, datanet.records) == (3, 3, 30)
    assert datanet.contributors == 3
    assert (datanet.mode, datanet.quorum) == ("open", 1)
    assert datanet.licences == tuple(LICENCES[code] for code in TERMS.licences)
    assert (datanet.stake_per_record, datanet.review_ms) == (
        TERMS.stake_per_record,
        TERMS.review_ms,
    )
    assert reading.list_models(view, 1, 100, {}) == ()
    assert reading.list_datanets(view, 0, 1) == (datanet,)
    (snapshot,) = reading.list_snapshots(view, 0, 100)
    assert (snapshot.number, snapshot.datanet) == (1, "facts")
    assert (snapshot.last_contribution, snapshot.records) == (3, 30)
    assert reading.list_snapshots(view, 1, 100) == reading.list_snapshots(view, 0, 0) == ()
    validators = standing.list_validators(view, PROVIDER.key)
    assert [v.this_node for v in validators].count(True) == 1
    assert [v.proposer_next for v in validators].count(True) == 1
    params = as_json(reading.get_params(view))
    assert params["values"]["challenge_window_ms"] == [60_000]
    assert int(params["base_price"]) > 0


def test_prices_are_those_in_force_and_an_end_is_told(tmp_path: Path) -> None:
    made = Told(tmp_path).made
    before = reading.list_models(made.chain.view(), 0, 1, {})[0]
    assert (before.status, before.ends_ms) == ("active", 0)
    made.block(
        made.tx(CREATOR, SetPrice(1, 1, 7, 8, 10**6)), made.tx(CREATOR, RetireModel(1, 0), 1)
    )
    end_ms = made.time_ms + 600_000
    for later_ms, price_in, status in (
        (1_000, before.price_in, "retiring"),
        (59_000, 7, "retiring"),
        (540_000, 7, "retired"),
    ):
        made.block(later_ms=later_ms)
        (model,) = reading.list_models(made.chain.view(), 0, 1, {})
        assert (model.price_in, model.status, model.ends_ms) == (price_in, status, end_ms)
    made.chain.close()


def numbers(page: answers.ContributionPage) -> list[int]:
    return [one.number for one in page.contributions]


def test_contributions_of_a_datanet_are_paged_by_number(told: Told) -> None:
    view = told.view()
    whole = reading.list_contributions(view, 1, 0, 100)
    assert (numbers(whole), whole.more_after) == ([1, 2, 3], 0)
    assert whole.contributions[2].contributor == CONTRIBUTORS[2].key
    first = reading.list_contributions(view, 1, 0, 2)
    assert (numbers(first), first.more_after) == ([1, 2], 2)
    rest = reading.list_contributions(view, 1, first.more_after, 2)
    assert (numbers(rest), rest.more_after) == ([3], 0)
    assert reading.list_contributions(view, 1, 2**63 - 1, 2) == answers.ContributionPage((), 0)


@pytest.mark.parametrize(("datanet", "found"), [(1, [1, 2]), (2, [])])
def test_page_ends_when_enough_was_looked_at(
    told: Told, monkeypatch: pytest.MonkeyPatch, datanet: int, found: list[int]
) -> None:
    """A Datanet with few contributions among many must not cost a pass over all of them."""
    monkeypatch.setattr(reading, "LOOKED_AT_MAX", 2)
    page = reading.list_contributions(told.view(), datanet, 0, 100)
    assert (numbers(page), page.more_after) == (found, 2)
    last = reading.list_contributions(told.view(), datanet, 1, 100)
    assert (last.more_after, len(last.contributions)) == (0, len(found))


# --- the loop that votes


class Gate:
    """A chain whose views are given at once, and whose reads wait until they are let."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.reading = 0
        self.opened = threading.Event()

    def take_view(self) -> Any:
        return self

    def payload(self, height: int) -> None:
        self.reading += 1
        self.opened.wait(5)

    def certificate(self, height: int) -> None: ...

    def header(self, height: int) -> None: ...

    @property
    def tip(self) -> Any:
        return self.told.view().tip


def ledger_over(take_view: Callable[[], Any], **parts: Any) -> Ledger:
    async def nothing(_: bytes) -> Any: ...

    given: dict[str, Any] = {
        "find_pending": lambda tx_id: None,
        "next_nonce": lambda account: 0,
        "count_providers": dict,
    }
    read = reading.Reading(take_view=take_view, own_validator=None, **{**given, **parts})
    return reading.make_ledger(read, find_shares=nothing, check_shares=nothing, submit=nothing)


async def test_loop_goes_on_while_the_ledger_is_read(told: Told) -> None:
    """A node that does not vote while somebody lists contributions could be silenced by asking."""
    gate = Gate(told)
    ledger = ledger_over(gate.take_view)
    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            for _ in range(reading.READS_AT_ONCE_MAX + 3):
                nursery.start_soon(ledger.find_block, 1)
            while gate.reading < reading.READS_AT_ONCE_MAX:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert gate.reading == reading.READS_AT_ONCE_MAX  # the others wait
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            gate.opened.set()
    assert gate.reading == reading.READS_AT_ONCE_MAX + 3


async def test_pool_and_offers_are_asked_in_the_loop(told: Told) -> None:
    """They change while a thread would look at them."""
    asked: list[tuple[str, bool]] = []

    def note(what: str, answer: Any) -> Callable[..., Any]:
        def noted(*_: Any) -> Any:
            asked.append((what, trio.lowlevel.in_trio_task()))
            return answer

        return noted

    ledger = ledger_over(
        told.view,
        find_pending=note("pending", None),
        next_nonce=note("nonce", 9),
        count_providers=note("providers", {(1, 1): 2}),
    )
    account = await ledger.find_account(PAYER.key)
    (model,) = await ledger.list_models(0, 100)
    assert await ledger.find_transaction(bytes(32)) is None
    assert account is not None
    assert (account.next_nonce, model.providers) == (9, 2)
    assert asked == [("nonce", True), ("providers", True), ("pending", True)]


def test_receipt_file_verifies_from_the_genesis_alone(told: Told) -> None:
    raw = proving.receipt_file(told.view(), told.receipt)
    assert raw is not None
    report = examine(raw, trust_genesis(told.made.genesis))
    assert report.refusal is None
    assert len(report.proofs) == 1 + 1 + len(CREDITS)  # the receipt, the provider, each credit
    assert {proof.height for proof in report.proofs} == {told.paid_height}


NEWCOMER = party("newcomer").key


def account_key(account: bytes) -> bytes:
    return tables.ACCOUNT.flat_key((account,))


def test_account_file_shows_balance_or_absence(told: Told) -> None:
    view, trust = told.view(), trust_genesis(told.made.genesis)
    present = proving.state_file(view, account_key(CREATOR.key))
    absent = proving.state_file(view, account_key(b"\xee" * 32))
    assert present is not None
    assert absent is not None
    assert "holds" in examine(present, trust).steps[1].detail
    assert "is absent" in examine(absent, trust).steps[1].detail
    assert examine(absent, trust).refusal is None


def test_contribution_file_shows_whose_it_is_and_what_it_earned(told: Told) -> None:
    raw = proving.state_file(told.view(), tables.CONTRIBUTION.flat_key((3,)))
    assert raw is not None
    report = examine(raw, trust_genesis(told.made.genesis))
    assert report.refusal is None
    assert account_text(CONTRIBUTORS[2].key) in report.steps[1].detail


def test_channel_and_version_are_shown_by_their_records(told: Told) -> None:
    receipt = reading.find_receipt(told.view(), told.receipt)
    assert receipt is not None
    name = f"channel {receipt.channel.hex()[:16]}… of {account_text(PAYER.key)} to "
    for key, words in (
        (tables.CHANNEL.flat_key((receipt.channel,)), name),
        (tables.CHANNEL.flat_key((b"\xee" * 32,)), f"channel {'ee' * 8}… is absent"),
        (tables.VERSION.flat_key((1, 1)), "model 1 version 1 is current, its adapter "),
        (tables.VERSION.flat_key((1, 2)), "model 1 version 2 is absent"),
        (tables.CONTRIBUTION.flat_key((99,)), "contribution 99 is absent"),
    ):
        raw = proving.state_file(told.view(), key)
        assert raw is not None
        report = examine(raw, trust_genesis(told.made.genesis))
        assert report.refusal is None
        assert report.steps[1].detail.startswith(words)


def test_transaction_file_shows_its_code(told: Told) -> None:
    block = reading.find_block(told.view(), 1)
    assert block is not None
    raw = proving.transaction_file(told.view(), block.transactions[0])
    assert raw is not None
    assert examine(raw, trust_genesis(told.made.genesis)).refusal is None
    assert proving.transaction_file(told.view(), bytes(32)) is None


def test_earlier_block_proves_what_is_as_it_was_then_and_what_was_not_yet(tmp_path: Path) -> None:
    made = Stored(tmp_path, keep_versions=3)
    made.block(made.tx(PAYER, Transfer(NEWCOMER, 5, b"")))
    for _ in range(4):
        made.block(made.tx(PAYER, Transfer(CREATOR.key, 1, b"")))
    view, trust = made.chain.view(), trust_genesis(made.genesis)
    assert view.height == 5

    def told(account: bytes, height: int) -> str:
        try:
            raw = proving.state_file(view, account_key(account), height)
        except Invalid as refused:
            return refused.code
        assert raw is not None
        report = examine(raw, trust)
        assert report.refusal is None
        assert report.proofs[0].height == height
        return "absent" if "is absent" in report.steps[1].detail else "holds"

    assert told(NEWCOMER, 3) == told(NEWCOMER, 5) == "holds"
    assert told(b"\xee" * 32, 3) == "absent"
    assert told(PAYER.key, 5) == "holds"
    assert told(PAYER.key, 3) == "ledger.record_changed"
    assert told(NEWCOMER, 1) == "ledger.pruned"
    assert proving.state_file(view, account_key(NEWCOMER), 6) is None
    made.chain.close()


def test_absence_is_proved_of_a_block_before_the_record_came(tmp_path: Path) -> None:
    made = Stored(tmp_path)
    made.block(made.tx(PAYER, Transfer(CREATOR.key, 1, b"")))
    made.block(made.tx(PAYER, Transfer(NEWCOMER, 5, b"")))
    raw = proving.state_file(made.chain.view(), account_key(NEWCOMER), 1)
    assert raw is not None
    report = examine(raw, trust_genesis(made.genesis))
    assert report.refusal is None
    assert "is absent" in report.steps[1].detail
    made.chain.close()


def test_proof_file_with_any_byte_changed_is_refused(told: Told) -> None:
    trust = trust_genesis(told.made.genesis)
    for raw in (
        proving.receipt_file(told.view(), told.receipt),
        proving.state_file(told.view(), account_key(CREATOR.key)),
    ):
        assert raw is not None
        for place in range(0, len(raw), 13):
            forged = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            assert examine(forged, trust).refusal is not None, place


def test_receipt_that_is_not_settled_has_no_file(told: Told) -> None:
    assert proving.receipt_file(told.view(), bytes(32)) is None
