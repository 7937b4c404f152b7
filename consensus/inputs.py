"""All that the engine can be told: five inputs, time and verdicts included.

Why verdicts come with a message: an effect that asked for one made each block execute twice.
The host executes a proposal once, then tells the engine what it found.
"""

from dataclasses import dataclass
from enum import IntEnum

from consensus.certificate import Certificate
from consensus.header import Header
from consensus.messages import Message
from consensus.records import SignerRecord
from consensus.validators import ValidatorSet


class Step(IntEnum):
    """Where a round stands; also which of its three timers is meant."""

    PROPOSE = 0
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Started:
    """A height begins; `signed` is the last thing we said of it before a crash, if anything."""

    height: int
    validators: ValidatorSet
    last_certificate: Certificate | None  # of height−1; None at height 1
    signed: SignerRecord | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A checked message, our own too once it is durable and sent.

    `valid`: its block keeps every rule of execution (read for proposals and precommit
    certificates). `timely`: its time was near ours when it came (read for first proposals).
    """

    message: Message
    valid: bool = True
    timely: bool = True


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A timer that `SetTimer` asked for has run out."""

    height: int
    round: int
    step: Step


@dataclass(frozen=True, slots=True)
class PayloadBuilt:
    """The block that `BuildPayload` asked for, executed; here only its header matters."""

    height: int
    round: int
    header: Header


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The chain now holds `height` without our help."""

    height: int


Input = Started | Received | TimedOut | PayloadBuilt | CaughtUp
