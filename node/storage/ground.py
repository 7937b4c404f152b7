"""What a node stands on, opened in the one safe order: lock, chain, journal.

Why one function: nothing may be opened before the lock is held, and no key may sign before the
ladder is climbed; a daemon, a doctor and a test all need just this. A validator whose record or
journal is not in order goes on as a full node, and `why_silent` says what its operator must do.
What this file does not know: settings, private keys, the network.
"""

from dataclasses import dataclass
from pathlib import Path

from node.storage.chain import KEEP_VERSIONS, Chain
from node.storage.errors import StorageError
from node.storage.journal import Journal, open_journal
from node.storage.lock import HomeLock, lock_home
from node.storage.opening import Tell, tell_nobody
from node.storage.signer import CannotSign
from node.storage.store import CACHE_BYTES


@dataclass(frozen=True, slots=True)
class Ground:
    """An open home. `journal` is None for a node that does not validate."""

    lock: HomeLock
    chain: Chain
    journal: Journal | None
    why_silent: CannotSign | None  # for a validator that must not sign

    def close(self) -> None:
        """Sync and let go of everything, the lock last."""
        if self.journal is not None:
            self.journal.close()
        self.chain.close()
        self.lock.release()


def open_ground(
    home: Path,
    genesis: Path,
    *,
    validator_key: bytes | None = None,
    keep_versions: int = KEEP_VERSIONS,
    cache_bytes: int = CACHE_BYTES,
    tell: Tell = tell_nobody,
) -> Ground:
    """Open a home for this process. Blocks; may replay blocks.

    `genesis`: the file. `validator_key`: our public key if we are to vote. `tell` hears how far a
    replay is. Raises `HomeInUse`, `Damaged` or another `StorageError`, each with its mend; nothing
    stays open then.
    """
    lock = lock_home(home)
    try:
        raw = read_genesis(genesis)
        chain = Chain.open(
            home, raw, keep_versions=keep_versions, cache_bytes=cache_bytes, tell=tell
        )
    except BaseException:
        lock.release()
        raise
    if validator_key is None:
        return Ground(lock, chain, None, None)
    try:
        return Ground(lock, chain, open_journal(home, chain.chain_id, validator_key), None)
    except CannotSign as error:
        return Ground(lock, chain, None, error)
    except BaseException:
        chain.close()
        lock.release()
        raise


def read_genesis(path: Path) -> bytes:
    """The bytes of the genesis file; raises `StorageError` with its mend."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read the genesis {path}",
            why=error.strerror or "",
            mend="fetch it from where the network publishes it, or olnode init",
        ) from error
