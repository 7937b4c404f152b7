"""How long a new node takes to start from a snapshot of a million keys.

`python tests/bench/statesync.py [keys]` prints one line of JSON. Chunks come over a simulated
network on the real clock, from two servers in this one process; disk and fsync are real. From the
first question to a chain that is open, all checks included.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain_kit import party
from stored_kit import GENESIS, Stored

from consensus.certificate import decode_certificate
from consensus.header import Header
from consensus.primitives.digest import sha256
from node.ledger import tables, tree
from node.peering.snapshotting import SnapshotKeeper
from node.peering.statesync import StateSync
from node.storage import keyspace
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.snapshots import SnapshotStore
from node.storage.store import LevelKV, MemoryKV
from node.storage.views import Tip
from p2p.memory import Link, MemoryHub
from p2p.network import StatusFacts

SERVERS = 2
BATCH = 50_000
CHAIN_ID = sha256(GENESIS)


def measure(folder: Path, *, keys: int = 1_000_000) -> dict[str, Any]:
    """Seconds to make a snapshot of `keys` accounts, to fetch it, load it, and open the chain."""
    source = LevelKV(folder / "source")
    view = _view_of(folder, source, keys)
    store = SnapshotStore(folder / "snapshots")
    begun_s = time.perf_counter()
    manifest = store.make(view)
    made_s = time.perf_counter() - begun_s
    source.close()
    assert manifest is not None
    synced_s, loaded_s = trio.run(partial(_sync, folder / "home", store, view.tip.header))
    begun_s = time.perf_counter()
    chain = Chain.open(folder / "home", GENESIS)
    opened_s = time.perf_counter() - begun_s
    assert chain.tip.block_id == view.tip.block_id
    chain.close()
    total_s = synced_s + opened_s
    return {
        "keys": keys,
        "chunks": len(manifest.chunks),
        "bytes": manifest.total_bytes(),
        "make_s": round(made_s, 1),
        "fetch_s": round(synced_s - loaded_s, 1),
        "load_s": round(loaded_s, 1),
        "open_s": round(opened_s, 1),
        "total_s": round(total_s, 1),
        "keys_s": round(keys / total_s),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def _view_of(folder: Path, source: LevelKV, keys: int) -> Any:
    """A view of block 1, its state blown up with accounts, its header signed for that state."""
    made = Stored(folder / "small", MemoryKV())
    made.block(made.pay())
    tip, builder = made.chain.tip, tree.Builder(1)
    assert tip.header is not None
    for some in _batches(made, keys):
        for key, value in some:
            builder.add(key, value)
        source.write([(keyspace.STATE + key, value) for key, value in some])
    for _ in builder.nodes():
        pass
    assert builder.record is not None
    header = tip.header._replace(state_root=tree.root_hash(builder.record))
    block_id = header.block_id()
    made.validators = tip.signers
    certificate = decode_certificate(made.certify(1, block_id))
    blown = Tip(1, block_id, header.time_ms, header, certificate, tip.signers, tip.validators)
    return SimpleNamespace(tip=blown, reader=source.snapshot())


def _batches(made: Stored, keys: int) -> Iterator[list[tuple[bytes, bytes]]]:
    some = list(made.chain.view().base.scan(b"\0", b"\xff"))
    for number in range(keys - len(some)):
        account = sha256(b"account %d" % number)
        record = tables.Account(number % 50, 10**9 + number, b"", 0)
        some.append((tables.ACCOUNT.flat_key((account,)), tables.ACCOUNT.encode(record)))
        if len(some) == BATCH:
            yield some
            some = []
    yield some


async def _sync(home: Path, store: SnapshotStore, header: Header) -> tuple[float, float]:
    hub = MemoryHub(1, Link(delay_ms=(1, 1)))
    Chain.open(home, GENESIS).close()
    theirs, loaded_s = SnapshotStore(home / "snapshots"), [0.0]

    async def vouch(height: int) -> Header:
        await trio.lowlevel.checkpoint()
        return header

    def load(manifest: Any) -> None:
        begun_s = time.perf_counter()
        take_in(home, theirs, manifest)
        loaded_s[0] = time.perf_counter() - begun_s

    async with trio.open_nursery() as nursery:
        for number in range(SERVERS):
            keeper = SnapshotKeeper(store=store, get_view=lambda: None)
            network = hub.network(
                party(f"server {number}").key,
                chain_id=CHAIN_ID,
                facts=lambda: StatusFacts(snapshot_height=1),
            )
            keeper.serve(network)
            await nursery.start(network.run)
        network = hub.network(party("newcomer").key, chain_id=CHAIN_ID)
        await nursery.start(network.run)
        sync = StateSync(
            network=network,
            store=theirs,
            get_height=lambda: 0,
            verify_header=vouch,
            take_in=load,
            gap_blocks=0,
        )
        begun_s = time.perf_counter()
        assert await sync.run() is not None
        took_s = time.perf_counter() - begun_s
        nursery.cancel_scope.cancel()
    return took_s, loaded_s[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
        sys.stdout.write(json.dumps(measure(Path(place), keys=count)) + "\n")
