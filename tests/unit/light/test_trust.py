"""What a followed chain lets a reader believe offline: blocks by id, and sets where they held."""

from light_kit import CHAIN_ID, FOUR, LightChain, now_of

from consensus.skipping import TrustOptions
from node.light import trust_light_blocks

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


def test_nothing_above_the_newest_is_signed_by_a_known_set() -> None:
    trust = trust_light_blocks(CHAIN_ID, KEPT, OPTIONS, NOW)
    assert max(span.last for span in trust.spans) < 20
