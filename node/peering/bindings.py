"""Which node a validator's key runs on: a binding signed by that key, carried by its peer.

Why signed: votes travel on direct streams, and a stranger that claimed a validator's key would
take its stream. The binding names the peer, so nobody can carry another's.
What this file does not know: how address records travel, private keys.
"""

from collections.abc import Callable, Container
from typing import Final, NamedTuple

from consensus.primitives.digest import signing_bytes
from consensus.primitives.encoding import SIG, U63, H, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import is_signed_by
from p2p.network import Network, PeerId

TAG: Final = b"peer"
BINDING_BYTES_MAX: Final = 256

_BINDING: Final = Record(H, H, U63, SIG)


class Binding(NamedTuple):
    """`validator` runs on `peer`; of two, the one with the greater `seq_ms` counts."""

    validator: bytes
    peer: bytes
    seq_ms: int
    signature: bytes


def make_binding(
    validator: bytes, peer: bytes, seq_ms: int, sign: Callable[[bytes, bytes], bytes]
) -> bytes:
    """Bytes for the address record; `sign(tag, body)` is the validator's."""
    return encode((validator, peer, seq_ms, sign(TAG, encode((validator, peer, seq_ms)))))


def read_binding(chain_id: bytes, peer: bytes, raw: bytes) -> Binding:
    """The binding in `raw`; raises `Invalid` `binding.…` unless it is about `peer` and signed."""
    binding = Binding(*decode(raw, _BINDING, BINDING_BYTES_MAX, "binding"))
    if binding.peer != peer:
        raise Invalid("binding.peer")
    body = encode((binding.validator, binding.peer, binding.seq_ms))
    message = signing_bytes(TAG, chain_id, body)
    if not is_signed_by(binding.validator, message, binding.signature):
        raise Invalid("binding.signature")
    return binding


def is_binding(chain_id: bytes, peer: bytes, raw: bytes) -> bool:
    """Whether `read_binding` would take it."""
    try:
        read_binding(chain_id, peer, raw)
    except Invalid:
        return False
    return True


def runs_one_of(
    network: Network, chain_id: bytes, peer: PeerId, validators: Container[bytes]
) -> bool:
    """Whether the newest binding of one of these validators is this peer's.

    By the peer's own first: of a stranger, nothing is decoded.
    """
    raw = network.bindings().get(peer)
    if raw is None:
        return False
    own = Binding(*decode(raw, _BINDING, BINDING_BYTES_MAX, "binding")).validator
    return own in validators and find_validator(network, chain_id, own) == peer


def find_validator(network: Network, chain_id: bytes, validator: bytes) -> PeerId | None:
    """The peer that runs `validator`, by the newest binding that the network judged good."""
    newest: tuple[int, PeerId] | None = None
    for peer, raw in network.bindings().items():
        binding = Binding(*decode(raw, _BINDING, BINDING_BYTES_MAX, "binding"))
        if binding.validator == validator and (newest is None or newest[0] < binding.seq_ms):
            newest = (binding.seq_ms, peer)
    return None if newest is None else newest[1]
