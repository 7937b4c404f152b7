"""Believing a header without its ledger: adjacent and skipping verification, and bisection.

Why a set may be skipped: whoever was to sign next is bonded for longer than the trusting period,
so a header that more than a third of that power signed has an honest signer. Where too little of
it signed, a header between the two is tried first. Going back there is no such step: an older
block is proved by its place under `history_root` of a later one.
The costliest check comes last, for the size of a certificate is its sender's choice.
What this file does not know: where light blocks come from, what time it is, whom to ask again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from consensus.certificate import (
    PRECOMMIT,
    Certificate,
    decode_certificate,
    encode_certificate,
    verify_certificate,
)
from consensus.header import Header, decode_header, encode_header
from consensus.params import CERTIFICATE_BYTES_MAX, DAY_MS, HEADER_BYTES_MAX
from consensus.primitives import merkle
from consensus.primitives.encoding import Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.validators import (
    ENCODED_BYTES_MAX,
    ValidatorSet,
    decode_validators,
    encode_validators,
)

ENVELOPE_BYTES: Final = 16  # of the array around the four parts
LIGHT_BLOCK_BYTES_MAX: Final = (
    HEADER_BYTES_MAX + CERTIFICATE_BYTES_MAX + 2 * ENCODED_BYTES_MAX + ENVELOPE_BYTES
)
LEVEL_MIN: Final = (1, 3)  # below it no honest signer need be among those who are trusted

_SHAPE: Final = Record(
    Bytes(HEADER_BYTES_MAX, 1),
    Bytes(CERTIFICATE_BYTES_MAX, 1),
    Bytes(ENCODED_BYTES_MAX, 1),
    Bytes(ENCODED_BYTES_MAX, 1),
)


class NotTrusted(Exception):
    """A light block that may be good but cannot be believed from what is trusted."""


class Expired(NotTrusted):
    """The trusted block is older than the trusting period: its signers may have left unpunished."""

    def __init__(self, height: int, time_ms: int) -> None:
        super().__init__(f"the trusted block {height} has expired")
        self.height = height
        self.time_ms = time_ms


class NotEnoughTrust(NotTrusted):
    """Too little of the trusted power signed: try a height between the two."""

    def __init__(self, power: int, total: int) -> None:
        super().__init__(f"{power} of the trusted power {total} signed")
        self.power = power
        self.total = total


class TooFar(NotTrusted):
    """The way to the target needs more light blocks than `fetch_max`."""

    def __init__(self, fetched: int) -> None:
        super().__init__(f"not there after {fetched} light blocks")
        self.fetched = fetched


@dataclass(frozen=True, slots=True)
class TrustOptions:
    """How long and by how much a header is trusted.

    `period_ms` is two thirds of the time that bonds are locked. `level` is the part of the trusted
    power that must have signed, in [1/3, 1]; at 1 no height is ever skipped.
    """

    period_ms: int = 14 * DAY_MS
    level: tuple[int, int] = LEVEL_MIN
    drift_ms: int = 10_000
    fetch_max: int = 256

    def __post_init__(self) -> None:
        part, whole = self.level
        assert whole <= 3 * part, "below 1/3 nobody honest need have signed"
        assert 0 < part <= whole
        assert self.period_ms > 0
        assert self.drift_ms >= 0
        assert self.fetch_max > 0


@dataclass(frozen=True, slots=True)
class LightBlock:
    """A header with its commit, the set that signed it, and the set that signs the next height."""

    header: Header
    certificate: Certificate
    validators: ValidatorSet
    next_validators: ValidatorSet
    block_id: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_id", self.header.block_id())

    @property
    def height(self) -> int:
        """The header's."""
        return self.header.height


def encode_light_block(block: LightBlock) -> bytes:
    """`[header, certificate, validators, next_validators]`, each as its own encoding."""
    return encode(
        (
            encode_header(block.header),
            encode_certificate(block.certificate),
            encode_validators(block.validators),
            encode_validators(block.next_validators),
        )
    )


def decode_light_block(raw: bytes) -> LightBlock:
    """The light block, its sizes and shapes checked and nothing else; raises `Invalid`."""
    header, certificate, validators, following = decode(
        raw, _SHAPE, LIGHT_BLOCK_BYTES_MAX, "light_block"
    )
    return LightBlock(
        decode_header(header),
        decode_certificate(certificate),
        decode_validators(validators),
        decode_validators(following),
    )


# --- one step of trust


def check_light_block(block: LightBlock, chain_id: bytes) -> None:
    """Raise `Invalid` `light.…` unless its four parts belong together. Hashes, no signatures."""
    header, certificate = block.header, block.certificate
    if header.chain_id != chain_id:
        raise Invalid("light.chain", chain_id=header.chain_id)
    if certificate.kind != PRECOMMIT or certificate.height != header.height:
        raise Invalid("light.certificate", kind=certificate.kind, height=certificate.height)
    size = len(block.validators)
    signers = certificate.signers()
    if len(certificate.bitmap) != (size + 7) // 8 or (signers and signers[-1] >= size):
        raise Invalid("light.bitmap", bytes=len(certificate.bitmap), members=size)
    if header.validators_hash != block.validators.hash():
        raise Invalid("light.validators", height=header.height)
    if header.next_validators_hash != block.next_validators.hash():
        raise Invalid("light.next_validators", height=header.height)
    if certificate.block_id != block.block_id:
        raise Invalid("light.block_id", height=header.height)


def verify_light_block(block: LightBlock, chain_id: bytes) -> None:
    """Raise `Invalid` unless its parts belong together and more than 2/3 of its set signed it.

    Says nothing about whether that set is the chain's.
    """
    check_light_block(block, chain_id)
    verify_certificate(block.certificate, block.validators, chain_id)


def power_signed(block: LightBlock, trusted: ValidatorSet) -> int:
    """The power, in `trusted`, of those who are said to have signed `block`, found by their key."""
    members = block.validators.members
    return sum(trusted.power(members[place].key) for place in block.certificate.signers())


def verify_adjacent(
    trusted: LightBlock, untrusted: LightBlock, options: TrustOptions, now_ms: int
) -> None:
    """Believe the block after `trusted`, or raise.

    `Expired`: `trusted` is too old. `Invalid`: a) its parts do not belong together, b) height or
    time do not follow, or time is `drift_ms` ahead, c) parent or validators are not those that
    `trusted` announced, d) no more than 2/3 of the power signed.
    """
    _check_begin(trusted, untrusted, options, now_ms)
    if untrusted.height != trusted.height + 1:
        raise Invalid("light.not_adjacent", height=untrusted.height, trusted=trusted.height)
    if untrusted.header.parent_id != trusted.block_id:
        raise Invalid("light.parent", height=untrusted.height)
    if untrusted.header.validators_hash != trusted.header.next_validators_hash:
        raise Invalid("light.announced", height=untrusted.height)
    verify_certificate(untrusted.certificate, untrusted.validators, trusted.header.chain_id)


def verify_skipping(
    trusted: LightBlock, untrusted: LightBlock, options: TrustOptions, now_ms: int
) -> None:
    """Believe a block two or more heights after `trusted`, or raise.

    As `verify_adjacent`, with c) more than `level` of the power that `trusted` announced signed,
    else `NotEnoughTrust`. The next height is refused: there the whole set must be the announced.
    """
    _check_begin(trusted, untrusted, options, now_ms)
    if untrusted.height == trusted.height + 1:
        raise Invalid("light.adjacent", height=untrusted.height)
    signed, announced = power_signed(untrusted, trusted.next_validators), trusted.next_validators
    part, whole = options.level
    if whole * signed <= part * announced.total:
        raise NotEnoughTrust(signed, announced.total)
    verify_certificate(untrusted.certificate, untrusted.validators, trusted.header.chain_id)


def verify(trusted: LightBlock, untrusted: LightBlock, options: TrustOptions, now_ms: int) -> None:
    """The one of the two steps that the heights ask for."""
    step = verify_adjacent if untrusted.height == trusted.height + 1 else verify_skipping
    step(trusted, untrusted, options, now_ms)


def _check_begin(
    trusted: LightBlock, untrusted: LightBlock, options: TrustOptions, now_ms: int
) -> None:
    """What both steps check first: age, parts, height, time."""
    if is_expired(trusted, options, now_ms):
        raise Expired(trusted.height, trusted.header.time_ms)
    check_light_block(untrusted, trusted.header.chain_id)
    if untrusted.height <= trusted.height:
        raise Invalid("light.height", height=untrusted.height, trusted=trusted.height)
    if untrusted.header.time_ms <= trusted.header.time_ms:
        raise Invalid("light.time", time_ms=untrusted.header.time_ms)
    if untrusted.header.time_ms >= now_ms + options.drift_ms:
        raise Invalid("light.future", time_ms=untrusted.header.time_ms, now_ms=now_ms)


def is_expired(trusted: LightBlock, options: TrustOptions, now_ms: int) -> bool:
    """Whether nothing may be believed from this block any more."""
    return trusted.header.time_ms + options.period_ms <= now_ms


# --- many steps


class Bisection:
    """The way from a trusted block to a height above it; the caller fetches what is `wanted`.

    `wanted` is None at the end; `trace` then leads from the trusted block to the target, each
    block believed from the one before it.
    """

    def __init__(self, trusted: LightBlock, target: int, options: TrustOptions) -> None:
        assert target > trusted.height
        self.wanted: int | None = target
        self._options = options
        self._trace = [trusted]
        self._waiting: list[LightBlock] = []  # too far from the trace so far; the nearest last
        self._given = 0

    @property
    def trace(self) -> tuple[LightBlock, ...]:
        """What is believed so far, from the trusted block on."""
        return tuple(self._trace)

    def give(self, block: LightBlock, now_ms: int) -> None:
        """The block of height `wanted`. Raises `Invalid`, `Expired` or `TooFar`: the way ends."""
        if block.height != self.wanted:
            raise Invalid("light.unasked", height=block.height, wanted=self.wanted)
        self._given += 1
        self._waiting.append(block)
        self.wanted = None
        while self._waiting:
            nearest = self._waiting[-1]
            try:
                verify(self._trace[-1], nearest, self._options, now_ms)
            except NotEnoughTrust:
                if self._given >= self._options.fetch_max:
                    raise TooFar(self._given) from None
                self.wanted = (self._trace[-1].height + nearest.height) // 2
                return
            self._trace.append(self._waiting.pop())


def verify_history(trusted: Header, height: int, block_id: bytes, path: Sequence[bytes]) -> None:
    """Raise `Invalid` unless `block_id` is the block of `height` in the history of `trusted`."""
    if not 1 <= height < trusted.height:
        raise Invalid("history.height", height=height, trusted=trusted.height)
    leaf = merkle.leaf_hash(block_id)
    merkle.verify_path(trusted.history_root, leaf, height - 1, trusted.height - 1, path)
