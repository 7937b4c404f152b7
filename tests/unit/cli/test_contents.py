"""Content is in the home, whole and durable, before anybody hears of it."""

import os
from pathlib import Path

import pytest

from consensus.primitives.digest import sha256
from node.cli import contents
from node.cli.frame import CommandError
from node.holdings import check_identity
from node.peering import blobstore as blobs

WORDS = b'{"text":"a fact"}\n'


def test_kept_content_is_what_its_hash_names_to_the_node(tmp_path: Path) -> None:
    folder = contents.keep(tmp_path, WORDS)
    assert folder == tmp_path / "datanets" / sha256(WORDS).hex()
    assert contents.KIND_CONTENT == blobs.CONTENT
    check_identity(blobs.CONTENT, sha256(WORDS), folder)
    assert [path.name for path in folder.iterdir()] == ["content"]
    assert (folder.stat().st_mode & 0o777, (folder / "content").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_kept_again_it_is_the_same_file(tmp_path: Path) -> None:
    """The node's blobs may be links to it: writing into it would change theirs."""
    before = (contents.keep(tmp_path, WORDS) / "content").stat()
    after = (contents.keep(tmp_path, WORDS) / "content").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_damaged_content_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    file = contents.keep(tmp_path, WORDS) / "content"
    os.link(file, tmp_path / "blob")
    file.write_bytes(WORDS[:-1])
    assert (contents.keep(tmp_path, WORDS) / "content").read_bytes() == WORDS
    assert (tmp_path / "blob").read_bytes() == WORDS[:-1], "another file than before"


def test_what_a_kill_left_midway_is_no_obstacle(tmp_path: Path) -> None:
    half = tmp_path / "datanets" / (sha256(WORDS).hex() + ".part")
    half.mkdir(parents=True)
    (half / "content").write_bytes(WORDS[:3])
    assert (contents.keep(tmp_path, WORDS) / "content").read_bytes() == WORDS
    assert not half.exists()


def test_kill_before_the_rename_leaves_no_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        contents.keep(tmp_path, WORDS)
    assert not (tmp_path / "datanets" / sha256(WORDS).hex()).exists()


def test_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "datanets").write_bytes(b"")
    with pytest.raises(CommandError, match="cannot be written"):
        contents.keep(tmp_path, WORDS)
