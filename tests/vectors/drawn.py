"""Peers' messages as p2p/WIRE.md shows them: msgpack's items apart, long byte strings cut.

    > what the opener of a stream says      < what the other side answers      * data of gossip

A message of at most WHOLE_BYTES is shown to its last byte. Of a longer one, byte strings keep their
first bytes, `…842` stands for 842 left out, and the last line has the hash of all. A few are told
line by line: offset, bytes, meaning.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from vectors.peers import GOSSIP, REPLY, Said, peer_examples

from p2p.framing import LENGTH_BYTES

WHOLE_BYTES: Final = 184
KEPT_BYTES: Final = 40  # of a longer message, byte strings of so many are whole, e.g. hashes
CUT_BYTES: Final = 12  # of a longer one
LINE: Final = 92  # characters of hex
LINES_MAX: Final = 5
TOLD_BYTES: Final = 34  # a line with its meaning: a hash with its head

_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # heads of byte strings → bytes of the length
_ARRAYS: Final = {0xDC: 2, 0xDD: 4}
_INTEGERS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


class Item(NamedTuple):
    """A piece of canonical msgpack: the head of an array, an integer, or a byte string."""

    head: bytes
    content: bytes = b""


def items(raw: bytes) -> Iterator[Item]:
    """From the first byte to the last; arrays give their head, then their items."""
    at = 0
    while at < len(raw):
        first = raw[at]
        width = _BYTES.get(first, 0) or _ARRAYS.get(first, 0) or _INTEGERS.get(first, 0)
        head = raw[at : at + 1 + width]
        at += len(head)
        size = int.from_bytes(head[1:], "big") if first in _BYTES else 0
        yield Item(head, raw[at : at + size])
        at += size


def pieces(said: Said) -> list[Item]:
    """The length, the envelope of a reply apart from its body, the fields."""
    if said.by == GOSSIP:
        return list(items(said.raw))
    length, body = said.raw[:LENGTH_BYTES], said.raw[LENGTH_BYTES:]
    found = [Item(length), *items(body)]
    if said.by == REPLY and len(found) == 5 and found[1].head == b"\x93":
        *envelope, answer = found
        if answer.content[:1] and 0x90 <= answer.content[0] <= 0xDD:
            return [*envelope, Item(answer.head), *items(answer.content)]
    return found


# ---- without meanings


def word(item: Item, is_whole: bool) -> str:
    shown = item.content
    if is_whole or len(shown) <= KEPT_BYTES:
        return (item.head + shown).hex()
    return f"{item.head.hex()} {shown[:CUT_BYTES].hex()}…{len(shown) - CUT_BYTES}"


def wrapped(words: Iterable[str]) -> list[str]:
    """Lines of at most LINE characters; a word that is longer begins a line and goes on."""
    lines, here = [], ""
    for each in words:
        if here and len(here) + 1 + len(each) > LINE:
            lines.append(here)
            here = ""
        here = f"{here} {each}" if here else each
        while len(here) > LINE:
            lines.append(here[:LINE])
            here = here[LINE:]
    return [*lines, here]


def plain_lines(said: Said) -> list[str]:
    is_whole = len(said.raw) <= WHOLE_BYTES
    lines = wrapped(word(item, is_whole) for item in pieces(said))
    told = [f"{said.by if not number else ' '} {line}" for number, line in enumerate(lines)]
    if not is_whole:
        if len(told) > LINES_MAX:
            told[LINES_MAX:] = ["  and so on"]
        told.append(f"  = {sha256(said.raw).hexdigest()}, {len(said.raw):,} bytes")
    return told


# ---- with meanings

ENVELOPE = ("the reply", "code", "retry_ms", "the body")
RECORD = (
    "an address record", "its body", "version", "peer_key", "seq_ms", "addresses",
    "/ip6/2001:db8::2/tcp/4001", "roles: validator", "binding: its validator's key",
    "the record's signature",
)  # fmt: skip
STATUS = (
    "a status", "version", "chain_id", "software: olnode/1.0.0", "roles: validator",
    "height: it has only the genesis", "block_id: of none", "earliest", "snapshot_height: none",
    "time_ms", *RECORD,
)  # fmt: skip
VOTE = ("a message of votes", "3: the topic's kind", "kind 2: a vote", "the vote, 111 bytes")
MEANINGS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "ping": (("a ping", "nonce"), (*ENVELOPE, "a ping", "nonce")),
    "status": (STATUS,),
    "gossip votes 2": (VOTE,),
}  # fmt: skip


def told_lines(said: Said, meanings: Sequence[str]) -> list[str]:
    lines, at = [], 0
    parts = pieces(said)
    if said.by != GOSSIP:
        length = int.from_bytes(parts[0].head, "big")
        meanings = (f"{length} bytes follow", *meanings)
    for item, meaning in zip(parts, meanings, strict=True):
        raw = item.head + item.content
        for start in range(0, len(raw), TOLD_BYTES):
            part = raw[start : start + TOLD_BYTES]
            what = meaning if not start else ""
            lines.append(f"{said.by} {at:3d}  {part.hex():<68}  {what}".rstrip())
            at += len(part)
    assert at == len(said.raw)
    return lines


# ---- blocks of the document


def block_lines(name: str, example: Sequence[Said]) -> list[str]:
    meanings = MEANINGS.get(name, ())
    lines: list[str] = []
    for number, said in enumerate(example):
        if number < len(meanings):
            lines += told_lines(said, meanings[number])
        else:
            lines += plain_lines(said)
    return lines


def blocks() -> dict[str, list[str]]:
    """The lines between the fences, by the name behind the first."""
    return {name: block_lines(name, example) for name, example in peer_examples().items()}
