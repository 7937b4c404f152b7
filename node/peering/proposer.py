"""What this node would put into the next block, and whether that is worth a block.

Why the pools are read on the caller's task and the rest runs in a thread: the pools change with
every message that is heard, while rehearsal and execution take long and need only a state.
What this file does not know: whose turn it is, and when.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from consensus.certificate import Certificate
from node.ledger import tables
from node.ledger.admission import Admitted
from node.ledger.context import Context
from node.ledger.execute import rules_for
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.proposing import Choice, choose_payload
from node.ledger.wire.blocks import PAYLOAD_BYTES_MAX, Block, Payload
from node.ledger.wire.transactions import Transaction
from node.peering.accusing import Accusing
from node.storage.chain import Chain
from node.storage.executing import past_of
from node.storage.views import Tip

# What is left for transactions beside 256 bundle hashes and the arrays around them.
TRANSACTIONS_BYTES_MAX: Final = PAYLOAD_BYTES_MAX - 256 * 34 - 64


class Picked(NamedTuple):
    """Entries of the pools that may go into the next block, and how bundles were checked."""

    transactions: list[Transaction]
    bundles: list[Admitted]
    known: Mapping[bytes, Admitted]
    evidence: list[bytes]


class Built(NamedTuple):
    """A block of ours, executed, and what was left out of it."""

    block: Block
    choice: Choice


class Proposer:
    """Gathers payloads from the pools for the chain."""

    def __init__(
        self,
        *,
        chain: Chain,
        transactions: TransactionPool,
        bundles: BundlePool,
        me: bytes,
        accusing: Accusing | None = None,  # None: this node accuses nobody
    ) -> None:
        self._chain = chain
        if accusing is None:
            accusing = Accusing(chain_id=chain.chain_id, get_view=chain.view)
        self._accusing = accusing
        self._transactions = transactions
        self._bundles = bundles
        self._me = me

    def has_work(self, now_ms: int) -> bool:
        """Whether a block made now would change anything but the height."""
        state = self._chain.state()
        if self._bundles.pick() or self._transactions.pick(state, TRANSACTIONS_BYTES_MAX):
            return True
        if self._accusing.pick():
            return True
        return bool(state.scan(tables.DUE, below=now_ms + 1))

    def known(self) -> Mapping[bytes, Admitted]:
        """Bundles that were checked when they came in, for the execution of others' blocks."""
        return self._bundles.known()

    def pick(self) -> Picked:
        """What to propose. Quick; on the task that owns the pools."""
        evidence = self._accusing.pick()
        room = TRANSACTIONS_BYTES_MAX - sum(len(raw) + 8 for raw in evidence)
        transactions = self._transactions.pick(self._chain.state(), room)
        return Picked(transactions, self._bundles.pick(), self._bundles.known(), evidence)

    def build(self, picked: Picked, time_ms: int, last_certificate: Certificate | None) -> Built:
        """The next block with all of `picked` that fits. Blocks; in the chain's writer thread."""
        tip, app_version = self._chain.tip, self._chain.genesis.app_version
        context = Context(
            chain_id=self._chain.chain_id,
            height=tip.height + 1,
            time_ms=time_ms,
            proposer=self._me,
            last_signers=_signers(tip, last_certificate),
            parent_id=tip.block_id,
            past=past_of(self._chain.view().find_past, picked.evidence),
        )
        choice = choose_payload(
            rules_for(app_version),
            self._chain.state(),
            context,
            picked.transactions,
            picked.bundles,
            picked.evidence,
        )
        return Built(self._build(choice.payload, time_ms, last_certificate, picked.known), choice)

    def build_empty(self, time_ms: int, last_certificate: Certificate | None) -> Built:
        """The next block with nothing in it: when a rehearsal has failed us. Blocks."""
        empty = Payload()
        return Built(self._build(empty, time_ms, last_certificate, {}), Choice(empty, (), ()))

    def _build(
        self,
        payload: Payload,
        time_ms: int,
        last_certificate: Certificate | None,
        known: Mapping[bytes, Admitted],
    ) -> Block:
        return self._chain.build(
            proposer=self._me,
            time_ms=time_ms,
            payload=payload,
            last_certificate=last_certificate,
            known=known,
        )

    def drop(self, choice: Choice) -> None:
        """Forget what a rehearsal refused; on the task that owns the pools."""
        for tx_id, _ in choice.refused_transactions:
            self._transactions.drop(tx_id)
        for bundle_hash, _ in choice.refused_bundles:
            self._bundles.drop(bundle_hash)
        for raw, _ in choice.refused_evidence:
            self._accusing.drop(raw)

    def review(self, now_ms: int) -> None:
        """After a block: drop from the pools what is done or void."""
        state = self._chain.state()
        self._transactions.review(state, now_ms)
        self._bundles.review(state, now_ms)
        self._accusing.review()


def _signers(tip: Tip, certificate: Certificate | None) -> tuple[bytes, ...]:
    if tip.signers is None or certificate is None:
        return ()
    return tuple(tip.signers.members[place].key for place in certificate.signers())
