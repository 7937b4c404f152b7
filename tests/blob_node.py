"""A node's network and blobs in a process of their own: to be timed, killed, slowed and lied to.

BlobNode(number=1, home=folder, serve=file)          tells its address and the file's identity
BlobNode(number=2, home=other, peers=[address], fetch=identity)     tells how the fetch went
BlobNode(number=3, home=third, lend=file)            the same for the body of a bundle: tells its
BlobNode(number=4, home=fourth, peers=[address], fetch_body=header)                     header
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from bench.protocol import quiet
from bundle_kit import bundle_around
from child_kit import TellingChild
from network_kit import CHAIN, admitted, seed_of, wait_until

from consensus.primitives.errors import Invalid
from node.ledger.wire.bundles import Bundle
from node.peering import bodies
from node.peering.blobparts import NOTE_BYTES
from node.peering.blobs import Blobs
from node.peering.blobstore import CONTENT, BlobStore
from node.peering.bodies import LentBodies
from p2p.errors import NetworkError
from p2p.network import Libp2pNetwork, PeerId

QUOTA_BYTES: Final = 1 << 40
MEET_S: Final = 30.0
LOOK_S: Final = 0.02
HELD_BACK_S: Final = 600.0


class BlobNode(TellingChild):
    """One such process. Options are those of `main`."""

    def __init__(
        self, *, number: int, home: Path, peers: Sequence[str] = (), **options: object
    ) -> None:
        self.home = home
        given = {"number": number, "home": str(home), "peers": list(peers), **options}
        super().__init__(Path(__file__), given)

    def cpu_s(self) -> float:
        """What it has used so far."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def chunks_kept(self) -> int:
        """Chunks noted on the disk, of blobs that are not whole yet or pass through."""
        notes = (self.home / "blobs").glob("*/*.notes")
        return sum(path.stat().st_size // NOTE_BYTES for path in notes)


def identity_of(file: Path) -> bytes:
    """What the ledger would name: the SHA-256 of the content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def check(identity: bytes, folder: Path) -> None:
    """Raise Invalid unless `folder` holds that content, alone."""
    (file,) = folder.iterdir()
    if identity_of(file) != identity:
        raise Invalid("content.hash")


def say(**told: object) -> None:
    """To whoever started us."""
    print(json.dumps(told), flush=True)  # noqa: T201


async def main(
    number: int,
    home: str,
    peers: list[str],
    serve: str = "",
    fetch: str = "",
    lend: str = "",
    fetch_body: str = "",
    lies: bool = False,
    slow_s: float = 0.0,
    gives_first_only: bool = False,
) -> None:
    """`lies`: one bit of each chunk is another; `slow_s`: what a write of a chunk takes longer;
    `gives_first_only`: whoever asks for another chunk of a body waits.
    """
    store = BlobStore(Path(home) / "blobs", QUOTA_BYTES)
    bundle = bundle_around(await trio.Path(lend).read_bytes()) if lend else None
    lent = LentBodies(lambda name: bundle if bundle and bundle.hash == name else None)
    network = Libp2pNetwork(
        seed=seed_of(number),
        chain_id=CHAIN,
        listen=["/ip4/127.0.0.1/tcp/0"],
        reach="devnet",
        bootstrap=peers,
        upload_bytes_s=0,
    )
    blobs = Blobs(network=network, store=store, lent=lent)
    blobs.serve()
    told: dict[str, object] = {}
    if serve:
        identity = await trio.to_thread.run_sync(identity_of, Path(serve))
        await trio.to_thread.run_sync(store.add_folder, CONTENT, identity, Path(serve))
        told["identity"] = identity.hex()
    if bundle:
        told["header"] = bundle.header.hex()
    if gives_first_only:
        make_hold_back(lent)
    if lies:
        make_liar(store)
    if slow_s:
        make_slow(store, slow_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_with_parent, nursery.cancel_scope)
        await nursery.start(network.run)
        say(address=network.addresses()[0], **told)
        if fetch or fetch_body:
            await wait_until(lambda: admitted(network) >= len(peers), MEET_S)
            sources = [view.peer for view in network.peers() if view.admitted]
            got = Path(home) / "got"
            if fetch:
                coming = partial(fetch_file, blobs, sources, bytes.fromhex(fetch), got)
            else:
                coming = partial(fetch_into, blobs, sources, bytes.fromhex(fetch_body), got)
            say(**await fetch_and_tell(network, blobs, coming))
        await trio.sleep_forever()


async def fetch_file(
    blobs: Blobs, sources: Sequence[PeerId], identity: bytes, folder: Path
) -> None:
    """Make a folder with the one file of an identity."""
    await blobs.fetch(
        CONTENT, identity, folder, peers=sources, bytes_max=QUOTA_BYTES,
        check=lambda made: check(identity, made),
    )  # fmt: skip


async def fetch_into(blobs: Blobs, sources: Sequence[PeerId], header: bytes, file: Path) -> None:
    """Write the body of a bundle."""
    bundle = await bodies.fetch_body(blobs, Bundle(header, bytes(64), b""), sources)
    await trio.Path(file).write_bytes(bundle.body)


async def fetch_and_tell(
    network: Libp2pNetwork, blobs: Blobs, fetch: Callable[[], Awaitable[None]]
) -> dict[str, object]:
    """How it went, what it took, and whom it was held against."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    progress: list[dict[str, object]] = []
    error = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, blobs, progress)
        try:
            await fetch()
        except (NetworkError, Invalid) as raised:
            error = repr(raised)
        nursery.cancel_scope.cancel()
    counted = network.statistics()
    return {
        "error": error,
        "seconds": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - cpu_s,
        "counters": blobs.statistics(),
        "penalties": dict(counted.penalties),
        "bans": counted.bans,
        "faults": dict(counted.faults),
        "progress": progress,
    }


async def watch(blobs: Blobs, progress: list[dict[str, object]]) -> None:
    """What an operator who looks would see."""
    while True:
        progress += [{**asdict(each), "identity": each.identity.hex()} for each in blobs.coming()]
        await trio.sleep(LOOK_S)


def make_liar(store: BlobStore) -> None:
    true_chunk = store.chunk

    def lie(blob_id: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]]:
        data, path = true_chunk(blob_id, index)
        return bytes([data[0] ^ 1]) + data[1:], path

    store.chunk = lie  # type: ignore[method-assign]  # on purpose


def make_hold_back(lent: LentBodies) -> None:
    true_chunk = lent.chunk

    def hold_back(blob_id: bytes, index: int) -> tuple[bytes, tuple[bytes, ...]]:
        if index:
            time.sleep(HELD_BACK_S)
        return true_chunk(blob_id, index)

    lent.chunk = hold_back  # type: ignore[method-assign]  # on purpose


def make_slow(store: BlobStore, slow_s: float) -> None:
    true_part = store.part

    def slow_part(blob_id: bytes, length: int) -> Any:
        part = true_part(blob_id, length)
        true_keep = part.keep

        def keep(*told: Any) -> None:
            time.sleep(slow_s)
            true_keep(*told)

        part.keep = keep  # type: ignore[method-assign]  # on purpose
        return part

    store.part = slow_part  # type: ignore[method-assign]  # on purpose


async def end_with_parent(scope: trio.CancelScope) -> None:
    """Whoever started us closes our standard input when it ends, however it ends."""
    lines = trio.lowlevel.FdStream(0)
    while await lines.receive_some(64):
        pass
    scope.cancel()


if __name__ == "__main__":
    quiet()
    trio.run(lambda: main(**json.loads(sys.argv[1])))
