"""What an example of a wire object is, and how it is told in JSON.

An example is one value with its codec, and, where the object has them, what is signed, by whom, and
the hash that stands for it elsewhere. Bytes are hex in the file, integers are integers, arrays
arrays; so `fields`, packed by any msgpack, are the encoding. `wire` names an example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
from bundle_kit import Party

from consensus.primitives.digest import sha256, signing_bytes

CHAIN = sha256(b"a chain for examples")


class Signing(NamedTuple):
    """A signature by the key of `seed` over `olnode/1/<tag>\\0` ‖ chain id ‖ `body`."""

    tag: bytes
    body: bytes
    seed: bytes
    signature: bytes

    @property
    def message(self) -> bytes:
        return signing_bytes(self.tag, CHAIN, self.body)


class Example(NamedTuple):
    """A value, its encoding, its codec; `digest` is what names it elsewhere, `named` what as."""

    value: Any
    raw: bytes
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    signing: Signing | None = None
    named: str = ""
    digest: bytes = b""


def h(word: str) -> bytes:
    """A hash that is one of nothing: SHA-256 of a word."""
    return sha256(word.encode())


def signed_by(who: Party, tag: bytes, body: bytes) -> Signing:
    return Signing(tag, body, who.seed, who.sign(signing_bytes(tag, CHAIN, body)))


def told(example: Example) -> dict[str, Any]:
    """An example as the JSON file has it."""
    entry: dict[str, Any] = {"encoding": example.raw.hex()}
    if is_array(example.raw):
        entry["fields"] = as_json(msgpack.unpackb(example.raw))
    if example.signing is not None:
        signing = example.signing
        entry["signed"] = {
            "tag": signing.tag.decode(),
            "seed": signing.seed.hex(),
            "message": signing.message.hex(),
            "signature": signing.signature.hex(),
        }
    if example.named:
        entry[example.named] = example.digest.hex()
    return entry


def is_array(raw: bytes) -> bool:
    """Whether these bytes are one msgpack array: all wire objects but votes and row leaves."""
    try:
        return isinstance(msgpack.unpackb(raw), list)
    except (ValueError, msgpack.exceptions.UnpackException):
        return False


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [as_json(item) for item in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:
    if isinstance(value, str):
        return bytes.fromhex(value)
    return [from_json(item) for item in value] if isinstance(value, list) else value
