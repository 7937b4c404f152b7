"""Bodies of bundles: appended when admitted, and durable before we precommit what names them.

Why apart from blocks: a payload names bundles by hash and stays small; their bodies are needed
to execute it and for proofs, and may go some time after the challenge window.
Why the index is in memory: a bundle carries hundreds of receipts and costs about 200 bytes here
(8 MB for ten million receipts); after a start it is read back from the heads of the frames.
A body that rotted is forgotten at opening, or fails loudly when read: peers have it by hash.
Why what is too old is found without the lock: the loop appends, and votes wait for a sync; files
of 64 MiB and an index of millions are not gone through meanwhile.
Why one may be replaced: its hash covers header and body, not the signature, so who gives us one may
have put a false signature under it; execution finds that out, and the true one takes its place.
What this file does not know: whether a bundle is good.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final

from consensus.primitives.encoding import Bytes, Fixed, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.wire.bundles import BODY_BYTES_MAX, HEADER_BYTES_MAX, Bundle
from node.storage.errors import Damaged
from node.storage.frames import Frame, FrameFormat
from node.storage.segments import SEGMENT_BYTES, Place, SegmentLog

MAGIC: Final = b"OLBF"
KIND_BUNDLE: Final = 2
HASH_BYTES: Final = 32
REFUTED_MAX: Final = 1_024
RECORD_BYTES_MAX: Final = HASH_BYTES + HEADER_BYTES_MAX + BODY_BYTES_MAX + 128

FORMAT: Final = FrameFormat(MAGIC, has_height=True, payload_bytes_max=RECORD_BYTES_MAX)
_RECORD: Final = Record(Bytes(HEADER_BYTES_MAX), Fixed(64), Bytes(BODY_BYTES_MAX))


class BundleStore:
    """Bundles by hash. All calls from any thread; `sync` and `append` wait for each other."""

    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open or make the store and cut a torn tail. Reads one segment, and heads of others."""
        self.height = 0
        """The chain's height, told by the chain: bodies appended now are dated with it."""
        self._log = SegmentLog(directory, FORMAT, segment_bytes)
        self._lock = Lock()
        self._places: dict[bytes, Place] = {}
        self._names: dict[int, list[bytes]] = {}  # segment → what was ever placed in it
        self._newest_height: dict[int, int] = {}  # segment → the youngest date in it
        self._refuted: OrderedDict[bytes, bool] = OrderedDict()
        self.damaged_count = len(self._log.damage)
        for segment in self._log.segments[:-1]:
            self._index_older(segment)
        for place, frame in self._log.newest_frames():
            self._put(frame.payload[:HASH_BYTES], place)
            self._date(place.segment, frame.height)

    def __contains__(self, bundle_hash: bytes) -> bool:
        return bundle_hash in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def cut_bytes(self) -> int:
        """Bytes of a torn tail that this opening cut."""
        return self._log.cut_bytes

    @property
    def has_dropped(self) -> bool:
        """Whether old bodies have gone: blocks that name them cannot be executed again."""
        return self._log.segments[0] > 1

    @property
    def is_synced(self) -> bool:
        """Whether every admitted body is durable."""
        return self._log.is_synced

    def append(self, bundle: Bundle) -> None:
        """Keep a bundle; known ones cost nothing. Durable only after `sync`.

        Its signature need not be verified; see `confirm` and `refute`.
        """
        name = bundle.hash
        payload = name + encode(bundle)
        with self._lock:
            if name in self._places:
                return
            place = self._log.append(KIND_BUNDLE, payload, self.height)
            self._put(name, place)
            self._date(place.segment, self.height)

    def confirm(self, bundle: Bundle) -> None:
        """Keep a bundle whose signature is verified, in place of a false one of the same hash."""
        held = self.get(bundle.hash)
        if held is not None and held != bundle:
            self.refute(bundle.hash)
        self.append(bundle)

    def refute(self, bundle_hash: bytes) -> None:
        """Forget the bytes held for this hash: their signature is false."""
        with self._lock:
            self._places.pop(bundle_hash, None)
            self._refuted[bundle_hash] = True
            while len(self._refuted) > REFUTED_MAX:
                self._refuted.popitem(last=False)

    def take_refuted(self, bundle_hash: bytes) -> bool:
        """Whether this hash was refuted since it was last asked."""
        with self._lock:
            return self._refuted.pop(bundle_hash, False)

    def sync(self) -> None:
        """Make all appended bodies durable: before our precommit leaves. Blocks for an fsync."""
        with self._lock:
            self._log.sync()

    def get(self, bundle_hash: bytes) -> Bundle | None:
        """The bundle, or None if we never had it, dropped it, or found it damaged (then the
        caller fetches it from peers and appends it again).
        """
        place = self._places.get(bundle_hash)
        if place is None:
            return None
        try:
            name, bundle = decode_record(self._log.read(place))
            if name != bundle_hash:
                raise Damaged("a bundle stands where another should")
        except (Damaged, Invalid):
            self._forget(bundle_hash, place)
            return None
        return bundle

    def _forget(self, bundle_hash: bytes, place: Place) -> None:
        """A body that cannot be read, unless it was replaced or dropped meanwhile."""
        with self._lock:
            if self._places.get(bundle_hash) == place:
                del self._places[bundle_hash]
                self.damaged_count += 1

    def prune(self, height: int, settled: Callable[[bytes], int] = lambda name: 0) -> int:
        """Drop the oldest segments in which all bodies are from before chain height `height`.

        That is appended below it, and `settled` below it too: a body that came early, in a pool or
        with blocks before its own, may be settled long after. 0: not settled. Returns how many
        bodies went. One caller at a time; reads segments, and nobody waits for it.
        """
        gone = 0
        while len(self._log.segments) > 1:
            segment = self._log.segments[0]
            if self._newest_in(segment) >= height:
                break
            names = self._names.get(segment, ())  # no body comes to an older segment
            old = [name for name in names if self._is_in(segment, name)]
            if any(settled(name) >= height for name in old):
                break
            gone += self._drop(segment, old)
        return gone

    def _is_in(self, segment: int, name: bytes) -> bool:
        place = self._places.get(name)
        return place is not None and place.segment == segment

    def _drop(self, segment: int, names: list[bytes]) -> int:
        with self._lock:
            held = len(self._places)
            for name in names:
                if self._is_in(segment, name):  # else it was forgotten or placed anew meanwhile
                    del self._places[name]
            gone = held - len(self._places)
            self._names.pop(segment, None)
            self._newest_height.pop(segment, None)
        self._log.drop(segment)
        return gone

    def close(self) -> None:
        """Sync, and let go of the files."""
        self._log.close()

    def _index_older(self, segment: int) -> None:
        end = 0
        for place, head in self._log.segment_heads(segment, HASH_BYTES):
            self._put(head, place)
            end = place.offset + place.frame_bytes
        size = self._log.segment_size(segment)
        if size and end == size:
            return
        self.damaged_count += not size  # none but the newest is ever empty
        frames, gaps = self._log.segment_frames(segment)  # a head rotted: find what lies behind it
        self.damaged_count += len(gaps)
        for place, frame in frames:
            self._put(frame.payload[:HASH_BYTES], place)
            self._date(segment, frame.height)

    def _put(self, name: bytes, place: Place) -> None:
        self._places[name] = place
        self._names.setdefault(place.segment, []).append(name)

    def _date(self, segment: int, height: int) -> None:
        self._newest_height[segment] = max(height, self._newest_height.get(segment, 0))

    def _newest_in(self, segment: int) -> int:
        if segment not in self._newest_height:
            frames, _ = self._log.segment_frames(segment)
            self._newest_height[segment] = max((frame.height for _, frame in frames), default=0)
        return self._newest_height[segment]


def decode_record(frame: Frame) -> tuple[bytes, Bundle]:
    """A bundle and the hash that it is kept by; raises `Invalid` `bundlestore.record…`."""
    raw = frame.payload[HASH_BYTES:]
    record = decode(raw, _RECORD, RECORD_BYTES_MAX, "bundlestore.record")
    return frame.payload[:HASH_BYTES], Bundle(*record)
