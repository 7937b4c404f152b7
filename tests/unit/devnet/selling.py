"""A devnet of fakes over a real chain: its one answer is paid, each look at the clock is a block.

For tests of asking, checking and trading: what a node would tell is read from the chain by the
node's own functions, so that proofs are real ones.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bundle_kit import party
from chain_kit import CONTRIBUTORS, CREATOR, FAUCET, PROVIDER, STEWARD
from stored_kit import Told

from node.devnet.goods import Good, Goods
from node.devnet.people import People, Person, Settled
from node.ledger import tables
from node.ledger.addresses import account_of
from node.ledger.genesis import encode_genesis
from node.training import demo_texts, demo_world
from node.web import answers, proving, reading
from node.web.ask import Refusal


class SellingNode:
    """A daemon's socket over the chain; `block_ms` passes at each look at the status."""

    def __init__(self, told: Told, block_ms: int = 30_000) -> None:
        self.told, self.block_ms = told, block_ms
        self.path = Path("/nowhere")
        self.lines: list[list[dict[str, Any] | Exception]] = []  # of each answer to come
        self.on_ask: Callable[[], None] = lambda: None
        self.asked: list[dict[str, Any]] = []
        self.looks = 0
        self.audit = {
            "verdict": "pass", "why": "", "early_ppm": 10**6, "middle_ppm": 999_999,
            "moved_bps": 2,
        }  # fmt: skip

    def get(self, route: str) -> dict[str, Any]:
        match route.strip("/").split("/"):
            case ["status"]:
                self.looks += 1
                self.told.made.block(later_ms=self.block_ms)
                return {"time_ms": self.told.made.time_ms, "height": self.told.made.height}
            case ["ledger", "receipts", text, "shares"]:
                row = {"contributor": self.receipt(text)["credits"][1]["contributor"],
                       "position": 4, "text": ""}  # fmt: skip
                return {"records": [row, {**row, "text": "never the first"}]}
            case ["ledger", "receipts", text]:
                return self.receipt(text)
            case ["receipts", text, "disclosure"]:
                return {"receipt": text, "prompt": "00000001"}
            case ["ledger", "blocks", height]:
                return answers.as_json(reading.find_block(self.told.view(), int(height)))
            case ["ledger", "validators"]:
                own = self.told.made.validators.members[0].key
                rows = reading.list_validators(self.told.view(), own)
                return {"validators": [answers.as_json(row) for row in rows]}
        raise Refusal(404, "http.not_found", route, {})

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append({"route": route, **body})
        return {**self.audit}

    def get_bytes(self, route: str) -> bytes:
        view = self.told.view()
        found: bytes | None = None
        match route.strip("/").split("/"):
            case ["ledger", "receipts", text, "proof"]:
                found = proving.receipt_file(view, bytes.fromhex(text))
            case ["ledger", "accounts", text, "proof"]:
                found = proving.state_file(view, tables.ACCOUNT.flat_key((account_of(text),)))
            case ["ledger", "contributions", number, "proof"]:
                found = proving.state_file(view, tables.CONTRIBUTION.flat_key((int(number),)))
        assert found is not None
        return found

    def receipt(self, text: str) -> dict[str, Any]:
        return answers.as_json(reading.find_receipt(self.told.view(), bytes.fromhex(text)))

    def stream(self, route: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.asked.append({"route": route, **body})
        self.on_ask()
        for line in self.lines.pop(0):
            if isinstance(line, Exception):
                raise line
            yield line


def a_good(name: str = "contracts") -> Good:
    world = demo_world.make_datanet(demo_texts.DOMAINS[0], 0)
    return Good(name, world, (), None)  # type: ignore[arg-type]  # nothing is trained here


def some_goods(*names: str) -> Goods:
    return Goods(Path("/nowhere"), tuple(a_good(name) for name in names))


def a_land(node: SellingNode, home: Path) -> Settled:
    """Four validators and a payer behind one socket; the chain's people under our names."""
    strangers = (party(f"stranger {number}") for number in range(demo_world.CONTRIBUTORS))
    givers = [*CONTRIBUTORS, *strangers][: demo_world.CONTRIBUTORS]
    people = People(
        Person("faucet", FAUCET.seed),
        Person("creator", CREATOR.seed),
        Person("steward", STEWARD.seed),
        tuple(Person(f"contributor-{i:02d}", who.seed) for i, who in enumerate(givers)),
    )
    names = ("n0", "n1", "n2", "n3", "payer")
    children: Any = tuple(
        SimpleNamespace(name=name, node=node, home=home / name, roles=("provider",))
        for name in names
    )
    return Settled(home, people, encode_genesis(node.told.made.genesis), children)


def provider_of(child: Any) -> Person:
    """In the place of `node_of`: the homes of fakes hold no keys."""
    return Person(child.name, PROVIDER.seed)


def answer_lines(node: SellingNode, fact: demo_world.Fact) -> list[dict[str, Any] | Exception]:
    """The right answer in two pieces, and the receipt that the chain has settled."""
    text = fact.answer()
    receipt = {"receipt": node.told.receipt.hex(), "version": 1, "fee": "27309200"}
    return [{"text": text[:5]}, {"text": text[5:] + "\n"}, {"receipt": receipt}]
