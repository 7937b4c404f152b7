"""Signed address records: a peer's own word on where it listens, what it is, whom it speaks for.

[body, signature], body = [version, peer_key, seq_ms, [address…], roles, binding or empty], signed
by the peer over `olnode/1/address\\0`, chain id and body (page 70 §8): no one can speak for
another's address. `binding` is opaque here; the owner of the network judges it.
What this file does not know: how to sign, which libp2p key object is behind it.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from p2p.addresses import Address, Reach, is_usable, parse_address
from p2p.errors import Misbehaving
from p2p.framing import Value, encode, fields
from p2p.limits import (
    ADDRESSES_MAX,
    BINDING_BYTES_MAX,
    RECORD_AGE_MS_MAX,
    RECORD_AHEAD_MS_MAX,
    RECORD_BYTES_MAX,
)
from p2p.peers import KEY_BYTES, PeerId

RECORD_VERSION: Final = 1
_SIGNED_AS: Final = b"olnode/1/address\0"


class Identity(Protocol):
    """Our key, and the check of others' signatures."""

    @property
    def key(self) -> PeerId: ...

    def sign(self, message: bytes) -> bytes: ...

    def is_signed_by(self, key: PeerId, message: bytes, signature: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """A checked record; `value` is its wire form [body, signature]."""

    peer: PeerId
    seq_ms: int
    addresses: tuple[Address, ...]
    roles: int
    binding: bytes
    value: Value

    def usable(self, reach: Reach) -> tuple[Address, ...]:
        """Its addresses that our network may use; the rest is neither dialled nor refused."""
        return tuple(address for address in self.addresses if is_usable(address, reach))

    def is_tellable(self, reach: Reach) -> bool:
        """It is signed as a whole, so one address that we may not tell keeps us from all."""
        return bool(self.addresses) and self.usable(reach) == self.addresses

    def is_fresh(self, now_ms: int) -> bool:
        """Young enough to be told to others."""
        return self.seq_ms >= now_ms - RECORD_AGE_MS_MAX


def make_record(
    identity: Identity,
    chain_id: bytes,
    *,
    seq_ms: int,
    addresses: tuple[Address, ...],
    roles: int,
    binding: bytes,
) -> AddressRecord:
    """Our own record, signed."""
    assert len(addresses) <= ADDRESSES_MAX
    assert len(binding) <= BINDING_BYTES_MAX
    texts = tuple(address.text().encode() for address in addresses)
    body: Value = (RECORD_VERSION, bytes(identity.key), seq_ms, texts, roles, binding)
    signature = identity.sign(_SIGNED_AS + chain_id + encode(body))
    return AddressRecord(identity.key, seq_ms, addresses, roles, binding, (body, signature))


def read_record(value: Value, identity: Identity, chain_id: bytes, now_ms: int) -> AddressRecord:
    """Check a record of anyone, its signature last; Misbehaving if anything is wrong."""
    body, signature = fields(value, tuple, bytes, what="record")
    parts = fields(body, int, bytes, int, tuple, int, bytes, what="record body")
    version, key, seq_ms, texts, roles, binding = parts
    if version != RECORD_VERSION or len(key) != KEY_BYTES or len(signature) != 64:
        raise Misbehaving("record: version, key or signature")
    if len(texts) > ADDRESSES_MAX or len(binding) > BINDING_BYTES_MAX or roles > 0xFFFF:
        raise Misbehaving("record: too much in it")
    if seq_ms > now_ms + RECORD_AHEAD_MS_MAX:
        raise Misbehaving("record: from the future")
    raw = encode(body)
    if len(raw) > RECORD_BYTES_MAX:
        raise Misbehaving("record: too long")
    addresses = []
    for text in texts:
        if type(text) is not bytes or not text.isascii():
            raise Misbehaving("record: not an address")
        address = parse_address(text.decode("ascii"))
        if address.peer not in (None, key):
            raise Misbehaving("record: another peer's address")
        addresses.append(address)
    peer = PeerId(key)
    if not identity.is_signed_by(peer, _SIGNED_AS + chain_id + raw, signature):
        raise Misbehaving("record: not signed by its peer")
    return AddressRecord(peer, seq_ms, tuple(addresses), roles, binding, value)
