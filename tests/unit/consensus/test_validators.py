"""Powers, quorums and turns; the rotation is CometBFT's, turn by turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.params import POWER_MAX, VALIDATORS_MAX
from consensus.primitives.errors import Invalid
from consensus.validators import (
    Member,
    ValidatorSet,
    decode_priority,
    decode_validators,
    encode_priority,
    encode_validators,
)


def name(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


def text(key: bytes) -> str:
    return key.rstrip(b"\0").decode()


# cometbft/cometbft types/validator_set_test.go, TestProposerSelection1: powers 1000, 300, 330.
COMET_99 = (
    "foo baz foo bar foo foo baz foo bar foo foo baz foo foo bar foo baz foo foo bar"
    " foo foo baz foo bar foo foo baz foo bar foo foo baz foo foo bar foo baz foo foo bar"
    " foo baz foo foo bar foo baz foo foo bar foo baz foo foo foo baz bar foo foo foo baz"
    " foo bar foo foo baz foo bar foo foo baz foo bar foo foo baz foo bar foo foo baz foo"
    " foo bar foo baz foo foo bar foo baz foo foo bar foo baz foo foo"
)


def test_turns_are_those_of_cometbft() -> None:
    validators = ValidatorSet.found({name("foo"): 1000, name("bar"): 300, name("baz"): 330})
    turns = []
    for _ in range(99):
        turns.append(text(validators.turn))
        validators = validators.advanced()
    assert " ".join(turns) == COMET_99


def test_equal_powers_take_turns_by_key() -> None:
    """TestProposerSelection2 of the same file."""
    validators = ValidatorSet.found({name(n): 100 for n in "abc"})
    assert [text(validators.proposer(round)) for round in range(6)] == list("abcabc")


@pytest.mark.parametrize(("power", "turns"), [(400, "ca"), (401, "cca")])
def test_four_times_the_power_is_not_two_turns_in_a_row_and_one_more_is(
    power: int, turns: str
) -> None:
    """TestProposerSelection2 of the same file."""
    validators = ValidatorSet.found({name("a"): 100, name("b"): 100, name("c"): power})
    found = ""
    for _ in turns:
        found += text(validators.turn)
        validators = validators.advanced()
    assert found == turns


# TestAveragingInIncrementProposerPriorityWithVotingPower of the same file: powers 10, 1, 1.
AFTER_TIMES = [
    (1, [-2, 1, 1], "a"), (2, [-4, 2, 2], "a"), (3, [-6, 3, 3], "a"), (4, [-8, 4, 4], "a"),
    (5, [2, -7, 5], "b"), (6, [0, -6, 6], "a"), (7, [-2, -5, 7], "a"), (8, [-4, -4, 8], "a"),
    (9, [6, -3, -3], "c"), (10, [4, -2, -2], "a"), (11, [2, -1, -1], "a"),
]  # fmt: skip


@pytest.mark.parametrize(("times", "priorities", "turn"), AFTER_TIMES)
def test_priorities_after_some_turns(times: int, priorities: list[int], turn: str) -> None:
    members = [Member(name("a"), 10), Member(name("b"), 1), Member(name("c"), 1)]
    later = ValidatorSet(members, name("a")).advanced(times)
    assert [member.priority for member in later.members] == priorities
    assert text(later.turn) == turn


def test_rescaling_divides_toward_zero() -> None:
    """Total 3, window 6, spread 21: ratio 4; −11 // 4 would be −3 in Python, −2 in Go."""
    members = [Member(name("a"), 1, 10), Member(name("b"), 1, -11), Member(name("c"), 1, 1)]
    later = ValidatorSet(members, name("a")).advanced()
    # 10 → 2, −11 → −2, 1 → 0; the mean is 0; then +1 each, and the first pays 3.
    assert {text(m.key): m.priority for m in later.members} == {"a": 0, "b": -1, "c": 1}


def test_newcomer_starts_behind_all() -> None:
    validators = ValidatorSet.found({name("a"): 10, name("b"): 10})
    joined = validators.changed([(name("c"), 10)]).advanced()
    assert text(joined.turn) != "c"
    place = joined.index(name("c"))
    assert place is not None
    assert joined.members[place].priority == min(member.priority for member in joined.members)


def test_leaving_and_joining_again_gains_no_turn() -> None:
    stays = ValidatorSet.found({name(n): 10 for n in "abcd"})
    jumps, turns = stays, {"stays": 0, "jumps": 0}
    for _ in range(40):
        jumps = jumps.changed([(name("d"), 0)]).changed([(name("d"), 10)]).advanced()
        stays = stays.advanced()
        turns["stays"] += text(stays.turn) == "d"
        turns["jumps"] += text(jumps.turn) == "d"
    assert turns["jumps"] <= turns["stays"]


def test_turns_are_in_proportion_to_power() -> None:
    """TestProposerSelection2 of the same file: 4, 5, 3 of 12."""
    validators, counts = ValidatorSet.found({name("a"): 4, name("b"): 5, name("c"): 3}), {}
    for _ in range(120):
        turn = text(validators.turn)
        counts[turn] = counts.get(turn, 0) + 1
        validators = validators.advanced()
    assert counts == {"a": 40, "b": 50, "c": 30}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ([(name("a"), 1), (name("a"), 2)], "validators.twice"),
        ([(name("z"), 0)], "validators.stranger"),
        ([(name("a"), 0), (name("b"), 0)], "validators.empty"),
        ([(name("a"), POWER_MAX)], "validators.power"),
        ([(name("c"), -1)], "validators.power"),
        ([(name(f"n{n}"), 1) for n in range(VALIDATORS_MAX - 1)], "validators.too_many"),
    ],
)
def test_bad_change_is_refused(changes: list[tuple[bytes, int]], code: str) -> None:
    validators = ValidatorSet.found({name("a"): 1, name("b"): 1})
    with pytest.raises(Invalid) as refusal:
        validators.changed(changes)
    assert refusal.value.code == code


def test_greatest_set_and_power_are_allowed() -> None:
    powers = {name(f"n{n}"): 1 for n in range(VALIDATORS_MAX - 1)}
    validators = ValidatorSet.found({**powers, name("z"): POWER_MAX - len(powers)})
    assert validators.total == POWER_MAX


def test_bounds_of_quorum_and_third() -> None:
    validators = ValidatorSet.found({name(n): 1 for n in "abc"})
    assert [validators.is_quorum(power) for power in (2, 3)] == [False, True]
    assert [validators.is_third(power) for power in (1, 2)] == [False, True]


def test_hash_says_powers_and_not_turns() -> None:
    validators = ValidatorSet.found({name("a"): 2, name("b"): 1})
    assert validators.advanced().hash() == validators.hash()
    assert validators.changed([(name("b"), 2)]).hash() != validators.hash()


def test_validators_for_a_light_client_keep_their_hash() -> None:
    validators = ValidatorSet.found({name("a"): 2, name("b"): 1, name("c"): 2})
    raw = encode_validators(validators)
    assert decode_validators(raw).hash() == validators.hash()
    with pytest.raises(Invalid, match="order"):
        decode_validators(encode_validators_in([(name("b"), 1), (name("a"), 2)]))


def encode_validators_in(order: list[tuple[bytes, int]]) -> bytes:
    from consensus.primitives.encoding import encode

    return encode(order)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 10**12), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 10**12)), max_size=6),
)
def test_priorities_stay_centred_and_within_their_window(
    powers: list[int], changes: list[tuple[int, int]]
) -> None:
    validators = ValidatorSet.found({name(f"n{n}"): power for n, power in enumerate(powers)})
    for number, power in changes:
        try:
            validators = validators.changed([(name(f"n{number}"), power)])
        except Invalid:
            continue
        validators = validators.advanced()
        priorities = [member.priority for member in validators.members]
        assert abs(sum(priorities)) < len(priorities)
        assert max(priorities) - min(priorities) <= 3 * validators.total


@given(st.integers(-(2**126), 2**126))
def test_priority_survives_its_encoding(priority: int) -> None:
    assert decode_priority(encode_priority(priority)) == priority
    assert len(encode_priority(priority)) == 16
