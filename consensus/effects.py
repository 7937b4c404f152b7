"""All that the engine can ask for: six effects, to be performed in the order returned.

Why `Persist` stands directly before its `Broadcast`: what has left this machine can never be
unsaid, so it is durable first, and nothing comes between.
"""

from dataclasses import dataclass

from consensus.certificate import Certificate
from consensus.evidence import Evidence
from consensus.inputs import Step
from consensus.messages import Proposal, Vote
from consensus.records import SignerRecord


@dataclass(frozen=True, slots=True)
class Persist:
    """Make this record durable before anything that follows."""

    record: SignerRecord


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Sign this message of ours, send it to all, and give it back as `Received`."""

    message: Proposal | Vote


@dataclass(frozen=True, slots=True)
class SetTimer:
    """The host owns the clock and the length; `TimedOut` with the same words comes back."""

    height: int
    round: int
    step: Step


@dataclass(frozen=True, slots=True)
class BuildPayload:
    """It is our turn: `PayloadBuilt` comes back, or nothing and the round times out."""

    height: int
    round: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The height is decided; nothing but late precommits is taken until the next `Started`."""

    height: int
    round: int
    block_id: bytes
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Accuse:
    """A validator said two things; for the evidence pool."""

    evidence: Evidence


Effect = Persist | Broadcast | SetTimer | BuildPayload | Commit | Accuse
