"""The engine under test with its host's duties done, and words for what it is told and asks for.

Four members of power 1; `US` is the engine under test, which proposes last of the first rounds.
`A` is offered by the proposer of round 0, `B` by that of round 1.
"""

from dataclasses import replace

from simulation.engines import CHAIN_ID, SIGNATURE, header, key

from consensus.certificate import PRECOMMIT, PREVOTE, Certificate, make_certificate
from consensus.effects import (
    Accuse,
    Broadcast,
    BuildPayload,
    Commit,
    Effect,
    Persist,
    SetTimer,
)
from consensus.engine import Engine
from consensus.header import NIL, Header
from consensus.inputs import Input, Received, Started, Step, TimedOut
from consensus.messages import Proposal, Vote
from consensus.records import SignerRecord
from consensus.validators import ValidatorSet

EQUAL = ValidatorSet.found({key(n): 1 for n in range(4)})
PLACES = {member.key: place for place, member in enumerate(EQUAL.members)}
US = EQUAL.members[3].key  # proposes last of the first four rounds
TURNS = [PLACES[EQUAL.proposer(round)] for round in range(8)]


def offered(mark: int, round: int = 0) -> Header:
    """A header of the proposer of `round`."""
    return header(EQUAL.proposer(round), mark=mark)


A, B = offered(1), offered(2, 1)
A_ID, B_ID = A.block_id(), B.block_id()


def vote(kind: int, member: int, block_id: bytes, round: int = 0) -> Received:
    return Received(Vote(kind, 1, round, block_id, member, SIGNATURE))


def prevotes(block_id: bytes, members: str, round: int = 0) -> list[Input]:
    return [vote(PREVOTE, int(member), block_id, round) for member in members]


def precommits(block_id: bytes, members: str, round: int = 0) -> list[Input]:
    return [vote(PRECOMMIT, int(member), block_id, round) for member in members]


def proposal(
    block: Header, round: int = 0, pol_round: int = -1, *, valid: bool = True, timely: bool = True,
    polka: Certificate | None = None,
) -> list[Input]:  # fmt: skip
    message = Proposal(1, round, pol_round, block, polka, SIGNATURE)
    return [Received(message, valid, timely)]


def certificate(kind: int, block_id: bytes, members: str, round: int = 0) -> Certificate:
    signed = {int(member): SIGNATURE for member in members}
    return make_certificate(kind, 1, round, block_id, signed, 4)


def timeout(step: Step, round: int = 0) -> list[Input]:
    return [TimedOut(1, round, step)]


def shown(effect: Effect) -> str:
    """An effect as a few words; a Persist must be followed by its Broadcast, so it is left out."""
    match effect:
        case Persist():
            return ""
        case Broadcast(Vote() as said):
            name = {A_ID: "A", B_ID: "B", NIL: "nil"}.get(said.block_id, "other")
            return f"{'prevote' if said.kind == PREVOTE else 'precommit'} {name}"
        case Broadcast(Proposal() as said):
            again = f" again from {said.pol_round}" if said.pol_round >= 0 else ""
            return f"propose {said.round}{again}"
        case SetTimer(_, round, step):
            return f"timer {step.name.lower()} {round}"
        case BuildPayload(_, round):
            return f"build {round}"
        case Commit(_, round, block_id, _):
            return f"commit {'A' if block_id == A_ID else 'B'} {round}"
        case Accuse():
            return "accuse"


class Machine:
    """The engine with its host's duties done: our own messages come back once they are sent."""

    def __init__(self, me: bytes | None = US, signed: SignerRecord | None = None) -> None:
        self.engine = Engine(CHAIN_ID, me)
        self.effects: list[Effect] = []
        self.give(Started(1, EQUAL, None, signed))

    def give(self, *inputs: Input) -> list[str]:
        found: list[Effect] = []
        waiting = list(inputs)
        while waiting:
            effects = self.engine.handle(waiting.pop(0))
            for place, effect in enumerate(effects):
                if isinstance(effect, Persist):
                    after = effects[place + 1]
                    assert isinstance(after, Broadcast), "Persist stands before its Broadcast"
                    assert after.message.body() == effect.record.body
                if isinstance(effect, Broadcast):
                    waiting.insert(0, Received(replace(effect.message, signature=SIGNATURE)))
            found += effects
        self.effects += found
        return [words for effect in found if (words := shown(effect))]
