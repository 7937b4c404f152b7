"""Every kind of evidence that a payload may hold: read, dated and judged in one way.

Why the earliest height gives the age: of a lie to light clients that is the height after the block
they trusted, whose signers are still bonded; so nobody is accused whose bond may be gone. Which
common block the evidence names is its maker's choice, and one that lies about it is believed by
nobody.
Why our side comes from the chain alone: who brings evidence could choose among our certificates,
and nodes would judge by different ones. Why amnesia is refused: who forgot its lock cannot be told
from two certificates of different rounds (page 20 §5).
What this file does not know: what an offence costs, and what was punished already.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from consensus.attacks import (
    LIGHT_ATTACK,
    AttackKind,
    LightClientAttack,
    check_attack,
    decode_attack,
    encode_attack,
)
from consensus.certificate import verify_certificate
from consensus.evidence import (
    DuplicateProposal,
    DuplicateVote,
    Evidence,
    accused_members,
    decode_evidence,
    encode_evidence,
    evidence_height,
    verify_evidence,
)
from consensus.primitives.errors import Invalid
from consensus.validators import ValidatorSet
from node.ledger.context import PastHeight

Accusation = Evidence | LightClientAttack


class Charge(NamedTuple):
    """Who did what when, if the signatures are good: `accused` are members of `validators`.

    `kind` is None when they said two things themselves, outside of any attack.
    """

    time_ms: int
    validators: ValidatorSet
    accused: tuple[bytes, ...]
    kind: AttackKind | None = None

    @property
    def freezes(self) -> bool:
        """Whether it is left to a decision what it costs: a lost branch may name the honest."""
        return self.kind is AttackKind.LUNATIC


def encode_accusation(accusation: Accusation) -> bytes:
    """Canonical bytes."""
    if isinstance(accusation, LightClientAttack):
        return encode_attack(accusation)
    return encode_evidence(accusation)


def decode_accusation(raw: bytes) -> Accusation:
    """The accusation; `Invalid` unless it is one in form."""
    kind = raw[1] if len(raw) > 1 else 0  # behind the one byte of the array's head
    return decode_attack(raw) if kind == LIGHT_ATTACK else decode_evidence(raw)


def past_heights(accusation: Accusation) -> tuple[int, ...]:
    """The heights that it is judged by: the one that dates it first, that of the offence last."""
    if isinstance(accusation, LightClientAttack):
        return accusation.common_height + 1, accusation.block.height
    return (evidence_height(accusation),)


def get_past(
    accusation: Accusation, find_past: Callable[[int], PastHeight | None]
) -> tuple[PastHeight, ...]:
    """These heights as the chain has them; `Invalid` `evidence.height` if one is not decided."""
    found = []
    for height in past_heights(accusation):
        past = find_past(height)
        if past is None:
            raise Invalid("evidence.height", height=height)
        found.append(past)
    return tuple(found)


def charge_of(accusation: Accusation, past: Sequence[PastHeight]) -> Charge:
    """Everything but the signatures; `past` is of `past_heights`. Raises `Invalid`.

    `evidence.height`: our own block there has no commit yet. `evidence.amnesia`: nobody is guilty.
    """
    first, last = past[0], past[-1]
    match accusation:
        case DuplicateVote() | DuplicateProposal():
            members = accused_members(accusation, last.validators)
            return Charge(last.time_ms, last.validators, members)
        case LightClientAttack():
            if last.decided is None:
                raise Invalid("evidence.height", height=last.height)
            verdict = check_attack(accusation, first.validators, last.decided)
            if verdict.kind is AttackKind.AMNESIA:
                raise Invalid("evidence.amnesia", height=last.height)
            named = first if verdict.kind is AttackKind.LUNATIC else last
            return Charge(named.time_ms, named.validators, verdict.guilty, verdict.kind)


def verify_accusation(accusation: Accusation, charge: Charge, chain_id: bytes) -> None:
    """Raise `Invalid` unless every signature in it is good: two, or those of a quorum."""
    if isinstance(accusation, LightClientAttack):
        block = accusation.block
        verify_certificate(block.certificate, block.validators, chain_id)
    else:
        verify_evidence(accusation, charge.validators, chain_id)
