"""The devnet's light client: proof files on disk, checked with nothing but the genesis.

Why by way of the disk: what is verified is the file that a person can give away, and `olnode
verify` says the same of it on any machine.
What this file does not know: who made a proof, and what the story says of it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from consensus.primitives.errors import Invalid
from node import light
from node.devnet.children import Child, read_proof
from node.ledger import tables
from node.ledger.addresses import account_text
from node.ledger.genesis import decode_genesis
from node.ledger.proofs import StateShown
from node.ledger.wire.payouts import PayoutLeaf


@dataclass(frozen=True, slots=True)
class Verified:
    """A proof file that holds: where it lies, its size, what it shows, what the check took."""

    path: Path
    size: int
    report: light.Report
    took_ms: float

    @property
    def height(self) -> int:
        """The height of its first block."""
        return self.report.proofs[0].height

    def data_payouts(self) -> dict[int, PayoutLeaf]:
        """Contribution → its payout, of those in the file."""
        leaves = [one.shown for one in self.report.proofs if isinstance(one.shown, PayoutLeaf)]
        return {
            int.from_bytes(leaf.payee, "big"): leaf
            for leaf in leaves
            if leaf.kind == tables.KIND_DATA and leaf.payee
        }

    def account(self) -> tables.Account:
        """The account that a state proof shows; an absent one has nothing."""
        value = self._state_value()
        return tables.Account() if value is None else tables.ACCOUNT.decode(value)

    def contribution(self) -> tables.Contribution:
        """The contribution that a state proof shows; raises Invalid `check.absent`."""
        value = self._state_value()
        if value is None:
            raise Invalid("check.absent")
        return tables.CONTRIBUTION.decode(value)

    def _state_value(self) -> bytes | None:
        shown = self.report.proofs[0].shown
        if not isinstance(shown, StateShown):
            raise Invalid("check.not_a_state_proof")
        return shown.value


class Checker:
    """Gets proof files from `child`, keeps them in `folder`, and believes the genesis alone."""

    def __init__(self, genesis: bytes, folder: Path, child: Child) -> None:
        self.folder = folder
        self._child = child
        self._trust = light.trust_genesis(decode_genesis(genesis))

    def verify(self, name: str, raw: bytes) -> Verified:
        """Write the file, read it back, check every step; raises the Invalid of a false one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_bytes(raw)
        began_ns = time.perf_counter_ns()
        report = light.verify_file(path.read_bytes(), self._trust)
        took_ms = (time.perf_counter_ns() - began_ns) / 1_000_000
        return Verified(path, len(raw), report, took_ms)

    async def verify_route(self, name: str, route: str) -> Verified:
        """The same for what the node gives at `route`, as soon as it can."""
        return self.verify(name, await read_proof(self._child, route))

    async def verify_account(self, name: str, account: bytes) -> Verified:
        """The record of an account under the node's newest block."""
        route = f"/ledger/accounts/{account_text(account)}/proof"
        return await self.verify_route(name, route)
