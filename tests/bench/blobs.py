"""`olnode bench blobs`: one file between two nodes' processes, against a bare stream of libp2p.

The node asks for the file's listing, fetches its chunks from one source, proves and writes each,
makes the folder and recomputes its identity; all that is timed. The bare stream moves as many
bytes over the same transport and does nothing with them. Rounds of both take turns, since other
work of the machine slows down whichever it meets; each figure is the median of its rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.protocol import AT_LEAST, Budget, finish, quiet, tell
from blob_node import BlobNode

BUDGETS: Final = (Budget("ratio", AT_LEAST, 0.5),)
MEGABYTES: Final = 200
ROUNDS: Final = 3
MB: Final = 1_000_000
BARE: Final = Path(__file__).with_name("bare_stream.py")


def measure(folder: Path, *, megabytes: int = MEGABYTES, rounds: int = ROUNDS) -> dict[str, float]:
    """Megabytes (10^6) a second of both, and what a node's two sides spend on it."""
    size = megabytes * MB
    file = folder / "content"
    file.write_bytes(os.urandom(size))
    bare_s, took_s, cpu_s = [], [], []
    source = BlobNode(number=1, home=folder / "source", serve=file)
    try:
        with serving_bare(size) as bare:
            served = source.told()
            for number in range(rounds):
                bare_s.append(fetch_bare(size, bare))
                spent_s = source.cpu_s()
                home = folder / f"client {number}"
                seconds, client_s = fetch(home, served["address"], served["identity"])
                took_s.append(seconds)
                cpu_s.append((client_s, source.cpu_s() - spent_s))
                tell(f"round {number + 1}: bare {bare_s[-1]:.2f} s, a blob {seconds:.2f} s")
    finally:
        source.kill()
    mb_s, bare_mb_s = (megabytes / statistics.median(each) for each in (took_s, bare_s))
    client_s, source_s = (statistics.median(side) for side in zip(*cpu_s, strict=True))
    return {
        "megabytes": megabytes,
        "rounds": rounds,
        "mb_s": round(mb_s, 1),
        "bare_mb_s": round(bare_mb_s, 1),
        "ratio": round(mb_s / bare_mb_s, 3),
        "client_cpu_ms_per_mb": round(1_000 * client_s / megabytes, 2),
        "source_cpu_ms_per_mb": round(1_000 * source_s / megabytes, 2),
    }


def fetch(home: Path, address: str, identity: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU, that a new node took to have the file."""
    client = BlobNode(number=2, home=home, peers=[address], fetch=identity)
    try:
        client.told()
        told = client.told()
    finally:
        client.kill()
    assert not told["error"], told
    return told["seconds"], told["cpu_s"]


@contextmanager
def serving_bare(size: int) -> Iterator[str]:
    """The address of a process that serves `size` bytes on a bare stream."""
    server = subprocess.Popen(
        [sys.executable, str(BARE), "serve", str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the bare server ended"
        yield address
    finally:
        server.kill()
        server.communicate()


def fetch_bare(size: int, address: str) -> float:
    """Seconds that a bare stream took."""
    ran = subprocess.run(
        [sys.executable, str(BARE), "fetch", str(size), address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return float(ran.stdout)


def main() -> None:
    """The command line of `olnode bench blobs`."""
    parser = argparse.ArgumentParser(prog="olnode bench blobs")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help="of the file")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of both, in turn")
    given = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as folder:
        finish(measure(Path(folder), megabytes=given.megabytes, rounds=given.rounds), BUDGETS)


if __name__ == "__main__":
    main()
