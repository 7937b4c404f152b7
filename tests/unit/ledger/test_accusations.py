"""Lies to light clients before the ledger: what is no attack, who is guilty, and what it costs.

Doubled votes and proposals are judged in `test_offences.py`.
"""

from itertools import permutations
from typing import Any

import pytest
from bundle_kit import Party, party
from chain_kit import FAUCET, OPEN, VALIDATORS, TinyChain
from evidence_kit import lie, raw_attack, raw_double_vote

from consensus.attacks import AttackKind
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.skipping import encode_light_block
from consensus.validators import ValidatorSet
from node.ledger import purses, tables
from node.ledger.accusations import (
    Charge,
    charge_of,
    decode_accusation,
    encode_accusation,
    get_past,
    past_heights,
    verify_accusation,
)
from node.ledger.execute import RULES_1
from node.ledger.proposing import choose_payload
from node.ledger.rules import staking
from node.ledger.wire.transactions import Bond

ROLE = tables.ROLE_VALIDATOR
DAY_MS = 86_400_000
AGE_MS = 21 * DAY_MS
BLOCKS, HEIGHT, COMMON = 7, 5, 2
FALSE = b"\7" * 32


@pytest.fixture
def chain() -> TinyChain:
    return a_chain()


def a_chain() -> TinyChain:
    """Blocks enough that the commit of HEIGHT stands in the chain."""
    made = TinyChain()
    for _ in range(BLOCKS):
        made.block()
    return made


def members(chain: TinyChain, height: int = HEIGHT) -> list[Party]:
    """The validators in the order of the set; the first three sign every block of the kit."""
    by_key = {who.key: who for who in (*VALIDATORS, FAUCET)}
    return [by_key[member.key] for member in chain.past[height - 1].validators.members]


def a_set(*who: Party) -> ValidatorSet:
    return ValidatorSet.found({one.key: 20 for one in who})


def lunatic(chain: TinyChain, *liars: Party, common: int = COMMON, height: int = HEIGHT) -> bytes:
    """A header that is signed by a set which the liars made up of themselves."""
    return raw_attack(common, chain.headers[height - 1], a_set(*liars), liars)


def equivocal(
    chain: TinyChain, *signers: Party, common: int = COMMON, height: int = HEIGHT, **fields: Any
) -> bytes:
    """A second block of one round, of the chain's own set."""
    past = chain.past[height - 1]
    header, fields = chain.headers[height - 1], {"state_root": FALSE} | fields
    return raw_attack(common, header, past.validators, signers, **fields)


def refusal(chain: TinyChain, *evidence: bytes, later_ms: int = 1_000) -> str:
    with pytest.raises(Invalid) as refused:
        chain.execute(evidence=evidence, later_ms=later_ms)
    return refused.value.code


def conduct_of(chain: TinyChain, who: Party) -> tables.Conduct:
    return chain.state().find(tables.CONDUCT, ROLE, who.key) or tables.Conduct()


def charged(chain: TinyChain, raw: bytes) -> Charge:
    accusation = decode_accusation(raw)
    return charge_of(accusation, get_past(accusation, chain.context().find_past))


# ---- a header that execution cannot give


def test_who_signs_a_lie_is_frozen_and_out_at_once_and_loses_nothing(chain) -> None:
    first, second, *honest = members(chain)
    before, raw = chain.state(), lunatic(chain, first, second)
    outcome = chain.block(evidence=(raw,))
    since_ms = chain.past[COMMON].time_ms
    for who in (first, second):
        assert conduct_of(chain, who) == tables.Conduct(frozen_ms=since_ms)
        assert staking.bonded(chain.state(), ROLE, who.key) == 20 * OPEN
    assert chain.validators.powers().keys() == {who.key for who in honest}
    assert outcome.supply == before.supply()
    chain.block(later_ms=AGE_MS)
    assert chain.validators.powers().keys() == {who.key for who in honest}, "time ends no freeze"


@pytest.mark.parametrize("field", ["params_hash", "parent_id", "history_root"])
def test_field_that_follows_from_the_parent_names_every_signer(chain, field) -> None:
    signers = members(chain)[1:]
    raw = equivocal(chain, *signers, **{field: FALSE})
    charge = charged(chain, raw)
    assert charge.kind is AttackKind.LUNATIC
    assert charge.accused == tuple(who.key for who in signers)
    chain.block(evidence=(raw,))
    assert all(conduct_of(chain, who).frozen_ms for who in signers)


def test_strangers_beside_the_liars_are_not_named(chain) -> None:
    """They have nothing to freeze; more than a third of the announced power is guilty."""
    strangers = [party(f"stranger {number}") for number in range(3)]
    liars = members(chain)[:2]
    raw = lunatic(chain, *liars, *strangers)
    charge = charged(chain, raw)
    assert charge.accused == tuple(who.key for who in liars)
    chain.execute(evidence=(raw,))


def test_who_has_left_since_the_common_block_is_named_by_its_set(chain) -> None:
    gone, other, *_ = members(chain)
    chain.block(evidence=(raw_double_vote(gone, chain.validators, chain.chain_id, 1),))
    chain.block()
    chain.block()
    height = chain.height - 1
    assert chain.past[height - 1].validators.index(gone.key) is None
    raw = lunatic(chain, gone, other, height=height)
    chain.block(evidence=(raw,))
    assert conduct_of(chain, gone).frozen_ms == chain.past[COMMON].time_ms
    assert conduct_of(chain, other).frozen_ms


# ---- a second block of one round


def test_only_who_signed_both_blocks_is_punished_and_as_for_a_double_vote(chain) -> None:
    both, also, first_only, second_only = members(chain)
    before = chain.state()
    raw = equivocal(chain, both, also, second_only)
    assert charged(chain, raw).kind is AttackKind.EQUIVOCATION
    outcome = chain.block(evidence=(raw,))
    for who in (both, also):  # half the power: 500 + 3 × 5,000 is more than there is
        assert staking.bonded(chain.state(), ROLE, who.key) == 0
        assert conduct_of(chain, who).tombstone == tables.TOMBSTONED
        assert conduct_of(chain, who).jailed_until_ms == chain.time_ms + AGE_MS
    assert outcome.supply == before.supply() - 20 * OPEN
    assert chain.validators.powers().keys() == {first_only.key, second_only.key}


def test_attack_and_double_votes_of_one_key_are_one_offence(chain) -> None:
    """A member that signed both blocks has doubled its precommit: whichever is told first."""
    liars = members(chain)[:3]
    raw = equivocal(chain, *liars)
    votes = [raw_double_vote(who, chain.validators, chain.chain_id, HEIGHT) for who in liars]
    assert refusal(chain, raw, votes[0]) == "evidence.punished"
    assert refusal(chain, *votes, raw) == "evidence.punished"
    chain.execute(evidence=(*votes[:2], raw))


# ---- what is refused


def test_second_block_of_another_round_names_nobody(chain) -> None:
    raw = equivocal(chain, *members(chain), round=1)
    assert refusal(chain, raw) == "evidence.amnesia"


def test_block_of_the_chain_itself_is_no_attack(chain) -> None:
    """With any commit and any common block: its signers did what they should."""
    past = chain.past[HEIGHT - 1]
    for common, round in ((COMMON, 0), (HEIGHT - 1, 0), (COMMON, 3)):
        own = chain.headers[HEIGHT - 1]
        raw = raw_attack(common, own, past.validators, members(chain), round=round)
        assert refusal(chain, raw) == "evidence.canonical"


@pytest.mark.parametrize("common", [HEIGHT, HEIGHT + 1, 10**6])
def test_common_block_lies_below(chain, common) -> None:
    block = lie(chain.headers[HEIGHT - 1], a_set(*VALIDATORS), VALIDATORS, params_hash=FALSE)
    raw = encode((3, common, encode_light_block(block)))
    assert refusal(chain, raw) == "evidence.common_height"


def test_common_block_whose_set_did_not_sign_is_a_lie(chain) -> None:
    """The new member signs for itself alone where all the trust lies in the old set."""
    chain.block(chain.tx(FAUCET, Bond(ROLE, FAUCET.key, 60 * OPEN)))
    chain.block(later_ms=60_000)
    for _ in range(4):
        chain.block()
    assert chain.validators.power(FAUCET.key) > chain.validators.total // 3
    height = chain.height - 1
    assert refusal(chain, lunatic(chain, FAUCET, height=height)) == "evidence.unbelievable"
    charge = charged(chain, lunatic(chain, FAUCET, common=height - 2, height=height))
    assert charge.accused == (FAUCET.key,)


def test_a_third_is_not_enough_and_the_next_height_takes_the_announced_set_alone(chain) -> None:
    one, two, *_ = members(chain)
    assert refusal(chain, lunatic(chain, one)) == "evidence.unbelievable"
    raw = lunatic(chain, one, two, common=HEIGHT - 1)
    assert refusal(chain, raw) == "evidence.unbelievable"


def test_commit_of_too_little_power_is_no_attack(chain) -> None:
    two = members(chain)[:2]
    assert refusal(chain, equivocal(chain, *two)) == "certificate.power"
    assert refusal(chain, equivocal(chain, *two, params_hash=FALSE)) == "certificate.power"


def test_attack_waits_until_the_chain_carries_the_commit_of_its_height(chain) -> None:
    """Until then nodes may hold different commits, and would name different members."""
    raw = equivocal(chain, *members(chain), height=chain.height)
    assert refusal(chain, raw) == "evidence.height"
    chain.block()
    assert chain.execute(evidence=(raw,))


def test_attack_above_the_chain_is_refused(chain) -> None:
    header = chain.headers[-1]._replace(height=chain.height + 1)
    raw = raw_attack(COMMON, header, chain.validators, VALIDATORS, params_hash=FALSE)
    assert refusal(chain, raw) == "evidence.height"


@pytest.mark.parametrize("make", [lunatic, equivocal])
def test_age_counts_from_the_block_that_was_trusted(chain, make) -> None:
    """Whoever is named was bonded then, and may have been paid out when that is over."""
    raw = make(chain, *members(chain)[:3])
    spent_ms = chain.time_ms - chain.past[COMMON].time_ms
    assert chain.execute(evidence=(raw,), later_ms=AGE_MS - spent_ms)
    assert refusal(chain, raw, later_ms=AGE_MS - spent_ms + 1) == "evidence.too_old"


def test_same_lie_again_is_refused_however_it_is_told(chain) -> None:
    liars = members(chain)[:3]
    raw = lunatic(chain, *liars)
    chain.block(evidence=(raw,))
    assert refusal(chain, raw) == "evidence.used"
    for again in (
        lunatic(chain, *liars[:2]),
        lunatic(chain, *liars, common=COMMON + 1),
        lunatic(chain, *liars, height=HEIGHT + 1),
    ):
        assert refusal(chain, again) == "evidence.punished"


def test_piece_that_names_one_more_is_taken_and_punishes_that_one(chain) -> None:
    one, two, three, _ = members(chain)
    chain.block(evidence=(lunatic(chain, one, two),))
    chain.block(evidence=(lunatic(chain, one, two, three),))
    assert conduct_of(chain, three).frozen_ms == conduct_of(chain, one).frozen_ms


def test_signatures_are_asked_for_last(chain, monkeypatch) -> None:
    liars = members(chain)[:2]
    chain.block(evidence=(lunatic(chain, *liars),))

    def must_not_be_asked(*_: object) -> None:
        raise AssertionError("a signature was checked")

    monkeypatch.setattr("consensus.certificate.verify_signature", must_not_be_asked)
    old = AGE_MS + 1
    for raw, later_ms, code in (
        (lunatic(chain, *liars), 0, "used"),
        (lunatic(chain, *liars, common=COMMON + 1), 0, "punished"),
        (lunatic(chain, *members(chain)[1:]), old, "too_old"),
        (equivocal(chain, *members(chain), round=2), 0, "amnesia"),
        (lunatic(chain, members(chain)[3]), 0, "unbelievable"),
    ):
        assert refusal(chain, raw, later_ms=later_ms + 1_000) == f"evidence.{code}"
    with pytest.raises(AssertionError, match="a signature was checked"):
        chain.execute(evidence=(lunatic(chain, *members(chain)[1:]),))


def test_attack_with_any_bit_altered_accuses_nobody_else(chain) -> None:
    """It is refused; or, told from another common block, names the same for the same."""
    raw = lunatic(chain, *members(chain)[:2])
    found, refused = charged(chain, raw), 0
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1 << place % 8
        try:
            charge = charged(chain, bytes(altered))
            accusation = decode_accusation(bytes(altered))
            verify_accusation(accusation, charge, chain.chain_id)
        except Invalid:
            refused += 1
        else:
            assert place == 2, "the common height"
            assert (charge.accused, charge.kind) == (found.accused, found.kind)
    assert refused >= len(raw) - 1


# ---- freezes and slashes


def test_freeze_answers_for_no_slash_and_no_slash_for_a_freeze(chain) -> None:
    """Else signing a lie to light clients would save the bonds of who votes twice."""
    one, two, *_ = members(chain)
    lies = lunatic(chain, one, two)
    votes = raw_double_vote(one, chain.validators, chain.chain_id, HEIGHT)
    for order in permutations((lies, votes)):
        made = a_chain()
        for raw in order:
            made.block(evidence=(raw,))
        assert staking.bonded(made.state(), ROLE, one.key) == 4 * OPEN
        assert staking.bonded(made.state(), ROLE, two.key) == 20 * OPEN
        conduct = conduct_of(made, one)
        assert conduct.frozen_ms
        assert conduct.jailed_until_ms


def test_power_that_is_frozen_makes_no_double_vote_dearer(chain) -> None:
    one, two, three, _ = members(chain)
    chain.block(evidence=(lunatic(chain, one, two),))
    chain.block(evidence=(raw_double_vote(three, a_set(*members(chain)), chain.chain_id, HEIGHT),))
    assert staking.bonded(chain.state(), ROLE, three.key) == 4 * OPEN


def test_pieces_of_all_kinds_in_one_block_punish_alike_in_any_order(chain) -> None:
    one, two, three, four = members(chain)
    pieces = (
        lunatic(chain, one, two),
        equivocal(chain, two, three, four),
        raw_double_vote(four, chain.validators, chain.chain_id, 3),
    )
    roots = {chain.execute(evidence=order).state_root for order in permutations(pieces)}
    assert len(roots) == 1


def test_what_left_since_the_trusted_block_waits_and_what_left_before_is_paid(chain) -> None:
    one, two, *_ = members(chain)
    since_ms = chain.past[COMMON].time_ms
    state = chain.state()
    for number, made_ms in enumerate((since_ms - 1, since_ms)):
        leave(state, number, one, made_ms)
    keep(chain, state)
    chain.block(evidence=(lunatic(chain, one, two),))
    before = chain.state().account(one.key).balance
    chain.block(later_ms=AGE_MS)
    state = chain.state()
    assert state.account(one.key).balance == before + OPEN
    assert state.held(purses.unbonding(0)) == 0
    assert state.held(purses.unbonding(1)) == OPEN
    chain.block(later_ms=DAY_MS + 1)
    assert chain.state().get(tables.UNBONDING, 1).due_ms > chain.time_ms, "asked again each day"


def leave(state: Any, number: int, who: Party, made_ms: int) -> None:
    """What an unbonding of 1 OPEN leaves in the state."""
    due_ms = made_ms + AGE_MS
    record = tables.Unbonding(ROLE, who.key, who.key, 0, made_ms, due_ms)
    state.put(tables.UNBONDING, (number,), record)
    staking.note_leaving(state, ROLE, who.key, who.key, number)
    state.add_due(due_ms, tables.DUE_UNBONDING, number.to_bytes(8, "big"))
    state.move(purses.bond(ROLE, who.key, who.key), purses.unbonding(number), OPEN)
    stake = state.get(tables.STAKE, ROLE, who.key)
    state.put(tables.STAKE, (ROLE, who.key), stake._replace(bonded=stake.bonded - OPEN))


def keep(chain: TinyChain, state: Any) -> None:
    """Make a changed state the chain's; its tree stays behind."""
    chain.flat.update({key: value for key, value in state.changes() if value is not None})


def test_second_block_is_dated_by_its_own_height_and_spares_who_left_before(chain) -> None:
    both, also, other, _ = members(chain)
    offence_ms = chain.past[HEIGHT - 1].time_ms
    state = chain.state()
    for number, made_ms in enumerate((offence_ms - 1, offence_ms)):
        leave(state, number, both, made_ms)
    keep(chain, state)
    chain.block(evidence=(equivocal(chain, both, also, other),))
    held = [chain.state().held(purses.unbonding(number)) for number in (0, 1)]
    assert held == [OPEN, 0]


def test_earlier_lie_reaches_who_left_before_the_one_that_was_found(chain) -> None:
    one, two, *_ = members(chain)
    late, early = chain.past[COMMON].time_ms, chain.past[COMMON - 1].time_ms
    state = chain.state()
    leave(state, 0, one, early)
    keep(chain, state)
    chain.block(evidence=(lunatic(chain, one, two),))
    assert conduct_of(chain, one).frozen_ms == late
    chain.block(evidence=(lunatic(chain, one, two, common=COMMON - 1),))
    assert conduct_of(chain, one).frozen_ms == early
    assert refusal(chain, lunatic(chain, one, two, common=COMMON - 2)) == "evidence.punished"


# ---- the proposer, and the form


def test_rehearsal_leaves_out_what_does_not_hold(chain) -> None:
    good = lunatic(chain, *members(chain)[:2])
    amnesia = equivocal(chain, *members(chain), round=1)
    choice = choose_payload(RULES_1, chain.state(), chain.context(), [], [], (amnesia, good))
    assert choice.payload.evidence == (good,)
    assert choice.refused_evidence == ((amnesia, "evidence.amnesia"),)


def test_every_kind_is_read_and_says_which_heights_it_needs(chain) -> None:
    votes = raw_double_vote(VALIDATORS[0], chain.validators, chain.chain_id, 3)
    attack = lunatic(chain, *VALIDATORS[:2])
    for raw, heights in ((votes, (3,)), (attack, (COMMON + 1, HEIGHT))):
        accusation = decode_accusation(raw)
        assert encode_accusation(accusation) == raw
        assert past_heights(accusation) == heights
    for raw in (b"", b"\x93", b"\x93\x04"):
        with pytest.raises(Invalid, match=r"evidence\.kind"):
            decode_accusation(raw)
