"""Bundles changed by one bit, and bundles settled twice: none passes, whoever signs them anew.

Who changes: somebody on the way, who can sign nothing; or the provider, who signs any header with
the right roots, but neither vouchers nor, here, receipts. Refused means by A1 to A7 or by B1 to B4.
"""

import random
from collections.abc import Iterator

from bundle_kit import CHAIN, party
from ledger_kit import (
    PROVIDER,
    context,
    fee_of,
    new_state,
    open_channel,
    session,
    supply_is_whole,
)

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.primitives.merkle import root
from node.ledger.admission import admit_bundle
from node.ledger.rules.channels import apply_bundle
from node.ledger.state import State
from node.ledger.wire import bundles
from node.ledger.wire.bundles import BodyPart, Bundle, build_bundle, decode_section
from node.ledger.wire.codes import find_code

CREDITS = ((1, 6_000), (3, 4_000))
SAMPLE = 4_000  # single-bit changes that issue 4 asks for


class Undone(Exception):
    """Ends a trial whose changes are not wanted."""


def settle(state: State, bundle: Bundle, is_kept: bool = True) -> None:
    """As execution does it; raises `Invalid`, and then nothing has changed."""
    admitted = admit_bundle(state, CHAIN, bundle)
    try:
        with state.trial():
            apply_bundle(state, context(), admitted.bundle)
            if not is_kept:
                raise Undone
    except Undone:
        pass


def refusal_of(state: State, bundle: Bundle) -> Invalid | None:
    try:
        settle(state, bundle, is_kept=False)
    except Invalid as error:
        return error
    return None


class Market:
    """Two lanes with answers: all of one acknowledged, the last of the other only held for."""

    def __init__(self) -> None:
        self.state, chance = new_state(), random.Random(1)
        self.lanes = [session(open_channel(self.state, nonce=n), chance) for n in range(2)]
        self.parts: list[BodyPart] = []

    def serve(self, answers: int = 2) -> list[BodyPart]:
        """New sections of both lanes, in a bundle's order."""
        for lane in self.lanes:
            for _ in range(answers):
                lane.serve(CREDITS, tokens_in=10, tokens_out=20, fee=fee_of(10, 20))
        acknowledged, held = (lane.cut(from_hold=n == 1) for n, lane in enumerate(self.lanes))
        parts = [acknowledged, held]
        return sorted(parts, key=lambda part: decode_section(part.section).channel)

    def bundle(self, parts: list[BodyPart], bundle_seq: int) -> Bundle:
        return build_bundle(
            chain_id=CHAIN, provider=PROVIDER.key, bundle_seq=bundle_seq, parts=parts,
            sign=PROVIDER.sign,
        )  # fmt: skip


def signed_anew(good: Bundle, parts: list[BodyPart]) -> Bundle:
    """What a lying provider makes of changed parts: every root and length right again."""
    body = bundles.encode_body(parts)
    header = bundles.decode_header(good.header)._replace(
        body_len=len(body),
        body_hash=sha256(body),
        receipts_root=root(raw for part in parts for raw in part.receipts),
        sections_root=root(part.section for part in parts),
    )
    raw = encode(header)
    return Bundle(raw, PROVIDER.sign(bundles.bundle_message(CHAIN, raw)), body)


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def every_bit(raw: bytes) -> Iterator[bytes]:
    return (flipped(raw, bit) for bit in range(8 * len(raw)))


def all_refused(state: State, changed: Iterator[Bundle]) -> int:
    """How many there were."""
    count = 0
    for bundle in changed:
        count += 1
        refusal = refusal_of(state, bundle)
        assert refusal is not None, f"change {count} passes"
        assert find_code(refusal), refusal  # execution knows no others
    return count


def with_part(good: Bundle, parts: list[BodyPart], at: int, **fields: object) -> Bundle:
    changed = list(parts)
    changed[at] = parts[at]._replace(**fields)
    return signed_anew(good, changed)


def test_no_bit_changed_on_the_way_is_accepted() -> None:
    """Every bit of header and signature, 2,500 of the body."""
    market, chance = Market(), random.Random(2)
    parts = market.serve()
    good = market.bundle(parts, 1)
    assert refusal_of(market.state, good) is None
    bits = chance.sample(range(8 * len(good.body)), 2_500)
    count = all_refused(market.state, (good._replace(header=raw) for raw in every_bit(good.header)))
    count += all_refused(
        market.state, (good._replace(signature=raw) for raw in every_bit(good.signature))
    )
    count += all_refused(
        market.state, (good._replace(body=flipped(good.body, bit)) for bit in bits)
    )
    assert count >= SAMPLE


def test_no_bit_of_a_section_or_its_voucher_that_the_provider_signs_for_is_accepted() -> None:
    """Every bit of both sections; a voucher and its signature lie inside."""
    market = Market()
    parts = market.serve()
    good = market.bundle(parts, 1)
    assert signed_anew(good, parts) == good
    count = 0
    for at, part in enumerate(parts):
        changed = (with_part(good, parts, at, section=raw) for raw in every_bit(part.section))
        count += all_refused(market.state, changed)
    assert count >= SAMPLE


def test_no_bit_of_a_receipt_or_its_credits_that_the_provider_signs_for_is_accepted() -> None:
    """The payer acknowledged these receipts, or held for this order: no other ones are paid."""
    market, chance = Market(), random.Random(3)
    parts = market.serve()
    good = market.bundle(parts, 1)

    def changed() -> Iterator[Bundle]:
        for _ in range(SAMPLE):
            at, field = chance.randrange(len(parts)), chance.choice(("receipts", "credits"))
            raws = list(getattr(parts[at], field))
            place = chance.randrange(len(raws))
            raws[place] = flipped(raws[place], chance.randrange(8 * len(raws[place])))
            yield with_part(good, parts, at, **{field: tuple(raws)})

    assert all_refused(market.state, changed()) == SAMPLE


def replays(market: Market, parts: list[BodyPart], later: list[BodyPart]) -> dict[str, Bundle]:
    """Ways to be paid again for `parts`, which are settled; `later` are not."""
    old = market.bundle(parts, 1)
    mixed = [later[0], parts[1]]
    return {
        "the same bytes": old,
        "under a new number": market.bundle(parts, 2),
        "one section": market.bundle(parts[:1], 2),
        "beside a new section": market.bundle(mixed, 2),
        "under an old number": market.bundle(later, 1),
        "on another chain": old._replace(
            signature=PROVIDER.sign(bundles.bundle_message(bytes(32), old.header))
        ),
        "by another provider": old._replace(
            signature=party("other").sign(bundles.bundle_message(CHAIN, old.header))
        ),
    }


def test_replay_is_refused_and_changes_nothing() -> None:
    market = Market()
    parts = market.serve()
    settle(market.state, market.bundle(parts, 1))
    later = market.serve()
    before = market.state.totals()
    for desc, bundle in replays(market, parts, later).items():
        assert refusal_of(market.state, bundle) is not None, desc
        assert market.state.totals() == before, desc
    settle(market.state, market.bundle(later, 2))
    assert supply_is_whole(market.state)
