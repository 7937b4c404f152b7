"""Who gets the fees: split once per block and version, held for the challenge window, then paid.

Why per block and not per receipt: gross first and split once, no dust is lost to rounding and the
cost does not grow with the number of receipts. Why everything waits: a wrong receipt can be shown
and reversed while its money is still here (page 30 §9, page 40 §3).
Every grain that comes in through `purses.SETTLING` leaves it again in the same block.
What this file does not know: receipts, signatures, and whether attribution was right.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

from node.ledger import purses, tables
from node.ledger.amounts import BPS, part_bps, split
from node.ledger.context import Context
from node.ledger.purses import Purse
from node.ledger.rules.channels import BundleFees, forget_settled, maturing_bucket
from node.ledger.rules.models import fund_of, is_suspended
from node.ledger.rules.staking import pay_stakers
from node.ledger.state import State
from node.ledger.wire.payouts import TOTAL, PayoutLeaf, encode_payout

KINDS: Final = (
    tables.KIND_PROVIDER,
    tables.KIND_DATA,
    tables.KIND_CREATOR,
    tables.KIND_STAKERS,
    tables.KIND_FUND,
    tables.KIND_TREASURY,
    tables.KIND_BURN,
)
NOBODY: Final = b""
NUMBER_BYTES: Final = 8
PAID_STATUSES: Final = (tables.ACCEPTED,)


class _Earned(NamedTuple):
    """What a version took in with this block, from all bundles."""

    fees: int
    receipts: int
    providers: dict[bytes, int]  # reward account → fees
    weights: dict[int, int]  # contribution → Σ fee × bps
    unattributed: int


def settle_fees(state: State, context: Context, sums: Sequence[BundleFees]) -> list[PayoutLeaf]:
    """Split what the block's bundles took in; the leaves of `payouts_root`, in order.

    All of `purses.SETTLING` is moved to maturing entries, and the burn's part burnt.
    """
    earned = _gather(state, sums)
    if not earned:
        return []
    bucket_ms = maturing_bucket(state, context.time_ms)
    leaves: list[PayoutLeaf] = []
    for which in sorted(earned):
        leaves += _settle_version(state, which, earned[which], bucket_ms)
    state.add_due(bucket_ms, tables.DUE_MATURING, NOBODY)
    assert state.held(purses.SETTLING) == 0, "fees were neither paid nor burnt"
    return leaves


def encode_leaves(leaves: Sequence[PayoutLeaf]) -> list[bytes]:
    """The leaves as `payouts_root` hashes them."""
    return [encode_payout(leaf) for leaf in leaves]


def _gather(state: State, sums: Sequence[BundleFees]) -> dict[tuple[int, int], _Earned]:
    earned: dict[tuple[int, int], _Earned] = {}
    for bundle in sums:
        reward = bundle.reward
        for which, more in bundle.versions.items():
            held = earned.get(which) or _Earned(0, 0, {}, {}, 0)
            held.providers[reward] = held.providers.get(reward, 0) + more.fees
            for contribution, weight in more.weights.items():
                held.weights[contribution] = held.weights.get(contribution, 0) + weight
            earned[which] = held._replace(
                fees=held.fees + more.fees,
                receipts=held.receipts + more.receipts,
                unattributed=held.unattributed + more.unattributed,
            )
    return earned


def _settle_version(
    state: State, which: tuple[int, int], earned: _Earned, bucket_ms: int
) -> list[PayoutLeaf]:
    """The leaves of one version, and their money into the buckets."""
    if earned.fees == 0:
        return []  # nothing to split, and no weight to split it by
    bps = zip(KINDS, state.parameter_values("split_bps"), strict=True)
    shares = list(bps)
    parts = dict(zip(KINDS, split(earned.fees, shares), strict=True))
    count = earned.receipts
    total = PayoutLeaf(TOTAL, NOBODY, *which, count, count, earned.fees, earned.fees, bucket_ms)
    leaves = [total]
    for kind in KINDS:
        weights = sorted(_weights_of(state, which, kind, earned).items())
        weight_total = sum(weight for _, weight in weights)
        amounts = split(parts[kind], weights)
        for (payee, weight), amount in zip(weights, amounts, strict=True):
            if not amount:
                continue
            matures_ms = 0 if kind == tables.KIND_BURN else bucket_ms
            leaf = PayoutLeaf(
                kind, payee, *which, weight, weight_total, parts[kind], amount, matures_ms
            )
            state.move(purses.SETTLING, _purse_of(leaf), amount)
            leaves.append(leaf)
    return leaves


def _weights_of(
    state: State, which: tuple[int, int], kind: int, earned: _Earned
) -> dict[bytes, int]:
    """Payee → weight of one kind; never empty, so that a part always finds its way."""
    if kind == tables.KIND_PROVIDER:
        return earned.providers
    if kind == tables.KIND_DATA:
        return _data_weights(state, which, earned)
    if kind == tables.KIND_CREATOR:
        return creator_weights(state, which)
    if kind == tables.KIND_FUND:
        return fund_weights(state, which)
    return {NOBODY: BPS}


def _data_weights(state: State, which: tuple[int, int], earned: _Earned) -> dict[bytes, int]:
    """By contribution; the weight of those no longer paid is the fund's, under the empty payee."""
    weights: dict[bytes, int] = {}
    if is_suspended(state, which):
        return {NOBODY: BPS}
    to_fund = earned.unattributed
    for number, weight in earned.weights.items():
        if state.get(tables.CONTRIBUTION, number).status in PAID_STATUSES:
            weights[number.to_bytes(NUMBER_BYTES, "big")] = weight
        else:
            to_fund += weight
    if to_fund or not weights:
        weights[NOBODY] = max(1, to_fund)
    return weights


def creator_weights(state: State, which: tuple[int, int]) -> dict[bytes, int]:
    """The creators of a version and of its parts by their bps; a trainer has half of the own."""
    version = state.get(tables.VERSION, *which)
    creator = state.get(tables.MODEL, which[0]).creator
    own = BPS - sum(bps for _, _, bps in version.parts)
    trainer_bps = state.parameter("trainer_bps") if version.trainer else 0
    if version.status != tables.VERSION_CURRENT:
        trainer_bps = 0
    weights = {creator: own * (BPS - trainer_bps)}
    if trainer_bps:
        weights[version.trainer] = weights.get(version.trainer, 0) + own * trainer_bps
    for model, _, bps in version.parts:
        parent = state.get(tables.MODEL, model).creator
        weights[parent] = weights.get(parent, 0) + bps * BPS
    return weights


def fund_weights(state: State, which: tuple[int, int]) -> dict[bytes, int]:
    """The funds of a model and of the models of its parts, by their bps."""
    version = state.get(tables.VERSION, *which)
    own = BPS - sum(bps for _, _, bps in version.parts)
    weights = {which[0].to_bytes(NUMBER_BYTES, "big"): own}
    for model, _, bps in version.parts:
        payee = model.to_bytes(NUMBER_BYTES, "big")
        weights[payee] = weights.get(payee, 0) + bps
    return weights


def _purse_of(leaf: PayoutLeaf) -> Purse:
    """Where a leaf's money waits. Unattributed data money waits as the model's fund's."""
    if leaf.kind == tables.KIND_BURN:
        return purses.BURN
    if leaf.kind == tables.KIND_DATA and leaf.payee == NOBODY:
        payee = leaf.model.to_bytes(NUMBER_BYTES, "big")
        return purses.maturing(leaf.matures_ms, tables.KIND_FUND, payee)
    return purses.maturing(leaf.matures_ms, leaf.kind, leaf.payee)


# --- when a bucket is due


def apply_due_maturing(state: State, context: Context, due_ms: int, reference: bytes) -> None:
    """Empty reference: pay the bucket out. Else a bundle's hash: forget what disputes needed."""
    if reference:
        forget_settled(state, reference)
        return
    entries = state.scan(tables.MATURING, due_ms)
    for (_, kind), group in groupby(entries, key=lambda entry: (entry[0][0], entry[0][1])):
        for (_, _, payee), record in group:
            _mature(state, purses.maturing(due_ms, kind[0], payee), record.amount)


def _mature(state: State, source: Purse, amount: int) -> None:
    _, kind, payee = source.key
    assert isinstance(payee, bytes)
    if kind in (tables.KIND_PROVIDER, tables.KIND_CREATOR):
        state.move(source, purses.account(payee), amount)
    elif kind == tables.KIND_DATA:
        _mature_contribution(state, source, int.from_bytes(payee, "big"), amount)
    elif kind == tables.KIND_STAKERS:
        pay_stakers(state, source, amount)
    elif kind == tables.KIND_FUND:
        state.move(source, fund_of(state, int.from_bytes(payee, "big")), amount)
    else:
        assert kind == tables.KIND_TREASURY
        state.move(source, purses.pool(tables.TREASURY), amount)


def _mature_contribution(state: State, source: Purse, number: int, amount: int) -> None:
    """A cut to the Datanet's pool, a correction's part to the first author, the rest home."""
    found = state.get(tables.CONTRIBUTION, number)
    terms = tables.Terms(*state.get(tables.DATANET, found.datanet).terms)
    cut = part_bps(amount, terms.curation_bps)
    state.move(source, purses.datanet_pool(found.datanet), cut)
    left = amount - cut
    first = _first_author(state, found)
    if first is not None:
        to_first = part_bps(left, BPS - state.parameter("correction_bps"))
        state.move(source, purses.account(first), to_first)
        left -= to_first
    state.move(source, purses.account(found.contributor), left)
    found = state.get(tables.CONTRIBUTION, number)
    state.put(tables.CONTRIBUTION, (number,), found._replace(earned=found.earned + amount))


def _first_author(state: State, correction: tables.Contribution) -> bytes | None:
    """Whom a correction shares with: the author of what it mends, while that is still paid."""
    if not correction.mends:
        return None
    mended = state.find(tables.CONTRIBUTION, correction.mends)
    if mended is None or mended.status not in PAID_STATUSES:
        return None
    return mended.contributor
