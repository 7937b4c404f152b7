"""The rules of one height: Tendermint, one function per line of the paper.

arXiv 1807.04938, Algorithm 1; the line stands in each function's name. A rule looks at the state
and either does nothing (None) or changes it and returns what the host must do. After every input
all rules are tried in the table's order until none fires: a rule may become true by a change of
round or step alone, and a rule that waited for the next message would wait for ever.
What this file does not know: signatures, blocks, clocks. Verdicts on blocks are told.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from consensus.certificate import PRECOMMIT, PREVOTE
from consensus.effects import Broadcast, BuildPayload, Commit, Effect, Persist, SetTimer
from consensus.evidence import Evidence, two_proposals
from consensus.header import NIL, Header
from consensus.inputs import Step
from consensus.messages import Proposal, Vote
from consensus.params import OLD_ROUNDS_MAX, ROUNDS_AHEAD_MAX
from consensus.records import NO_ROUND, NOWHERE, SIGNED_PROPOSAL, Point, SignerRecord
from consensus.validators import ValidatorSet
from consensus.votes import VoteBook


class Contradiction(Exception):
    """> 2/3 decided a block that we hold to be invalid: more than 1/3 is faulty, or we are."""


class Offer(NamedTuple):
    """The proposal of a round with what the host found about it."""

    proposal: Proposal
    valid: bool
    timely: bool

    @property
    def round(self) -> int:
        """The round it is offered in."""
        return self.proposal.round


class RoundState:
    """Everything about the height that is being decided."""

    __slots__ = (
        "accused",
        "ahead",
        "book",
        "decided",
        "has_precommit_timer",
        "has_prevote_timer",
        "has_seen_polka",
        "headers",
        "height",
        "index",
        "locked",
        "me",
        "offers",
        "round",
        "said",
        "step",
        "told",
        "valid",
        "validators",
    )

    def __init__(self, height: int, validators: ValidatorSet, me: bytes | None) -> None:
        self.height = height
        self.validators = validators
        self.me = me
        self.index = None if me is None else validators.index(me)  # None: we only follow
        self.round = NO_ROUND
        self.step = Step.PROPOSE
        self.locked: Point = NOWHERE
        self.valid: Point = NOWHERE
        self.book = VoteBook(height, validators)
        self.offers: dict[int, Offer] = {}  # round → the first proposal of it
        self.headers: dict[bytes, Header] = {}  # block id → header, of offers
        self.told: dict[bytes, bool] = {}  # block id → whether its block is valid
        self.ahead: dict[int, Vote | Offer] = {}  # member → its highest message, far above us
        self.accused: set[int] = set()  # rounds whose proposer we accused
        self.said = (NO_ROUND, SIGNED_PROPOSAL)  # (round, kind) of our last word
        self.has_prevote_timer = False
        self.has_precommit_timer = False
        self.has_seen_polka = False
        self.decided: Point | None = None

    @property
    def is_proposer(self) -> bool:
        """Whether this round is ours to propose in."""
        return self.index is not None and self.validators.proposer(self.round) == self.me

    def tell(self, block_id: bytes, valid: bool) -> None:
        """Note a verdict. A block once found valid stays so: only a fault of ours says less."""
        self.told[block_id] = self.told.get(block_id, False) or valid


Rule = Callable[[RoundState], list[Effect] | None]


def settle(state: RoundState) -> list[Effect]:
    """Apply the first rule that fires, from the top again, until none does or all is decided."""
    effects: list[Effect] = []
    while state.decided is None:
        for rule in RULES:
            fired = rule(state)
            if fired is not None:
                effects += fired
                break
        else:
            break
    return effects


# --- the rules, in the table's order


def line_49_decide(state: RoundState) -> list[Effect] | None:
    """> 2/3 precommits for one block at any round, and we were told that the block is valid."""
    for round, ids in state.book.decisions.items():
        for block_id in ids:
            verdict = state.told.get(block_id)
            if verdict is None:
                continue  # the host fetches it: `wanted`
            if not verdict:
                raise Contradiction(
                    f"height {state.height}, round {round}: "
                    f"a quorum decided {block_id.hex()}, which is invalid here"
                )
            state.decided = (round, block_id)
            certificate = state.book.certificate(PRECOMMIT, round, block_id)
            assert certificate is not None
            return [Commit(state.height, round, block_id, certificate)]
    return None


def line_55_skip(state: RoundState) -> list[Effect] | None:
    """Messages from > 1/3 of the power at higher rounds: at least one honest member is there.

    The greatest round r with > 1/3 at r or above: a member that went on to r+1 has been at r.
    """
    highest = _highest_rounds(state)
    if not highest:
        return None
    power = 0
    for round, member in sorted(((round, who) for who, round in highest.items()), reverse=True):
        power += state.validators.members[member].power
        if state.validators.is_third(power):
            return start_round(state, round)
    return None


def _highest_rounds(state: RoundState) -> dict[int, int]:
    """Member → the highest round above ours that it spoke in."""
    highest: dict[int, int] = {}
    for round in range(state.round + 1, state.round + 1 + ROUNDS_AHEAD_MAX):
        for member in state.book.members(round):
            highest[member] = round
        if round in state.offers:
            member_or_none = state.validators.index(state.validators.proposer(round))
            assert member_or_none is not None
            highest[member_or_none] = round
    for member, message in state.ahead.items():
        if message.round > state.round:
            highest[member] = max(message.round, highest.get(member, NO_ROUND))
    return highest


def start_round(state: RoundState, round: int) -> list[Effect]:
    """Lines 11–21. The propose timer runs for the proposer too: building may fail."""
    assert round > state.round
    state.round = round
    state.step = Step.PROPOSE
    state.has_prevote_timer = state.has_precommit_timer = state.has_seen_polka = False
    _take_from_ahead(state)
    _forget_old(state)
    effects: list[Effect] = [SetTimer(state.height, round, Step.PROPOSE)]
    if state.is_proposer:
        effects += _propose(state)
    return effects


def _propose(state: RoundState) -> list[Effect]:
    valid_round, block_id = state.valid
    if valid_round == NO_ROUND:
        return [BuildPayload(state.height, state.round)]
    header = state.headers.get(block_id)
    polka = state.book.certificate(PREVOTE, valid_round, block_id)
    if header is None or polka is None:
        return []  # after a crash we may know the id alone; another's turn will come
    return say_proposal(state, Proposal(state.height, state.round, valid_round, header, polka))


def line_22_first_offer(state: RoundState) -> list[Effect] | None:
    """A new proposal in step propose. Only here is its time asked."""
    offer = state.offers.get(state.round)
    if state.step != Step.PROPOSE or offer is None or offer.proposal.pol_round != NO_ROUND:
        return None
    block_id = offer.proposal.block_id
    free = state.locked[0] == NO_ROUND or state.locked[1] == block_id
    good = offer.valid and offer.timely and free
    return _prevote(state, block_id if good else NIL)


def line_28_offered_again(state: RoundState) -> list[Effect] | None:
    """Offered again with an earlier quorum: we leave our lock only for one at least as recent."""
    offer = state.offers.get(state.round)
    if state.step != Step.PROPOSE or offer is None:
        return None
    pol_round, block_id = offer.proposal.pol_round, offer.proposal.block_id
    if not 0 <= pol_round < state.round:
        return None
    if not state.book.has_quorum(PREVOTE, pol_round, block_id):
        return None  # it still lacks its polka; the timeout speaks meanwhile
    free = state.locked[0] <= pol_round or state.locked[1] == block_id
    return _prevote(state, block_id if offer.valid and free else NIL)


def line_34_prevotes_of_any_kind(state: RoundState) -> list[Effect] | None:
    """> 2/3 prevoted, but not alike: wait a little for the rest. Once a round."""
    if state.step != Step.PREVOTE or state.has_prevote_timer:
        return None
    if not state.validators.is_quorum(state.book.power_of_any(PREVOTE, state.round)):
        return None
    state.has_prevote_timer = True
    return [SetTimer(state.height, state.round, Step.PREVOTE)]


def line_36_polka(state: RoundState) -> list[Effect] | None:
    """> 2/3 prevoted the valid proposal of this round: lock it, and remember it as valid."""
    offer = state.offers.get(state.round)
    if state.step == Step.PROPOSE or state.has_seen_polka or offer is None or not offer.valid:
        return None
    block_id = offer.proposal.block_id
    if not state.book.has_quorum(PREVOTE, state.round, block_id):
        return None
    state.has_seen_polka = True
    state.valid = (state.round, block_id)
    if state.step != Step.PREVOTE:
        return []
    state.locked = (state.round, block_id)
    return _precommit(state, block_id)


def line_44_nil_polka(state: RoundState) -> list[Effect] | None:
    """> 2/3 prevoted nil."""
    if state.step != Step.PREVOTE or not state.book.has_quorum(PREVOTE, state.round, NIL):
        return None
    return _precommit(state, NIL)


def line_47_precommits_of_any_kind(state: RoundState) -> list[Effect] | None:
    """> 2/3 precommitted, but not alike: wait a little for the rest. Once a round."""
    if state.has_precommit_timer:
        return None
    if not state.validators.is_quorum(state.book.power_of_any(PRECOMMIT, state.round)):
        return None
    state.has_precommit_timer = True
    return [SetTimer(state.height, state.round, Step.PRECOMMIT)]


RULES: Final[tuple[Rule, ...]] = (
    line_49_decide,
    line_55_skip,
    line_22_first_offer,
    line_28_offered_again,
    line_34_prevotes_of_any_kind,
    line_36_polka,
    line_44_nil_polka,
    line_47_precommits_of_any_kind,
)


def time_out(state: RoundState, round: int, step: Step) -> list[Effect]:
    """Lines 57, 61 and 65: only for the round we are in, the first two only in their step."""
    if round != state.round:
        return []
    match step:
        case Step.PROPOSE:
            return _prevote(state, NIL) if state.step == Step.PROPOSE else []
        case Step.PREVOTE:
            return _precommit(state, NIL) if state.step == Step.PREVOTE else []
        case Step.PRECOMMIT:
            return start_round(state, round + 1)


# --- what we say


def _prevote(state: RoundState, block_id: bytes) -> list[Effect]:
    state.step = Step.PREVOTE
    return _say_vote(state, PREVOTE, block_id)


def _precommit(state: RoundState, block_id: bytes) -> list[Effect]:
    state.step = Step.PRECOMMIT
    return _say_vote(state, PRECOMMIT, block_id)


def _say_vote(state: RoundState, kind: int, block_id: bytes) -> list[Effect]:
    if state.index is None:
        return []
    vote = Vote(kind, state.height, state.round, block_id, state.index)
    return _say(state, kind, vote)


def say_proposal(state: RoundState, proposal: Proposal) -> list[Effect]:
    """Offer a block in our turn."""
    return _say(state, SIGNED_PROPOSAL, proposal)


def _say(state: RoundState, kind: int, message: Vote | Proposal) -> list[Effect]:
    assert (state.round, kind) > state.said, "a validator's words only go up"
    state.said = (state.round, kind)
    record = SignerRecord(
        kind, state.height, state.round, message.body(), state.locked, state.valid
    )
    return [Persist(record), Broadcast(message)]


# --- what we keep


def take_vote(state: RoundState, vote: Vote) -> Evidence | None:
    """Count a checked vote of this height; evidence if it contradicts the one that stands."""
    if vote.round > state.round + ROUNDS_AHEAD_MAX:
        _put_ahead(state, vote.index, vote)
        return None
    if _is_forgotten(state, vote.round):
        return None
    return state.book.add(vote)


def take_offer(state: RoundState, offer: Offer) -> Evidence | None:
    """Keep the first proposal of a round and its polka; evidence if another one comes."""
    proposal = offer.proposal
    member = state.validators.index(state.validators.proposer(proposal.round))
    assert member is not None
    if proposal.round > state.round + ROUNDS_AHEAD_MAX:
        _put_ahead(state, member, offer)
        return None
    if _is_forgotten(state, proposal.round):
        return None
    state.tell(proposal.block_id, offer.valid)
    if proposal.polka is not None:
        state.book.add_certificate(proposal.polka)
    standing = state.offers.setdefault(proposal.round, offer)
    if standing is offer:
        state.headers[proposal.block_id] = proposal.header
        return None
    if standing.proposal.body() == proposal.body() or proposal.round in state.accused:
        return None
    state.accused.add(proposal.round)
    return two_proposals(standing.proposal, proposal, member)


def _is_forgotten(state: RoundState, round: int) -> bool:
    return round < state.round - OLD_ROUNDS_MAX and not state.book.has_round(round)


def _put_ahead(state: RoundState, member: int, message: Vote | Offer) -> None:
    known = state.ahead.get(member)
    if known is None or message.round > known.round:
        state.ahead[member] = message


def _take_from_ahead(state: RoundState) -> None:
    """Move what has come within reach from `ahead` into the book and the offers."""
    for member, message in list(state.ahead.items()):
        if message.round > state.round + ROUNDS_AHEAD_MAX:
            continue
        del state.ahead[member]
        if isinstance(message, Vote):
            state.book.add(message)
        else:
            take_offer(state, message)


def _forget_old(state: RoundState) -> None:
    oldest = state.round - OLD_ROUNDS_MAX
    if oldest <= 0:
        return
    state.book.prune(state.round, keep=state.valid[0])
    kept = set(state.book.rounds())
    for round in [known for known in state.offers if known < oldest and known not in kept]:
        del state.offers[round]
    alive = {offer.proposal.block_id for offer in state.offers.values()}
    alive.update((state.valid[1], state.locked[1]))
    for block_id in [known for known in state.told if known not in alive]:
        del state.told[block_id]
        state.headers.pop(block_id, None)
    state.accused = {round for round in state.accused if round in state.offers}
