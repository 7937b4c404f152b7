"""From a snapshot to a database: every chunk checked, every key in order, the root compared.

Why the height is written last: a load that was ended in the middle is no chain yet, and the next
start does it again. Why the whole tree is rebuilt: only its root ties millions of pairs to one
header, and a manifest may be a lie from its first hash to its last.
What this file does not know: where chunks come from, and who vouched for the header.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from consensus.primitives.errors import Invalid
from consensus.validators import encode_validators
from node.ledger import tree
from node.ledger.rules.staking import validator_set
from node.ledger.state import State
from node.storage import history, keyspace
from node.storage.footing import Footing, encode_footing
from node.storage.snapshots import ChunkMark, Manifest, check_chunk, decode_chunk
from node.storage.store import KV
from node.storage.views import base_of

BATCH_NODES: Final = 20_000  # written at once, some 4 MiB

ReadChunk = Callable[[int], bytes | None]  # by index; None: it is not there


def load(store: KV, manifest: Manifest, read_chunk: ReadChunk) -> None:
    """Fill an empty store with a snapshot whose manifest is verified. Blocks, 20 s for 10^6 keys.

    Raises `Invalid` `snapshot.…` when the chunks are not the state of the manifest's header; then,
    and when it was ended before, the store is worth nothing: it has no height.
    """
    footing = manifest.footing
    builder = tree.Builder(manifest.height)
    for pairs in _pairs_in_order(manifest.chunks, read_chunk):
        for key, value in pairs:
            builder.add(key, value)
        store.write([(keyspace.STATE + key, value) for key, value in pairs])
    for some in _batches(builder.nodes()):
        store.write([(keyspace.NODE + key, node) for key, node in some])
    assert builder.record is not None
    root = tree.root_hash(builder.record)
    if root != footing.header.state_root:
        raise Invalid("snapshot.root", found=root, told=footing.header.state_root)
    record_key = keyspace.ROOT + keyspace.u64(manifest.height)
    store.write([(record_key, builder.record)])
    store.write(list(_last_puts(store, footing)))


def _pairs_in_order(
    marks: tuple[ChunkMark, ...], read_chunk: ReadChunk
) -> Iterator[tuple[tuple[bytes, bytes], ...]]:
    last = b""
    for index, mark in enumerate(marks):
        raw = read_chunk(index)
        if raw is None:
            raise Invalid("snapshot.chunk_missing", index=index)
        check_chunk(mark, raw)
        pairs = decode_chunk(raw)
        for key, _ in pairs:
            if key <= last:
                raise Invalid("snapshot.order", index=index)
            last = key
        yield pairs


def _last_puts(store: KV, footing: Footing) -> Iterator[tuple[bytes, bytes]]:
    """What makes a state a chain: the sets, the history's edge, and at last the height."""
    height, header = footing.height, footing.header
    yield keyspace.VALIDATORS + keyspace.falling(height), encode_validators(footing.signers)
    if header.validators_hash != header.next_validators_hash:
        following = validator_set(State(base_of(store, height)))
        yield keyspace.VALIDATORS + keyspace.falling(height + 1), encode_validators(following)
    yield from history.seeded(footing.edge(), header.block_id())
    yield keyspace.FORMAT, keyspace.u64(keyspace.FORMAT_VERSION)
    yield keyspace.CHAIN_ID, header.chain_id
    yield keyspace.FOOTING, encode_footing(footing)
    yield keyspace.HEIGHT, keyspace.u64(height)


def _batches(
    nodes: Iterable[tuple[bytes, bytes]],
) -> Iterator[list[tuple[bytes, bytes]]]:
    some: list[tuple[bytes, bytes]] = []
    for node in nodes:
        some.append(node)
        if len(some) == BATCH_NODES:
            yield some
            some = []
    yield some
