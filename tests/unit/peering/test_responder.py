"""Answers to peers that lack blocks or headers: whole pairs within a frame, of one moment."""

from collections.abc import Callable

import pytest
import trio
from bundle_kit import party
from exchange_kit import at_once
from simulation.engines import header
from stored_kit import Decided, Stored

from consensus.certificate import PRECOMMIT, encode_certificate, make_certificate
from consensus.header import Header, decode_header, encode_header
from consensus.primitives.encoding import Bytes, ListOf, Record, decode, encode
from node.ledger.wire.blocks import PAYLOAD_BYTES_MAX, Block, encode_block
from node.peering.catchup import BLOCKS_MAX, ID_REPLY, RANGE_REPLY, REPLY_BYTES_MAX, Catchup
from node.peering.responder import (
    HEADERS_MAX,
    HEADERS_REPLY_BYTES_MAX,
    STRIDE_MAX,
    Blocks,
    Responder,
)
from node.storage.blocklog import BlockRecord
from node.storage.store import MemoryKV
from p2p.errors import Code, Misbehaving, Refused
from p2p.memory import MemoryHub
from p2p.network import PeerId, StatusFacts

US, PEER = (PeerId(party(f"responder {i}").key) for i in range(2))
HEADERS_REPLY = ListOf(Record(Bytes(1_024, 1), Bytes(8_192, 1)), HEADERS_MAX)


class Held:
    """A chain of made-up blocks whose payloads have the given sizes; None: pruned away."""

    def __init__(self, *sizes: int | None) -> None:
        self._sizes = sizes

    @property
    def height(self) -> int:
        return len(self._sizes)

    def header(self, height: int) -> Header | None:
        return None if self._sizes[height - 1] is None else header(b"p" * 32, height)

    def block(self, height: int) -> Block | None:
        made, size = self.header(height), self._sizes[height - 1]
        return (
            None if made is None or size is None else Block(encode_header(made), bytes(size), b"")
        )

    @property
    def earliest(self) -> int:
        return 1

    @property
    def earliest_whole(self) -> int:
        return 1

    def head(self, height: int) -> BlockRecord | None:
        return self.record(height)

    def record(self, height: int) -> BlockRecord | None:
        made, block = self.header(height), self.block(height)
        if made is None or block is None:
            return None
        signed = {0: bytes(64)}
        certificate = make_certificate(PRECOMMIT, height, 0, made.block_id(), signed, 1)
        return BlockRecord(height, encode_block(block), encode_certificate(certificate))

    def height_of(self, block_id: bytes) -> int | None:
        heights = range(1, self.height + 1)
        return next((h for h in heights if header(b"p" * 32, h).block_id() == block_id), None)


def responder(
    view: Blocks, find_undecided: Callable[[bytes], Block | None] = lambda block_id: None
) -> Responder:
    return Responder(
        get_view=lambda: view, find_undecided=find_undecided, run_blocking=at_once
    )  # fmt: skip


async def heights_told(view: Blocks, start: int, count: int = BLOCKS_MAX) -> list[int]:
    raw = await responder(view).answer_blocks(PEER, encode((0, start, count)))
    assert len(raw) <= REPLY_BYTES_MAX
    pairs = decode(raw, RANGE_REPLY, REPLY_BYTES_MAX, "test")
    return [decode_header(decode(block, Record(Bytes(9_999), Bytes(1 << 21), Bytes(9_999)),
                                 1 << 21, "test")[0]).height for block, _ in pairs]  # fmt: skip


# ---- blocks by height


async def test_range_is_what_was_asked_up_to_the_tip() -> None:
    view = Held(*[5] * 10)
    assert await heights_told(view, 1, 3) == [1, 2, 3]
    assert await heights_told(view, 9) == [9, 10]
    assert await heights_told(view, 10, 1) == [10]
    assert await heights_told(view, 11) == []


async def test_no_more_than_64_blocks_are_told() -> None:
    view = Held(*[5] * 70)
    assert len(await heights_told(view, 1, BLOCKS_MAX)) == BLOCKS_MAX


async def test_range_ends_where_a_block_is_gone() -> None:
    assert await heights_told(Held(5, 5, None, 5), 1) == [1, 2]
    assert await heights_told(Held(None, 5), 1) == []


async def test_range_ends_before_the_frame_is_full() -> None:
    """Whole blocks only; the first goes alone if it must, for else nobody could catch up."""
    largest = PAYLOAD_BYTES_MAX
    assert await heights_told(Held(*[largest] * 6), 1) == [1, 2, 3]
    assert await heights_told(Held(largest, 5, 5), 1) == [1, 2, 3]


@pytest.mark.parametrize(
    "question",
    [
        encode((0, 0, 1)),
        encode((0, 1, 0)),
        encode((0, 1, BLOCKS_MAX + 1)),
        encode((0, 1)),
        encode((1, b"x" * 31)),
        encode((2, 1, 1)),
        encode((0, 1, 1)) + b"\0",
        b"\x93\x00\xcd\x00\x01\x01",  # 1 in three bytes: not canonical
        bytes(65),
        b"",
    ],
)
async def test_malformed_question_counts_against_the_asker(question: bytes) -> None:
    with pytest.raises(Misbehaving):
        await responder(Held(5)).answer_blocks(PEER, question)


# ---- one block by its id


async def test_block_by_id_is_an_undecided_one_or_one_of_the_chain() -> None:
    view, undecided = Held(5, 6), Block(b"header", b"payload", b"")
    made = responder(view, {b"u" * 32: undecided}.get)
    for block_id, expected in (
        (b"u" * 32, undecided),
        (header(b"p" * 32, 2).block_id(), view.block(2)),
    ):
        raw = await made.answer_blocks(PEER, encode((1, block_id)))
        assert decode(raw, ID_REPLY, REPLY_BYTES_MAX, "test") == (encode_block(expected),)


async def test_block_that_nobody_knows_is_an_honest_no() -> None:
    for view in (Held(), Held(None)):
        with pytest.raises(Refused) as refusal:
            await responder(view).answer_blocks(PEER, encode((1, b"x" * 32)))
        assert refusal.value.code == Code.NOT_FOUND


# ---- headers


async def headers_told(view: Blocks, start: int, count: int, stride: int) -> list[int]:
    raw = await responder(view).answer_headers(PEER, encode((start, count, stride)))
    assert len(raw) <= HEADERS_REPLY_BYTES_MAX
    pairs = decode(raw, HEADERS_REPLY, HEADERS_REPLY_BYTES_MAX, "test")
    return [decode_header(one).height for one, _ in pairs]


async def test_headers_go_by_strides_up_to_the_tip() -> None:
    view = Held(*[0] * 300)
    assert await headers_told(view, 1, 4, 1) == [1, 2, 3, 4]
    assert await headers_told(view, 5, 3, 100) == [5, 105, 205]
    assert await headers_told(view, 5, 9, 100) == [5, 105, 205]
    assert await headers_told(view, 300, 2, 1) == [300]
    assert await headers_told(view, 301, 2, 1) == []
    assert len(await headers_told(view, 1, HEADERS_MAX, 1)) == HEADERS_MAX
    assert await headers_told(Held(0, None, 0), 1, 3, 1) == [1]


async def test_headers_of_large_blocks_are_fewer_for_one_question(monkeypatch) -> None:
    """A header lies in its block: 64 bytes of a peer's would have us read 256 MiB."""
    size = 1 << 20
    monkeypatch.setattr("node.peering.responder.HEADERS_READ_BYTES_MAX", 3 * size)
    view = Held(*[size - 1_024] * 9)
    assert await headers_told(view, 1, 9, 1) == [1, 2, 3, 4]
    assert await headers_told(view, 5, 9, 1) == [5, 6, 7, 8]
    monkeypatch.setattr("node.peering.responder.HEADERS_READ_BYTES_MAX", 1)
    assert await headers_told(view, 1, 9, 1) == [1], "one at least, or nobody would come on"


@pytest.mark.parametrize(
    "question",
    [(0, 1, 1), (1, 0, 1), (1, HEADERS_MAX + 1, 1), (1, 1, 0), (1, 1, STRIDE_MAX + 1), (1, 1)],
)
async def test_malformed_question_for_headers_counts_against_the_asker(
    question: tuple[int, ...],
) -> None:
    with pytest.raises(Misbehaving):
        await responder(Held(0)).answer_headers(PEER, encode(question))


# ---- with the one that asks


@pytest.fixture
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made = Stored(tmp_path_factory.mktemp("chain"), store=MemoryKV())
    for _ in range(3):
        made.block(made.pay())
    return made


async def test_what_is_told_is_what_catching_up_asks_for(
    autojump_clock: object, stored: Stored
) -> None:
    hub, taken = MemoryHub(seed=1), []
    ours = hub.network(US)
    theirs = hub.network(PEER, facts=lambda: StatusFacts(height=3))
    made = Responder(
        get_view=stored.chain.view, find_undecided=lambda block_id: None, run_blocking=at_once
    )
    made.serve(theirs)

    async def take(blocks: list[Decided]) -> None:
        await trio.lowlevel.checkpoint()
        taken.extend(blocks)

    catchup = Catchup(network=ours, get_height=lambda: len(taken), take=take)
    async with trio.open_nursery() as nursery:
        await nursery.start(theirs.run)
        await nursery.start(ours.run)
        await trio.sleep(3)
        with trio.move_on_after(2):
            await catchup.run()
        assert taken == stored.decided
        block, proof = stored.decided[1]
        assert await catchup.fetch_block(proof.block_id, [PEER]) == block
        assert await catchup.fetch_block(b"x" * 32, [PEER]) is None
        raw = await ours.request(
            PEER, "headers", encode((1, 9, 1)), timeout_s=5, bytes_max=HEADERS_REPLY_BYTES_MAX
        )
        pairs = decode(raw, HEADERS_REPLY, HEADERS_REPLY_BYTES_MAX, "test")
        assert list(pairs) == [
            (one.header, encode_certificate(proof)) for one, proof in stored.decided
        ]
        nursery.cancel_scope.cancel()
    stored.chain.close()
