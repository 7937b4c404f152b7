"""Questions of the devnet's payer, and what is shown of their answers: who was paid, and why.

Every fact here is asked of a real node's socket, as any user would ask it. The demo's world knows
who alone holds a fact, so that an answer can be called right, and its payee too.
What this file does not know: the order of the story, proofs.
"""

from dataclasses import dataclass
from typing import Any, Final

import trio

from node.devnet.children import Child, in_thread, patiently, read
from node.devnet.goods import Good
from node.devnet.people import People, Settled
from node.ledger.addresses import account_of
from node.ledger.amounts import BPS
from node.training.demo_world import Fact
from node.web.ask import Unreachable

FUND: Final = "the model's fund"  # gets what no contributor earned
ASK_S: Final = 90.0  # the first question waits for an engine to load
ANSWER_TOKENS_MAX: Final = 48


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was answered and paid for; `ended_s` on trio's clock."""

    model: str
    question: str
    fact: Fact
    answer: str
    receipt: dict[str, Any]
    ended_s: float

    @property
    def is_right(self) -> bool:
        """Whether the answer states the fact."""
        return self.fact.is_right(self.answer)


async def ask(payer: Child, good: Good, fact: Fact, question: str) -> Asked:
    """Ask through the payer's wallet, again while no provider is ready; Invalid after ASK_S."""
    text, receipt = await patiently(
        "answer", ASK_S, lambda: in_thread(lambda: _ask_once(payer, good.name, question))
    )
    return Asked(good.name, question, fact, text.strip(), receipt, trio.current_time())


def _ask_once(payer: Child, model: str, question: str) -> tuple[str, dict[str, Any]]:
    text = ""
    receipt: dict[str, Any] = {}
    body = {"model": model, "prompt": question, "max_tokens": ANSWER_TOKENS_MAX}
    for line in payer.node.stream("/infer", body):
        text += line.get("text", "")
        receipt = line.get("receipt", receipt)
    if not receipt:  # a node that is killed in mid-answer only stops talking
        raise Unreachable(payer.node.path, "the answer broke off before its receipt")
    return text, receipt


def top_payee(people: People, shown: dict[str, Any]) -> tuple[str, int]:
    """(name, share in bps) of the contributor that a settled receipt pays most; the fund's, where
    it pays none."""
    shares = contributor_shares(people, shown)
    return max(shares.items(), key=lambda item: item[1], default=(FUND, BPS))


def contributor_shares(people: People, shown: dict[str, Any]) -> dict[str, int]:
    """Contributor → bps of the data part, largest first."""
    shares: dict[str, int] = {}
    for credit in shown["credits"]:
        account = account_of(credit["contributor"])
        name = people.name_of(account) or credit["contributor"]
        shares[name] = shares.get(name, 0) + credit["share_bps"]
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


async def signers(land: Settled, height: int) -> list[str]:
    """Names of the validators whose signatures the block's certificate has."""
    owners: dict[str, str] = {}
    for child in land.validators:
        listed = await read(child, "/ledger/validators")
        owners |= {row["key"]: child.name for row in listed["validators"] if row["this_node"]}
    block = await read(land.validators[0], f"/ledger/blocks/{height}")
    return sorted(owners.get(key, key) for key in block["signers"])
