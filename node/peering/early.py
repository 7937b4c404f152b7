"""Checked messages of a height that has not begun here, and whether they call for it to begin.

Why they open the gate: a proposer's signed word, or words of more than 1/3 of the power, show that
others are at this height already; one member alone cannot force rounds upon us (page 20 §5).
What this file does not know: what the gate waits for otherwise.
"""

from typing import Final, NamedTuple

from consensus.certificate import Certificate
from consensus.messages import Message, Proposal, Vote
from consensus.validators import ValidatorSet
from p2p.network import PeerId

EARLY_MAX: Final = 1_024


class EarlyMessage(NamedTuple):
    """A message with what must be known of its arrival."""

    message: Message
    received_ms: int
    peer: PeerId


class Early:
    """Messages kept until their height begins."""

    def __init__(self) -> None:
        self._messages: list[EarlyMessage] = []
        self._callers: set[int] = set()  # members that have spoken at this height
        self._has_proposal = False

    def clear(self) -> None:
        """Another height is the next one now."""
        self._messages = []
        self._callers.clear()
        self._has_proposal = False

    def keep(self, message: Message, received_ms: int, peer: PeerId) -> bool:
        """Keep a message; False when EARLY_MAX are kept already."""
        if len(self._messages) >= EARLY_MAX:
            return False
        self._messages.append(EarlyMessage(message, received_ms, peer))
        match message:
            case Vote():
                self._callers.add(message.index)
            case Proposal():
                self._has_proposal = True
            case Certificate():
                self._callers.update(message.signers())
        return True

    def take(self) -> list[EarlyMessage]:
        """All that was kept, in the order it came; they are gone from here then."""
        messages, self._messages = self._messages, []
        return messages

    def has_offer_of(self, block_id: bytes) -> bool:
        """Whether a proposal of this block waits here."""
        return any(
            isinstance(early.message, Proposal) and early.message.block_id == block_id
            for early in self._messages
        )

    def is_calling(self, validators: ValidatorSet) -> bool:
        """Whether the height must begin: its proposer or > 1/3 of the power is there."""
        power = sum(validators.members[place].power for place in self._callers)
        return self._has_proposal or validators.is_third(power)
