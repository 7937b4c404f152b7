"""Money as integers: grains within 63 bits, the price of an answer, and the exact split.

Why a split of its own: floors leave grains over, and who gets them must be the same on every
node, in any order of payees. The largest remainders get them, ties go to the smaller key.
What this file does not know: accounts, and why anybody is paid.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from consensus.primitives.encoding import INT_MAX
from consensus.primitives.errors import Invalid

GRAINS_PER_OPEN: Final = 10**9
SUPPLY_GRAINS: Final = 10**18  # made once, in genesis
AMOUNT_MAX: Final = INT_MAX
BPS: Final = 10_000
TOKENS_PER_PRICE: Final = 10**6  # prices are per so many tokens

Answer = tuple[int, int, int]  # fee, tokens in, tokens out


class _Ordered(Protocol):
    def __lt__(self, other: "_Ordered", /) -> bool: ...


Key = TypeVar("Key", bound=object)


def checked(amount: int) -> int:
    """`amount`, if it is one; raises `Invalid` `amount.out_of_range` below 0 and above 2^63-1."""
    if not 0 <= amount <= AMOUNT_MAX:
        raise Invalid("amount.out_of_range", amount=amount)
    return amount


def open_text(grains: int) -> str:
    """An amount for people: OPEN with at least two and at most nine decimals, "1.50 OPEN"."""
    whole, rest = divmod(checked(grains), GRAINS_PER_OPEN)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals} OPEN"


def price(tokens_in: int, tokens_out: int, p_in: int, p_out: int, p_call: int) -> int:
    """Grains of an answer: ceil((tokens_in·p_in + tokens_out·p_out) / 10^6) + p_call (page 30 §3).

    Raises `Invalid` `amount.out_of_range` above 2^63-1.
    """
    return checked(-(-(tokens_in * p_in + tokens_out * p_out) // TOKENS_PER_PRICE) + p_call)


def find_overpriced(answers: Iterable[Answer], p_in: int, p_out: int, p_call: int) -> list[Answer]:
    """Those whose fee is above their `price`, without a call for each; raises what it raises."""
    found = []
    for answer in answers:
        fee, tokens_in, tokens_out = answer
        most = -(-(tokens_in * p_in + tokens_out * p_out) // TOKENS_PER_PRICE) + p_call
        if not fee <= most <= AMOUNT_MAX:
            checked(most)
            found.append(answer)
    return found


def split(amount: int, weights: Sequence[tuple[Key, int]]) -> list[int]:
    """Parts of `amount` by weight, in the order given; their sum is exactly `amount`.

    Floor, then largest remainder, ties to the smaller key: keys must be distinct and of one
    ordered type. Each part errs by less than one grain. Raises `Invalid` `amount.no_weight` when
    all weights are zero, so a caller always carries a payee to fall back on.
    """
    total = sum(weight for _, weight in weights)
    if total == 0:
        raise Invalid("amount.no_weight")
    shares = [divmod(amount * weight, total) for _, weight in weights]
    parts = [whole for whole, _ in shares]
    left = amount - sum(parts)
    if left:
        order = sorted(range(len(weights)), key=lambda i: (-shares[i][1], weights[i][0]))
        for i in order[:left]:
            parts[i] += 1
    return parts


def part_bps(amount: int, bps: int) -> int:
    """floor(amount × bps / 10,000)."""
    return amount * bps // BPS
