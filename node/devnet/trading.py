"""A round of trade: a question to each model, its receipt, its shares, and its pay, all verified.

Why the balance twice: before and after the challenge window, each under a header that a quorum
signed, so that what is called paid is a difference that anybody can check.
What this file does not know: how the network came to be.
"""

import time
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node.devnet.asking import FUND, Asked, ask, contributor_shares, signers, top_payee
from node.devnet.checking import Checker, Verified
from node.devnet.children import in_thread, patiently, read
from node.devnet.goods import Goods
from node.devnet.people import Person, Settled, node_of
from node.devnet.publishing import CURATION_BPS
from node.devnet.telling import Ending, Teller
from node.ledger.addresses import account_of, account_text
from node.ledger.amounts import GRAINS_PER_OPEN, open_text, part_bps
from node.web.ask import Refusal

SKETCH_S: Final = 90.0  # the other provider's engine may still load
PPM: Final = 10**6
MATURE_S: Final = 120.0  # the devnet's window is one minute
SHOWN_CONTRIBUTORS: Final = 4
TEXT_CHARS: Final = 100  # of a record
FACTS_APART: Final = 7  # so that the questions are of different contributors


class Trade:
    """One round on a network with published models; `ending` gets the stage and the facts."""

    def __init__(
        self, land: Settled, goods: Goods, checker: Checker, teller: Teller, ending: Ending
    ) -> None:
        self._land, self._goods, self._checker = land, goods, checker
        self._teller, self._say, self._ending = teller, teller.say, ending
        self._asked: list[Asked] = []
        self._shown: list[dict[str, Any]] = []  # the settled receipts, as the ledger tells them
        self._proofs: list[Verified] = []
        self._payee: Person | None = None  # whom the first answer pays most
        self._before: Verified | None = None  # the payee's account

    async def run(self) -> None:
        """Ask each model, settle, explain and verify; the first answer is told in full."""
        for place in range(len(self._goods.goods)):
            await self._ask(place)
            if not place:
                await self._note_balance()
        for asked, shown in zip(self._asked, self._shown, strict=True):
            self._tell_answer(asked, shown)
        self._tell_receipt(self._asked[0], self._shown[0])
        await self._tell_contributors(self._asked[0], self._shown[0])
        await self._tell_sketch(self._asked[0], self._shown[0])
        self._ending.stage = "verifying the receipts"
        for asked in self._asked:
            route = f"/ledger/receipts/{asked.receipt['receipt']}/proof"
            name = f"receipt-{asked.model}.proof"
            self._proofs.append(await self._checker.verify_route(name, route))
        await self._tell_block(self._shown[0], self._proofs[0])

    def example(self) -> str:
        """A model and a question to it, as words of a command."""
        return f'{self._asked[0].model} "{self._asked[0].question}"'

    async def _ask(self, place: int) -> None:
        """A question in a phrasing that no record has, until its receipt is settled."""
        self._ending.stage = "asking questions"
        good = self._goods.goods[place]
        fact = good.world.facts[FACTS_APART * place]
        asked = await ask(self._land.payer, good, fact, fact.held_back_questions()[0])
        self._ending.stage = "settling the receipts"
        shown = await read(self._land.payer, f"/ledger/receipts/{asked.receipt['receipt']}")
        self._asked.append(asked)
        self._shown.append({**shown, "settle_s": trio.current_time() - asked.ended_s})

    async def _note_balance(self) -> None:
        """The payee's balance now: the further questions may outlast the challenge window."""
        credits = self._shown[0]["credits"]
        if not credits:
            return
        best = max(credits, key=lambda credit: credit["share_bps"])
        self._payee = self._land.people.get(account_of(best["contributor"]))
        name = "balance-before.proof"
        self._before = await self._checker.verify_account(name, self._payee.account)

    def _tell_answer(self, asked: Asked, shown: dict[str, Any]) -> None:
        people = self._land.people
        name, bps = top_payee(people, shown)
        is_owner = name == people.contributors[asked.fact.owner].name
        taught = ", who taught it" if is_owner else ""
        self._say(f"{asked.model}@{asked.receipt['version']}", f"“{asked.question}”")
        self._say("", f"“{asked.answer}”   {'right' if asked.is_right else 'wrong'}")
        self._say("", f"paid most: {name}{taught}, {bps / 100:.1f} % of the data part")
        self._ending.facts.setdefault("answers", []).append(
            {
                "model": asked.model,
                "question": asked.question,
                "answer": asked.answer,
                "is_right": asked.is_right,
                "paid_most": name,
                "is_owner": is_owner,
            }
        )

    def _tell_receipt(self, asked: Asked, shown: dict[str, Any]) -> None:
        provider = next(
            child.name
            for child in self._land.validators
            if account_text(node_of(child).account) == shown["provider"]
        )
        self._say(
            "receipt",
            f"{asked.receipt['receipt'][:16]}…  by {provider}  {shown['tokens_in']} + "
            f"{shown['tokens_out']} tokens  fee {_open(shown['fee'])} OPEN",
        )
        split = [(role, _open(grains)) for role, grains in shown["split"].items()]
        self._teller.table(("part of the fee", "OPEN"), split)
        self._ending.facts |= {
            "receipt": asked.receipt["receipt"],
            "fee": shown["fee"],
            "split": shown["split"],
        }

    async def _tell_contributors(self, asked: Asked, shown: dict[str, Any]) -> None:
        """Whom the data part pays, each with the record that earned most."""
        self._ending.stage = "explaining the shares"
        people, data = self._land.people, int(shown["split"]["data"])
        route = f"/ledger/receipts/{asked.receipt['receipt']}/shares"
        told = await read(self._land.validators[2], route)
        best: dict[str, str] = {}
        for row in told["records"]:
            name = people.name_of(account_of(row["contributor"])) or row["contributor"]
            best.setdefault(name, row["text"] or f"record {row['position']}")
        shares = contributor_shares(people, shown)
        rows = [
            (name, f"{bps / 100:.2f} %", _open(part_bps(data, bps)), _cut(best.get(name, "")))
            for name, bps in shares.items()
        ]
        head = ("contributor", "share", "OPEN", "the record that earned most")
        if to_fund := shown["fund_share_bps"]:
            part = _open(int(shown["fund_amount"]))
            rows = [*rows[: SHOWN_CONTRIBUTORS - 1], (FUND, f"{to_fund / 100:.2f} %", part, "")]
        self._teller.table(head, rows[:SHOWN_CONTRIBUTORS])
        self._ending.facts["contributors"] = [
            {"name": name, "share_bps": bps, "record": best.get(name, "")}
            for name, bps in shares.items()
        ]

    async def _tell_sketch(self, asked: Asked, shown: dict[str, Any]) -> None:
        """What the shares follow from, made again by another provider from prompt and answer.

        Raises Invalid `devnet.sketch` where it finds another one.
        """
        self._ending.stage = "making the sketch again"
        receipt = asked.receipt["receipt"]
        texts = await read(self._land.payer, f"/receipts/{receipt}/disclosure")
        providers = [child for child in self._land.validators if "provider" in child.roles]
        others = [
            child
            for child in providers
            if account_text(node_of(child).account) != shown["provider"]
        ]
        judge = (others or providers)[0]
        told = await patiently(
            "the sketch",
            SKETCH_S,
            lambda: in_thread(lambda: judge.node.post(f"/receipts/{receipt}/audit", texts)),
        )
        if told["verdict"] == "fail":
            raise Invalid("devnet.sketch", judge=judge.name, why=told["why"])
        early, middle = told["early_ppm"] / PPM, told["middle_ppm"] / PPM
        self._say(
            "sketch",
            f"made again by {judge.name} from prompt and answer: cosines {early:.6f} and "
            f"{middle:.6f}, {told['moved_bps']} bps of the shares move   {told['verdict'].upper()}",
        )
        self._ending.facts["sketch"] = {
            "judge": judge.name,
            **{name: told[name] for name in ("verdict", "early_ppm", "middle_ppm", "moved_bps")},
        }

    async def _tell_block(self, shown: dict[str, Any], proof: Verified) -> None:
        who = await signers(self._land, shown["height"])
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
        self._ending.facts |= {
            "height": shown["height"],
            "settle_s": round(shown["settle_s"], 3),
            "signers": who,
            "proof_bytes": proof.size,
            "verify_ms": round(proof.took_ms, 3),
        }

    async def prove_credit(self, *, is_alone: bool) -> None:
        """The balance of whom the first answer paid most, before and after its pay matures.

        `is_alone`: nothing else pays that account meanwhile, so the difference is exact. Raises
        Invalid `devnet.nobody_credited`, `devnet.matured_before`, `devnet.credited_otherwise`.
        """
        self._ending.stage = "proving the credited balance"
        who, before = self._payee, self._before
        if who is None or before is None:
            raise Invalid("devnet.nobody_credited")
        due = await self._due_to(who, before.height)
        matures_ms = max(leaf_ms for _, leaf_ms in due)
        wait_s = max(0, matures_ms // 1_000 - time.time_ns() // 1_000_000_000)
        self._say("maturing", f"the challenge window ends in {wait_s} s")
        await self._wait_block_of(matures_ms)
        after = await self._checker.verify_account("balance-after.proof", who.account)
        owed = sum(amount for amount, _ in due)
        gained = after.account().balance - before.account().balance
        if gained < owed or (is_alone and gained != owed):
            raise Invalid("devnet.credited_otherwise", owed=owed, gained=gained)
        self._say(
            "credited",
            f"{who.name} had {open_text(before.account().balance)} at height "
            f"{before.height}, has {open_text(after.account().balance)} at {after.height}: "
            f"{open_text(owed)} of matured payouts   VERIFIED",
        )
        self._ending.facts |= {
            "credited": who.name,
            "credited_grains": str(owed),
            "balance_before": str(before.account().balance),
            "balance_after": str(after.account().balance),
            "verified": True,
        }

    async def _due_to(self, who: Person, height: int) -> list[tuple[int, int]]:
        """(grains, when) of each proved payout to a contribution that is proved to be theirs.

        Only what matures after the block at `height`: what did so before is in its balance. That
        block's time is the node's word, for no proof shows it; a false one cannot make what was
        gained equal to what is owed.
        """
        told = await read(self._land.validators[2], f"/ledger/blocks/{height}")
        due, early = [], 0
        for proof in self._proofs:
            for number, leaf in proof.data_payouts().items():
                route = f"/ledger/contributions/{number}/proof"
                shown = await self._checker.verify_route(f"contribution-{number}.proof", route)
                if shown.contribution().contributor != who.account:
                    continue
                cut = part_bps(leaf.amount, CURATION_BPS)  # the Datanet's own
                if leaf.matures_ms > told["time_ms"]:
                    due.append((leaf.amount - cut, leaf.matures_ms))
                else:
                    early += leaf.amount - cut
        if early:
            self._say("", f"{open_text(early)} had matured at height {height} already")
        if not due:
            raise Invalid("devnet.matured_before", height=height)
        return due

    async def _wait_block_of(self, time_ms: int) -> None:
        """Until a block of that time stands on the node that gives the proofs."""

        async def once() -> None:
            told = await in_thread(lambda: self._land.validators[2].node.get("/status"))
            if told["time_ms"] < time_ms:
                raise Refusal(503, "devnet.too_early", f"block {told['height']} is older", {})

        await patiently("the challenge window", MATURE_S, once)


def _open(grains: str | int) -> str:
    """With all nine decimals, so that columns align."""
    whole, rest = divmod(int(grains), GRAINS_PER_OPEN)
    return f"{whole}.{rest:09d}"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + "…"
