"""Which of several servers or workers gets a request: the one whose caches know its adapter.

Why rendezvous hashing: each adapter has its own order of servers, so one that is lost or added
moves only the adapters that were its own. Why a spill: a famous adapter must not wait at a server
with twice the others' load. Page 50 §10.
Pure: what is asked of servers and when is `remote.py`'s, of workers `fleet.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from consensus.primitives.digest import sha256

FAILURES_MAX: Final = 3  # probes in a row, then a server is left out
SPILL: Final = 2  # times the mean of those that live


class Place(Protocol):
    """Where a request may go: by name, with the number of ours that run there."""

    @property
    def url(self) -> str: ...
    @property
    def running(self) -> int: ...
    @property
    def is_alive(self) -> bool: ...


P = TypeVar("P", bound=Place)


@dataclass(slots=True)
class Server:
    """One server; `running` counts our requests at it."""

    url: str
    running: int = 0
    failures: int = 0

    @property
    def is_alive(self) -> bool:
        """Whether it may be given requests."""
        return self.failures < FAILURES_MAX


def choose(servers: Sequence[P], adapter: bytes) -> P | None:
    """The server for one more request with that adapter (empty: the base); None: all are lost."""
    alive = [server for server in servers if server.is_alive]
    if not alive:
        return None
    home = max(alive, key=lambda server: sha256(adapter, server.url.encode()))
    mean = sum(server.running for server in alive) / len(alive)
    if home.running + 1 > SPILL * max(mean, 1):
        return min(alive, key=lambda server: (server.running, server.url))
    return home
