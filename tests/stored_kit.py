"""chain_kit's story with its blocks built, signed and committed by `node.storage.chain`."""

from pathlib import Path
from typing import Any

from chain_kit import FAUCET, OPEN, PAYER, TinyChain, devnet, golden_answer

from consensus.certificate import Certificate, decode_certificate
from consensus.header import decode_header
from node.ledger.genesis import encode_genesis
from node.ledger.state import State
from node.ledger.wire.blocks import Block, Payload
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import Transfer
from node.storage.chain import Chain
from node.storage.store import KV

CREDITS = ((1, 2_500), (3, 7_500))
GENESIS = encode_genesis(devnet())
Decided = tuple[Block, Certificate]


class Stored(TinyChain):
    """chain_kit's story with its blocks built, signed and committed on disk."""

    def __init__(self, home: Path, store: KV | None = None, keep_versions: int = 1_000) -> None:
        super().__init__()
        self.chain = Chain.open(home, GENESIS, store=store, keep_versions=keep_versions)
        self.decided: list[Decided] = []
        self.time_ms = self.chain.tip.time_ms

    def state(self) -> State:
        return self.chain.state()

    def build(
        self,
        *transactions: bytes,
        bundles: tuple[Bundle, ...] = (),
        evidence: tuple[bytes, ...] = (),
        later_ms: int = 1_000,
    ) -> Block:
        chain = self.chain
        return chain.build(
            proposer=chain.tip.validators.turn,
            time_ms=chain.tip.time_ms + later_ms,
            payload=Payload(transactions, tuple(bundle.hash for bundle in bundles), evidence),
            last_certificate=chain.tip.certificate,
        )

    def decide(self, block: Block) -> Certificate:
        self.validators = self.chain.tip.validators
        block_id = decode_header(block.header).block_id()
        return decode_certificate(self.certify(self.chain.height + 1, block_id))

    def block(
        self,
        *transactions: bytes,
        bundles: tuple[Bundle, ...] = (),
        evidence: tuple[bytes, ...] = (),
        later_ms: int = 1_000,
    ) -> Any:
        for bundle in bundles:
            self.chain.bundles.append(bundle)
        block = self.build(*transactions, bundles=bundles, evidence=evidence, later_ms=later_ms)
        certificate = self.decide(block)
        tip = self.chain.commit(certificate.block_id, certificate)
        self.time_ms, self.height = tip.time_ms, tip.height
        self.decided.append((block, certificate))
        outcome = self.chain.view().outcome(tip.height)
        if outcome is not None:  # an empty block has none
            self.outcomes.append(outcome)  # type: ignore[arg-type]  # its codes are what is read
        return outcome

    def pay(self, amount: int = OPEN) -> bytes:
        return self.tx(FAUCET, Transfer(PAYER.key, amount, b""))


class Told:
    """The story told once: the chain, and the receipt of the answer that was paid."""

    def __init__(self, home: Path) -> None:
        self.made = Stored(home)
        self.made.tell_story()
        session = self.made.open_channel()
        self.receipt = receipt_id(golden_answer(session, CREDITS))
        self.made.block(bundles=(self.made.bundle(session),))
        self.paid_height = self.made.height
        self.view = self.made.chain.view
