"""One told story a file of tests, and copies of its home to open, tear and flip."""

import shutil
from pathlib import Path

import pytest
from ladder_kit import Told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    home = tmp_path_factory.mktemp("told")
    return Told(home), home


@pytest.fixture
def copy(told: tuple[Told, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(told[1], tmp_path / "copy"))
