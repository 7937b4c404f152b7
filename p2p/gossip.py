"""Topics: who may say how much, who judges it, and the bounded queue it waits in.

Why both networks share this file: what a message must pass is the same over libp2p and simulated
(page 70 §5), so a limit tested on one holds on the other. Why the author's bucket is charged only
after its signature was checked: else anyone could spend it.
What this file does not know: libp2p, meshes, what a message means.
"""

import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import trio

from p2p.limits import (
    AUTHORS_MAX,
    FORWARDER_BURST,
    FORWARDER_BYTES_BURST,
    FORWARDER_BYTES_S,
    FORWARDER_PATIENCE_S,
    FORWARDER_RATE_S,
    GOSSIP_BYTES_MAX,
    JUDGE_MS_MAX,
    TOPICS_MAX,
    TokenBucket,
    TopicLimits,
)
from p2p.peers import PeerId

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What a judge says: IGNORE drops without fault of the forwarder, REJECT scores it."""

    ACCEPT = "accepted"
    IGNORE = "ignored"
    REJECT = "rejected"


@dataclass(frozen=True, slots=True)
class Gossip:
    """One accepted message; `author` signed it, `forwarder` handed it to us."""

    topic: str
    author: PeerId
    forwarder: PeerId
    data: bytes
    received_ms: int
