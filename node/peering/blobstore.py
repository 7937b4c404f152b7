"""Blobs on the disk: whole ones by their id, listings of what the ledger names, room for more.

Why a tree over the chunks: each chunk of 1 MiB is checked as it comes, with at most 17 hashes, so a
source can waste one chunk's time and no more; leaf 0 binds the length (page 70 §10).
Why nothing from the wire becomes a path: names are letters, digits and few marks, or refused.
What this file does not know: who sends or asks, what a file means.
"""

import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from consensus.primitives import merkle
from consensus.primitives.encoding import U63, Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.observe import get_log
from node.peering.blobparts import (
    CHUNK_BYTES,
    LENGTH_MAX,
    BlobInvalid,
    BlobPart,
    first_leaf,
    part_paths,
)
from p2p.errors import Code, Refused

NAMES_MAX: Final = 4_096
LISTING_BYTES_MAX: Final = 1 << 20
NAME: Final = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){0,2}"
)

ADAPTER, BASE, INDEX, CONTRIBUTION, CONTENT = 1, 2, 3, 4, 5
KINDS: Final = (ADAPTER, BASE, INDEX, CONTRIBUTION, CONTENT)
BUNDLE: Final = 6  # the body of one, by the bundle's hash: lent (`bodies.py`), and only passes here
FREE_BYTES_MIN: Final = 1 << 30  # at least so much stays free: blobs never cost a vote
PARTS_KEPT_S: Final = 7 * 86_400  # half a blob that nobody went on with
PASSING_NAME: Final = "passing"
PASSING_MAX: Final = 8  # blobs of a few chunks that go on to another store

log = get_log("blobs")

_LISTING: Final = ListOf(Record(Bytes(200, 1), H, U63), NAMES_MAX)


class Entry(NamedTuple):
    """One file of a listing."""

    name: str
    blob_id: bytes
    length: int


class NoRoom(Invalid):
    """This node may not or cannot keep so much; whoever offers it is not at fault."""


def leaves_of(path: Path) -> list[bytes]:
    """Leaf hashes of a file; reads it whole."""
    length = path.stat().st_size
    if not 1 <= length <= LENGTH_MAX:
        raise BlobInvalid("blob.length", length=length)
    hashes = [merkle.leaf_hash(first_leaf(length))]
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashes.append(merkle.leaf_hash(chunk))
    return hashes


def check_name(name: str) -> str:
    """`name`, if it may become a file below a folder of ours; raises BlobInvalid `blob.name`."""
    if not NAME.fullmatch(name):
        raise BlobInvalid("blob.name", name=name[:80])
    return name


def encode_listing(entries: Iterable[Entry]) -> bytes:
    """[[name, blob id, length]…], as it is stored and sent."""
    return encode([(e.name.encode(), e.blob_id, e.length) for e in entries])


def decode_listing(raw: bytes) -> tuple[Entry, ...]:
    """Raises Invalid for bad names, lengths or order, and for none at all."""
    entries = []
    for name, blob_id, length in decode(raw, _LISTING, LISTING_BYTES_MAX, "blob"):
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            raise BlobInvalid("blob.name") from None
        if not 1 <= length <= LENGTH_MAX:
            raise BlobInvalid("blob.length", length=length)
        entries.append(Entry(check_name(text), blob_id, length))
    names = [entry.name for entry in entries]
    folders = {name[:at] for name in names for at, mark in enumerate(name) if mark == "/"}
    if not names or names != sorted(set(names)) or folders & set(names):
        raise BlobInvalid("blob.names", names=len(names))
    return tuple(entries)


def rotted_blobs(directory: Path, tell: Callable[[int], None]) -> Iterator[Path]:
    """The files of whole blobs below `directory` that are not what their name says. Reads all of
    them and changes none; `tell` hears how many were read."""
    whole = (path for path in directory.glob("??/*") if len(path.name) == 64)
    for done, path in enumerate(sorted(whole), 1):
        try:
            is_rotted = merkle.levels_of(leaves_of(path))[-1][0].hex() != path.name
        except (BlobInvalid, OSError):
            is_rotted = True
        if is_rotted:
            yield path
        tell(done)


class BlobStore:
    """Blobs by id under `blobs/<2 hex>/<id>`, and the listings we may serve. Methods block."""

    def __init__(
        self, directory: Path, quota_bytes: int, *, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._free_bytes_min = free_bytes_min
        self._trees: dict[bytes, merkle.Levels] = {}
        self._listings: dict[tuple[int, bytes], tuple[Entry, ...]] = {}
        (directory / "listings").mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted((directory / "listings").glob("?-*")):
            if path.suffix != ".part":
                self._load_listing(path)
        self._drop_old_parts()
        parts = directory.glob(f"{PASSING_NAME}/*.part")
        oldest_first = sorted(parts, key=lambda path: path.stat().st_mtime)
        self._passing = OrderedDict.fromkeys(path.stem for path in oldest_first)

    def _load_listing(self, path: Path) -> None:
        """What is no listing is left out and told: other content is served all the same."""
        kind, _, identity = path.name.partition("-")
        try:
            entries = decode_listing(path.read_bytes())
            self._listings[int(kind), bytes.fromhex(identity)] = entries
        except (Invalid, ValueError, OSError) as error:
            log.warning(
                "a listing of blobs cannot be read", path=str(path), why=str(error),
                mend="remove it, and give the folder to the node again",
            )  # fmt: skip

    def _drop_old_parts(self) -> None:
        oldest_s = time.time() - PARTS_KEPT_S
        passing = self._directory.glob(f"{PASSING_NAME}/*")
        for path in (*self._directory.glob("??/*.*"), *passing):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()

    # -- what we hold

    def has(self, blob_id: bytes) -> bool:
        """Whether the whole blob is here."""
        return self.path(blob_id).is_file()

    def is_known(self, blob_id: bytes) -> bool:
        """Whether it can be served without reading it whole first."""
        return blob_id in self._trees or not self.has(blob_id)

    def is_whole(self, blob_id: bytes) -> bool:
        """Whether the blob is here and still is what its id says; reads it, and drops a rotted one.

        Before it is used beside what a peer sends: our own rot must not be taken for its lie.
        """
        self._trees.pop(blob_id, None)
        with suppress(Refused):
            self._tree_of(blob_id)
        return self.has(blob_id)

    def path(self, blob_id: bytes) -> Path:
        """Where a blob lies or would lie."""
        name = blob_id.hex()
        return self._directory / name[:2] / name

    def listing(self, kind: int, identity: bytes) -> tuple[Entry, ...] | None:
        """The files of an identity that we may serve."""
        return self._listings.get((kind, identity))

    # -- what we take in

    def add_folder(self, kind: int, identity: bytes, folder: Path) -> tuple[Entry, ...]:
        """Serve the files of `folder` (or one file) as that identity; linked where that can be.

        Raises BlobInvalid for a name or length that no blob may have.
        """
        files = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file()]
        root = folder.parent if folder.is_file() else folder
        entries = []
        for file in files:
            name = check_name(file.relative_to(root).as_posix())
            entries.append(Entry(name, self._add_file(file), file.stat().st_size))
        return self.add_listing(kind, identity, entries)

    def add_listing(
        self, kind: int, identity: bytes, entries: Iterable[Entry]
    ) -> tuple[Entry, ...]:
        """Serve blobs that are here as that identity."""
        assert kind in KINDS
        listing = tuple(sorted(entries))
        if not 1 <= len(listing) <= NAMES_MAX:
            raise BlobInvalid("blob.names", names=len(listing))
        path = self._directory / "listings" / f"{kind}-{identity.hex()}"
        _write_durably(path, encode_listing(listing))
        self._listings[kind, identity] = listing
        return listing

    def _add_file(self, file: Path) -> bytes:
        """Keep `file`, also in place of what stands there: that may have rotted, this was read."""
        tree = merkle.levels_of(leaves_of(file))
        blob_id = tree[-1][0]
        target = self.path(blob_id)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        link = target.with_suffix(".link")
        link.unlink(missing_ok=True)
        try:
            os.link(file, link)
        except OSError:  # another file system
            shutil.copyfile(file, link)
        with link.open("rb") as written:
            os.fsync(written.fileno())  # its listing is durable, so must be what it lists
        os.replace(link, target)
        link.unlink(missing_ok=True)  # a rename onto the same file by another name does nothing
        self._trees[blob_id] = tree
        return blob_id

    def check_room(self, entries: Iterable[Entry]) -> None:
        """Raise NoRoom `blob.quota` or `blob.disk` where these blobs do not fit beside the others.

        What of them is here already, whole or in part, takes no room again.
        """
        ours = {entry.blob_id.hex() for entry in entries}
        sizes = {entry.blob_id: entry.length for entry in entries}
        held = filled = 0
        for path in self._directory.glob("??/*"):
            with suppress(FileNotFoundError):
                told = path.stat()
                if path.name.partition(".")[0] in ours:
                    filled += 512 * told.st_blocks  # a part is sparse
                else:
                    held += told.st_size
        length = sum(sizes.values())
        if held + length > self._quota_bytes:
            raise NoRoom("blob.quota", held=held, length=length)
        free = shutil.disk_usage(self._directory).free
        if free - max(0, length - filled) < self._free_bytes_min:
            raise NoRoom("blob.disk", free=free, length=length)

    def part(self, blob_id: bytes, length: int) -> BlobPart:
        """The file to write a blob's chunks into, with what came before an end of this process."""
        return BlobPart(self.path(blob_id), blob_id, length)

    def passing(self, blob_id: bytes, length: int) -> BlobPart:
        """As `part`, for a blob of a few chunks that another store takes over: outside the quota.

        It stays when it is whole, until PASSING_MAX others have come: it is not lost either by an
        end of this process before the other store has it.
        """
        target = self._passing_path(blob_id.hex())
        part = BlobPart(target, blob_id, length)
        self._passing[target.name] = None
        self._passing.move_to_end(target.name)
        while len(self._passing) > PASSING_MAX:
            oldest, _ = self._passing.popitem(last=False)
            for path in part_paths(self._passing_path(oldest)):
                path.unlink(missing_ok=True)
        return part

    def _passing_path(self, name: str) -> Path:
        return self._directory / PASSING_NAME / name

    def link_into(self, entries: Iterable[Entry], folder: Path) -> None:
        """Make `folder` from complete blobs, all at once: it appears whole or not at all."""
        making = folder.with_name(folder.name + ".part")
        shutil.rmtree(making, ignore_errors=True)
        for entry in entries:
            target = making / check_name(entry.name)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.link(self.path(entry.blob_id), target)
            except OSError:
                shutil.copyfile(self.path(entry.blob_id), target)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(making, folder)

    def discard(self, entries: Iterable[Entry]) -> None:
        """Drop blobs, whole or in part, that no listing of ours has: a liar must not fill us."""
        listed = {entry.blob_id for listing in self._listings.values() for entry in listing}
        for entry in entries:
            if entry.blob_id not in listed:
                self._trees.pop(entry.blob_id, None)
                path = self.path(entry.blob_id)
                for each in (path, *part_paths(path)):
                    each.unlink(missing_ok=True)

    # -- answers

    def describe(self, blob_id: bytes) -> tuple[int, tuple[bytes, ...], bytes]:
        """Length, path of leaf 0, which chunks we have; raises Refused not found."""
        tree = self._tree_of(blob_id)
        chunks = len(tree[0]) - 1
        have = bytearray(b"\xff" * -(-chunks // 8))
        if chunks % 8:
            have[-1] = (1 << chunks % 8) - 1  # low bit first
        return self.path(blob_id).stat().st_size, merkle.path_in(tree, 0), bytes(have)

    def chunk(self, blob_id: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]]:
        """A chunk and its path; raises Refused not found.

        It is hashed before it goes: what rotted on our disk would be a lie of ours to others.
        """
        tree = self._tree_of(blob_id)
        if index >= len(tree[0]) - 1:
            raise Refused(Code.NOT_FOUND)
        file = os.open(self.path(blob_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, CHUNK_BYTES, index * CHUNK_BYTES)
        finally:
            os.close(file)
        if merkle.leaf_hash(data) != tree[0][index + 1]:
            self._drop_rotted(blob_id)
        return data, merkle.path_in(tree, index + 1)

    def _tree_of(self, blob_id: bytes) -> merkle.Levels:
        tree = self._trees.get(blob_id)
        if tree is None:
            if not self.has(blob_id):
                raise Refused(Code.NOT_FOUND)
            with suppress(BlobInvalid):  # a power cut may leave a file without its bytes
                tree = merkle.levels_of(leaves_of(self.path(blob_id)))
            if tree is None or tree[-1][0] != blob_id:
                self._drop_rotted(blob_id)
            self._trees[blob_id] = tree
        return tree

    def _drop_rotted(self, blob_id: bytes) -> NoReturn:
        """It is fetched again by whoever needs it."""
        self._trees.pop(blob_id, None)
        self.path(blob_id).unlink(missing_ok=True)
        raise Refused(Code.NOT_FOUND)


def _write_durably(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
