"""A provider whose worker is killed in the middle of an answer, with real processes.

The answer ends with a partial receipt for exactly the tokens that the payer got, the next question
is served by a new worker, and the event loop, where consensus lives, goes on meanwhile.
"""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from exchange_kit import (
    PROMPT,
    SALT,
    SAMPLING,
    World,
    make_order,
    make_start,
    provider_frame,
    stream_pair,
)
from ledger_kit import PAYER, fee_of
from load_kit import Ticker

from node.ledger.wire import exchange
from node.ledger.wire.exchange import Accepted, Alive, Finished, RefusedFrame, Tokens
from node.ledger.wire.orders import ZERO_HASH
from node.ledger.wire.receipts import (
    COMPLETE,
    PARTIAL,
    Receipt,
    accumulate_receipt,
    accumulator_start,
    answer_root,
    decode_receipt,
)
from node.serving import client
from node.serving.checking import ServedModel
from node.serving.engine import AdapterRef, EngineSettings
from node.serving.verify import decode_evidence
from node.serving.worker import WorkerEngine

pytestmark = pytest.mark.ml

LATE_MS_MAX = 2_000  # far above what is seen (see `olnode bench overload`), far below a stall
LONG = SAMPLING._replace(max_tokens=200, flags=1)
SHORT = SAMPLING._replace(flags=1)


class RealWorld(World):
    """The kit's, at the time of day."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass
class Got:
    """What the payer got."""

    ids: list[int]
    receipt: Receipt
    raw: bytes


class Payer:
    """Asks one question after the other on one lane."""

    def __init__(self, world: RealWorld) -> None:
        self.world, self.channel = world, world.own_channel()
        self.seq, self.cumulative = 1, 0
        self.accumulator = accumulator_start(self.channel, 0)

    async def ask(self, sampling, worker: int | None = None) -> Got | RefusedFrame:
        """Kills `worker` once five tokens have come."""
        now_ms = self.world.now_ms()
        order = make_order(sampling=sampling, deadline_ms=now_ms + 60_000)
        voucher = {
            "seq": self.seq,
            "cumulative": self.cumulative,
            "accumulator": self.accumulator,
            "hold": fee_of(len(PROMPT), sampling.max_tokens),
            "expires_ms": now_ms + 3_600_000,
        }
        ours, theirs = stream_pair()
        self.world.nursery.start_soon(self.world.service.serve, PAYER.key, theirs)
        start = make_start(self.channel, order, sampling, voucher=voucher)
        await ours.write(exchange.encode_frame(start), 1)
        ids: list[int] = []
        while True:
            frame = provider_frame(await ours.read(1 << 21, 60))
            match frame:
                case Tokens():
                    ids += exchange.unpack_ids(frame.ids)
                case Finished():
                    await ours.close()
                    return self._note(ids, frame)
                case RefusedFrame():
                    return frame
                case Accepted() | Alive():
                    pass
            if worker is not None and len(ids) >= 5:
                os.kill(worker, signal.SIGKILL)
                worker = None

    def _note(self, ids: list[int], finished: Finished) -> Got:
        receipt = decode_receipt(finished.receipt)
        self.seq += 1
        self.cumulative += receipt.fee
        self.accumulator = accumulate_receipt(self.accumulator, finished.receipt)
        return Got(ids, receipt, finished.receipt)


@asynccontextmanager
async def provider(folder: Path, base: Path, adapter: AdapterRef) -> AsyncIterator[RealWorld]:
    """A service on a real worker that has the adapter."""
    world = RealWorld(folder)
    world.engine = WorkerEngine(EngineSettings(str(base), rows=4, threads=1))
    world.model = ServedModel(adapter.hash, True, 0, False)
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        await nursery.start(world.engine.run)
        await world.engine.load_adapter(adapter)
        world.service = world.new_service()
        yield world
        await world.engine.aclose(drain_s=0)
        nursery.cancel_scope.cancel()


async def test_killed_worker_leaves_a_receipt_for_what_was_delivered_and_the_next_serves(
    tmp_path, tiny_base, make_adapter, monkeypatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_S_MAX", 0)
    ref = AdapterRef(*make_adapter(1))
    async with provider(tmp_path, tiny_base, ref) as world:
        ticker, payer = Ticker(), Payer(world)
        world.nursery.start_soon(ticker.run)
        whole = await payer.ask(SHORT)
        assert (whole.receipt.status, len(whole.ids)) == (COMPLETE, SHORT.max_tokens)

        for _ in range(4):  # on a busy machine the whole answer may be there before the kill
            cut = await payer.ask(LONG, worker=world.engine._link.pid)
            if cut.receipt.status != COMPLETE:
                break
            await world.engine.wait_ready()
        assert 5 <= len(cut.ids) < LONG.max_tokens
        assert cut.receipt.status == PARTIAL
        assert cut.receipt.tokens_out == len(cut.ids)
        assert cut.receipt.fee == fee_of(len(PROMPT), len(cut.ids))
        assert cut.receipt.answer_root == answer_root(SALT, ZERO_HASH, ZERO_HASH, [cut.ids])
        served = world.book.find(payer.channel, 0, cut.receipt.seq, cut.receipt.order_hash)
        (choice,) = decode_evidence(served.evidence).choices
        assert len(choice.logprobs) == 4 * len(cut.ids)
        assert len(choice.fingerprints) == 32 * -(-len(cut.ids) // 16)

        await world.engine.wait_ready()
        again = await payer.ask(SHORT)
        assert (again.ids, again.receipt.status) == (whole.ids, COMPLETE)
        assert world.engine.stats().restarts >= 1
        assert world.engine._streams == {}
        assert ticker.take()["max"] < LATE_MS_MAX
