"""Content that the ledger knows by its hash: kept in the home, then offered to peers by the node.

Why kept before anything is sent: the ledger holds a hash, and a hash without its content is worth
nothing; from here on a crash can be mended by the same command. The folder appears whole, by one
rename, and its file is never written again: the node's blobs may be links to it.
What it does not know: what the content is.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from consensus.primitives.digest import sha256
from node.cli.frame import CommandError

if TYPE_CHECKING:
    from node.web.ask import Node

KIND_CONTENT: Final = 5  # of a listing of blobs, page 70 §10
FILE_NAME: Final = "content"
FOLDER: Final = "datanets"  # of the home


def keep(home: Path, content: bytes) -> Path:
    """The folder `datanets/<SHA-256>` with `content` in it, on the disk when this returns."""
    folder = home / FOLDER / sha256(content).hex()
    if (folder / FILE_NAME).is_file() and (folder / FILE_NAME).read_bytes() == content:
        return folder
    making = folder.with_name(folder.name + ".part")
    try:
        for left in (making, folder):  # of a kill midway, or damaged since
            shutil.rmtree(left, ignore_errors=True)
        making.mkdir(mode=0o700, parents=True)
        descriptor = os.open(making / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(making)
        os.rename(making, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def offer(node: "Node", folder: Path) -> str:
    """Let the node serve `folder` to peers; the hash in hex. Raises Unreachable or Refusal."""
    body = {"kind": KIND_CONTENT, "identity": folder.name, "folder": str(folder)}
    stored: str = node.post("/goods", body)["stored"]
    return stored


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
