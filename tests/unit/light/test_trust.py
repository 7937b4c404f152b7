"""What a followed chain lets a reader believe offline: blocks by id, and sets where they held."""

import pytest
from light_kit import CHAIN_ID, FOUR, LightChain, key_of, now_of

from consensus.params import DAY_MS
from consensus.skipping import TrustOptions
from node.ledger.genesis import make_genesis
from node.light import trust_light_blocks, trust_options

OPTIONS = TrustOptions()
CHAIN = LightChain(20, lambda height: FOUR if height < 10 else {"x": 1, "y": 1})
KEPT = [CHAIN.at(height) for height in (1, 5, 9, 12, 13, 20)]
NOW = now_of(CHAIN.at(20))


def spans(now_ms: int) -> list[tuple[int, int]]:
    trust = trust_light_blocks(CHAIN_ID, KEPT, OPTIONS, now_ms)
    return [(span.first, span.last) for span in trust.spans if span.first <= span.last]


def test_blocks_are_trusted_by_their_ids() -> None:
    trust = trust_light_blocks(CHAIN_ID, KEPT, OPTIONS, NOW)
    assert trust.blocks == {block.height: block.block_id for block in KEPT}
    assert trust.validators == ()


def test_set_signs_between_two_blocks_that_both_name_it() -> None:
    """9 announces another set than it has: 10 and 11 lie between two that agree."""
    assert spans(NOW) == [(2, 4), (6, 8), (10, 11), (14, 19)]


def test_set_that_changed_between_signs_nothing_for_us() -> None:
    blocks = [CHAIN.at(5), CHAIN.at(20)]
    assert trust_light_blocks(CHAIN_ID, blocks, OPTIONS, NOW).spans == ()


def test_expired_block_vouches_for_no_signature_any_more() -> None:
    """Who has left could sign any old block unpunished; its id is still history."""
    now_ms = CHAIN.at(9).header.time_ms + OPTIONS.period_ms
    assert spans(now_ms) == [(14, 19)]
    assert spans(now_ms - 1) == [(10, 11), (14, 19)]


@pytest.mark.parametrize(
    ("unbonding_ms", "period_ms"),
    [(21 * DAY_MS, 14 * DAY_MS), (42 * DAY_MS, 14 * DAY_MS), (3 * DAY_MS, 2 * DAY_MS), (1, 1)],
)
def test_trust_ends_well_before_bonds_are_free(unbonding_ms: int, period_ms: int) -> None:
    genesis = make_genesis(
        name="kit",
        time_ms=1,
        accounts={},
        validators={key_of("a"): 20_000 * 10**9},
        parameters={"unbonding_ms": unbonding_ms},
    )
    assert trust_options(genesis).period_ms == period_ms


def test_nothing_above_the_newest_is_signed_by_a_known_set() -> None:
    trust = trust_light_blocks(CHAIN_ID, KEPT, OPTIONS, NOW)
    assert max(span.last for span in trust.spans) < 20
