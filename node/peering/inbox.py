"""What the parts of a replica share: its inbox, and the means to work beside its task.

Why one inbox: everything that happens (a frame, an executed block, blocks from peers) is handled
to the end before the next, so order is a fact and a journal of inputs can be replayed. Why only
frames are ever dropped: peers may send more than we can read, while the rest is our own work.
What this file does not know: what an event leads to.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from node.ledger.wire.blocks import Block
from node.peering.catchup import Decided
from node.peering.proposer import Built
from node.storage.chain import Chain, Verdict
from p2p.network import Network, PeerId

INBOX_MAX: Final = 4_096

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread
Spawn = Callable[..., None]  # (async function, *arguments): a task of the replica's nursery


@dataclass(frozen=True, slots=True)
class Heard:
    """A frame from a peer, by stream or gossip; its shape is not checked yet."""

    peer: PeerId
    kind: int
    body: bytes
    received_ms: int


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of executing another's block."""

    height: int
    block_id: bytes
    block: Block
    verdict: Verdict | None  # None: something is missing still, or we failed


@dataclass(frozen=True, slots=True)
class OwnBlock:
    """The block that `BuildPayload` asked for."""

    height: int
    round: int
    built: Built


@dataclass(frozen=True, slots=True)
class Fetched:
    """A block that was asked of peers by its id, or None if nobody had it."""

    height: int
    block_id: bytes
    block: Block | None


@dataclass(slots=True)
class Offered:
    """Decided blocks from peers; `done` is set when they are in the chain or refused."""

    blocks: Sequence[Decided]
    done: trio.Event
    refusal: Exception | None = None


Event = Heard | Executed | OwnBlock | Fetched | Offered


class Inbox:
    """Events in the order they came, for one reader."""

    def __init__(self, counters: Counter[str]) -> None:
        self._events: deque[Event] = deque()
        self._arrived = trio.Event()
        self._counters = counters

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Queue an event; a frame is dropped and counted when INBOX_MAX wait already."""
        if len(self._events) >= INBOX_MAX and isinstance(event, Heard):
            self._counters["inbox_full"] += 1
            return
        self._events.append(event)
        self._arrived.set()

    def take(self) -> Event:
        """The oldest event; there is one."""
        return self._events.popleft()

    def wake(self) -> None:
        """Let the reader look around, though nothing has come."""
        self._arrived.set()

    async def wait_until(self, due_s: float) -> None:
        """Until something is here, or `due_s` on trio's clock, or a `wake`."""
        if not self._events:
            with trio.move_on_at(due_s):
                await self._arrived.wait()
        self._arrived = trio.Event()


@dataclass(frozen=True, slots=True)
class Means:
    """What every part of one replica works with. Only `replica.py` appends to the chain."""

    network: Network
    chain: Chain
    inbox: Inbox
    counters: Counter[str]
    now_ms: Callable[[], int]  # the wall clock
    spawn: Spawn
    run_blocking: RunBlocking
