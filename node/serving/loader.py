"""Reading behind the engine's back: one thread that loads adapters while the others' rows decode.

Why a thread: an adapter's folder takes milliseconds to hundreds of them to read and check, and no
row that decodes may wait for it (page 50 §4). Why one: two that read at once from one disk, or
pack on one core, take as long together; what is asked first comes first.
What this file does not know: what is read, who waits for it.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, NamedTuple, TypeVar

from node.serving.engine import AdapterRef, EngineError

T = TypeVar("T")


class Arrival(NamedTuple, Generic[T]):
    """What came of one reading, and how long it took."""

    ref: AdapterRef
    outcome: T | EngineError
    took_s: float


class Loader(Generic[T]):
    """Reads in order. `read` runs in the thread and raises nothing but EngineError."""

    def __init__(self, read: Callable[[AdapterRef], T]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._asked: deque[Future[Arrival[T]]] = deque()
        self._tell: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """Readings that were asked for and have not been taken."""
        return len(self._asked)

    def call_when_read(self, tell: Callable[[], None]) -> None:
        """`tell` is called from the thread after each reading; it must only wake somebody."""
        self._tell = tell

    def ask(self, ref: AdapterRef) -> None:
        """Read it, after those that were asked for before."""
        future = self._thread.submit(_timed, self._read, ref)
        self._asked.append(future)
        future.add_done_callback(self._wake)

    def arrivals(self) -> list[Arrival[T]]:
        """What has been read since last asked; never waits. A fault of ours in the thread is
        raised here."""
        found = []
        while self._asked and self._asked[0].done():
            found.append(self._asked.popleft().result())
        return found

    def wait(self) -> None:
        """Until the next reading is done, for callers with nothing else to do."""
        if self._asked:
            wait([self._asked[0]])

    def _wake(self, future: "Future[Arrival[T]]") -> None:
        if self._tell is not None:
            self._tell()


def _timed(read: Callable[[AdapterRef], T], ref: AdapterRef) -> Arrival[T]:
    began_s = time.monotonic()
    try:
        outcome: T | EngineError = read(ref)
    except EngineError as error:
        outcome = error
    return Arrival(ref, outcome, time.monotonic() - began_s)
