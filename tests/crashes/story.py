"""One chain told once: blocks that settle bundles, and what a node must hold after each of them.

Why told beforehand: a life that is killed and begun again then has one right answer at each
height, down to the last key of the database, and a life costs only what a real node does.
Sizes are small, so that segments are full, tables are written and old versions go every few blocks.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

from bundle_kit import party
from chain_kit import FAUCET, OPEN, PAYER, golden_answer
from stored_kit import CREDITS, GENESIS, Stored

from consensus.certificate import Certificate
from consensus.header import decode_header
from node.ledger.genesis import decode_genesis
from node.ledger.wire.blocks import Block
from node.ledger.wire.bundles import Bundle
from node.ledger.wire.transactions import Transfer
from node.storage.blocklog import BlockLog
from node.storage.bundlestore import BundleStore
from node.storage.keyspace import BLOCK, after
from node.storage.signer import create_signer
from node.storage.store import MemoryKV, Reader

KEEP_VERSIONS: Final = 8
SEGMENT_BYTES: Final = 8 << 10
BUFFER_BYTES: Final = 64 << 10  # LevelDB's least
EVERYTHING: Final = (b"\x00", b"\xff")  # keys of the database
SETTLED: Final = 48  # blocks with a bundle
VALIDATOR: Final = party("validator 0").key
CHAIN_ID: Final = decode_genesis(GENESIS).chain_id


class Step(NamedTuple):
    """A block, what it names, and a hash of the database after it (`digest_but_places`)."""

    bundles: tuple[Bundle, ...]
    block: Block
    certificate: Certificate
    database: bytes

    @property
    def block_id(self) -> bytes:
        """The block's id."""
        return decode_header(self.block.header).block_id()


@cache
def told() -> tuple[Step, ...]:
    """The whole story; block 1 comes first."""
    steps: list[Step] = []
    with tempfile.TemporaryDirectory() as folder, small_files():
        made = _Noting(Path(folder), steps)
        made.tell_story()
        session = made.open_channel(100 * OPEN)
        for number in range(1, SETTLED + 1):
            golden_answer(session, CREDITS)
            golden_answer(session, CREDITS)
            more = made.tx(FAUCET, Transfer(PAYER.key, number, b""), 1)
            made.block(made.pay(1), more, bundles=(made.bundle(session, number),))
        made.chain.close()
    return tuple(steps)


class _Noting(Stored):
    """Notes each block as a step."""

    def __init__(self, home: Path, steps: list[Step]) -> None:
        super().__init__(home, MemoryKV(), keep_versions=KEEP_VERSIONS)
        self._steps = steps

    def block(self, *transactions: bytes, bundles: tuple[Bundle, ...] = (), **how: int) -> object:  # type: ignore[override]
        """Commit a block, and note it."""
        outcome = super().block(*transactions, bundles=bundles, **how)  # type: ignore[arg-type]
        database = digest_but_places(self.chain.view().reader)
        self._steps.append(Step(bundles, *self.decided[-1], database))
        return outcome


def digest(reader: Reader, start: bytes = EVERYTHING[0], stop: bytes = EVERYTHING[1]) -> bytes:
    """One hash of all pairs of a database, or of some."""
    hashed = sha256()
    for key, value in reader.scan(start, stop):
        for part in (key, value):
            hashed.update(len(part).to_bytes(4, "big") + part)
    return hashed.digest()


def digest_but_places(reader: Reader) -> bytes:
    """One hash of all pairs but where blocks lie: a pruned block lies elsewhere."""
    before, behind = digest(reader, stop=BLOCK), digest(reader, start=after(BLOCK))
    return sha256(before + behind).digest()


@contextmanager
def small_files() -> Iterator[None]:
    """Chains opened meanwhile fill segments and tables after a few blocks."""
    small = partial(partial, segment_bytes=SEGMENT_BYTES)
    with (
        mock.patch("node.storage.opening.BlockLog", small(BlockLog)),
        mock.patch("node.storage.opening.BundleStore", small(BundleStore)),
        mock.patch("node.storage.store.WRITE_BUFFER_BYTES", BUFFER_BYTES),
    ):
        yield


def new_home(home: Path) -> Path:
    """A home in which this story's first validator may live."""
    home.mkdir(parents=True)
    (home / "genesis").write_bytes(GENESIS)
    create_signer(home / "signer", CHAIN_ID, VALIDATOR)
    return home
