"""What is told while a command waits: whether anybody is there, how old the newest block is.

Why: without peers a transaction waits for its whole time, and silence looks like work.
What it does not know: what is waited for.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from node.cli.frame import Frame, note

if TYPE_CHECKING:
    from node.web.ask import Node

LOOK_S: Final = 10.0
OLD_S: Final = 90  # three heartbeats: a network that is well has a younger block
ANSWER_S: Final = 2.0  # for one look: it must not hold up the command's end


@contextmanager
def telling(frame: Frame) -> Iterator[threading.Event]:
    """Tell on stderr at once of a node without peers or with old blocks, and each LOOK_S how it
    stands, until the body ends or the event that it gets is set."""
    came = threading.Event()
    node, began_s = frame.daemon(timeout_s=ANSWER_S), time.monotonic()
    teller = threading.Thread(target=_tell, args=(node, came, began_s), daemon=True)
    teller.start()
    try:
        yield came
    finally:
        came.set()
        teller.join(ANSWER_S)


def _tell(node: "Node", came: threading.Event, began_s: float) -> None:
    while (status := _look(node)) is not None and not came.is_set():
        waited_s = time.monotonic() - began_s
        age_s = max(0, time.time_ns() // 10**6 - status["time_ms"]) // 1_000
        if not status["peers"] and status["validators"] > 1:
            note(f"{waited_s:.0f} s: this node has no peers, and no block comes: olnode peers list")
        elif waited_s >= LOOK_S or age_s >= OLD_S:
            newest = f"the newest block here, {status['height']}, is {age_s} s old"
            note(f"{waited_s:.0f} s: {newest}; {status['peers']} peers")
        if came.wait(LOOK_S):
            return


def _look(node: "Node") -> dict[str, Any] | None:
    """The node's status; None where it does not tell: the command finds out why."""
    from node.web.ask import Refusal, Unreachable

    try:
        return node.get("/status")
    except (Refusal, Unreachable):
        return None
