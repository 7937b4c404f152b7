"""Amounts: within 63 bits, priced as the design says, split to the last grain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.errors import Invalid
from node.ledger.amounts import AMOUNT_MAX, checked, find_overpriced, open_text, price, split

WEIGHTS = st.dictionaries(st.binary(min_size=1, max_size=8), st.integers(0, 2**64), min_size=1)


@pytest.mark.parametrize(
    ("grains", "text"),
    [
        (0, "0.00 OPEN"),
        (1, "0.000000001 OPEN"),
        (27_309_200, "0.0273092 OPEN"),
        (10**9, "1.00 OPEN"),
        (1_500_000_000, "1.50 OPEN"),
        (10**18, "1000000000.00 OPEN"),
        (AMOUNT_MAX, "9223372036.854775807 OPEN"),
    ],
)
def test_amounts_for_people_are_exact(grains: int, text: str) -> None:
    assert open_text(grains) == text


def test_amounts_fit_63_bits() -> None:
    assert checked(0) == 0
    assert checked(AMOUNT_MAX) == 2**63 - 1
    for amount in (-1, AMOUNT_MAX + 1):
        with pytest.raises(Invalid, match=r"amount\.out_of_range"):
            checked(amount)


def test_golden_prices() -> None:
    assert price(812, 143, 21_200_000_000, 63_600_000_000, 1_000_000) == 27_309_200
    assert price(1_000, 500, 20_000_000_000, 60_000_000_000, 1_000_000) == 51_000_000


def test_a_part_of_a_grain_is_a_grain() -> None:
    assert price(1, 0, 1, 0, 0) == 1
    assert price(1_000_000, 0, 1, 0, 0) == 1
    assert price(1_000_001, 0, 1, 0, 0) == 2
    assert price(0, 0, 5, 5, 7) == 7


def test_a_price_above_63_bits_is_refused() -> None:
    assert price(0, 0, 0, 0, AMOUNT_MAX) == AMOUNT_MAX
    with pytest.raises(Invalid, match=r"amount\.out_of_range"):
        price(1, 0, 1, 0, AMOUNT_MAX)


TOKENS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 999_999, 10**6, 2**32 - 1])
PRICE = st.integers(0, 10**12) | st.sampled_from([0, 1, 2**31 * 10**6, AMOUNT_MAX])


@given(
    st.lists(st.tuples(st.integers(-2, 2) | st.integers(-(2**63), 2**63), TOKENS, TOKENS)),
    st.tuples(PRICE, PRICE, PRICE),
)
def test_the_overpriced_of_many_are_those_above_their_own_price(drawn, prices) -> None:
    """Each fee is the price and some grains more or fewer, as far as it is an amount."""
    answers = []
    for off, tokens_in, tokens_out in drawn:
        try:
            fee = price(tokens_in, tokens_out, *prices) + off
        except Invalid as refusal:
            with pytest.raises(Invalid, match=refusal.code):
                find_overpriced([*answers, (0, tokens_in, tokens_out)], *prices)
            return
        answers.append((min(max(fee, 0), AMOUNT_MAX), tokens_in, tokens_out))
    above = [each for each in answers if each[0] > price(*each[1:], *prices)]
    assert find_overpriced(answers, *prices) == above


@given(WEIGHTS, st.integers(0, AMOUNT_MAX), st.randoms(use_true_random=False))
def test_split_is_exact_fair_and_independent_of_order(weights, amount, chance) -> None:
    pairs = list(weights.items())
    total = sum(weights.values())
    if total == 0:
        with pytest.raises(Invalid, match=r"amount\.no_weight"):
            split(amount, pairs)
        return
    parts = split(amount, pairs)
    assert sum(parts) == amount
    assert min(parts) >= 0
    for (_, weight), part in zip(pairs, parts, strict=True):
        assert abs(part * total - amount * weight) < total
    shuffled = pairs[:]
    chance.shuffle(shuffled)
    names = [name for name, _ in shuffled]
    again = dict(zip(names, split(amount, shuffled), strict=True))
    assert again == dict(zip([name for name, _ in pairs], parts, strict=True))


def test_ties_go_to_the_smaller_key() -> None:
    assert split(1, [(b"b", 1), (b"a", 1)]) == [0, 1]
    assert split(5, [(3, 1), (1, 1), (2, 1)]) == [1, 2, 2]
