"""Whether a provider should serve an order: every check before any work, each with its code.

Why so strict: what is accepted here is paid from a promise, so the promise must cover the order,
stand exactly where our lane stands, and outlive the time that settling takes (page 30 §7).
What this file does not know: streams, engines, how an answer is made.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.amounts import price
from node.ledger.rules.models import has_ended, prices_at
from node.ledger.rules.staking import is_jailed
from node.ledger.state import State
from node.ledger.wire import exchange
from node.ledger.wire.exchange import Start, unpack_ids
from node.ledger.wire.orders import (
    PAYER_SEEDED,
    ZERO_HASH,
    Order,
    OrderSampling,
    Voucher,
    decode_order,
    decode_sampling,
    decode_voucher,
    order_hash,
    prompt_commit,
    seed_commit,
    verify_voucher,
)
from node.serving.book import UNSETTLED_MAX, ProviderLane, ReceiptBook
from node.serving.engine import Sampling

VOUCHER_LEFT_MS: Final = 20 * 60_000
CLAIM_LEFT_MS: Final = 10 * 60_000  # behind an order's own time, to settle what it came to
DEADLINE_AHEAD_MS_MAX: Final = 3_600_000
RETRY_MS: Final = 1_000
END_MARGIN_MS: Final = 10_000  # one receipt started after its version's end would sink a bundle


class OrderRefused(Exception):
    """No work is done for this order; `code` is page 70 §7's."""

    def __init__(self, code: int, why: str, retry_ms: int = 0) -> None:
        super().__init__(code, why)
        self.code = code
        self.why = why
        self.retry_ms = retry_ms


class ServedModel(NamedTuple):
    """What this provider serves a model version with; `adapter` None is the bare base."""

    adapter: bytes | None
    is_ready: bool
    discount_bps: int
    has_index: bool
    dtype_class: str = "fp32"  # that the version pins, and its answers are judged by


class Job(NamedTuple):
    """An order that will be served, with all that its receipt needs."""

    order: Order
    order_raw: bytes
    order_hash: bytes
    prompt: tuple[int, ...]
    sampling: OrderSampling
    sampling_raw: bytes
    payer_nonce: bytes  # empty until revealed
    channel: tables.Channel
    lane: ProviderLane
    voucher: Voucher
    voucher_raw: bytes
    voucher_sig: bytes
    model: ServedModel
    prices: tuple[int, int, int]

    @property
    def is_seeded(self) -> bool:
        """Whether the answer depends on a seed."""
        return self.order.seed_commit != ZERO_HASH

    @property
    def is_payer_seeded(self) -> bool:
        """Whether the payer alone chose the seed."""
        return bool(self.order.flags & PAYER_SEEDED)


FindModel = Callable[[int, int], ServedModel | None]


def verify_order(
    start: Start,
    *,
    chain_id: bytes,
    provider: bytes,
    state: State,
    book: ReceiptBook,
    find_model: FindModel,
    now_ms: int,
) -> Job:
    """The job that `start` asks for; raises OrderRefused. The signature is checked last."""
    order, sampling, prompt = _decoded(start)
    voucher = _decoded_voucher(start)
    if not now_ms < order.deadline_ms <= now_ms + DEADLINE_AHEAD_MS_MAX:
        raise OrderRefused(exchange.EXPIRED, "the order's deadline")
    check_expiry(voucher, now_ms, order.deadline_ms)
    channel = state.find(tables.CHANNEL, voucher.channel)
    if channel is None or channel.provider != provider or channel.state != tables.CHANNEL_OPEN:
        raise OrderRefused(exchange.UNKNOWN_CHANNEL, "no open channel of ours")
    if book.is_released(voucher.channel, channel.paid, now_ms):
        raise OrderRefused(exchange.CLOSING, "its coop close is signed")
    if book.is_older(channel.opened_ms):
        raise OrderRefused(exchange.CLOSING, "opened before our book of receipts was made")
    if is_jailed(state, tables.ROLE_PROVIDER, provider):
        raise OrderRefused(exchange.NOT_SERVED, "jailed: no bundle of ours settles")
    model = find_model(order.model, order.model_version)
    if model is None:
        raise OrderRefused(exchange.NOT_SERVED, "model")
    if has_ended(state, (order.model, order.model_version), now_ms + END_MARGIN_MS):
        raise OrderRefused(exchange.NOT_SERVED, "the version ends")
    if not model.is_ready:
        raise OrderRefused(exchange.ADAPTER_LOADING, "adapter", RETRY_MS)
    lane = book.lane(voucher.channel, voucher.lane)
    if lane.is_busy:
        raise OrderRefused(exchange.BUSY, "a request is in flight in this lane", RETRY_MS)
    if len(lane.unsettled) >= UNSETTLED_MAX:
        raise OrderRefused(exchange.BUSY, "the lane waits to be settled", RETRY_MS)
    try:
        verify_voucher(chain_id, start.voucher, start.signature, channel.spender)
    except Invalid:
        raise OrderRefused(exchange.NOT_ALLOWED, "the voucher's signature") from None
    check_step(lane, voucher)
    prices = prices_now(state, order.model, order.model_version, now_ms)
    granted = min(order.quantum, order.max_out)
    if voucher.hold < price(len(prompt), granted, *prices):
        raise OrderRefused(exchange.PRICE_CHANGED, "the hold is below the price")
    if book.promised(voucher.channel, but=lane) + voucher.cumulative + voucher.hold > channel.cap:
        raise OrderRefused(exchange.OVER_LIMITS, "above the channel's cap")
    return Job(
        order=order,
        order_raw=start.order,
        order_hash=order_hash(start.order),
        prompt=prompt,
        sampling=sampling,
        sampling_raw=start.sampling,
        payer_nonce=start.payer_nonce,
        channel=channel,
        lane=lane,
        voucher=voucher,
        voucher_raw=start.voucher,
        voucher_sig=start.signature,
        model=model,
        prices=prices,
    )


def _decoded(start: Start) -> tuple[Order, OrderSampling, tuple[int, ...]]:
    """The order with what it commits to; raises OrderRefused 1 where they differ."""
    try:
        order, sampling = decode_order(start.order), decode_sampling(start.sampling)
        prompt = unpack_ids(start.prompt)
    except Invalid as error:
        raise OrderRefused(exchange.MALFORMED, error.code) from None
    is_hot = sampling.temperature_milli > 0
    is_payer_seeded = bool(order.flags & PAYER_SEEDED)
    broken = {
        "sampling_hash": sha256(start.sampling) != order.sampling_hash,
        "prompt": not prompt or order.max_in != len(prompt),
        "prompt_commit": prompt_commit(order.salt16, prompt) != order.prompt_commit,
        "max_out": order.max_out != sampling.n * sampling.max_tokens or order.max_out == 0,
        "quantum": order.quantum == 0,
        "seed_commit": (order.seed_commit != ZERO_HASH) != is_hot,
        "payer_nonce": bool(start.payer_nonce) != is_payer_seeded,
        "payer_seeded": is_payer_seeded
        and (not is_hot or seed_commit(start.payer_nonce) != order.seed_commit),
    }
    for what, is_broken in broken.items():
        if is_broken:
            raise OrderRefused(exchange.MALFORMED, what)
    return order, sampling, prompt


def _decoded_voucher(start: Start) -> Voucher:
    try:
        voucher = decode_voucher(start.voucher)
    except Invalid as error:
        raise OrderRefused(exchange.MALFORMED, error.code) from None
    if voucher.order_hash != order_hash(start.order):
        raise OrderRefused(exchange.MALFORMED, "the voucher is for another order")
    return voucher


def check_expiry(voucher: Voucher, now_ms: int, deadline_ms: int = 0) -> None:
    """Raise OrderRefused 9 for a voucher that may be void before a block has it: every voucher
    that we hold must be good for settling, or it would sink the bundle that carries it.

    `deadline_ms`: of the order that its hold pays, whose answer may take all that time.
    """
    if voucher.expires_ms < max(now_ms + VOUCHER_LEFT_MS, deadline_ms + CLAIM_LEFT_MS):
        raise OrderRefused(exchange.EXPIRED, "the voucher expires too soon")


def check_step(lane: ProviderLane, voucher: Voucher) -> None:
    """Raise OrderRefused 33 unless `voucher` continues `lane`: its number, sum, accumulator."""
    last = lane.voucher
    is_here = (voucher.channel, voucher.lane) == (lane.channel, lane.number)
    is_next = voucher.seq == lane.seq + 1
    is_same = last is not None and voucher == last
    is_above = last is None or (voucher.seq, voucher.sub) > (last.seq, last.sub)
    agrees = (voucher.cumulative, voucher.accumulator) == (lane.cumulative, lane.accumulator)
    if not (is_here and is_next and agrees and (is_above or is_same)):
        raise OrderRefused(exchange.OUT_OF_STEP, "voucher")


def prices_now(state: State, model: int, version: int, now_ms: int) -> tuple[int, int, int]:
    """The list price in force; raises OrderRefused 34 for a version the ledger does not know."""
    found = state.find(tables.PRICE, model, version)
    if found is None:
        raise OrderRefused(exchange.NOT_SERVED, "version")
    return prices_at(found, now_ms)


def engine_sampling(sampling: OrderSampling) -> Sampling:
    """What the engine is told; it checks the ranges."""
    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature_milli=sampling.temperature_milli,
        top_p_milli=sampling.top_p_milli,
        top_k=sampling.top_k,
        n=sampling.n,
        stop=sampling.stop,
        flags=sampling.flags,
    )
