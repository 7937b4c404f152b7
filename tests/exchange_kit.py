"""A payer's wallet and a provider's service in one process, on a stream that tests can break."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from bundle_kit import CHAIN
from ledger_kit import NOW_MS, OPEN, PAYER, PROVIDER, fee_of, new_state, open_channel

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution.citing import Retrieved
from node.ledger import tables
from node.ledger.wire import exchange
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.exchange import Start
from node.ledger.wire.orders import (
    ZERO_HASH,
    Load,
    Offer,
    OfferedModel,
    Order,
    OrderSampling,
    Voucher,
    channel_id,
    encode_order,
    encode_sampling,
    encode_voucher,
    order_hash,
    pack_ids,
    prompt_commit,
    voucher_message,
)
from node.ledger.wire.receipts import accumulator_start
from node.serving.attributing import UNATTRIBUTED
from node.serving.book import ReceiptBook
from node.serving.bundling import Bundler
from node.serving.checking import ServedModel
from node.serving.engine import Ending, EngineInfo, Finish, GenRequest, Token
from node.serving.service import InferenceService
from node.wallet.payer import Ask, Limits, NoteOpening, Payer
from node.wallet.promises import Opening, OwnChannel, PromiseBook
from p2p.errors import EndOfStream, NetworkError, TooSlow, Unreachable

SAMPLING = OrderSampling(1, 0, 1_000, 0, 8, 1, (), 0)
SALT = bytes(16)
PROMPT = (5, 6, 7)
ASK = Ask(1, 1, PROMPT, SAMPLING, timeout_s=60.0)


def make_order(**fields) -> Order:
    sampling = fields.pop("sampling", SAMPLING)
    made = Order(
        version=1, model=1, model_version=1, max_in=len(PROMPT),
        max_out=sampling.n * sampling.max_tokens, prompt_commit=prompt_commit(SALT, PROMPT),
        sampling_hash=sha256(encode_sampling(sampling)), seed_commit=ZERO_HASH, quantum=256,
        deadline_ms=NOW_MS + 60_000, flags=0, salt16=SALT,
    )  # fmt: skip
    return made._replace(**fields)


def signed_voucher(channel, order, who=PAYER, **fields) -> tuple[bytes, bytes]:
    made = Voucher(
        version=1, channel=channel, lane=0, seq=1, sub=0, cumulative=0,
        accumulator=accumulator_start(channel, fields.get("lane", 0)), hold=fee_of(3, 8),
        order_hash=order_hash(encode_order(order)) if order else ZERO_HASH,
        expires_ms=NOW_MS + 3_600_000,
    )  # fmt: skip
    raw = encode_voucher(made._replace(**fields))
    return raw, who.sign(voucher_message(CHAIN, raw))


def make_start(channel, order=None, sampling=SAMPLING, who=PAYER, voucher=None, **fields) -> Start:
    order = order or make_order(sampling=sampling)
    raw, signature = signed_voucher(channel, order, who, **(voucher or {}))
    made = Start(
        encode_order(order), pack_ids(PROMPT), encode_sampling(sampling), b"", raw, signature
    )
    return made._replace(**fields)


class End:
    """One end of a stream of frames; `tamper` may change, drop (None) or break what we write."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[bytes](1_000)
        self.other: End
        self.tamper: Callable[[bytes], bytes | None] = lambda body: body
        self.is_broken = False

    async def read(self, bytes_max: int, timeout_s: float) -> bytes:
        with trio.move_on_after(timeout_s):
            try:
                body = await self.receive.receive()
            except trio.EndOfChannel:
                raise EndOfStream("closed") from None
            if body == b"broken":
                raise Unreachable("broken")
            return body
        raise TooSlow("silence")

    async def write(self, body: bytes, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        if self.is_broken:
            raise Unreachable("broken")
        sent = self.tamper(body)
        if sent is None:
            return
        try:
            self.other.send.send_nowait(sent)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise Unreachable("gone") from None

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.other.send.close()

    async def reset(self) -> None:
        self.cut()

    def cut(self) -> None:
        for end in (self, self.other):
            if not end.is_broken:
                end.is_broken = True
                with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                    end.send.send_nowait(b"broken")


def stream_pair() -> tuple[End, End]:
    a, b = End(), End()
    a.other, b.other = b, a
    return a, b


class FakeStream:
    def __init__(self, engine: "FakeEngine", request: GenRequest) -> None:
        self._engine, self._request = engine, request
        self._seeded = trio.Event()
        self._events = self._make()
        if request.seed is not None:
            self.reveal(request.seed)

    def reveal(self, seed: bytes) -> None:
        self.seed = seed
        self._engine.seeds.append(seed)
        self._seeded.set()

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Token | Finish:
        return await self._events.__anext__()

    async def _make(self) -> AsyncIterator[Token | Finish]:
        await self._seeded.wait()
        engine, sampling = self._engine, self._request.sampling
        count = min(engine.tokens, sampling.max_tokens)
        for position in range(count):
            await trio.sleep(engine.step_s)
            for choice in range(sampling.n):
                token = 100 + position
                yield Token(choice, position, token, b"t%d " % position, -0.5)
        ending = Ending(engine.reason, count, b".", bytes(4 * count), b"")
        yield Finish(len(self._request.prompt), (ending,) * sampling.n)


class FakeEngine:
    """Says tokens 100, 101, …; `error` is raised instead of taking a request."""

    def __init__(self) -> None:
        self.tokens = 5
        self.step_s = 0.01
        self.reason: Any = "stop"
        self.error: Exception | None = None
        self.seeds: list[bytes] = []
        self.requests: list[GenRequest] = []
        self.info = EngineInfo(
            "fake", bytes(32), "fp32", "cpu", 8, 2_048, 16, 512, ("exact_sampling",), b"build"
        )

    @asynccontextmanager
    async def submit(self, request: GenRequest) -> AsyncIterator[FakeStream]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        yield FakeStream(self, request)


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread: the jumping clock does not wait for threads."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


class World:
    """One payer, one provider, one ledger state that both see."""

    def __init__(self, folder: Path, seed: int = 0, cap: int = 10 * OPEN) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.state = new_state()
        self.engine = FakeEngine()
        self.bundles: list[Bundle] = []
        self.cap = cap
        self.opened: list[bytes] = []
        self.closed: list[bytes] = []
        self.signed: list[tuple[bytes, bytes]] = []  # what the payer was given
        self.blamed: list[bytes] = []  # by the provider
        self.settles = True
        self.is_current = self.has_engine = self.has_room = True
        self.tamper_provider: Callable[[bytes], bytes | None] = lambda body: body
        self.tamper_payer: Callable[[bytes], bytes | None] = lambda body: body
        self.streams: list[End] = []
        self.nursery: trio.Nursery
        self.attributed: Any = UNATTRIBUTED
        self.retrieved: tuple[int, ...] = ()  # rows, and the tokens that stand for them
        self.before: tuple[int, ...] = ()
        self.rooms: list[int] = []  # that were to be left for the answer
        self.model: ServedModel | None = ServedModel(None, True, 0, False)
        self.book = ReceiptBook(folder / "provider", lambda: self.state, now_ms=NOW_MS)
        self.promises = self.open_promises()
        self.service = self.new_service()
        self.bundler = self.new_bundler()
        self.payer = self.new_payer()

    def now_ms(self) -> int:
        return NOW_MS + int(trio.current_time() * 1_000) % 10**9

    def open_promises(self) -> PromiseBook:
        return PromiseBook(
            self.folder / "payer", chain_id=CHAIN, spender=PAYER.key, sign=PAYER.sign
        )

    def new_service(self) -> InferenceService:
        return InferenceService(
            chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign, engine=self.engine,
            retrieve=self.retrieve, attribute=self.attribute, book=self.book,
            find_model=lambda *_: self.model,
            get_state=lambda: self.state, is_current=lambda: self.is_current,
            has_engine=lambda: self.has_engine, has_room=lambda: self.has_room,
            note_receipt=lambda: None, blame=self.blamed.append, stream_errors=(NetworkError,),
            now_ms=self.now_ms,
            random_bytes=self.rng.randbytes, run_blocking=at_once,
        )  # fmt: skip

    def new_bundler(self) -> Bundler:
        return Bundler(
            book=self.book, chain_id=CHAIN, provider=PROVIDER.key, sign=PROVIDER.sign,
            get_state=lambda: self.state, offer_bundle=self.offer_bundle, now_ms=self.now_ms,
            run_blocking=at_once,
        )  # fmt: skip

    def new_payer(self, **limits: Any) -> Payer:
        made = {
            "channel_cap": self.cap, "total_locked_max": 100 * OPEN, "fee_max": OPEN
        } | limits  # fmt: skip
        return Payer(
            book=self.promises, limits=Limits(**made), get_state=lambda: self.state,
            get_offers=self.offers, open_stream=self.open_stream, account=PAYER.key,
            open_channel=self.open_channel, close_channel=self.close_channel,
            note_signed=lambda *signed: self.signed.append(signed), chain_id=CHAIN,
            now_ms=self.now_ms, random_bytes=self.rng.randbytes, run_blocking=at_once,
        )  # fmt: skip

    def offers(self) -> list[Offer]:
        models = (OfferedModel(1, 1, 1, 0),)
        return [Offer(1, PROVIDER.key, bytes(32), 1, (), models, Load(8, 0, 10), 2**62)]

    async def retrieve(self, _: int, __: int, prompt: Sequence[int], max_out: int) -> Retrieved:
        self.rooms.append(max_out)
        await trio.lowlevel.checkpoint()
        return Retrieved(self.retrieved, (*self.before, *prompt))

    async def attribute(self, *_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return self.attributed

    async def offer_bundle(self, bundle: Bundle) -> None:
        await trio.lowlevel.checkpoint()
        self.bundles.append(bundle)

    async def open_channel(self, provider: bytes, cap: int, note: NoteOpening) -> bytes:
        nonce = len(self.opened)
        channel = channel_id(CHAIN, PAYER.key, provider, nonce)
        await note(Opening(channel, provider, cap, nonce, self.now_ms() + 600_000))
        if not self.settles:
            raise Invalid("payer.not_settled")
        assert open_channel(self.state, cap, nonce=nonce) == channel
        self.opened.append(channel)
        return channel

    async def close_channel(self, channel: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.closed.append(channel)
        record = self.state.get(tables.CHANNEL, channel)
        self.state.put(tables.CHANNEL, (channel,), record._replace(state=tables.CHANNEL_CLOSING))

    async def open_stream(self, offer: Offer) -> End:
        await trio.lowlevel.checkpoint()
        ours, theirs = stream_pair()
        ours.tamper, theirs.tamper = self.tamper_payer, self.tamper_provider
        self.streams.append(ours)
        self.nursery.start_soon(self.service.serve, PAYER.key, theirs)
        return ours

    def own_channel(self, cap: int = 10 * OPEN) -> bytes:
        channel = open_channel(self.state, cap, nonce=len(self.opened))
        self.opened.append(channel)
        self.promises.note_channel(OwnChannel(channel, PROVIDER.key, cap))
        return channel

    def paid(self) -> int:
        return sum(self.state.get(tables.CHANNEL, c).paid for c in self.opened)


def kind_of(body: bytes) -> int:
    return body[1]


def provider_frame(body: bytes) -> Any:
    return exchange.decode_provider_frame(body)


@asynccontextmanager
async def world_in(folder: Path, **fields: Any) -> AsyncIterator[World]:
    world = World(folder, **fields)
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        yield world
        nursery.cancel_scope.cancel()
