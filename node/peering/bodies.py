"""Bodies of bundles that are larger than a chunk: lent, and fetched, as blobs.

Why only those: a smaller one is one chunk, and comes beside its header (`relay.py`). Why they only
pass through the store of blobs: one is 2 MiB at most and goes to the store of bundles, and no block
is executed without it, so blobs that have filled their quota must not be in its way.
Why a listing is needed at all: a bundle's header has the SHA-256 of its body and no tree over it.
So the tree is a hint of those that have the body; each chunk is proven against it, the whole
against the header, and who told a false one is known.
What this file does not know: whether a bundle is good, who named it.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Final, NamedTuple

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger.wire.bundles import Bundle, decode_header
from node.peering.blobparts import CHUNK_BYTES, chunk_of, leaves_of_bytes
from node.peering.blobs import Blobs
from node.peering.blobstore import BUNDLE, Entry
from p2p.errors import Code, Refused
from p2p.network import PeerId

NAME: Final = "body"
LENT_MAX: Final = 1_024  # trees of a few hashes; who asks on after one has gone lists it again


class _Lent(NamedTuple):
    """What is known of a body, so that only its chunks are read again."""

    bundle_hash: bytes
    length: int
    tree: merkle.Levels


class LentBodies:
    """Serves the bodies that `find(bundle hash)` has. Methods block, in any thread."""

    def __init__(self, find: Callable[[bytes], Bundle | None]) -> None:
        self._find = find
        self._lock = Lock()
        self._blob_ids: OrderedDict[bytes, bytes] = OrderedDict()  # by bundle
        self._lent: dict[bytes, _Lent] = {}  # by blob

    def __contains__(self, blob_id: bytes) -> bool:
        return blob_id in self._lent

    def is_listed(self, bundle_hash: bytes) -> bool:
        """Whether it can be listed without reading and hashing it whole."""
        return bundle_hash in self._blob_ids

    def listing(self, bundle_hash: bytes) -> tuple[Entry, ...] | None:
        """The one file of a bundle's body; None where it is not here, or comes with its header."""
        lent = self._lent.get(self._blob_ids.get(bundle_hash, b"")) or self._lend(bundle_hash)
        return None if lent is None else (Entry(NAME, lent.tree[-1][0], lent.length),)

    def _lend(self, bundle_hash: bytes) -> _Lent | None:
        bundle = self._find(bundle_hash)
        if bundle is None or len(bundle.body) <= CHUNK_BYTES:
            return None
        tree = merkle.levels_of(leaves_of_bytes(bundle.body))
        lent = _Lent(bundle_hash, len(bundle.body), tree)
        with self._lock:
            self._lent[tree[-1][0]] = lent
            self._blob_ids[bundle_hash] = tree[-1][0]
            while len(self._blob_ids) > LENT_MAX:
                _, oldest = self._blob_ids.popitem(last=False)
                self._lent.pop(oldest, None)
        return lent

    def describe(self, blob_id: bytes) -> tuple[int, tuple[bytes, ...], bytes]:
        """As of a store's blob: all chunks are here. Raises Refused not found."""
        _, length, tree = self._get(blob_id)
        return length, merkle.path_in(tree, 0), bytes([(1 << len(tree[0]) - 1) - 1])

    def chunk(self, blob_id: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]]:
        """A chunk and its path; raises Refused not found."""
        bundle_hash, _, tree = self._get(blob_id)
        bundle = self._find(bundle_hash) if index < len(tree[0]) - 1 else None
        if bundle is None:
            raise Refused(Code.NOT_FOUND)
        return chunk_of(bundle.body, index), merkle.path_in(tree, index + 1)

    def _get(self, blob_id: bytes) -> _Lent:
        lent = self._lent.get(blob_id)
        if lent is None:
            raise Refused(Code.NOT_FOUND)
        return lent


async def fetch_body(blobs: Blobs, head: Bundle, peers: Sequence[PeerId]) -> Bundle:
    """`head`, a bundle without its body, with it; raises Unreachable where nobody gave it."""
    header = decode_header(head.header)
    body = await blobs.fetch_bytes(
        BUNDLE,
        head.hash,
        peers=peers,
        length=header.body_len,
        check=partial(_check_hash, header.body_hash),
    )
    return head._replace(body=body)


def _check_hash(expected: bytes, body: bytes) -> None:
    if sha256(body) != expected:
        raise Invalid("bundles.body", expected=expected)
