"""The vote book of one height: who voted for what, and which quorums that makes.

Why the first vote stands: a second, different one is evidence, never a change of mind.
Why a certificate counts as a whole: an equivocator may have shown us its other vote first; its
signature inside a quorum's certificate is good all the same, or a liar could hide a decision.
What this file does not know: what a block contains, what time it is, who is asking.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, bitmap_of, make_certificate
from consensus.evidence import DuplicateVote, two_votes
from consensus.header import NIL
from consensus.messages import Vote
from consensus.params import OLD_ROUNDS_MAX, OLD_ROUNDS_WITH_QUORUM_MAX
from consensus.validators import ValidatorSet

_NOBODY: Final[dict[int, bytes]] = {}


class Tally:
    """The votes of one kind in one round."""

    __slots__ = ("accused", "first", "power", "powers", "signatures")

    def __init__(self) -> None:
        self.first: dict[int, Vote] = {}  # member → the vote that stands
        self.signatures: dict[bytes, dict[int, bytes]] = {}  # block id → member → signature
        self.powers: dict[bytes, int] = {}  # block id → power of those members
        self.power = 0  # of all members that voted
        self.accused: set[int] = set()

    def count(self, vote: Vote, power: int) -> None:
        """Let a member's signature count for its block; twice counts once."""
        signers = self.signatures.setdefault(vote.block_id, {})
        if vote.index not in signers:
            signers[vote.index] = vote.signature
            self.powers[vote.block_id] = self.powers.get(vote.block_id, 0) + power
        if vote.index not in self.first:
            self.first[vote.index] = vote
            self.power += power


class VoteBook:
    """Tallies of all rounds that are kept, and the quorums found in them."""

    __slots__ = ("_tallies", "decisions", "height", "polkas", "validators")

    def __init__(self, height: int, validators: ValidatorSet) -> None:
        self.height = height
        self.validators = validators
        self._tallies: dict[tuple[int, int], Tally] = {}  # (round, kind)
        self.polkas: dict[int, list[bytes]] = {}  # round → blocks with > 2/3 prevotes, not nil
        self.decisions: dict[int, list[bytes]] = {}  # the same of precommits

    def add(self, vote: Vote) -> DuplicateVote | None:
        """Count a checked vote; evidence if its member voted otherwise, once per member."""
        assert vote.height == self.height
        tally = self._tally(vote.round, vote.kind)
        standing = tally.first.get(vote.index)
        if standing is None:
            self._count(tally, vote)
            return None
        if standing.block_id == vote.block_id or vote.index in tally.accused:
            return None
        tally.accused.add(vote.index)
        return two_votes(standing, vote)

    def add_certificate(self, certificate: Certificate) -> None:
        """Count all signatures of a checked certificate for its block."""
        assert certificate.height == self.height
        tally = self._tally(certificate.round, certificate.kind)
        for member, signature in certificate.by_member().items():
            vote = Vote(
                certificate.kind,
                certificate.height,
                certificate.round,
                certificate.block_id,
                member,
                signature,
            )
            self._count(tally, vote)

    def _tally(self, round: int, kind: int) -> Tally:
        tally = self._tallies.get((round, kind))
        if tally is None:
            tally = self._tallies[round, kind] = Tally()
        return tally

    def _count(self, tally: Tally, vote: Vote) -> None:
        tally.count(vote, self.validators.members[vote.index].power)
        if vote.block_id == NIL or not self.validators.is_quorum(tally.powers[vote.block_id]):
            return
        quorums = self.polkas if vote.kind == PREVOTE else self.decisions
        found = quorums.setdefault(vote.round, [])
        if vote.block_id not in found:
            found.append(vote.block_id)

    def power(self, kind: int, round: int, block_id: bytes) -> int:
        """Power behind one block (or NIL) in one round."""
        tally = self._tallies.get((round, kind))
        return 0 if tally is None else tally.powers.get(block_id, 0)

    def power_of_any(self, kind: int, round: int) -> int:
        """Power of all that voted in one round, whatever for; a double counts once."""
        tally = self._tallies.get((round, kind))
        return 0 if tally is None else tally.power

    def has_quorum(self, kind: int, round: int, block_id: bytes) -> bool:
        """Whether > 2/3 stand behind one block (or NIL)."""
        return self.validators.is_quorum(self.power(kind, round, block_id))

    def certificate(self, kind: int, round: int, block_id: bytes) -> Certificate | None:
        """The fullest certificate for this block, or None without a quorum."""
        if not self.has_quorum(kind, round, block_id):
            return None
        signed = self._tallies[round, kind].signatures[block_id]
        return make_certificate(kind, self.height, round, block_id, signed, len(self.validators))

    def members(self, round: int) -> Iterator[int]:
        """Members that voted in a round, either kind; some twice."""
        for kind in (PREVOTE, PRECOMMIT):
            tally = self._tallies.get((round, kind))
            if tally is not None:
                yield from tally.first

    def votes(self, kind: int, round: int) -> Iterable[Vote]:
        """The votes that stand, in the order they came."""
        tally = self._tallies.get((round, kind))
        return () if tally is None else tally.first.values()

    def bitmap(self, kind: int, round: int) -> bytes:
        """Which members' votes of this round we have."""
        tally = self._tallies.get((round, kind))
        return bitmap_of(_NOBODY if tally is None else tally.first, len(self.validators))

    def has_round(self, round: int) -> bool:
        """Whether any vote of this round is kept."""
        return (round, PREVOTE) in self._tallies or (round, PRECOMMIT) in self._tallies

    def rounds(self) -> list[int]:
        """The rounds with any vote, ascending."""
        return sorted({round for round, _ in self._tallies})

    def prune(self, round: int, keep: int) -> None:
        """Forget rounds long before `round`, but not `keep`, nor those that may still matter.

        Kept: OLD_ROUNDS_MAX behind `round`, and of the older ones the newest with a polka or a
        precommit for a block. A decision in a forgotten round comes as a certificate.
        """
        old = [known for known in self.rounds() if known < round - OLD_ROUNDS_MAX]
        if not old:
            return
        weighty = [known for known in old if known != keep and self._is_weighty(known)]
        kept = {keep, *weighty[-OLD_ROUNDS_WITH_QUORUM_MAX:]}
        for known in old:
            if known not in kept:
                self._tallies.pop((known, PREVOTE), None)
                self._tallies.pop((known, PRECOMMIT), None)
                self.polkas.pop(known, None)
                self.decisions.pop(known, None)

    def _is_weighty(self, round: int) -> bool:
        precommits = self._tallies.get((round, PRECOMMIT))
        has_block = precommits is not None and any(id != NIL for id in precommits.powers)
        return round in self.polkas or has_block

    def snapshot(self) -> tuple[object, ...]:
        """Everything that is counted, hashable and independent of the order of arrival."""
        return tuple(
            (round, kind, tuple(sorted((id, tuple(sorted(by))) for id, by in rows)))
            for (round, kind), tally in sorted(self._tallies.items())
            for rows in [tally.signatures.items()]
        ) + tuple(
            (round, kind, tuple(sorted((vote.index, vote.block_id) for vote in first)))
            for (round, kind), tally in sorted(self._tallies.items())
            for first in [tally.first.values()]
        )
