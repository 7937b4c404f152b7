"""Every number of the peer floor, named; and the token bucket that enforces rates.

Why one file: an operator and a reviewer see all bounds at once (page 70 §3–§8), and the real and
the simulated network cannot differ in them.
What this file does not know: what the bytes of a topic or a protocol mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

KiB: Final = 1 << 10
MiB: Final = 1 << 20

# --- frames and streams (§6, §7)
FRAME_BYTES_MAX: Final = 4 * MiB + 64 * KiB
FRAME_BODY_S: Final = 10.0  # once its length is read, a whole frame must follow: no slow drip
FRAME_BYTES_S_MIN: Final = 64 * KiB  # so a large one has so much more time
TCP_READ_BYTES: Final = 128 * KiB  # taken from a socket at once
STREAM_READ_BYTES: Final = 64 * KiB  # the same of a stream of the library
COPIED_BYTES_MAX: Final = 256 * KiB  # a larger body is not copied behind its length
ITEMS_MAX: Final = 128  # of any one array of ours
DEPTH_MAX: Final = 6  # of arrays in arrays
FRAMES_AT_ONCE: Final = 4  # of one stream, 64 KiB each; then another may write
CREDIT_S: Final = 5.0  # as the library: a writer without credit for so long loses its stream
CREDIT_LOOK_S: Final = 0.1
CREDIT_SLACK_BYTES: Final = 1 * KiB  # greeting, length and envelope around a reply
ENVELOPE_BYTES_MAX: Final = 32  # what [code, retry_ms, body] adds to a body
STUCK_WRITE_S: Final = 6.0  # a frame half written for so long: the connection is lost
STREAMS_MAX: Final = 256  # served at once, all peers together
STREAMS_PER_PEER_MAX: Final = 16
BULK_BYTES: Final = 512 * KiB  # a reply that may be larger counts in the next two
REPLIES_BYTES_MAX: Final = 128 * MiB  # being made, or not taken yet by who asked
REPLIES_BYTES_STRANGERS_MAX: Final = REPLIES_BYTES_MAX * 3 // 4  # the rest is for the reserved
REPLIES_BYTES_PER_PEER_MAX: Final = 20 * MiB  # four of the largest
LARGE_BYTES: Final = 64 * KiB  # a larger reply waits its turn
BUSY_RETRY_MS: Final = 200
UPLOAD_QUEUE_MAX: Final = 1 / 2  # of a protocol's time: who waits longer has left before its reply
GONE_S: Final = 0.05  # a write that fails so soon has moved next to nothing
WINDOW_BYTES_MAX: Final = FRAME_BYTES_MAX + 64 * KiB  # let come on a stream before it is read
UNREAD_SLACK_BYTES: Final = 64 * KiB  # held unread above the window that we gave
STREAMS_PER_CONNECTION_MAX: Final = 128  # the peer's own, raw: `infer` 64, requests 16, and others
REFUSED_STREAMS_MAX: Final = 256  # above that, of one connection: then it is closed
REFUSED_STREAMS_S: Final = 4.0  # forgiven
OPENED_STREAMS_S: Final = 256.0  # by the peer, of one connection: what PROTOCOLS lets it ask
OPENED_STREAMS_BURST: Final = 512  # above that it is closed
NEGOTIATION_LINE_BYTES_MAX: Final = 1 * KiB  # a protocol's name, from anybody who connects
OPEN_S: Final = 5.0  # to open a stream and agree on its protocol
CLOSE_S: Final = 1.0  # to tell the other side of a reset or close; then we just forget it
STOP_S: Final = 3.0  # running requests may end while we stop

# --- gossip (§5)
GOSSIP_BYTES_MAX: Final = 512 * KiB  # at 1 MiB the library drops silently
RPC_BYTES_MAX: Final = 1 * MiB  # one frame of gossip, and what may stand in it
RPC_MESSAGES_MAX: Final = 1_024  # more than the history that we tell of
RPC_SUBSCRIPTIONS_MAX: Final = 64
RPC_CONTROLS_MAX: Final = 64  # of one kind: a few for each topic
RPC_IDS_MAX: Final = 8_192  # told of or asked for
RPC_WANTED_BYTES_MAX: Final = 1 * MiB  # of messages, in answer to one frame
PRUNE_BACKOFF_S_MAX: Final = 600  # that a peer may ask of us: it is remembered for so long
FORWARDER_RATE_S: Final = 300.0
FORWARDER_BURST: Final = 600
FORWARDER_BYTES_S: Final = 8 * MiB
FORWARDER_BYTES_BURST: Final = 32 * MiB
FORWARDER_PATIENCE_S: Final = 10.0  # over the bucket for so long: penalised once each such time
SEEN_S: Final = 120  # each hit renews the mark
JUDGE_MS_MAX: Final = 2.0
OUTBOUND_QUEUE: Final = 1_024  # per peer, 32 by default
OUTBOUND_QUEUE_BYTES_MAX: Final = 8 * MiB
PENDING_MAX: Final = 8  # gossip kept for a peer whose subscriptions are not known yet
PENDING_S: Final = 3.0
AUTHORS_MAX: Final = 8_192  # buckets kept; the longest unused goes first
TOPICS_MAX: Final = 8
MESH_LOW: Final = 4
MESH: Final = 6
MESH_HIGH: Final = 12
HEARTBEAT_S: Final = 1
HISTORY_WINDOW: Final = 3  # heartbeats told of; outages are mended by catch-up, not by gossip
HISTORY: Final = 5

# --- connections (§3, §8)
CONNECTIONS_MAX: Final = 64
OUTBOUND_MAX: Final = 16  # with those that one of ours wanted to ask
OUTBOUND_TARGET: Final = 8
INBOUND_MAX: Final = 32
PER_ADDRESS_MAX: Final = 4  # where private addresses are not allowed
PER_GROUP_MAX: Final = 8  # a /24 or /48, where private addresses are not allowed
CONNECTIONS_PER_PEER_MAX: Final = 2
COME_ANEW_S: Final = 10.0  # a peer linked for so long that connects again has lost the first
UPGRADE_S: Final = 5.0
DIAL_S: Final = 6.0
DIALS_AT_ONCE_MAX: Final = 8
DIALLER_LOOK_S: Final = 0.25  # whom to dial; woken at once by news
ADMITTED_LOOK_S: Final = 0.05  # whether a peer is admitted, when somebody waits for it
REACH_LOOK_S: Final = 0.05
REACH_S: Final = 10.0  # for a peer that one of ours wants to ask: dialled, and admitted by status
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_NEAR_S: Final = 30.0  # the operator's peers, and those that we were linked with
BACKOFF_NEAR_TRIES: Final = 20  # of the latter in vain, about ten minutes: then as all others
BACKOFF_FAR_S: Final = 600.0
BACKOFF_JITTER: Final = 0.3
LOOKED_AT_MAX: Final = 512  # of the book at one look of the dialler: some 20 ms
PASSED_OVER_S: Final = 30.0  # not looked at again: no address to dial, or its /16 is taken
STATUS_BYTES_MAX: Final = 2 * KiB
STATUS_WITHIN_S: Final = 5.0  # the dialler sends it, or we disconnect
STATUS_EVERY_S: Final = 60.0  # again, so that heights and bindings stay fresh
WRONG_CHAIN_S: Final = 3_600.0  # such an address is set aside
MESHED_WITHIN_S: Final = 10.0  # then its gossip stream is opened again; twice that: redial
CLOCK_SKEW_MS_MAX: Final = 30_000  # beyond it we warn, nothing else

# --- keepalive (§8)
PING_EVERY_S: Final = 15.0
PING_EVERY_DEVNET_S: Final = 3.0
PING_JITTER: Final = 0.2
PING_S: Final = 5.0
PING_BYTES_MAX: Final = 64
PING_AGAIN: Final = 1 / 3  # of the usual wait, after a miss: 15 s to notice in a devnet, 34 else
PING_MISSES_MAX: Final = 2

# --- addresses and the book (§8)
ADDRESS_BYTES_MAX: Final = 128
OPERATORS_ADDRESS_BYTES_MAX: Final = 512  # with names, relays and peer ids in one
ADDRESSES_MAX: Final = 8
BINDING_BYTES_MAX: Final = 256
RECORD_BYTES_MAX: Final = 1 * KiB
RECORD_AHEAD_MS_MAX: Final = 600_000
RECORD_AGE_MS_MAX: Final = 7 * 86_400_000
RECORD_RENEW_S: Final = 6 * 3_600.0
SOFTWARE_BYTES_MAX: Final = 64
BOOK_ENTRIES_MAX: Final = 4_096
BOOK_BYTES_MAX: Final = BOOK_ENTRIES_MAX * 2 * KiB
BOOK_GROUP_MAX: Final = 4
BOOK_SOURCE_MAX: Final = 64
BOOK_UNSEEN_MS_MAX: Final = 30 * 86_400_000
BOOK_SAVE_S: Final = 60.0
ANCHORS_MAX: Final = 4
EXCHANGE_RECORDS_MAX: Final = 64
PEERS_BYTES_MAX: Final = 64 * KiB  # of them together
EXCHANGE_PEERS: Final = 2
EXCHANGE_SOON_S: Final = (5.0, 30.0)  # while outbound peers are missing
EXCHANGE_LATE_S: Final = 600.0

HINTED_MAX: Final = 64  # peers of which nothing but an unsigned hint is known
HINT_ADDRESSES_MAX: Final = 4

# --- multicast DNS (§8): only where private addresses are allowed
MDNS_TEXT_BYTES_MAX: Final = 2 * KiB
MDNS_QUEUE_MAX: Final = 256  # from its thread to ours
MDNS_PEERS_MAX: Final = 256  # neighbours that are remembered until their goodbye
MDNS_RESOLVE_MS: Final = 3_000
MDNS_RETRY_S: Final = 60.0
MDNS_LOOK_S: Final = 30.0  # for other addresses of this machine
MDNS_STOP_S: Final = 2.0  # for a goodbye

# --- circuits through a relay (§13): experimental, off by default
RESERVATIONS_MAX: Final = 8  # places that a relay gives
RESERVATION_S: Final = 3_600.0
RELAYS_USED_MAX: Final = 2  # at which a client holds a place
CIRCUITS_MAX: Final = 8  # carried at once by a relay; taken at once by a client
CIRCUIT_S: Final = 120.0
CIRCUIT_BYTES_MAX: Final = 1 * MiB  # both ways together
RELAY_READ_BYTES: Final = 16 * KiB  # at once, of a circuit that is carried
RELAY_LOOK_S: Final = 2.0  # whether our places stand
RELAY_MESSAGE_BYTES_MAX: Final = 4 * KiB
RELAYED_PROTOCOLS: Final = frozenset(
    {"ping", "status", "peers", "headers", "light", "offers", "infer"}
)  # all that a circuit may carry: no gossip, consensus, blocks or blobs

# --- scores (§8)
SCORE_HALF_LIFE_S: Final = 600.0
BAN_AT: Final = 100
BAN_FIRST_S: Final = 600.0
BAN_MAX_S: Final = 86_400.0
BAN_RESERVED_MAX_S: Final = 60.0
BAN_ASKED_MAX_S: Final = 30 * 86_400.0  # by the operator; for ever is `deny` of the config
PEERS_REMEMBERED_MAX: Final = 8_192  # scores and bans; the least guilty unconnected go first
PENALTIES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "malformed": 20,
        "rejected": 5,
        "forged": 50,
        "false_chunk": 50,
        "flooding": 20,
        "empty_promise": 5,
        "no_status": 10,
        "timeout": 2,
    }
)

# --- supervisor (§9)
RESTART_FIRST_S: Final = 1.0
RESTART_MAX_S: Final = 60.0
RESTARTS_READY_MAX: Final = 10  # within the next figure: more means not ready
RESTARTS_WINDOW_S: Final = 600.0
EVENTS_QUEUE_MAX: Final = 1_024


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """Bounds of one gossip topic; `full` says what a full queue of ours drops."""

    bytes_max: int
    author_rate_s: float
    author_burst: int
    queue_max: int
    full: Literal["drop newest", "drop oldest"] = "drop newest"


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """Bounds of one request protocol, or of one kind of duplex stream (`timeout_s` infinite).

    `rate_s` and `burst` count requests of one peer, `at_once_max` its running ones. For streams
    `request_max` and `reply_max` bound frames read and written, and `total_max` all peers'.
    """

    request_max: int
    reply_max: int
    timeout_s: float
    rate_s: float
    at_once_max: int
    burst: int = 4
    total_max: int = STREAMS_MAX
    admitted_only: bool = True


TOPICS: Final[Mapping[str, TopicLimits]] = MappingProxyType(
    {
        "txs": TopicLimits(66 * KiB, 10, 50, 4_096),
        # The burst is 5 s of the rate: what was held up on its way is not its author's fault.
        "bundles": TopicLimits(GOSSIP_BYTES_MAX, 12, 60, 256),
        "votes": TopicLimits(66 * KiB, 20, 200, 4_096, "drop oldest"),
        "offers": TopicLimits(8 * KiB, 0.1, 3, 512),
    }
)

_DUPLEX = ServeLimits(1 * MiB + 64 * KiB, 1 * MiB + 64 * KiB, float("inf"), 1, 2)

PROTOCOLS: Final[Mapping[str, ServeLimits]] = MappingProxyType(
    {
        "ping": ServeLimits(64, 64, 5, 2, 1, burst=8, admitted_only=False),
        "status": ServeLimits(2 * KiB, 2 * KiB, 5, 0.5, 1, admitted_only=False),
        "peers": ServeLimits(64, 64 * KiB, 5, 0.1, 1, admitted_only=False),
        "blocks": ServeLimits(64, 4 * MiB, 10, 8, 2, burst=16),
        "headers": ServeLimits(64, 2 * MiB, 10, 4, 2, burst=8),
        "light": ServeLimits(64 * KiB, 256 * KiB, 5, 20, 4, burst=40),
        "bundles": ServeLimits(2 * MiB + 128 * KiB, 4 * MiB, 10, 8, 2, burst=16),
        "pool": ServeLimits(16 * 67 * KiB, 64, 5, 1, 1),
        "snapshot": ServeLimits(64, 4 * MiB + 64 * KiB, 20, 8, 2, burst=16),
        "blob": ServeLimits(64, 1 * MiB + 64 * KiB, 20, 128, 4, burst=128),
        "offers": ServeLimits(64, 256 * KiB, 5, 1, 1),
        "audit": ServeLimits(8 * KiB, 4 * MiB, 30, 4, 2, burst=8),
        "consensus": replace(_DUPLEX, burst=8),
        "infer": replace(_DUPLEX, rate_s=64, burst=64, at_once_max=64, total_max=512),
    }
)


class TokenBucket:
    """`rate_s` tokens a second up to `burst`; time is given, never read."""

    __slots__ = ("_at_s", "_burst", "_rate_s", "_tokens")

    def __init__(self, rate_s: float, burst: float, now_s: float) -> None:
        self._rate_s = rate_s
        self._burst = burst
        self._tokens = float(burst)
        self._at_s = now_s

    def take(self, now_s: float, count: float = 1.0) -> bool:
        """Take `count` tokens if they are there; False takes none."""
        self._refill(now_s)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def wait_s(self, now_s: float, count: float = 1.0) -> float:
        """Seconds until `count` tokens will be there (0 when they are)."""
        self._refill(now_s)
        missing = count - self._tokens
        return max(0.0, missing / self._rate_s)

    def _refill(self, now_s: float) -> None:
        if now_s > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_s)
            self._at_s = now_s
