"""The manifest of a model version: what must be loaded, and how, to serve it as promised.

Why beside the ledger's record: the ledger names the manifest by hash alone, so that a version can
say all that an engine needs without a byte more in every node's state (page 50 §11).
What this file does not know: prices, creators, where the blobs are.
"""

from typing import Final, NamedTuple

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import (
    U8,
    U32,
    Bytes,
    Either,
    H,
    ListOf,
    Record,
    decode,
    encode,
)
from consensus.primitives.errors import Invalid
from node.serving.adapters import RANK_MAX

VERSION: Final = 1
MANIFEST_BYTES_MAX: Final = 4_096
DTYPES: Final = ("fp32", "bf16")  # by number on the wire
TARGETS_MAX: Final = 64

# One row per dtype class: class, then suspect and fail of margin, logprob and fingerprint, in
# millionths. No row: the table of page 50 §8 holds.
Thresholds = tuple[tuple[int, int, int, int, int, int, int], ...]

_THRESHOLD: Final = Record(U8, U32, U32, U32, U32, U32, U32)
_SHAPE: Final = Record(
    U8,
    H,
    Either(0, 32),
    Either(0, 32),
    Either(0, 32),
    U8,
    ListOf(Bytes(64, 1), TARGETS_MAX),
    Either(0, 32),
    Either(0, 32),
    Either(0, 32),
    U8,
    U8,
    U32,
    ListOf(_THRESHOLD, len(DTYPES)),
    Either(0, 32),
)


class Manifest(NamedTuple):
    """Hashes are 32 bytes, or empty where there is none; `snapshot` is its root."""

    version: int
    base: bytes
    adapter: bytes
    early: bytes
    middle: bytes
    rank: int
    targets: tuple[bytes, ...]
    snapshot: bytes
    index_root: bytes
    probe: bytes
    dtype_class: int
    gradient_dtype: int
    max_model_len: int
    thresholds: Thresholds
    report: bytes

    @property
    def dtype_word(self) -> str:
        """The class that its answers are computed and judged in."""
        return DTYPES[self.dtype_class]

    @property
    def checkpoints(self) -> tuple[bytes, bytes]:
        """What a GradItem asks for: early, middle."""
        return self.early, self.middle

    @property
    def adapters(self) -> tuple[bytes, ...]:
        """All that an engine loads for it beside the base."""
        return tuple(hash for hash in (self.adapter, self.early, self.middle) if hash)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes; `manifest_hash` of them stands on the ledger."""
    return encode(manifest)


def decode_manifest(raw: bytes) -> Manifest:
    """Raises Invalid `manifest.too_large`, `.malformed`, `.not_canonical`, `.version`, `.dtype`,
    `.rank`, `.targets`, `.checkpoints`, `.length`."""
    manifest = Manifest(*decode(raw, _SHAPE, MANIFEST_BYTES_MAX, "manifest"))
    if manifest.version != VERSION:
        raise Invalid("manifest.version", version=manifest.version)
    if max(manifest.dtype_class, manifest.gradient_dtype) >= len(DTYPES):
        raise Invalid("manifest.dtype")
    has_adapter = bool(manifest.adapter)
    if has_adapter != bool(manifest.rank) or manifest.rank > RANK_MAX:
        raise Invalid("manifest.rank", rank=manifest.rank)
    if list(manifest.targets) != sorted(set(manifest.targets)) or (
        has_adapter != bool(manifest.targets)
    ):
        raise Invalid("manifest.targets")
    # An index is of two checkpoints: both or none, and never an index without them.
    if bool(manifest.early) != bool(manifest.middle) or (
        manifest.index_root and not manifest.early
    ):
        raise Invalid("manifest.checkpoints")
    if not manifest.max_model_len:
        raise Invalid("manifest.length")
    return manifest


def manifest_hash(raw: bytes) -> bytes:
    """What PublishVersion names."""
    return sha256(raw)
