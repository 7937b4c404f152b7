"""What the devnet does from start to end, stage by stage, and what it says of it.

Why stages with names: a demo that fails must say where; it succeeds only when a light client with
nothing but the genesis has verified the receipt and, when the challenge window has passed, the
balance of the contributor who earned.
What this file does not know: how a terminal is drawn; a `Teller` is handed in.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from consensus.primitives.errors import Invalid
from node.config import load
from node.devnet.asking import Asked, ask, contributor_shares, signers, top_payee
from node.devnet.checking import Checker, Verified
from node.devnet.children import (
    Child,
    ChildFailed,
    patiently,
    read,
    read_proof,
    stop_all,
    wait_answering,
    watch,
)
from node.devnet.goods import Goods, cache_folder, make_goods
from node.devnet.market import Market
from node.devnet.people import PROVIDERS, Person, Settled, settle, settled
from node.devnet.ports import NoPorts, free_ports
from node.devnet.publishing import CURATION_BPS, Publisher
from node.devnet.traffic import run_traffic
from node.home import keystore_of
from node.ledger.addresses import account_of, account_text
from node.ledger.amounts import GRAINS_PER_OPEN, part_bps
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer
from node.light import open_text
from node.training.demo_texts import DOMAINS
from node.web.ask import Refusal, Unreachable

ONCE_S: Final = 300.0
MATURE_S: Final = 120.0  # the devnet's window is one minute
GIFT_GRAINS: Final = 100 * GRAINS_PER_OPEN
SHOWN_RECORDS: Final = 4
FACTS_APART: Final = 7  # so that the questions are of different contributors
NO_ML_MEND: Final = "no torch here: models are left out (pip install torch==2.13.0, then make)"


class Teller(Protocol):
    """Who hears the story: a terminal, a log, a program."""

    def say(self, label: str, text: str) -> None:
        """One line."""
        ...

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a long step is."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """How the devnet is to run. `home` holds one that stays; --once makes a temporary one."""

    home: Path
    once: bool
    keep: bool
    reset: bool
    traffic_per_s: float
    with_models: bool


@dataclass(slots=True)
class Ending:
    """How it ended: the stage reached, why it failed or "", and the facts for a program."""

    stage: str = "settling"
    failure: str = ""
    log: str = ""  # the last lines of a daemon that died
    facts: dict[str, Any] = field(default_factory=dict)


async def run(wish: Wish, teller: Teller) -> Ending:
    """Tell the story; one that stays ends with a cancel.

    A home of --once is removed at the end unless `keep` is set or a stage failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="olnode-devnet-")) if wish.once else wish.home
    if wish.reset and not wish.once:
        shutil.rmtree(folder, ignore_errors=True)
    story = _Story(folder, wish, teller)
    ending = story.ending
    try:
        with trio.fail_after(ONCE_S if wish.once else float("inf")):
            await story.tell()
    except* (Invalid, ChildFailed, NoPorts, Refusal, Unreachable, trio.TooSlowError) as group:
        error = _first_of(group)
        is_late = isinstance(error, trio.TooSlowError)
        ending.failure = f"not done within {ONCE_S:.0f} s" if is_late else str(error)
        ending.log = error.log if isinstance(error, ChildFailed) else ""
    finally:
        if wish.once and not wish.keep and not ending.failure:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            ending.facts["home"] = str(folder)
    return ending


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Story:
    def __init__(self, folder: Path, wish: Wish, teller: Teller) -> None:
        self._folder, self._wish, self._teller = folder, wish, teller
        self._say = teller.say
        self.ending = Ending()
        self._has_models = wish.with_models and find_spec("torch") is not None

    async def tell(self) -> None:
        """Every stage in order."""
        if not self._has_models:
            self._say("note", NO_ML_MEND if self._wish.with_models else "models are left out")
        goods = await self._make_goods() if self._has_models else None
        known = settled(self._folder)
        land = known or self._settle()
        genesis = decode_genesis(land.genesis)
        chain = genesis.chain_id.hex()
        self.ending.facts["chain_id"] = chain
        self._say("olnode devnet", f"chain {chain[:4]}…{chain[-2:]}   home {self._folder}")
        checker = Checker(land.genesis, self._folder / "proofs")
        try:
            async with trio.open_nursery() as nursery:
                await self._start(land, nursery)
                market = Market(land.validators[0], genesis.chain_id)
                await self._agree(land, market, checker)
                if goods is not None:
                    if known is None:
                        await self._publish(land, market, goods)
                    await self._trade(land, market, goods, checker)
                elif not self._wish.once:
                    await trio.sleep_forever()
                for child in land.children:
                    child.stopping = True
                nursery.cancel_scope.cancel()
        finally:
            await stop_all(list(land.children))

    def _stage(self, name: str) -> None:
        self.ending.stage = name

    async def _make_goods(self) -> Goods:
        self._stage("training the base and its adapters")
        threads = os.cpu_count() or 1

        def tell(what: str, done: int, total: int) -> None:
            trio.from_thread.check_cancelled()  # Ctrl-C ends a training here; it resumes later
            self._teller.progress(what, done, total)

        return await trio.to_thread.run_sync(make_goods, cache_folder(), threads, tell)

    def _settle(self) -> Settled:
        self._stage("settling")
        models = tuple(domain.name for domain in DOMAINS) if self._has_models else ()
        time_ms = time.time_ns() // 1_000_000
        return settle(self._folder, time_ms=time_ms, ports=free_ports(), models=models)

    async def _start(self, land: Settled, nursery: trio.Nursery) -> None:
        self._stage("starting the nodes")
        for child in land.children:
            child.start()
            nursery.start_soon(partial(watch, child, on_restart=self._tell_restart))
        for child in land.children:
            await wait_answering(child)
        names = " ".join(child.name for child in land.validators)
        servers = " ".join(child.name for child in land.validators[:PROVIDERS])
        self._say("validators", f"{names}: a process and a database each; {servers} also serve")

    async def _agree(self, land: Settled, market: Market, checker: Checker) -> None:
        """A transfer from the faucet, agreed on by all, its balance proved to a light client."""
        self._stage("agreeing on a block")
        began_s = trio.current_time()
        to = land.people.contributors[0]
        height = await market.do(land.people.faucet, Transfer(to.account, GIFT_GRAINS, b"gift"))
        took_s = trio.current_time() - began_s
        self._stage("proving a balance")
        proved = await _prove_account(land, checker, to, "gift.proof")
        self._say(
            "first block",
            f"height {height}, {took_s:.1f} s after a transfer was sent; balance proved in "
            f"{proved.size:,} bytes, VERIFIED offline in {proved.took_ms:.1f} ms",
        )

    async def _publish(self, land: Settled, market: Market, goods: Goods) -> None:
        """Providers, Datanets, contributions, models: each step its person's transaction."""
        self._stage("publishing Datanets and models")
        publisher = Publisher(market, land.validators[0], land.people, self._folder / "creator")
        for child in land.validators[:PROVIDERS]:
            await publisher.register_provider(node_of(child))
        numbers = await publisher.create_datanets(goods)
        await publisher.contribute(goods, numbers)
        labels = []
        for place, good in enumerate(goods.goods):
            self._teller.progress("publishing", place, len(goods.goods))
            await publisher.publish(goods, good, numbers[good.name])
            labels.append(f"{good.name}@1")
        self._teller.progress("publishing", len(goods.goods), len(goods.goods))
        people = len(land.people.contributors)
        self._say("models", f"{' '.join(labels)} on tiny-base")
        self._say("Datanets", f"{len(numbers)}, contributors {people}")

    async def _trade(self, land: Settled, market: Market, goods: Goods, checker: Checker) -> None:
        """A question to each model, its receipt and its pay verified; then, maybe, traffic."""
        answers = await self._ask_all(land, market, goods)
        shown = [await self._settled(land, one) for one in answers]
        self._show_answers(land, answers, shown)
        await self._show_receipt(land, answers[0], shown[0])
        proofs = [await self._verify(land, one, checker) for one in answers]
        await self._show_block(land, answers[0], shown[0], proofs[0])
        if self._wish.once:
            await self._credit(land, shown[0], proofs, checker, is_alone=True)
            return
        self._stage("staying up")
        self._say("ask", f"olnode --home {land.payer.home} infer contracts “…”")
        self._say("look", f"olnode --home {land.validators[0].home} status   (Ctrl-C ends all)")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_traffic, land, goods, self._wish.traffic_per_s, self._say)
            await self._credit(land, shown[0], proofs, checker, is_alone=False)

    async def _ask_all(self, land: Settled, market: Market, goods: Goods) -> list[Asked]:
        self._stage("asking questions")
        spender = spender_of(land.payer)
        await market.do(land.people.faucet, Transfer(spender, GIFT_GRAINS, b"to ask with"))
        answers = []
        for place, good in enumerate(goods.goods):
            fact = good.world.facts[FACTS_APART * place]
            answers.append(await ask(land.payer, good, fact, fact.held_back_questions()[0]))
        return answers

    async def _settled(self, land: Settled, asked: Asked) -> dict[str, Any]:
        self._stage("settling the receipts")
        shown = await read(land.payer, f"/ledger/receipts/{asked.receipt['receipt']}")
        return {**shown, "settle_s": trio.current_time() - asked.ended_s}

    def _show_answers(
        self, land: Settled, answers: list[Asked], shown: list[dict[str, Any]]
    ) -> None:
        told = self.ending.facts.setdefault("answers", [])
        for asked, one in zip(answers, shown, strict=True):
            name, bps = top_payee(land.people, one)
            is_owner = name == land.people.contributors[asked.fact.owner].name
            self._say(f"{asked.model}@{asked.receipt['version']}", f"“{asked.question}”")
            self._say("", f"“{asked.answer}”   {'right' if asked.is_right else 'wrong'}")
            taught = ", who taught it" if is_owner else ""
            self._say("", f"paid most: {name}{taught}, {bps / 100:.1f} % of the data part")
            told.append(
                {
                    "model": asked.model,
                    "question": asked.question,
                    "answer": asked.answer,
                    "is_right": asked.is_right,
                    "paid_most": name,
                    "is_owner": is_owner,
                }
            )

    async def _show_receipt(self, land: Settled, asked: Asked, shown: dict[str, Any]) -> None:
        """The first receipt: its fee by role, its contributors, and the records that earned."""
        receipt = asked.receipt
        provider = next(
            child.name
            for child in land.validators
            if account_text(node_of(child).account) == shown["provider"]
        )
        self._say(
            "receipt",
            f"{receipt['receipt'][:16]}…  by {provider}  {receipt['tokens_in']} + "
            f"{receipt['tokens_out']} tokens  fee {_open(shown['fee'])} OPEN",
        )
        split = [(role, _open(grains)) for role, grains in shown["split"].items()]
        self._teller.table(("part of the fee", "OPEN"), split)
        self._stage("explaining the shares")
        route = f"/ledger/receipts/{receipt['receipt']}/shares"
        told = await read(land.validators[2], route)
        data = int(shown["split"]["data"])
        best: dict[str, str] = {}
        for row in told["records"]:
            name = land.people.name_of(account_of(row["contributor"])) or row["contributor"]
            best.setdefault(name, row["text"] or f"record {row['position']}")
        rows = [
            (name, f"{bps / 100:.2f} %", _open(str(part_bps(data, bps))), best.get(name, ""))
            for name, bps in contributor_shares(land.people, shown).items()
        ]
        head = ("contributor", "share", "OPEN", "the record that earned most")
        self._teller.table(head, rows[:SHOWN_RECORDS])
        self.ending.facts |= {
            "receipt": receipt["receipt"],
            "fee": shown["fee"],
            "split": shown["split"],
            "contributors": [{"name": row[0], "share": row[1], "record": row[3]} for row in rows],
        }

    async def _verify(self, land: Settled, asked: Asked, checker: Checker) -> Verified:
        self._stage("verifying the receipts")
        receipt = asked.receipt["receipt"]
        raw = await read_proof(land.validators[2], f"/ledger/receipts/{receipt}/proof")
        return checker.verify(f"receipt-{asked.model}.proof", raw)

    async def _show_block(
        self, land: Settled, asked: Asked, shown: dict[str, Any], proof: Verified
    ) -> None:
        who = await signers(land, shown["height"])
        self._say(
            "settled",
            f"height {shown['height']}, {shown['settle_s']:.1f} s after the answer, signed by "
            f"{' '.join(who)}",
        )
        self._say(
            "proof",
            f"{proof.size:,} bytes: receipt → bundle → header → certificate, and its payouts   "
            f"VERIFIED offline in {proof.took_ms:.1f} ms",
        )
        self.ending.facts |= {
            "height": shown["height"],
            "signers": who,
            "proof_bytes": proof.size,
            "verify_ms": round(proof.took_ms, 2),
        }

    async def _credit(
        self,
        land: Settled,
        shown: dict[str, Any],
        proofs: list[Verified],
        checker: Checker,
        *,
        is_alone: bool,
    ) -> None:
        """The credited balance of whom the first answer paid most, before and after it matures.

        `is_alone`: nothing else pays that account meanwhile, so the difference is exact.
        """
        self._stage("proving the credited balance")
        if not shown["credits"]:
            raise Invalid("devnet.nobody_credited")
        best = max(shown["credits"], key=lambda credit: credit["share_bps"])
        who = _person(land, account_of(best["contributor"]))
        before = await _prove_account(land, checker, who, "balance-before.proof")
        due = await self._due_to(land, who, proofs, checker)
        matures_ms = max(leaf_ms for _, leaf_ms in due)
        wait_s = max(0, matures_ms // 1_000 - time.time_ns() // 1_000_000_000)
        self._say("maturing", f"the challenge window ends in {wait_s} s")
        await self._matured(land, matures_ms)
        after = await _prove_account(land, checker, who, "balance-after.proof")
        owed = sum(amount for amount, _ in due)
        gained = after.account().balance - before.account().balance
        if gained < owed or (is_alone and gained != owed):
            raise Invalid("devnet.credited_otherwise", owed=owed, gained=gained)
        self._say(
            "credited",
            f"{who.name} had {open_text(before.account().balance)} OPEN at height "
            f"{before.height}, has {open_text(after.account().balance)} at {after.height}: "
            f"{open_text(owed)} of matured payouts   VERIFIED",
        )
        self.ending.facts |= {
            "credited": who.name,
            "credited_grains": str(owed),
            "balance_before": str(before.account().balance),
            "balance_after": str(after.account().balance),
            "verified": True,
        }

    async def _due_to(
        self, land: Settled, who: Person, proofs: list[Verified], checker: Checker
    ) -> list[tuple[int, int]]:
        """(grains, when) of each proved payout to a contribution that is proved to be theirs."""
        due = []
        for proof in proofs:
            for number, leaf in proof.data_payouts().items():
                route = f"/ledger/contributions/{number}/proof"
                raw = await read_proof(land.validators[2], route)
                found = checker.verify(f"contribution-{number}.proof", raw).contribution()
                if found.contributor == who.account:
                    cut = part_bps(leaf.amount, CURATION_BPS)  # the Datanet's own
                    due.append((leaf.amount - cut, leaf.matures_ms))
        return due

    async def _matured(self, land: Settled, matures_ms: int) -> None:
        """Until a block of that time stands on the node that gives the proofs."""

        async def once() -> None:
            told = await trio.to_thread.run_sync(land.validators[2].node.get, "/status")
            if told["time_ms"] < matures_ms:
                raise Refusal(503, "devnet.too_early", f"block {told['height']} is older", {})

        await patiently("the challenge window", MATURE_S, once)

    def _tell_restart(self, child: Child) -> None:
        self.ending.facts.setdefault("restarted", []).append(child.name)
        self._say("restarted", f"{child.name} had died; it catches up from its own disk")


async def _prove_account(land: Settled, checker: Checker, who: Person, name: str) -> Verified:
    route = f"/ledger/accounts/{account_text(who.account)}/proof"
    return checker.verify(name, await read_proof(land.validators[2], route))


def _person(land: Settled, account: bytes) -> Person:
    return next(person for person in land.people.everyone() if person.account == account)


def _open(grains: str) -> str:
    return f"{int(grains) / GRAINS_PER_OPEN:.9f}"


def node_of(child: Child) -> Person:
    """The account of a node's own key, which a devnet keeps in the clear."""
    key = keystore_of(load(child.home)).unlock("node", None)
    return Person(child.name, key.network_seed())


def spender_of(child: Child) -> bytes:
    """The account that the payer's wallet spends from."""
    found = keystore_of(load(child.home)).find("spending")
    assert found is not None
    return found.public_key
