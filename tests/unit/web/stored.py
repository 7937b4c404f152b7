"""A chain on disk that tells chain_kit's story, up to a paid and settled answer."""

from pathlib import Path
from typing import Any

from chain_kit import TinyChain, golden_answer

from consensus.certificate import decode_certificate
from node.ledger.genesis import encode_genesis
from node.ledger.state import State
from node.ledger.wire.blocks import Payload
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.receipts import receipt_id
from node.storage.chain import Chain

CREDITS = ((1, 2_500), (3, 7_500))


class StoredChain(TinyChain):
    """The same story, its blocks built, signed and committed by `node.storage.chain`."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.chain = Chain.open(home, encode_genesis(self.genesis))

    def state(self) -> State:
        return self.chain.state()

    def block(
        self, *transactions: bytes, bundles: tuple[Bundle, ...] = (), later_ms: int = 1_000
    ) -> Any:
        chain = self.chain
        for bundle in bundles:
            chain.bundles.append(bundle)
        last = chain.certificate(chain.height)
        block = chain.build(
            proposer=chain.tip.validators.turn,
            time_ms=chain.tip.time_ms + later_ms,
            payload=Payload(transactions, tuple(bundle.hash for bundle in bundles)),
            last_certificate=last,
        )
        verdict = chain.execute(block)
        assert verdict.is_valid
        self.validators = chain.tip.validators
        certificate = self.certify(chain.height + 1, verdict.block_id)
        chain.bundles.sync()
        chain.commit(verdict.block_id, decode_certificate(certificate))
        self.time_ms, self.height = chain.tip.time_ms, chain.height
        outcome = chain.view().outcome(chain.height)
        if outcome is not None:  # an empty block has none
            self.outcomes.append(outcome)  # type: ignore[arg-type]  # its codes are what is read
        return outcome


class Told:
    """The story told once: the chain, and the receipt of the answer that was paid."""

    def __init__(self, home: Path) -> None:
        self.made = StoredChain(home)
        self.made.tell_story()
        session = self.made.open_channel()
        self.receipt = receipt_id(golden_answer(session, CREDITS))
        self.made.block(bundles=(self.made.bundle(session),))
        self.paid_height = self.made.height
        self.view = self.made.chain.view
