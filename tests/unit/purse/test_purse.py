"""The payer's side composed: names and versions, fees, channels, and nonces one after the other."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import CHAIN
from exchange_kit import World, at_once, kind_of, provider_frame, world_in
from ledger_kit import BASE, OPEN, PAYER, PROVIDER, context, fee_of, open_channel

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from node.ledger import purses, tables
from node.ledger.admission import admit_bundle
from node.ledger.rules import channels, doubles
from node.ledger.wire import exchange
from node.ledger.wire.orders import decode_order
from node.ledger.wire.receipts import (
    decode_receipt,
    encode_receipt,
    receipt_id,
    receipt_message,
)
from node.ledger.wire.transactions import (
    CloseChannel,
    Evidence,
    OpenChannel,
    Transaction,
    decode_transaction,
    make_evidence,
)
from node.peering import blobstore as blobs
from node.purse import Purse, Question
from node.sender import POLL_S, SETTLE_S, VALID_MS
from node.storage.segments import ENDED_FOLDER
from node.wallet.buying import Answer, PaymentFailed
from node.wallet.doubles import LOOK_EVERY_S
from node.wallet.keystore import Key
from node.wallet.payer import Limits
from node.web.errors import find_refusal
from p2p.errors import Unreachable

LIMITS = Limits(channel_cap=10 * OPEN, total_locked_max=100 * OPEN, fee_max=OPEN)
QUESTION = Question("model-1", "why", 8)
INSUFFICIENT = 20  # page 30 §11


class Letters:
    """A tokenizer of one id a letter; a template would need a base."""

    chat_template = None
    made = 0

    def __init__(self, folder: Path) -> None:
        type(self).made += 1

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [ord(letter) for letter in text]


class Surroundings:
    """What a purse needs of its node; a transaction settles `settle_s` after it was sent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[Transaction] = []
        self.codes: dict[bytes, int] = {}
        self.code = 0
        self.settle_s = 0.0
        self.refuses = False
        self.waiting = 0  # sent by others with the same key
        self.later_ms = 0
        self.fetched: list[tuple[int, bytes]] = []
        self.knows_peer = True
        self.reached = 0
        self.fetch_error: Exception | None = None
        world.state.put(tables.MODEL_NAME, (b"model-1",), tables.Number(1))

    # network, directory, holdings

    async def reach(self, peer: bytes, addresses: tuple[bytes, ...]) -> None:
        assert (peer, addresses) == (bytes(32), self.offers()[0].addresses)
        self.reached += 1
        await trio.lowlevel.checkpoint()

    async def open(self, peer: bytes, protocol: str) -> Any:
        assert self.reached, "a provider is one of many peers, and need not be a link of ours"
        assert (peer, protocol) == (bytes(32), "infer")
        return await self.world.open_stream(self.offers()[0])

    def offers(self) -> Any:
        return self.world.offers()

    def find_peer(self, provider: bytes) -> bytes | None:
        return bytes(32) if self.knows_peer else None

    async def fetch(self, kind: int, identity: bytes) -> Path:
        self.fetched.append((kind, identity))
        if self.fetch_error is not None:
            raise self.fetch_error
        await trio.lowlevel.checkpoint()
        return Path("base")

    # the ledger

    def next_nonce(self, account: bytes) -> int:
        return self.world.state.account(account).nonce + self.waiting

    def now_ms(self) -> int:
        return self.world.now_ms() + self.later_ms

    async def submit(self, raw: bytes) -> bytes:
        tx = decode_transaction(raw)
        expected = self.next_nonce(PAYER.key)
        if tx.nonce != expected:
            raise Invalid("tx.nonce", nonce=tx.nonce, expected=expected)
        if self.refuses:
            raise Invalid("pool.full")
        self.sent.append(tx)
        self.world.nursery.start_soon(self._settle, tx)
        await trio.lowlevel.checkpoint()
        return tx.tx_id

    async def _settle(self, tx: Transaction) -> None:
        await trio.sleep(self.settle_s)
        state = self.world.state
        account = state.account(PAYER.key)
        state.put(tables.ACCOUNT, (PAYER.key,), account._replace(nonce=account.nonce + 1))
        if isinstance(tx.payload, Evidence) and not self.code:
            with state.trial():
                doubles.apply_evidence(state, context(self.now_ms()), tx, tx.payload)
        if isinstance(tx.payload, OpenChannel) and not self.code:
            opened = open_channel(state, tx.payload.cap, nonce=tx.nonce)
            self.world.opened.append(opened)
        self.codes[tx.tx_id] = self.code


def new_purse(folder: Path, around: Any, limits: Limits = LIMITS) -> Purse:
    world = around.world
    return Purse(
        key=Key("spending", "spending", PAYER.key, PAYER.seed), chain_id=CHAIN,
        folder=folder / "purse", evidence=folder / "evidence", claims=folder / "claims",
        limits=limits, network=around, directory=around, holdings=around,
        get_state=lambda: world.state,
        find_code=around.codes.get,
        next_nonce=around.next_nonce, submit=around.submit, now_ms=around.now_ms,
        run_blocking=at_once,
    )  # fmt: skip


@asynccontextmanager
async def purse_in(
    folder: Path, limits: Limits = LIMITS
) -> AsyncIterator[tuple[Purse, Surroundings]]:
    async with world_in(folder) as world:
        around = Surroundings(world)
        purse = new_purse(folder, around, limits)
        yield purse, around
        purse.close()


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    Letters.made = 0
    monkeypatch.setattr("node.purse.open_tokenizer", Letters)


async def ask(purse: Purse, question: Question = QUESTION) -> tuple[Answer, str]:
    heard = []

    async def tell(text: str) -> None:
        heard.append(text)

    return await purse.ask(question, tell), "".join(heard)


async def refusal(call: Callable[[], Any]) -> Invalid | PaymentFailed:
    """What the call refuses with, out of the groups of nurseries."""
    with pytest.raises((Invalid, PaymentFailed, ExceptionGroup)) as raised:
        await call()
    found = find_refusal(raised.value)
    assert found is not None
    return found


async def test_question_by_name_is_answered_piece_by_piece(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        answer, heard = await ask(purse)
        assert heard == "t0 t1 t2 t3 t4 ."
        assert answer.receipt.fee == fee_of(3, 5)
        assert around.world.engine.requests[0].prompt == tuple(map(ord, "why"))


async def test_sampling_and_seed_stand_in_the_order(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        question = replace(QUESTION, temperature_milli=700, top_p_milli=900, top_k=5, seed=7)
        answer, _ = await ask(purse, question)
        order = decode_order(answer.order)
        asked = around.world.engine.requests[0].sampling
        assert (order.max_in, order.max_out) == (3, 8)
        assert (asked.temperature_milli, asked.top_p_milli, asked.top_k) == (700, 900, 5)
        assert order.flags == 2  # the payer's own seed


@pytest.mark.parametrize("label", ["model-1", "model-1@1"])
async def test_label_with_and_without_version_is_the_model(tmp_path, autojump_clock, label) -> None:
    async with purse_in(tmp_path) as (purse, _):
        answer, _ = await ask(purse, replace(QUESTION, model=label))
        assert (answer.receipt.model, answer.receipt.model_version) == (1, 1)


@pytest.mark.parametrize(
    "label",
    ["model-2", "", "@1", "model-1@", "model-1@2", "model-1@0", "model-1@x", "model-1@-1",
     "model-1@01", "model-1@\u0661", "model-1@4294967296", "model-1@" + "9" * 40, "m" * 64,
     "módel-1"],
)  # fmt: skip
async def test_unknown_model_or_version_is_refused_before_anything(
    tmp_path, autojump_clock, label
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        refused = await refusal(lambda: ask(purse, replace(QUESTION, model=label)))
        assert refused.code == "payer.unknown_model"
        assert (around.fetched, around.sent) == ([], [])
        assert str(refused.facts["mend"]).startswith("olnode query models; the likest: model-1")


async def test_model_without_a_version_is_unknown(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        model = around.world.state.get(tables.MODEL, 1)
        around.world.state.put(tables.MODEL, (1,), model._replace(current=0))
        assert (await refusal(lambda: ask(purse))).code == "payer.unknown_model"


async def test_fee_at_the_callers_cap_is_paid_and_above_it_refused(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        top = fee_of(3, 8)
        refused = await refusal(lambda: ask(purse, replace(QUESTION, max_fee=top - 1)))
        assert (refused.code, refused.facts["fee"]) == ("payer.fee_max", top)
        assert around.sent == [], "no channel is opened for what is not bought"
        await ask(purse, replace(QUESTION, max_fee=top))


async def test_operators_cap_holds_whatever_the_caller_says(tmp_path, autojump_clock) -> None:
    limits = replace(LIMITS, fee_max=fee_of(3, 8) - 1)
    async with purse_in(tmp_path, limits) as (purse, _):
        refused = await refusal(lambda: ask(purse, replace(QUESTION, max_fee=OPEN)))
        assert refused.code == "payer.fee_max"


async def test_channel_is_opened_once_for_all_who_ask_at_once(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 2.0
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, purse)
        assert [type(tx.payload) for tx in around.sent] == [OpenChannel]
        assert around.sent[0].payload == OpenChannel(PROVIDER.key, PAYER.key, 10 * OPEN, 0)
        assert len(around.world.engine.requests) == 5


async def test_channel_whose_opening_was_cut_short_is_used_after_a_restart(
    tmp_path, autojump_clock
) -> None:
    """Ctrl-C or a power cut while a block is awaited: its cap must not be lost from sight."""
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 1.0
        with trio.move_on_after(0.5) as cut:
            await ask(purse)
        assert cut.cancelled_caught
        await trio.sleep(1)
        (channel,) = around.world.opened
        purse.close()
        again = new_purse(tmp_path, around)
        answer, _ = await ask(again)
        assert (answer.receipt.channel, len(around.sent)) == (channel, 1)
        again.close()


async def test_channel_that_settled_after_we_gave_up_is_used(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = SETTLE_S + 2
        assert (await refusal(lambda: ask(purse))).code == "payer.not_settled"
        await trio.sleep(5)
        answer, _ = await ask(purse)
        assert [answer.receipt.channel] == around.world.opened
        assert len(around.sent) == 1


async def test_tokenizer_is_fetched_once_by_the_ledgers_base(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        for _ in range(2):
            await ask(purse)
        assert around.fetched == [(blobs.BASE, BASE)]
        assert Letters.made == 1


@pytest.mark.parametrize("error", [Unreachable("no source"), blobs.NoRoom("blob.disk", length=1)])
async def test_without_the_bases_tokenizer_the_wallet_is_not_ready(
    tmp_path, autojump_clock, error
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.fetch_error = error
        assert (await refusal(lambda: ask(purse))).code == "payer.not_ready"
        around.fetch_error = None
        await ask(purse)


async def test_transactions_sent_at_once_have_nonces_in_order(tmp_path, autojump_clock) -> None:
    """Two with one nonce would be one lost; a gap would stop all behind it."""
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 1.0
        async with trio.open_nursery() as nursery:
            for i in range(4):
                nursery.start_soon(purse._close_channel, bytes([i]) * 32)
        assert [tx.nonce for tx in around.sent] == [0, 1, 2, 3]
        assert {tx.payload for tx in around.sent} == {
            CloseChannel(bytes([i]) * 32) for i in range(4)
        }
        for tx in around.sent:
            message = signing_bytes(b"tx", CHAIN, tx.body)
            assert is_signed_by(PAYER.key, message, tx.signature)


async def test_refused_transaction_speaks_by_the_ledgers_word(tmp_path, autojump_clock) -> None:
    """`tx.insufficient` ends a command with 5, funds; the word must not be lost on the way."""
    async with purse_in(tmp_path) as (purse, around):
        around.code = INSUFFICIENT
        refused = await refusal(lambda: ask(purse))
        assert (refused.code, refused.facts["number"]) == ("tx.insufficient", INSUFFICIENT)
        around.code = 0
        await ask(purse)  # the nonce went on, and so does the wallet


async def test_transaction_that_no_block_takes_is_given_up_in_time(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = SETTLE_S + 2 * POLL_S
        began = trio.current_time()
        refused = await refusal(lambda: ask(purse))
        assert refused.code == "payer.not_settled"
        assert trio.current_time() - began == pytest.approx(SETTLE_S, abs=2 * POLL_S)


async def test_transaction_of_the_same_key_that_waits_is_not_replaced(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.waiting = 2
        await purse._close_channel(bytes(32))
        assert [tx.nonce for tx in around.sent] == [2]


async def test_second_channel_is_not_opened_while_the_first_may_come(
    tmp_path, autojump_clock
) -> None:
    """Who asked had gone before the block came: the next question must not lock money twice."""
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 5.0
        with trio.move_on_after(1):
            await ask(purse)
        around.waiting = 1
        assert (await refusal(lambda: ask(purse))).code == "payer.not_settled"
        assert len(around.sent) == 1


@pytest.mark.parametrize(("later_ms", "sends"), [(VALID_MS - 1, False), (VALID_MS, True)])
async def test_transaction_that_no_block_may_take_any_more_is_forgotten(
    tmp_path, autojump_clock, later_ms: int, sends: bool
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 10**6
        began_ms = around.now_ms()
        assert (await refusal(lambda: purse._close_channel(bytes(32)))).code == "payer.not_settled"
        around.later_ms = began_ms + later_ms - around.now_ms()
        await refusal(lambda: purse._close_channel(bytes(32)))
        assert len(around.sent) == 1 + sends
        around.world.nursery.cancel_scope.cancel()


async def test_channel_of_no_more_use_is_closed_before_the_next_is_opened(
    tmp_path, autojump_clock
) -> None:
    """One after the other: both are transactions of one key."""
    async with purse_in(tmp_path) as (purse, around):
        around.settle_s = 1.0
        answer, _ = await ask(purse)
        channel = answer.receipt.channel
        for number in range(LIMITS.lanes):
            purse._book.leave(purse._book.lane(channel, number))
        await ask(purse)
        kinds = [type(tx.payload) for tx in around.sent]
        assert kinds == [OpenChannel, CloseChannel, OpenChannel]
        assert around.sent[1].payload == CloseChannel(channel)


async def test_questions_given_up_midway_use_up_no_channel(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):

        async def hang_up(text: str) -> None:
            raise Unreachable("the caller is gone")

        for _ in range(3 * LIMITS.lanes):
            with pytest.raises(ExceptionGroup):
                await purse.ask(QUESTION, hang_up)
            await trio.sleep(1)
        await ask(purse)
        assert [type(tx.payload) for tx in around.sent] == [OpenChannel]


async def test_transaction_that_the_pool_refuses_stands_in_nobodys_way(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.refuses = True
        assert (await refusal(lambda: ask(purse))).code == "pool.full"
        around.refuses = False
        await ask(purse)


async def test_provider_whose_peer_is_unknown_is_unreachable(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.knows_peer = False
        refused = await refusal(lambda: ask(purse))
        assert refused.code == "payer.lost"
        with pytest.raises(Unreachable):
            await purse._open_stream(around.offers()[0])


async def test_other_provider_than_asked_for_answers_nothing(tmp_path, autojump_clock) -> None:
    async with purse_in(tmp_path) as (purse, _):
        refused = await refusal(lambda: ask(purse, replace(QUESTION, provider=bytes(32))))
        assert refused.code == "payer.no_provider"


# ---- a provider that signs two receipts for one request

BOND = 1_000 * OPEN
SLASHED = BOND // 20


def bonded(around: Surroundings) -> int:
    return around.world.state.held(purses.bond(tables.ROLE_PROVIDER, PROVIDER.key, PROVIDER.key))


def told_less(body: bytes) -> bytes:
    """Tells the payer of another answer than the one that its book keeps, both signed."""
    if kind_of(body) != 3:
        return body
    frame = provider_frame(body)
    raw = encode_receipt(decode_receipt(frame.receipt)._replace(sketch_hash=b"\1" * 32))
    signature = PROVIDER.sign(receipt_message(CHAIN, raw))
    return exchange.encode_frame(frame._replace(receipt=raw, signature=signature))


async def cheat(purse: Purse, around: Surroundings) -> None:
    """The payer is told one thing, and the ledger another: the hold pays for it."""
    world = around.world
    world.tamper_provider = told_less
    assert (await refusal(lambda: ask(purse))).code == "payer.check_failed"
    await trio.sleep(15)
    await world.bundler.turn()
    admitted = admit_bundle(world.state, CHAIN, world.bundles[0])
    purse.note_bundle(admitted.bundle)
    channels.apply_bundle(world.state, context(world.now_ms()), admitted.bundle)


def accusations(around: Surroundings) -> list[Evidence]:
    return [tx.payload for tx in around.sent if isinstance(tx.payload, Evidence)]


async def test_provider_that_signed_twice_is_accused_by_the_wallet_itself(
    tmp_path, autojump_clock
) -> None:
    """From the answer to the slash: one receipt came to the payer, the other to the ledger."""
    async with purse_in(tmp_path) as (purse, around):
        around.world.nursery.start_soon(purse.run)
        await cheat(purse, around)
        before = around.world.state.account(PAYER.key).balance
        await trio.sleep(1)
        (pair,) = accusations(around)
        assert bonded(around) == BOND - SLASHED
        gained = fee_of(3, 5) + (SLASHED - fee_of(3, 5)) // 20
        assert around.world.state.account(PAYER.key).balance == before + gained
        ended = tmp_path / "evidence" / ENDED_FOLDER
        kept = [json.loads(path.read_text()) for path in ended.iterdir()]
        signed = [(bytes.fromhex(x["body"]), bytes.fromhex(x["signature"])) for x in kept]
        assert make_evidence(*signed) == pair
        await trio.sleep(3 * LOOK_EVERY_S)
        assert len(accusations(around)) == 1


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_accusation_that_no_block_took_is_made_again(
    tmp_path, autojump_clock, capfd, is_restarted
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        around.code = INSUFFICIENT
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(purse.run)
                around.code = 0
                await cheat(purse, around)
                around.code = INSUFFICIENT
        assert len(accusations(around)) >= 2
        assert bonded(around) == BOND
        assert purse._doubles.counters["failed"] == len(accusations(around))
        if is_restarted:
            purse.close()
            purse = new_purse(tmp_path, around)
        around.code = 0
        around.world.nursery.start_soon(purse.run)
        await trio.sleep(1)
        assert bonded(around) == BOND - SLASHED
        purse.close()


async def test_receipt_accepted_before_a_restart_is_half_of_a_pair_too(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        answer, _ = await ask(purse)
        purse.close()
        again = new_purse(tmp_path, around)
        raw = encode_receipt(answer.receipt._replace(fee=1))
        again._doubles.note(raw, PROVIDER.sign(receipt_message(CHAIN, raw)))
        around.world.nursery.start_soon(again.run)
        await trio.sleep(1)
        assert bonded(around) == BOND - SLASHED
        again.close()


async def test_honest_provider_is_accused_of_nothing(tmp_path, autojump_clock) -> None:
    """One receipt that comes again, and its claim from the hold, are one receipt."""
    async with purse_in(tmp_path) as (purse, around):
        around.world.nursery.start_soon(purse.run)
        world = around.world
        world.tamper_payer = lambda body: None if kind_of(body) == 1 else body  # no acknowledgement
        answer, _ = await ask(purse)
        purse._doubles.note(answer.receipt_raw, answer.signature)
        await trio.sleep(15)
        await world.bundler.turn()
        purse.note_bundle(admit_bundle(world.state, CHAIN, world.bundles[0]).bundle)
        await trio.sleep(1)
        assert accusations(around) == []
        assert not (tmp_path / "evidence").exists()


async def test_what_was_bought_is_known_after_a_restart(tmp_path, autojump_clock) -> None:
    """Its payer checks the shares once they have settled; prompt and answer are not on the disk."""
    async with purse_in(tmp_path) as (purse, around):
        bought = [receipt_id((await ask(purse))[0].receipt_raw) for _ in range(3)]
        claims = [purse.find_claim(receipt) for receipt in bought]
        assert None not in claims
        purse.close()
        again = new_purse(tmp_path, around)
        assert again.find_bought() == bought
        assert [again.find_claim(receipt) for receipt in bought] == claims
        assert [again.find_disclosure(receipt) for receipt in bought] == [None] * 3
        again.close()


async def test_answer_is_bought_though_nothing_of_it_can_be_kept(tmp_path, autojump_clock) -> None:
    (tmp_path / "claims").write_bytes(b"in the way of the folder")
    async with purse_in(tmp_path) as (purse, _):
        answer, _ = await ask(purse)
        assert purse.find_bought() == [receipt_id(answer.receipt_raw)]


async def test_what_is_paid_for_is_kept_though_its_caller_hangs_up(
    tmp_path, autojump_clock
) -> None:
    async with purse_in(tmp_path) as (purse, around):
        with trio.CancelScope() as scope:

            async def hung_up(function: Callable[..., Any], *arguments: Any) -> Any:
                if function == purse.claims.keep:
                    scope.cancel()
                return await at_once(function, *arguments)

            purse._run_blocking = hung_up
            await ask(purse)
        purse.close()
        again = new_purse(tmp_path, around)
        assert len(again.find_bought()) == 1
        again.close()
