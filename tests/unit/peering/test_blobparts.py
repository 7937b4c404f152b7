"""Half a blob on the disk: what was noted is believed only if it is there, and goes on so."""

import os
import random
from pathlib import Path

import pytest

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid
from node.peering import blobparts
from node.peering.blobparts import CHUNK_BYTES, NOTE_BYTES, BlobPart, part_paths
from node.peering.blobstore import leaves_of

LENGTH = 5 * CHUNK_BYTES + 17
CHUNKS = 6


class Made:
    """A file, its tree, and where its blob is put together."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "file"
        self.file.write_bytes(random.Random(3).randbytes(LENGTH))
        self.tree = merkle.levels_of(leaves_of(self.file))
        self.blob_id = self.tree[-1][0]
        self.target = folder / "ab" / self.blob_id.hex()
        self.part, self.notes = part_paths(self.target)

    def open(self) -> BlobPart:
        return BlobPart(self.target, self.blob_id, LENGTH)

    def keep(self, part: BlobPart, *indexes: int) -> None:
        for index in indexes:
            with self.file.open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                part.keep(index, file.read(CHUNK_BYTES), merkle.path_in(self.tree, index + 1))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_chunks_in_any_order_make_the_file(made: Made) -> None:
    part = made.open()
    made.keep(part, 4, 0, 5, 2, 1, 3)
    assert part.finish()
    part.close()
    assert made.target.read_bytes() == made.file.read_bytes()
    assert [path.name for path in made.target.parent.iterdir()] == [made.target.name]


def test_after_an_end_only_what_is_missing_is_missing(made: Made) -> None:
    first = made.open()
    made.keep(first, 4, 0)
    first.close()
    second = made.open()
    assert second.missing() == [1, 2, 3, 5]
    made.keep(second, 1, 2, 3, 5)
    assert second.finish()
    assert made.target.read_bytes() == made.file.read_bytes()


def test_a_noted_chunk_that_is_not_on_the_disk_is_missing(made: Made) -> None:
    """A power cut may write the note and not the chunk."""
    part = made.open()
    made.keep(part, 0, 1, 2)
    part.close()
    with made.part.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes(4_096))
    assert made.open().missing() == [1, 3, 4, 5]


@pytest.mark.parametrize("cut", [1, NOTE_BYTES - 1])
def test_half_a_note_costs_its_chunk_and_no_other(made: Made, cut: int) -> None:
    part = made.open()
    made.keep(part, 0, 1)
    part.close()
    with made.notes.open("r+b") as file:
        file.truncate(2 * NOTE_BYTES - cut)
    again = made.open()
    assert again.missing() == [1, 2, 3, 4, 5]
    made.keep(again, 1)
    again.close()
    assert made.open().missing() == [2, 3, 4, 5]


def test_notes_of_chunks_that_the_blob_does_not_have_are_nothing(made: Made) -> None:
    part = made.open()
    made.notes.write_bytes((CHUNKS).to_bytes(4, "big") + bytes(32))
    assert part.missing() == list(range(CHUNKS))


def test_a_false_note_with_a_chunk_to_match_never_becomes_the_blob(made: Made) -> None:
    part = made.open()
    made.keep(part, 1, 2, 3, 4, 5)
    part.close()
    with made.part.open("r+b") as file:
        file.write(bytes(CHUNK_BYTES))
    with made.notes.open("ab") as file:
        file.write((0).to_bytes(4, "big") + merkle.leaf_hash(bytes(CHUNK_BYTES)))
    again = made.open()
    assert again.missing() == []
    assert not again.finish()
    assert list(made.target.parent.iterdir()) == [], "and the next try starts anew"


@pytest.mark.parametrize(
    ("index", "data", "code"),
    [
        (0, bytes(CHUNK_BYTES - 1), "blob.chunk"),
        (5, bytes(18), "blob.chunk"),
        (0, bytes(CHUNK_BYTES), "merkle.root"),
    ],
)
def test_a_chunk_that_is_not_proven_is_not_written(
    made: Made, index: int, data: bytes, code: str
) -> None:
    part = made.open()
    with pytest.raises(Invalid, match=code):
        part.keep(index, data, merkle.path_in(made.tree, index + 1))
    assert made.part.read_bytes() == bytes(LENGTH)
    assert made.notes.read_bytes() == b""


def test_a_file_that_takes_few_bytes_at_once_is_written_whole(made: Made, monkeypatch) -> None:
    true_write = blobparts.os.pwrite
    monkeypatch.setattr(
        blobparts.os, "pwrite", lambda file, data, at: true_write(file, data[:70_000], at)
    )
    part = made.open()
    made.keep(part, *range(CHUNKS))
    assert part.finish()
    assert made.target.read_bytes() == made.file.read_bytes()


@pytest.mark.parametrize("failing", ["ftruncate", "open"])
def test_part_that_cannot_be_made_keeps_no_file_open(
    made: Made, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    opened, closed = [], []
    really_open, really_close = os.open, os.close

    def open_first(*arguments: object) -> int:
        if opened and failing == "open":
            raise OSError(24, "Too many open files")
        opened.append(really_open(*arguments))  # type: ignore[arg-type]
        return opened[-1]

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        really_close(descriptor)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobparts.os, "open", open_first)
    monkeypatch.setattr(blobparts.os, "close", close)
    if failing == "ftruncate":
        monkeypatch.setattr(blobparts.os, "ftruncate", full)
    with pytest.raises(OSError, match=r"No space left|Too many"):
        made.open()
    assert closed == opened
