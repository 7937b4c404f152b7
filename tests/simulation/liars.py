"""What Byzantine validators say: honest words go in, and what each hearer is told comes out.

Why a mouth and not a mind: behind it runs an honest engine that follows the height and the round,
so that each lie is told where it could hurt. A liar signs with its own key only; all that it says
in the name of others is forged, and must be refused.
What this file does not know: how words travel, and who believes them.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from consensus.certificate import PRECOMMIT, PREVOTE, VOTE_TAG, Certificate, make_certificate
from consensus.header import NIL, Header
from consensus.messages import PROPOSAL_TAG, Message, Proposal, Vote
from consensus.params import ROUND_MAX
from consensus.primitives.keys import SIGNATURE_BYTES
from consensus.records import NO_ROUND

KEPT: Final = 64  # words that are remembered, to be said again
FLOOD: Final = 3  # votes of rounds to come, beside each word

Sign = Callable[[bytes, bytes], bytes]  # (tag, body) → signature of the liar's key
Lie = Callable[["Mouth", Message, int], list[Message]]


class Mouth:
    """A liar's way to speak: `kinds` name its lies, `hearers` are numbered from 0."""

    def __init__(self, kinds: Sequence[str], rng: Random, sign: Sign) -> None:
        self.lies = tuple(kinds)
        self.rng = rng
        self.sign = sign
        self.ids: list[bytes] = [NIL]  # blocks that it has heard of
        self.kept: list[Message] = []
        self.twins: dict[bytes, Proposal] = {}  # block id → the other proposal of that round

    def hear(self, message: Message) -> None:
        """Remember a word, for later."""
        if len(self.kept) < KEPT:
            self.kept.append(message)
        else:
            self.kept[self.rng.randrange(KEPT)] = message
        if message.block_id not in self.ids:
            self.ids = [NIL, *self.ids[-7:], message.block_id]

    def say(self, message: Message, hearer: int) -> list[Message]:
        """What `hearer` is told instead of `message`."""
        words = [message]
        for kind in self.lies:
            words = [told for word in words for told in LIES[kind](self, word, hearer)]
        return words

    def vote(self, like: Vote, *, round: int, block_id: bytes) -> Vote:
        """Another vote of ours, good by its signature."""
        bare = Vote(like.kind, like.height, round, block_id, like.index)
        return Vote(*_fields(bare), self.sign(VOTE_TAG, bare.body()))

    def proposal(
        self, like: Proposal, header: Header, pol_round: int, polka: Certificate | None
    ) -> Proposal:
        """Another proposal of ours for the same round, good by its signature."""
        bare = Proposal(like.height, like.round, pol_round, header, polka)
        signature = self.sign(PROPOSAL_TAG, bare.body())
        return Proposal(like.height, like.round, pol_round, header, polka, signature)


def _fields(vote: Vote) -> tuple[int, int, int, bytes, int]:
    return vote.kind, vote.height, vote.round, vote.block_id, vote.index


def _withhold(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """Never a word to every third, and every other word to the rest."""
    return [] if hearer % 3 == 0 or mouth.rng.random() < 0.5 else [message]


def _equivocate(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """One thing to the even, another to the odd, now and then both to one."""
    if isinstance(message, Vote):
        other: Message = mouth.vote(
            message, round=message.round, block_id=mouth.rng.choice(mouth.ids)
        )
    elif isinstance(message, Proposal):
        known = mouth.twins.get(message.block_id)
        if known is None:
            root = mouth.rng.randbytes(32)
            header = message.header._replace(txs_root=root)
            known = mouth.proposal(message, header, NO_ROUND, None)
            mouth.twins[message.block_id] = known
        other = known
    else:
        return [message]
    if mouth.rng.random() < 0.2:
        return [message, other]
    return [message if hearer % 2 == 0 else other]


def _propose_invalid(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """A block that breaks a rule; and our own votes for it."""
    if isinstance(message, Proposal) and message.pol_round == NO_ROUND:
        header = message.header._replace(supply=message.header.supply - 1)
        return [mouth.proposal(message, header, NO_ROUND, None)]
    return [message]


def _forge(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """Certificates in the name of all, and re-proposals that rest on them."""
    if isinstance(message, Certificate):
        return [message]
    kind = mouth.rng.choice((PREVOTE, PRECOMMIT))
    block_id = mouth.rng.choice(mouth.ids[1:] or [b"\1" * 32])
    forged = _forged(kind, message.height, message.round, block_id, mouth.rng)
    if isinstance(message, Vote) or message.round == 0:
        return [message, forged]
    pol_round = mouth.rng.choice((message.round - 1, message.round, message.round + 1))
    polka = _forged(PREVOTE, message.height, pol_round, message.block_id, mouth.rng)
    return [mouth.proposal(message, message.header, pol_round, polka), forged]


def _forged(kind: int, height: int, round: int, block_id: bytes, rng: Random) -> Certificate:
    members = range(rng.randrange(1, 8))
    signed = {member: rng.randbytes(SIGNATURE_BYTES) for member in members}
    bits = rng.choice((8, 8, 16))  # of a set of at most eight, or of one too large
    return make_certificate(kind, height, round, block_id, signed, bits)


def _replay(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """Old words of anybody again."""
    again = [mouth.rng.choice(mouth.kept) for _ in range(2)] if mouth.kept else []
    return [message, *again]


def _flood(mouth: Mouth, message: Message, hearer: int) -> list[Message]:
    """Votes of rounds and heights to come, as far as numbers go."""
    if not isinstance(message, Vote):
        return [message]
    rounds = [mouth.rng.choice((message.round + mouth.rng.randrange(1, 1_000), ROUND_MAX))
              for _ in range(FLOOD)]  # fmt: skip
    lies = [
        mouth.vote(message, round=round, block_id=mouth.rng.choice(mouth.ids)) for round in rounds
    ]
    return [message, *lies]


LIES: Final[dict[str, Lie]] = {
    "withhold": _withhold,
    "equivocate": _equivocate,
    "invalid": _propose_invalid,
    "forge": _forge,
    "replay": _replay,
    "flood": _flood,
}
