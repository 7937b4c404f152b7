"""A chain that punishes an offence from before its snapshot, and nodes that began with that."""

from pathlib import Path

from chain_kit import VALIDATORS
from evidence_kit import raw_double_vote
from snapshot_kit import Snapped
from stored_kit import GENESIS

from consensus.pastblocks import PastBlock
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.snapshots import SnapshotStore

WHO = VALIDATORS[2]
HEIGHT = 3  # of the offence, long before the snapshot


class Accused(Snapped):
    """Behind its snapshot: a payment, a block with evidence from before it, a payment."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, behind=1)
        made = self.made
        validators = made.chain.validators(HEIGHT)
        assert validators is not None
        self.evidence = raw_double_vote(WHO, validators, made.chain_id, HEIGHT)
        made.block(evidence=(self.evidence,))
        self.accused_at = made.chain.height
        made.block(made.pay())
        self.later = made.decided[self.height :]

    def past(self, height: int = HEIGHT, at: int | None = None) -> PastBlock:
        found = self.made.chain.view().past_block(height, at or self.height)
        assert found is not None
        return found

    def newcomer(self, home: Path) -> Chain:
        """A node that starts from the snapshot."""
        store = SnapshotStore(home / "snapshots")
        self.put_part(store)
        take_in(home, store, self.manifest)
        return Chain.open(home, GENESIS)

    def caught_up(self, home: Path) -> Chain:
        """A newcomer that was shown the height, and took every block since."""
        chain = self.newcomer(home)
        chain.pasts.add(self.past(), HEIGHT)
        chain.commit_many(self.later)
        return chain
