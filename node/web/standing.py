"""Who signs, who sits out, and who was accused of what: reads of one view of the chain.

What it does not know: HTTP, and what an offence costs.
"""

from typing import assert_never

from consensus.attacks import AttackKind, LightClientAttack
from consensus.evidence import DuplicateProposal, DuplicateVote
from consensus.primitives.digest import sha256
from node.ledger import tables
from node.ledger.accusations import (
    Accusation,
    Charge,
    charge_of,
    decode_accusation,
    past_heights,
)
from node.ledger.rules import staking
from node.ledger.state import State
from node.ledger.tables import ROLE_VALIDATOR
from node.storage.views import View
from node.web import answers


def list_validators(view: View, own: bytes | None) -> tuple[answers.ValidatorAnswer, ...]:
    """Who signs the next block, largest first; behind them those that sit out, by key."""
    validators, state = view.tip.validators, view.state()
    jailed = (key for (_, key), _ in state.scan(tables.CONDUCT, ROLE_VALIDATOR))
    out = [key for key in jailed if validators.index(key) is None and _word(state, key) != "active"]
    return tuple(
        answers.ValidatorAnswer(
            key=key,
            power=validators.power(key),
            proposer_next=key == validators.turn,
            this_node=key == own,
            status=_word(state, key),
            jailed_until_ms=_conduct(state, key).jailed_until_ms,
            bonded=staking.bonded(state, ROLE_VALIDATOR, key),
        )
        for key in (*validators.powers(), *out)
    )


def _conduct(state: State, key: bytes) -> tables.Conduct:
    return state.find(tables.CONDUCT, ROLE_VALIDATOR, key) or tables.Conduct()


def _word(state: State, key: bytes) -> str:
    conduct = _conduct(state, key)
    if conduct.tombstone:
        return "tombstoned"
    if conduct.frozen_ms:
        return "frozen"
    return "jailed" if staking.is_jailed(state, ROLE_VALIDATOR, key) else "active"


def accusation(view: View, raw: bytes) -> answers.Accusation:
    """A piece of evidence of a block: whom it names, by the sets and blocks of its heights.

    Nobody, where this home no longer holds those heights: the block was judged all the same.
    """
    read = decode_accusation(raw)
    charge = _find_charge(view, read)
    return answers.Accusation(
        evidence=sha256(raw),
        offence=_offence_word(read, charge),
        height=past_heights(read)[-1],
        accused=() if charge is None else charge.accused,
    )


def _find_charge(view: View, read: Accusation) -> Charge | None:
    past = [view.recall_past(height) for height in past_heights(read)]
    held = [known for known in past if known is not None]
    return charge_of(read, held) if len(held) == len(past) else None


def _offence_word(read: Accusation, charge: Charge | None) -> str:
    match read:
        case DuplicateVote():
            return "double_vote"
        case DuplicateProposal():
            return "double_proposal"
        case LightClientAttack():
            if charge is None:
                return "unknown"
            is_lunatic = charge.kind is AttackKind.LUNATIC
            return "lunatic_header" if is_lunatic else "second_block"
        case _:
            assert_never(read)
