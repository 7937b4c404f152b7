"""Files that are done with: kept for people to read, but not for ever."""

import os
from pathlib import Path

import pytest

from node.storage import segments
from node.storage.segments import ENDED_FOLDER, put_away


def test_newest_files_that_are_done_with_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "ENDED_FILES_MAX", 3)
    for second in range(10, 15):
        path = tmp_path / f"{20 - second}.json"  # not in the order of their names
        path.write_text("a proof")
        os.utime(path, (second, second))
        put_away(path)
    left = sorted(path.name for path in (tmp_path / ENDED_FOLDER).iterdir())
    assert left == ["6.json", "7.json", "8.json"]
    assert [path.name for path in tmp_path.iterdir()] == [ENDED_FOLDER]


def test_file_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    put_away(tmp_path / "gone.json")
    assert not list(tmp_path.iterdir())
