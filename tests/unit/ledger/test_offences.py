"""Evidence in a block: what refuses it, what it costs the guilty, and that no grain is lost."""

import random
from collections.abc import Iterator
from itertools import permutations

import pytest
from bundle_kit import Party, party
from chain_kit import FAUCET, OPEN, STEWARD, VALIDATORS, TinyChain
from evidence_kit import double_proposal, double_vote, raw_double_vote

from consensus.evidence import encode_evidence
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import purses, tables
from node.ledger.execute import RULES_1
from node.ledger.proposing import choose_payload
from node.ledger.rules import offences, staking
from node.ledger.state import State
from node.ledger.wire.blocks import EVIDENCE_MAX
from node.ledger.wire.transactions import Bond

ROLE = tables.ROLE_VALIDATOR
DAY_MS = 86_400_000
AGE_MS = 21 * DAY_MS
LATE = FAUCET  # joins the set only in some tests
ONE_OF_FOUR_BPS = 500 + 3 * 2_500


@pytest.fixture
def chain() -> TinyChain:
    made = TinyChain()
    made.block()
    made.block()
    return made


def accused(chain: TinyChain, who: Party, height: int = 1, **fields: int) -> bytes:
    """Evidence that `who` voted twice at a decided height."""
    return raw_double_vote(who, chain.past[height - 1].validators, chain.chain_id, height, **fields)


def refusal(chain: TinyChain, *evidence: bytes, later_ms: int = 1_000) -> str:
    with pytest.raises(Invalid) as refused:
        chain.execute(evidence=evidence, later_ms=later_ms)
    return refused.value.code


def offender_of(chain: TinyChain) -> Party:
    return next(who for who in VALIDATORS if who.key == chain.validators.members[0].key)


def bond_of(state: State, target: Party, owner: Party) -> int:
    return state.held(purses.bond(ROLE, target.key, owner.key))


def leave(state: State, target: Party, owner: Party, amount: int, made_ms: int) -> int:
    """What an unbonding leaves in the state; its number."""
    number = state.next_number(b"unbondings")
    record = tables.Unbonding(ROLE, target.key, owner.key, 0, made_ms, made_ms + AGE_MS)
    state.put(tables.UNBONDING, (number,), record)
    staking.collect(state, ROLE, target.key, owner.key)
    state.move(purses.bond(ROLE, target.key, owner.key), purses.unbonding(number), amount)
    stake = state.get(tables.STAKE, ROLE, target.key)
    state.put(tables.STAKE, (ROLE, target.key), stake._replace(bonded=stake.bonded - amount))
    return number


def keep(chain: TinyChain, state: State) -> None:
    """Make a changed state the chain's, as if a block had done it (its tree stays behind)."""
    for key, value in state.changes():
        if value is None:
            del chain.flat[key]
        else:
            chain.flat[key] = value


# ---- what refuses the block


def test_evidence_of_both_types_is_taken(chain) -> None:
    who = offender_of(chain)
    chain.execute(evidence=(accused(chain, who),))
    proposals = double_proposal(who, chain.past[0].validators, chain.chain_id, 1)
    chain.execute(evidence=(encode_evidence(proposals),))


def test_used_evidence_is_refused_also_in_its_own_block(chain) -> None:
    raw = accused(chain, VALIDATORS[0])
    assert refusal(chain, raw, raw) == "evidence.used"
    chain.block(evidence=(raw,))
    assert refusal(chain, raw) == "evidence.used"


def test_evidence_of_a_height_that_is_not_decided_is_refused(chain) -> None:
    """Its header has no time yet, so nobody can say how old it is."""
    for height in (chain.height + 1, chain.height + 9):
        raw = raw_double_vote(VALIDATORS[0], chain.validators, chain.chain_id, height)
        assert refusal(chain, raw) == "evidence.height"


def test_evidence_at_its_greatest_age_is_taken_and_a_millisecond_later_refused(chain) -> None:
    raw = accused(chain, VALIDATORS[0], height=2)  # of the tip: its time is the parent's
    assert refusal(chain, raw, later_ms=AGE_MS + 1) == "evidence.too_old"
    assert chain.execute(evidence=(raw,), later_ms=AGE_MS).supply


def test_index_that_no_member_has_is_refused(chain) -> None:
    good = double_vote(VALIDATORS[0], chain.validators, chain.chain_id, 1)
    raw = encode_evidence(good)
    for place in (2 + 2 + 45, 2 + 2 + 111 + 2 + 45):
        assert raw[place : place + 2] == good.first.index.to_bytes(2, "big")
        raw = raw[:place] + (4).to_bytes(2, "big") + raw[place + 2 :]
    assert refusal(chain, raw) == "evidence.member"


def test_word_of_a_stranger_is_refused(chain) -> None:
    assert refusal(chain, accused(chain, party("stranger"))) == "vote.signature"


def test_words_of_another_chain_are_refused(chain) -> None:
    raw = raw_double_vote(VALIDATORS[0], chain.validators, b"o" * 32, 1)
    assert refusal(chain, raw) == "vote.signature"


@pytest.mark.parametrize("make", [double_vote, double_proposal])
def test_evidence_with_any_byte_altered_is_refused(chain, make) -> None:
    raw = encode_evidence(make(VALIDATORS[1], chain.validators, chain.chain_id, 1))
    codes = set()
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1 << place % 8
        codes.add(refusal(chain, bytes(altered)).split(".")[0])
    assert codes <= {"evidence", "vote"}
    assert chain.execute(evidence=(raw,))


def test_pieces_are_counted(chain) -> None:
    raws = tuple(accused(chain, VALIDATORS[0], round=round) for round in range(EVIDENCE_MAX + 1))
    assert refusal(chain, *raws) == "payload.evidence"
    assert refusal(chain, *raws[:EVIDENCE_MAX]) == "evidence.punished"
    assert refusal(chain, bytes(65_537)) == "payload.evidence_size"


def test_cheap_checks_come_before_any_signature(chain, monkeypatch) -> None:
    """A proposer may fill its blocks with forgeries: they must cost it more than us."""
    used = accused(chain, VALIDATORS[0])
    chain.block(evidence=(used,))

    def must_not_be_asked(*_: object) -> None:
        raise AssertionError("a signature was checked")

    monkeypatch.setattr("consensus.messages.verify_signature", must_not_be_asked)
    monkeypatch.setattr("consensus.evidence.verify_signature", must_not_be_asked)
    future = raw_double_vote(VALIDATORS[1], chain.validators, chain.chain_id, 99)
    fresh = accused(chain, VALIDATORS[1])
    assert refusal(chain, used) == "evidence.used"
    assert refusal(chain, future) == "evidence.height"
    assert refusal(chain, fresh, later_ms=AGE_MS + 1) == "evidence.too_old"
    assert refusal(chain, accused(chain, VALIDATORS[0], round=5)) == "evidence.punished"
    assert refusal(chain, b"\x93\x01") == "evidence.malformed"
    with pytest.raises(AssertionError, match="a signature was checked"):
        chain.execute(evidence=(fresh,))


# ---- what it costs


def test_one_of_four_loses_eight_tenths_and_leaves_at_once(chain) -> None:
    who = offender_of(chain)
    before = chain.state()
    outcome = chain.block(evidence=(accused(chain, who),))
    state = chain.state()
    taken = 20 * OPEN * ONE_OF_FOUR_BPS // 10_000
    assert bond_of(state, who, who) == 20 * OPEN - taken
    assert staking.bonded(state, ROLE, who.key) == 20 * OPEN - taken
    assert outcome.supply == before.supply() - taken // 2
    assert state.held(purses.pool(tables.TREASURY)) == taken - taken // 2
    assert chain.validators.index(who.key) is None
    assert len(chain.validators) == 3
    conduct = state.get(tables.CONDUCT, ROLE, who.key)
    assert (conduct.jailed_until_ms, conduct.tombstone) == (chain.time_ms + AGE_MS, 0)
    assert outcome.evidence_root != chain.outcomes[0].evidence_root


def test_jailed_validator_is_no_candidate_however_long_it_waits(chain) -> None:
    """Only an unjailing ends it: time alone does not."""
    who = VALIDATORS[0]
    chain.block(evidence=(accused(chain, who),))
    chain.block(chain.tx(who, Bond(ROLE, who.key, 100 * OPEN)))
    for later_ms in (60_000, AGE_MS, 60_000):
        chain.block(later_ms=later_ms)
        assert who.key not in staking.candidates(chain.state())
        assert chain.validators.index(who.key) is None


@pytest.mark.parametrize(
    ("powers", "bps"),
    [((1, 9_999), 503), ((0, 10_000), 500), ((3_166, 0), 9_998), ((3_167, 0), 10_000)],
)
def test_price_grows_with_the_power_that_offends_up_to_everything(chain, powers, bps) -> None:
    """500 + 3 for each bps; the second power stands just outside the day."""
    state = chain.state()
    for number, (power, away_ms) in enumerate(zip(powers, (DAY_MS, DAY_MS + 1), strict=True)):
        used = tables.UsedEvidence(5 + away_ms, 9 * DAY_MS, ((bytes([number]) * 32, power),))
        state.put(tables.USED_EVIDENCE, (b"evidence/" + bytes([number]),), used)
    assert offences.slash_bps(state, 5) == bps


def test_two_who_offend_within_a_day_pay_for_their_power_together(chain) -> None:
    """Half the power at once: 500 + 3 × 5,000 is more than there is."""
    pair = VALIDATORS[:2]
    raws = tuple(accused(chain, who) for who in pair)
    roots = {chain.execute(evidence=order).state_root for order in permutations(raws)}
    assert len(roots) == 1, "in whatever order they stand"
    chain.block(evidence=raws)
    state = chain.state()
    for who in pair:
        assert not state.has(tables.BOND, ROLE, who.key, who.key)
        assert state.get(tables.CONDUCT, ROLE, who.key).tombstone == tables.TOMBSTONED
        assert staking.bonded(state, ROLE, who.key) == 0
        assert state.counter(staking.owners_name(ROLE, who.key)) == 0
    assert len(chain.validators) == 2


def test_pieces_of_one_key_count_once_within_the_window(chain) -> None:
    """Two engines with one key leave many pieces; they are one offence and one price."""
    who = VALIDATORS[0]
    chain.block(evidence=(accused(chain, who),))
    for fields in ({"round": 1}, {"kind": 2}, {"height": 2}, {"height": 3}):
        assert refusal(chain, accused(chain, who, **fields)) == "evidence.punished"


def test_all_members_jailed_leaves_the_set_as_it_is(chain) -> None:
    """A chain without a set would have ended."""
    before = chain.validators.powers()
    chain.block(evidence=tuple(accused(chain, who) for who in VALIDATORS))
    assert chain.validators.powers() == before
    state = chain.state()
    assert all(staking.is_jailed(state, ROLE, who.key) for who in VALIDATORS)


def test_power_that_left_by_jail_counts_against_the_cap_of_change(chain) -> None:
    chain.block(chain.tx(LATE, Bond(ROLE, LATE.key, 60 * OPEN)))
    who = VALIDATORS[0]
    chain.block(evidence=(accused(chain, who),), later_ms=60_000)
    assert chain.validators.powers().get(LATE.key) == 80 // 3 - 20
    chain.block()
    assert chain.validators.power(LATE.key) == 6 + 66 // 3


# ---- bonds of others, and those on their way out


def test_delegated_bonds_pay_the_same_part_and_keep_what_they_earned(chain) -> None:
    who, payer = VALIDATORS[0], purses.account(STEWARD.key)
    chain.block(chain.tx(FAUCET, Bond(ROLE, who.key, 7 * OPEN + 3)))
    state = chain.state()
    staking.pay_stakers(state, payer, 10**6)
    offences.slash_bonds(state, ROLE, who.key, 1_234)
    late = state.account(FAUCET.key).balance
    staking.collect(state, ROLE, who.key, FAUCET.key)
    assert state.account(FAUCET.key).balance == late, "it was paid when it was cut"
    assert bond_of(state, who, FAUCET) == 7 * OPEN + 3 - (7 * OPEN + 3) * 1_234 // 10_000
    assert sum(state.totals()) == state.supply()


def test_who_left_after_the_offence_pays_and_who_left_before_does_not(chain) -> None:
    who, offence_ms = VALIDATORS[0], chain.past[0].time_ms
    chain.block(chain.tx(FAUCET, Bond(ROLE, who.key, 10 * OPEN)))
    state = chain.state()
    early = leave(state, who, FAUCET, OPEN, offence_ms - 1)
    at_once = leave(state, who, FAUCET, OPEN, offence_ms)
    later = leave(state, who, FAUCET, OPEN, offence_ms + 5)
    other = leave(state, VALIDATORS[1], VALIDATORS[1], OPEN, offence_ms + 5)
    keep(chain, state)
    execute_evidence(chain, accused(chain, who))
    held = [chain.state().held(purses.unbonding(n)) for n in (early, at_once, later, other)]
    left = OPEN - OPEN * ONE_OF_FOUR_BPS // 10_000
    assert held == [OPEN, left, left, OPEN]


def execute_evidence(chain: TinyChain, *raws: bytes) -> None:
    """Judge and punish straight in the state, kept."""
    state = chain.state()
    context = chain.context()
    accepted = [offences.accept_evidence(state, context, raw) for raw in raws]
    offences.punish_offences(state, context, accepted)
    assert sum(state.totals()) == state.supply()
    keep(chain, state)


def test_older_offence_reaches_only_those_who_left_before_the_punished_one(chain) -> None:
    """Else one could vote twice, take the bonds out, vote twice again and report that first."""
    who = VALIDATORS[0]
    chain.block(chain.tx(FAUCET, Bond(ROLE, who.key, 10 * OPEN)))
    first, second = chain.past[0].time_ms, chain.past[2].time_ms
    state = chain.state()
    between = leave(state, who, FAUCET, OPEN, first)
    after = leave(state, who, FAUCET, OPEN, second)
    keep(chain, state)
    execute_evidence(chain, accused(chain, who, height=3))
    left = OPEN - OPEN * ONE_OF_FOUR_BPS // 10_000
    bonded = bond_of(chain.state(), who, FAUCET)
    assert chain.state().held(purses.unbonding(between)) == OPEN
    execute_evidence(chain, accused(chain, who, height=1))
    state = chain.state()
    assert state.held(purses.unbonding(between)) == left
    assert state.held(purses.unbonding(after)) == left, "punished once"
    assert bond_of(state, who, FAUCET) == bonded, "punished once"
    with pytest.raises(Invalid, match=r"evidence\.punished"):
        execute_evidence(chain, accused(chain, who, height=2))


def test_older_and_newer_offence_in_one_block_punish_the_bonds_once(chain) -> None:
    who = VALIDATORS[0]
    chain.block(chain.tx(FAUCET, Bond(ROLE, who.key, 10 * OPEN)))
    state = chain.state()
    between = leave(state, who, FAUCET, OPEN, chain.past[0].time_ms)
    keep(chain, state)
    execute_evidence(chain, accused(chain, who, height=3), accused(chain, who, height=1))
    state = chain.state()
    left_bps = 10_000 - ONE_OF_FOUR_BPS
    assert state.held(purses.unbonding(between)) == OPEN * left_bps // 10_000
    assert bond_of(state, who, who) == 20 * OPEN * left_bps // 10_000


def test_offence_after_a_jail_has_ended_is_punished_anew(chain) -> None:
    who = VALIDATORS[0]
    execute_evidence(chain, accused(chain, who))
    once = bond_of(chain.state(), who, who)
    chain.block(later_ms=2 * DAY_MS)
    # A height at which it was a member again.
    chain.past[-1] = chain.past[-1]._replace(validators=chain.past[0].validators)
    execute_evidence(chain, accused(chain, who, height=3))
    assert bond_of(chain.state(), who, who) == once - once * ONE_OF_FOUR_BPS // 10_000


def test_evidence_is_forgotten_only_when_nothing_it_answers_for_is_young_enough(chain) -> None:
    who = VALIDATORS[0]
    raw, spare = accused(chain, who), accused(chain, who, height=2)
    chain.block(evidence=(raw,))
    name = b"evidence/" + sha256(raw)
    chain.block(later_ms=AGE_MS)
    assert chain.state().has(tables.USED_EVIDENCE, name)
    assert refusal(chain, spare) == "evidence.too_old"
    chain.block(later_ms=1)
    assert not chain.state().has(tables.USED_EVIDENCE, name)
    assert refusal(chain, raw) == "evidence.too_old"


# ---- the proposer's rehearsal


def test_rehearsal_leaves_out_evidence_that_does_not_hold(chain) -> None:
    who = VALIDATORS[0]
    good, again = accused(chain, who), accused(chain, who, round=1)
    forged = accused(chain, party("stranger"))
    offered = (forged, good, again, good)
    choice = choose_payload(RULES_1, chain.state(), chain.context(), [], [], offered)
    assert choice.payload.evidence == (good,)
    codes = [code for _, code in choice.refused_evidence]
    assert codes == ["vote.signature", "evidence.punished", "evidence.used"]
    assert chain.execute(evidence=choice.payload.evidence)


# ---- random programs


def steps(chance: random.Random, count: int) -> Iterator[tuple[str, int]]:
    for _ in range(count):
        kind = chance.choice(("bond", "bond", "leave", "pay", "pay", "slash", "collect"))
        yield kind, chance.randrange(1, 3 * OPEN)


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_bonds_leaving_payouts_and_slashes_keeps_every_grain(seed) -> None:
    """Supply exact, no share below zero, stakers never get more than came in."""
    chance, chain = random.Random(seed), TinyChain()
    state, who = chain.state(), VALIDATORS[0]
    owners = [party(f"owner {i}") for i in range(4)]
    for owner in owners:
        state.move(purses.account(FAUCET.key), purses.account(owner.key), 1_000 * OPEN)
    supply, burnt = state.supply(), 0
    for kind, amount in steps(chance, 120):
        owner = chance.choice(owners)
        held = bond_of(state, who, owner)
        if kind == "bond":
            staking.collect(state, ROLE, who.key, owner.key)
            if not held:
                staking._count_owner(state, ROLE, who.key)
            staking.add_bond(state, purses.account(owner.key), ROLE, who.key, owner.key, amount, 1)
        elif kind == "leave" and held:
            leave(state, who, owner, min(held, amount), 7)
        elif kind == "pay":
            staking.pay_stakers(state, purses.account(STEWARD.key), amount)
        elif kind == "collect":
            staking.collect(state, ROLE, who.key, owner.key)
        elif kind == "slash":
            bps = chance.choice((1, 500, 3_333, 9_999, 10_000))
            gone = offences.leaving(state)
            taken = offences.slash_leaving(state, gone, who.key, bps, 0, None)
            taken += offences.slash_bonds(state, ROLE, who.key, bps)
            offences.share_proceeds(state, taken)
            burnt += taken // 2
        check_stake(state, who)
        assert state.supply() == sum(state.totals()) == supply - burnt
    for owner in (*owners, who):
        staking.collect(state, ROLE, who.key, owner.key)
    assert state.held(purses.stake(ROLE, who.key)) < 200, "only what floors leave over"


def check_stake(state: State, who: Party) -> None:
    bonds = [record.amount for _, record in state.scan(tables.BOND, ROLE, who.key)]
    stake = state.get(tables.STAKE, ROLE, who.key)
    assert stake.bonded == sum(bonds)
    assert min(bonds, default=0) >= 0
    assert stake.undistributed >= 0
    assert state.counter(staking.owners_name(ROLE, who.key)) >= sum(map(bool, bonds))


def test_slash_before_or_after_a_payout_gives_each_owner_the_same(chain) -> None:
    """A cut takes the same part of all bonds, so it does not move anybody's share."""
    who = VALIDATORS[0]
    chain.block(chain.tx(FAUCET, Bond(ROLE, who.key, 20 * OPEN)))
    earned = []
    for order in permutations(("slash", "pay")):
        state = chain.state()
        before = [state.account(owner.key).balance for owner in (FAUCET, who)]
        for step in order:
            if step == "slash":
                for validator in VALIDATORS:  # all alike: the split over validators stays
                    offences.slash_bonds(state, ROLE, validator.key, 2_500)
            else:
                staking.pay_stakers(state, purses.account(STEWARD.key), 10**9)
        for owner in (FAUCET, who):
            staking.collect(state, ROLE, who.key, owner.key)
        after = [state.account(owner.key).balance for owner in (FAUCET, who)]
        earned.append([now - then for now, then in zip(after, before, strict=True)])
    assert all(abs(one - other) <= 1 for one, other in zip(*earned, strict=True))
