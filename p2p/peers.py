"""Who a peer is, what we know of it, and what it has done to us: ids, views, scores, bans.

Why a peer is its key: one 32-byte Ed25519 key is the node's identity on every floor; the base58
text that libp2p shows is only another spelling, made and read here without libp2p.
Why bans end: an id is cheap for a liar and dear to an honest node that once had a bug.
What this file does not know: connections, sockets, what a penalty was for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NewType

from p2p.errors import Misbehaving
from p2p.limits import (
    BAN_ASKED_MAX_S,
    BAN_AT,
    BAN_FIRST_S,
    BAN_MAX_S,
    BAN_RESERVED_MAX_S,
    PEERS_REMEMBERED_MAX,
    SCORE_HALF_LIFE_S,
)

PeerId = NewType("PeerId", bytes)  # the 32-byte Ed25519 public key

KEY_BYTES: Final = 32
# Multihash "identity", 36 bytes: a protobuf PublicKey {type: Ed25519, data: 32 bytes}.
_ID_HEAD: Final = bytes.fromhex("002408011220")
_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PLACE: Final = {letter: place for place, letter in enumerate(_ALPHABET)}
_TEXT_MAX: Final = 64  # characters of a peer id's text; ours have 52


def peer_id_text(key: bytes) -> str:
    """The base58 peer id of a 32-byte key, as libp2p and its tools print it (`12D3KooW…`)."""
    assert len(key) == KEY_BYTES
    raw = _ID_HEAD + key
    number, letters = int.from_bytes(raw, "big"), ""
    while number:
        number, place = divmod(number, 58)
        letters = _ALPHABET[place] + letters
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + letters


def key_of_peer_id(text: str) -> PeerId:
    """The key inside a base58 peer id; Misbehaving unless it is one of an Ed25519 key."""
    if not 0 < len(text) <= _TEXT_MAX or any(letter not in _PLACE for letter in text):
        raise Misbehaving("not a base58 peer id")
    number = 0
    for letter in text:
        number = number * 58 + _PLACE[letter]
    zeros = len(text) - len(text.lstrip("1"))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) >> 3, "big")
    return key_of_id_bytes(raw)


def key_of_id_bytes(raw: bytes) -> PeerId:
    """The key inside a binary peer id; Misbehaving unless it is one of an Ed25519 key."""
    if len(raw) != len(_ID_HEAD) + KEY_BYTES or not raw.startswith(_ID_HEAD):
        raise Misbehaving("not the peer id of an Ed25519 key")
    return PeerId(raw[len(_ID_HEAD) :])


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What our ledger says of itself in `status`; the owner gives a callable that makes it."""

    roles: int = 0  # bit 0 validator, 1 provider, 2 archive, 3 relay, 4 light, 5 auditor
    height: int = 0
    block_id: bytes = b""
    earliest: int = 0
    snapshot_height: int = 0


@dataclass(frozen=True, slots=True)
class PeerView:
    """One connected peer as we see it now. What it tells of itself steers nothing."""

    peer: PeerId
    outbound: bool  # we dialled it
    admitted: bool
    reserved: bool
    since_ms: int
    score: int
    ping_ms: int | None
    software: str
    facts: StatusFacts
    addresses: tuple[str, ...]  # announced by itself in its signed record
    binding: bytes  # judged good by the owner, or empty


@dataclass(frozen=True, slots=True)
class Joined:
    """A peer was admitted, or an admitted peer's binding has changed."""

    peer: PeerId
    outbound: bool
    facts: StatusFacts
    binding: bytes


@dataclass(frozen=True, slots=True)
class Left:
    """An admitted peer is connected no more."""

    peer: PeerId


@dataclass(slots=True)
class _Record:
    points: float = 0.0
    at_s: float = 0.0
    banned_until_s: float = 0.0
    next_ban_s: float = BAN_FIRST_S
    clean_since_s: float = 0.0


class Scores:
    """Points per peer, halved every 10 minutes; at 100 a ban, each twice as long as the last."""

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}

    def penalise(self, peer: PeerId, points: int, now_s: float, *, reserved: bool) -> bool:
        """Add `points`; True when this begins a ban."""
        record = self._records.get(peer)
        if record is None:
            self._make_room(now_s)
            record = self._records[peer] = _Record(at_s=now_s, clean_since_s=now_s)
        record.points = self._faded(record, now_s) + points
        record.at_s = now_s
        if record.points < BAN_AT or record.banned_until_s > now_s:
            return False
        # Halved after each clean day: a node mended long ago starts again with a short one.
        for _ in range(min(8, int((now_s - record.clean_since_s) // 86_400.0))):
            record.next_ban_s = max(BAN_FIRST_S, record.next_ban_s / 2)
        length_s = min(record.next_ban_s, BAN_RESERVED_MAX_S if reserved else BAN_MAX_S)
        record.banned_until_s = record.clean_since_s = now_s + length_s
        record.next_ban_s = min(BAN_MAX_S, record.next_ban_s * 2)
        record.points = 0.0
        return True

    def ban(self, peer: PeerId, length_s: float, now_s: float) -> None:
        """The operator's ban, instead of any other: reserved peers are no exception."""
        assert 0 < length_s <= BAN_ASKED_MAX_S
        self._make_room(now_s)
        until_s = now_s + length_s
        self._records[peer] = _Record(0.0, now_s, until_s, BAN_FIRST_S, until_s)

    def forgive(self, peer: PeerId) -> None:
        """No points, no ban, and the next one is short again."""
        self._records.pop(peer, None)

    def score(self, peer: PeerId, now_s: float) -> int:
        """Points now, rounded down."""
        record = self._records.get(peer)
        return int(self._faded(record, now_s)) if record else 0

    def is_banned(self, peer: PeerId, now_s: float) -> bool:
        record = self._records.get(peer)
        return record is not None and record.banned_until_s > now_s

    def bans(self, now_s: float) -> Mapping[PeerId, float]:
        """Seconds left of each ban."""
        return {
            peer: record.banned_until_s - now_s
            for peer, record in self._records.items()
            if record.banned_until_s > now_s
        }

    def restore(self, bans: Iterable[tuple[PeerId, float]], now_s: float) -> None:
        """Bans of an earlier run: (peer, seconds left)."""
        for peer, left_s in bans:
            self._make_room(now_s)
            until_s = now_s + min(left_s, BAN_ASKED_MAX_S)
            self._records[peer] = _Record(0.0, now_s, until_s, BAN_FIRST_S * 2, until_s)

    def _faded(self, record: _Record, now_s: float) -> float:
        points: float = record.points * 0.5 ** ((now_s - record.at_s) / SCORE_HALF_LIFE_S)
        return points

    def _make_room(self, now_s: float) -> None:
        if len(self._records) < PEERS_REMEMBERED_MAX:
            return
        worth = {
            peer: (record.banned_until_s > now_s, self._faded(record, now_s))
            for peer, record in self._records.items()
        }
        for peer in sorted(worth, key=worth.__getitem__)[: PEERS_REMEMBERED_MAX // 8]:
            del self._records[peer]
