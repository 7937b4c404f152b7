"""Metered channels: a payer's escrow for one provider, drawn on by bundles.

Why the cap leaves the balance at once: two providers can never be promised the same grain. Why a
payer's close waits: bundles under way still settle; a provider's own close gives up what it has
not settled, so it needs no waiting (page 30 §7).
Why a bundle settles whole or not at all: each receipt is paid at most once and in order, since a
lane continues exactly where the ledger left it (B1 to B4 of page 30 §8).
What this file does not know: a bundle's signatures (`wire/bundles.py`), and how fees are split.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from consensus.primitives.digest import signing_bytes
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature
from node.ledger import purses, tables
from node.ledger.amounts import Answer, checked, find_overpriced, part_bps
from node.ledger.context import Context
from node.ledger.rules.accounts import check_key, current_key
from node.ledger.rules.models import ends_ms
from node.ledger.rules.staking import is_active_provider, is_jailed
from node.ledger.state import State
from node.ledger.tables import ROLE_PROVIDER, Channel, Lane
from node.ledger.wire.bundles import CheckedBundle, CheckedSection, ServedVersion, VersionFees
from node.ledger.wire.orders import LANES, channel_id
from node.ledger.wire.receipts import Receipt, accumulate_all, accumulator_start
from node.ledger.wire.transactions import (
    COOP_TAG,
    CloseChannel,
    CoopClose,
    OpenChannel,
    TopUpChannel,
    Transaction,
    coop_body,
)

CHANNELS_PER_PAIR_MAX: Final = 64
DOUBLE_NAME: Final = b"double/"
REPAID_NAME: Final = b"repaid/"
REFUTED_NAME: Final = b"refuted/"
INCOME_NAME: Final = b"income/"
CREDITED_KINDS: Final = (0, 1)  # data and corrections; sealed records are never trained on
CREDITED_STATUSES: Final = (tables.ACCEPTED, tables.WITHDRAWN, tables.SLASHED)

Prices = tuple[int, int, int]  # per million tokens in, out, and per call

# By position: by name, ten thousand receipts would take longer.
_ANSWER: Final = itemgetter(*map(Receipt._fields.index, ("fee", "tokens_in", "tokens_out")))


class BundleFees(NamedTuple):
    """The sums of one settled bundle, by (model, version); `reward` has the provider's part."""

    bundle_hash: bytes
    provider: bytes
    reward: bytes
    versions: dict[ServedVersion, VersionFees]


# --- transactions


def apply_open_channel(
    state: State, context: Context, tx: Transaction, payload: OpenChannel
) -> None:
    """Type 10. Reserve `cap` of the sender's balance for one provider.

    Raises Invalid: 20 balance, 21 provider or allowance, 23 not active, 25 too many between the
    two, 26 cap below the minimum or a bad spender key.
    """
    sender = tx.sender
    if payload.allowance:
        raise Invalid("tx.not_found", allowance=payload.allowance)  # none can be granted yet
    if not state.has(tables.PROVIDER, payload.provider):
        raise Invalid("tx.not_found", provider=payload.provider)
    if not is_active_provider(state, payload.provider):
        raise Invalid("tx.wrong_state", provider=payload.provider)
    if payload.cap < state.parameter("channel_cap_min"):
        raise Invalid("tx.bad_value", cap=payload.cap)
    check_key(state, payload.spender)
    pair = _pair_counter(sender, payload.provider)
    count = state.counter(pair)
    if count >= CHANNELS_PER_PAIR_MAX:
        raise Invalid("tx.limit", channels=count)
    channel = channel_id(context.chain_id, sender, payload.provider, tx.nonce)
    state.set_counter(pair, count + 1)
    _count_served(state, payload.provider, 1)
    record = Channel(
        payer=sender,
        provider=payload.provider,
        spender=payload.spender,
        cap=0,
        paid=0,
        allowance=0,
        state=tables.CHANNEL_OPEN,
        opened_ms=context.time_ms,
        close_at_ms=0,
    )
    state.put(tables.CHANNEL, (channel,), record)
    state.move(purses.account(sender), purses.channel(channel), payload.cap)


def apply_top_up(state: State, context: Context, tx: Transaction, payload: TopUpChannel) -> None:
    """Type 11. Raise the cap of an open channel.

    Raises Invalid: 20 balance, 21 unknown, 22 not the payer, 23 closing or closed.
    """
    record = state.find(tables.CHANNEL, payload.channel)
    if record is None:
        raise Invalid("tx.not_found", channel=payload.channel)
    if tx.sender != record.payer:
        raise Invalid("tx.not_yours", channel=payload.channel)
    if record.state != tables.CHANNEL_OPEN:
        raise Invalid("tx.wrong_state", state=record.state)
    state.move(purses.account(tx.sender), purses.channel(payload.channel), payload.amount)


def apply_close_channel(
    state: State, context: Context, tx: Transaction, payload: CloseChannel
) -> None:
    """Type 12. The payer starts the waiting time; the provider ends the channel at once.

    Raises Invalid: 21 unknown, 22 neither payer nor provider, 23 already closing or closed.
    """
    channel, sender = payload.channel, tx.sender
    record = state.find(tables.CHANNEL, channel)
    if record is None:
        raise Invalid("tx.not_found", channel=channel)
    if sender not in (record.payer, record.provider):
        raise Invalid("tx.not_yours", channel=channel)
    if sender == record.provider and record.state != tables.CHANNEL_CLOSED:
        _finish_close(state, channel, context.time_ms)
        return
    if record.state != tables.CHANNEL_OPEN:
        raise Invalid("tx.wrong_state", state=record.state)
    close_at_ms = checked(context.time_ms + state.parameter("channel_close_ms"))
    closing = record._replace(state=tables.CHANNEL_CLOSING, close_at_ms=close_at_ms)
    state.put(tables.CHANNEL, (channel,), closing)
    state.add_due(close_at_ms, tables.DUE_CHANNEL_CLOSE, channel)


def apply_coop_close(state: State, context: Context, tx: Transaction, payload: CoopClose) -> None:
    """Type 13. Both sides have signed what is paid: the rest returns at once, whoever sends it.

    Raises Invalid: 21 unknown, 23 closed, 28 a signature that is not theirs, or of another sum.
    """
    channel = payload.channel
    record = state.find(tables.CHANNEL, channel)
    if record is None:
        raise Invalid("tx.not_found", channel=channel)
    if record.state == tables.CHANNEL_CLOSED:
        raise Invalid("tx.wrong_state", state=record.state)
    message = signing_bytes(COOP_TAG, context.chain_id, coop_body(channel, record.paid))
    for account, signature in (
        (record.payer, payload.payer_signature),
        (record.provider, payload.provider_signature),
    ):
        verify_signature(current_key(state, account), message, signature, "tx.bad_proof")
    _finish_close(state, channel, context.time_ms)


def apply_due_close(state: State, context: Context, due_ms: int, channel: bytes) -> None:
    """The waiting time is over: what was never paid returns to the payer."""
    record = state.find(tables.CHANNEL, channel)
    if record is not None and record.state == tables.CHANNEL_CLOSING:
        _finish_close(state, channel, due_ms)


def apply_due_forget(state: State, context: Context, due_ms: int, channel: bytes) -> None:
    """Remove a channel closed long ago, with its lanes and what evidence of it was taken."""
    for key, _ in state.scan(tables.LANE, channel):
        state.remove(tables.LANE, *key)
    for place, _ in state.scan(tables.DOUBLE, DOUBLE_NAME, channel):
        state.remove(tables.DOUBLE, *place)
    state.set_counter(REPAID_NAME + channel, 0)
    state.remove(tables.CHANNEL, channel)


def _finish_close(state: State, channel: bytes, now_ms: int) -> None:
    record = state.get(tables.CHANNEL, channel)
    rest = record.cap - record.paid
    state.move(purses.channel_rest(channel), purses.account(record.payer), rest)
    closed = state.get(tables.CHANNEL, channel)._replace(state=tables.CHANNEL_CLOSED)
    state.put(tables.CHANNEL, (channel,), closed)
    pair = _pair_counter(record.payer, record.provider)
    state.set_counter(pair, state.counter(pair) - 1)
    _count_served(state, record.provider, -1)
    forget_ms = checked(now_ms + state.parameter("channel_forget_ms"))
    state.add_due(forget_ms, tables.DUE_CHANNEL_FORGET, channel)


def served_channels(state: State, provider: bytes) -> int:
    """How many channels to a provider are not closed, of all payers."""
    return state.counter(b"served/" + provider)


def _count_served(state: State, provider: bytes, by: int) -> None:
    state.set_counter(b"served/" + provider, served_channels(state, provider) + by)


def _pair_counter(payer: bytes, provider: bytes) -> bytes:
    return b"pair/" + payer + provider


# --- keys that `wire/bundles.verify` asks for


def find_provider_key(state: State, provider: bytes) -> bytes | None:
    """The key a provider's bundles are checked with; None unless it is registered and free."""
    if not state.has(tables.PROVIDER, provider) or is_jailed(state, ROLE_PROVIDER, provider):
        return None
    return current_key(state, provider)


def find_spender_key(state: State, channel: bytes) -> bytes | None:
    """The key a channel's vouchers are checked with; None for an unknown channel."""
    record = state.find(tables.CHANNEL, channel)
    return None if record is None else record.spender


# --- bundles


def apply_bundle(state: State, context: Context, bundle: CheckedBundle) -> BundleFees:
    """Settle a bundle that has passed A1 to A7: B1 to B4, then take its fees out of the channels.

    The fees lie in `purses.SETTLING` afterwards, for `payout.settle_fees`. Raises Invalid
    `bundle.channel|amount|price|credits` (45 to 48) and may then have changed `state`: run it in a
    trial, or drop the state.
    """
    time_ms = context.time_ms
    provider = state.get(tables.PROVIDER, bundle.header.provider)
    if bundle.header.bundle_seq <= provider.bundle_seq:
        raise Invalid("bundle.channel", why="bundle_seq", settled=provider.bundle_seq)
    versions = _Versions(state, time_ms)
    with state.gathering(purses.SETTLING) as take:
        for section in bundle.sections:
            _settle_section(state, bundle.header.provider, section, time_ms)
            take(purses.channel(section.section.channel), section.fees)
    for which, receipts in bundle.receipts.items():
        versions.check_prices(which, receipts)
    for which, fees in bundle.versions.items():
        versions.check_credits(which, fees.weights)
    state.put(
        tables.PROVIDER,
        (bundle.header.provider,),
        provider._replace(bundle_seq=bundle.header.bundle_seq),
    )
    reward = provider.reward_account
    _note_settled(state, bundle, reward, versions.base, time_ms)
    return BundleFees(bundle.hash, bundle.header.provider, reward, bundle.versions)


def lane_of(state: State, channel: bytes, lane: int) -> Lane:
    """Where a lane stands on the ledger; one never used stands at its start."""
    found = state.find(tables.LANE, channel, lane)
    return found or Lane(0, 0, accumulator_start(channel, lane))


def maturing_bucket(state: State, time_ms: int) -> int:
    """When what is settled now matures: the first multiple of window ÷ 24 at or after its end."""
    window_ms = state.parameter("challenge_window_ms")
    step_ms = max(1, window_ms // 24)
    return checked(-(-(time_ms + window_ms) // step_ms) * step_ms)


def _settle_section(
    state: State, provider: bytes, checked_section: CheckedSection, time_ms: int
) -> None:
    """B1 and B2 of one section, then its lane; its money is the caller's to take."""
    section, voucher = checked_section.section, checked_section.voucher
    channel = state.find(tables.CHANNEL, section.channel)
    if channel is None or channel.provider != provider:
        raise Invalid("bundle.channel", why="another provider's")
    if channel.state not in (tables.CHANNEL_OPEN, tables.CHANNEL_CLOSING):
        raise Invalid("bundle.channel", why="closed")
    if section.lane >= LANES:
        raise Invalid("bundle.amount", why="lane")
    lane = lane_of(state, section.channel, section.lane)
    if section.from_seq != lane.seq + 1:
        raise Invalid("bundle.channel", why="from_seq", settled=lane.seq)
    if checked_section.start_cumulative != lane.cumulative:
        raise Invalid("bundle.channel", why="cumulative")
    before_last, accumulator = accumulate_all(lane.accumulator, checked_section.leaves)
    promised = accumulator if checked_section.acknowledged else before_last
    if voucher.accumulator != promised:
        raise Invalid("bundle.channel", why="accumulator")
    if voucher.expires_ms <= time_ms:
        raise Invalid("bundle.amount", why="voucher expired", expires_ms=voucher.expires_ms)
    if section.amount != checked_section.fees:
        raise Invalid("bundle.amount", why="amount")
    if channel.paid + section.amount > channel.cap:
        raise Invalid("bundle.amount", why="above the cap", cap=channel.cap)
    settled = Lane(section.to_seq, lane.cumulative + section.amount, accumulator)
    state.put(tables.LANE, (section.channel, section.lane), settled)


def _note_settled(
    state: State, bundle: CheckedBundle, reward: bytes, base: bytes, time_ms: int
) -> None:
    """What later disputes are checked against; forgotten when its bucket is due.

    The account is noted too: after another UpdateProvider, what a dispute takes back would else be
    taken from whoever is paid there now.
    """
    header = bundle.header
    bucket_ms = maturing_bucket(state, time_ms)
    record = tables.Settled(
        provider=header.provider,
        reward=reward,
        base=base,
        receipts_root=header.receipts_root,
        count=header.count,
        infra=part_bps(header.fee_total, state.parameter_values("split_bps")[0]),
        bucket_ms=bucket_ms,
        settled_ms=time_ms,
    )
    state.put(tables.SETTLED, (bundle.hash,), record)
    state.add_due(bucket_ms, tables.DUE_MATURING, bundle.hash)


def count_income(state: State, bundles: Iterable[BundleFees]) -> None:
    """Count what a block's bundles bring their providers, once it waits in their bucket.

    Not before: a failure in the same block would take as much of another provider's that is paid
    to the same account, and spare what comes at the block's end.
    """
    for bundle in bundles:
        settled = state.get(tables.SETTLED, bundle.bundle_hash)
        change_income(state, settled, settled.infra)


def change_income(state: State, settled: tables.Settled, by: int) -> None:
    """Count what a provider's bundles of a bucket bring it, as long as it has not matured."""
    key = (INCOME_NAME, settled.provider, settled.bucket_ms, settled.reward)
    known = state.find(tables.INCOME, *key) or tables.Counter()
    state.put(tables.INCOME, key, tables.Counter(max(0, known.value + by)))


def forget_settled(state: State, bundle_hash: bytes) -> None:
    """Its bucket has matured: nothing of it can be disputed any more."""
    settled = state.find(tables.SETTLED, bundle_hash)
    if settled is None:
        return
    income = (INCOME_NAME, settled.provider, settled.bucket_ms, settled.reward)
    state.remove(tables.INCOME, *income)
    for key, _ in state.scan(tables.REFUTED, REFUTED_NAME, bundle_hash):
        state.remove(tables.REFUTED, *key)
    state.remove(tables.SETTLED, bundle_hash)


class _Versions:
    """B3 and B4 of one bundle, a version at a time."""

    def __init__(self, state: State, time_ms: int) -> None:
        self._state = state
        self._time_ms = time_ms
        self.base = b""

    def check_prices(self, which: ServedVersion, receipts: Sequence[Receipt]) -> None:
        """The version may be served, each receipt at its fee."""
        prices, ended_ms = self._admit(which)
        if ended_ms is not None and any(receipt.started_ms >= ended_ms for receipt in receipts):
            raise Invalid("bundle.price", why="started after the version's end")
        above: Sequence[Answer] = [*map(_ANSWER, receipts)]
        for each in prices:
            above = find_overpriced(above, *each)
        if above:
            raise Invalid("bundle.price", why="fee above the price", fee=above[0][0])

    def check_credits(self, which: ServedVersion, contributions: Iterable[int]) -> None:
        """The version pays none but its own data."""
        snapshots = self._snapshots_of(which)
        for number in contributions:
            self._check_credit(snapshots, number)

    def _admit(self, which: ServedVersion) -> tuple[tuple[Prices, ...], int | None]:
        """Of a version that may be served: the prices that hold now, and when it ended if it has.

        A fee may be as high as the dearest.
        """
        state, now_ms = self._state, self._time_ms
        model = state.find(tables.MODEL, which[0])
        version = state.find(tables.VERSION, *which)
        found = state.find(tables.PRICE, *which)
        if model is None or version is None or found is None:
            raise Invalid("bundle.price", why="unknown version")
        if self.base not in (b"", model.base):
            raise Invalid("bundle.price", why="two bases in one bundle")
        end_ms = ends_ms(state, which)
        if now_ms >= end_ms + state.parameter("superseded_ms"):
            raise Invalid("bundle.price", why="ended")
        lasts_ms = version.superseded_ms + state.parameter("superseded_ms")
        if version.status == tables.VERSION_SUPERSEDED and now_ms >= lasts_ms:
            raise Invalid("bundle.price", why="superseded")
        self.base = model.base
        new, old = found[:3], found[3:6]
        ended_ms = end_ms if now_ms >= end_ms else None
        if now_ms < found.changed_ms:
            return (old,), ended_ms
        # For a while both hold: an order made before the change may settle after it.
        is_noticed = now_ms >= found.changed_ms + _notice_ms(state)
        return (new,) if is_noticed else (new, old), ended_ms

    def _check_credit(self, snapshots: Sequence[tables.Snapshot], number: int) -> None:
        found = self._state.find(tables.CONTRIBUTION, number)
        if found is None or found.kind not in CREDITED_KINDS:
            raise Invalid("bundle.credits", contribution=number)
        if found.status not in CREDITED_STATUSES or not found.accepted_ms:
            raise Invalid("bundle.credits", contribution=number, status=found.status)
        for snapshot in snapshots:
            # Accepted by then too: a review may end after a snapshot that its number precedes.
            is_older = number <= snapshot.last_contribution
            is_older = is_older and found.accepted_ms <= snapshot.made_ms
            was_there = not found.withdrawn_ms or found.withdrawn_ms >= snapshot.made_ms
            if found.datanet == snapshot.datanet and is_older and was_there:
                return
        raise Invalid("bundle.credits", contribution=number, why="not in the snapshot")

    def _snapshots_of(self, which: ServedVersion) -> tuple[tables.Snapshot, ...]:
        version = self._state.get(tables.VERSION, *which)
        if not version.index_root:  # nobody's share follows from anything, its parts' data too
            return ()
        numbers = [version.snapshot]
        for model, part, _ in version.parts:
            numbers.append(self._state.get(tables.VERSION, model, part).snapshot)
        return tuple(self._state.get(tables.SNAPSHOT, n) for n in numbers if n)


def _notice_ms(state: State) -> int:
    return state.parameter("price_notice_ms")
