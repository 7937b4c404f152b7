"""The folder of a build in progress: framed shards, then the finished index in one rename.

Each shard is written to a `.part` file, fsynced and renamed, with a hash behind it that covers
the build, the stage, the number and the bytes. So a torn shard, or one of another build, is seen
and made again, and a sound one is never computed twice. No other state is kept.
What this file does not know: what the bytes of a shard mean.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from consensus.primitives.digest import HASH_BYTES, domain_hash
from node.attribution.runners import Runner, Task

Progress = Callable[[str, int, int], None]  # stage, shards done, shards in all
IDENTITY_HEX: Final = 16  # of the build, in its folder's name


class Workshop:
    """Where one build (named by `identity`, 32 bytes) keeps its shards, beside its result."""

    def __init__(self, home: Path, identity: bytes, runner: Runner, on_progress: Progress) -> None:
        self._home = home
        self._identity = identity
        self._runner = runner
        self._on_progress = on_progress
        self._folder = home / f"building-{identity.hex()[:IDENTITY_HEX]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def shards(self, stage: str, task: Task, members: int, size: int) -> list[bytes]:
        """All shards of a stage in order; runs `task` only for those that are not sound on disk."""
        count = -(-members // size)
        found = {shard: data for shard in range(count) if (data := self._load(stage, shard))}
        self._on_progress(stage, len(found), count)
        missing = [shard for shard in range(count) if shard not in found]
        for shard, data in self._runner.map(task, missing) if missing else ():
            frame = data + self._seal(stage, shard, data)
            write_whole(self._path(stage, shard), frame)
            found[shard] = data
            self._on_progress(stage, len(found), count)
        return [found[shard] for shard in range(count)]

    def keep(self, name: str, data: bytes) -> Path:
        """Write what the next stage reads. It follows from the shards, so it is just rewritten."""
        path = self._folder / name
        write_whole(path, data)
        return path

    def publish(self, name: str, contents: dict[str, bytes]) -> Path:
        """Give the finished files their name, whole or not at all, and forget the work."""
        target = self._home / name
        if not target.exists():
            made = self._folder / "finished"
            made.mkdir(exist_ok=True)
            for file, data in contents.items():
                write_whole(made / file, data)
            made.rename(target)
            _sync_folder(self._home)
        shutil.rmtree(self._folder)
        return target

    def _path(self, stage: str, shard: int) -> Path:
        return self._folder / f"{stage}.{shard:06d}"

    def _seal(self, stage: str, shard: int, data: bytes) -> bytes:
        return domain_hash(b"shard", self._identity, stage.encode(), shard.to_bytes(4), data)

    def _load(self, stage: str, shard: int) -> bytes | None:
        try:
            frame = self._path(stage, shard).read_bytes()
        except FileNotFoundError:
            return None
        data, seal = frame[:-HASH_BYTES], frame[-HASH_BYTES:]
        return data if seal == self._seal(stage, shard, data) else None


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` so that after a crash `path` holds all of it, or what it held before."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
