"""Files of a home as a disk may change them, and all of them as they are."""

from pathlib import Path


def contents(home: Path) -> dict[str, bytes]:
    """Every file by its path in the home."""
    files = (path for path in sorted(home.rglob("*")) if path.is_file())
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def flip(path: Path, at: int) -> None:
    """Change one bit of the byte at `at`."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(bytes(raw))
