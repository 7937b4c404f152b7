"""Two headers of one height: comparing witnesses with our way, and proving who lied.

Why a common block and one step: a full node of either branch has the common block, so a conflict
that is believed from it in one step is proof on its own, whatever way a light client went.
Why three kinds: who signed a header that execution cannot give lied about the state (lunatic); who
signed twice in one round equivocated; across rounds the fault may be a forgotten lock (amnesia),
and two certificates alone do not tell whose.
Why our side is a type of its own: many quorums may have signed one block, and a judgement that is
to be equal on all nodes goes by the certificate that the next block carries.
What this file does not know: the punishment, and how old an offence may be.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from consensus.certificate import Certificate, check_certificate, verify_certificate
from consensus.header import Header
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import U8, U63, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from consensus.skipping import (
    LIGHT_BLOCK_BYTES_MAX,
    Bisection,
    LightBlock,
    TrustOptions,
    check_light_block,
    decode_light_block,
    encode_light_block,
    power_signed,
)
from consensus.validators import ValidatorSet

LIGHT_ATTACK: Final = 3  # the kind of evidence, beside two votes and two proposals
LUNATIC_FIELDS: Final = ("validators_hash", "params_hash", "parent_id", "history_root")

_SHAPE: Final = Record(U8, U63, Bytes(LIGHT_BLOCK_BYTES_MAX, 1))


class AttackKind(IntEnum):
    """How a light block conflicts with the chain (page 20 §5)."""

    LUNATIC = 1  # a header that no execution of the common history gives
    EQUIVOCATION = 2  # a second block of the same round
    AMNESIA = 3  # a second block of another round


@dataclass(frozen=True, slots=True)
class LightClientAttack:
    """A block believed in one step from the block of `common_height`, where another was decided.

    `common_height` 0 is the genesis.
    """

    common_height: int
    block: LightBlock


class Decided(NamedTuple):
    """The chain's own block of a height: its header, a commit of it, and the set that signs it."""

    header: Header
    certificate: Certificate
    validators: ValidatorSet


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attack is, and the keys it proves guilty, in the order of the set they stand in."""

    kind: AttackKind
    guilty: tuple[bytes, ...]


class Examination:
    """One witness against our trace; the caller fetches what is `wanted` from the witness.

    At the end `wanted` is None, and either `attack` is None: the witness agrees, or `attack` is
    the first block of our trace that conflicts with it and `theirs` the way the witness led us
    instead, from the last block that both have. `attack` convicts our side before full nodes of
    theirs; examining `theirs` against our own source convicts the witness in the same way.
    """

    def __init__(self, trace: tuple[LightBlock, ...], options: TrustOptions) -> None:
        assert trace
        self.wanted: int | None = trace[-1].height
        self.attack: LightClientAttack | None = None
        self.theirs: tuple[LightBlock, ...] = ()
        self._trace = trace
        self._options = options
        self._place = len(trace) - 1  # in the trace, of the height wanted
        self._common = 0  # the last place where both are known to agree: our trust to begin with
        self._differing = len(trace)  # the first where they do not
        self._conflict: LightBlock | None = None  # the witness's block there
        self._bisection: Bisection | None = None

    def give(self, block: LightBlock, now_ms: int) -> None:
        """The witness's block of height `wanted`.

        Raises `Invalid`, `Expired` or `TooFar` when the witness cannot prove its side: drop it.
        """
        if block.height != self.wanted:
            raise Invalid("light.unasked", height=block.height, wanted=self.wanted)
        if self._bisection is None:
            self._compare(block)
            if self._bisection is None:
                return
            assert self._conflict is not None
            block = self._conflict
        self._follow(self._bisection, block, now_ms)

    def _compare(self, block: LightBlock) -> None:
        """Halve the places between the last that agrees and the first that does not."""
        if block.block_id == self._trace[self._place].block_id:
            self._common = self._place
        elif self._place == 0:
            raise Invalid("light.root", height=block.height)
        else:
            self._differing, self._conflict = self._place, block
        if self._conflict is None:
            self.wanted = None  # our target is theirs: all before it is, too
        elif self._common + 1 < self._differing:
            self._place = (self._common + self._differing) // 2
            self.wanted = self._trace[self._place].height
        else:
            common = self._trace[self._common]
            self._bisection = Bisection(common, self._conflict.height, self._options)

    def _follow(self, bisection: Bisection, block: LightBlock, now_ms: int) -> None:
        bisection.give(block, now_ms)
        self.wanted = bisection.wanted
        if self.wanted is None:
            self.theirs = bisection.trace
            common, ours = self._trace[self._common], self._trace[self._differing]
            self.attack = LightClientAttack(common.height, ours)


# --- evidence


def encode_attack(attack: LightClientAttack) -> bytes:
    """`[3, common_height, light block]`."""
    return encode((LIGHT_ATTACK, attack.common_height, encode_light_block(attack.block)))


def decode_attack(raw: bytes) -> LightClientAttack:
    """The attack; `Invalid` `evidence.…` unless it is one in form."""
    kind, common_height, block_raw = decode(raw, _SHAPE, EVIDENCE_BYTES_MAX, "evidence")
    if kind != LIGHT_ATTACK:
        raise Invalid("evidence.kind", kind=kind)
    block = decode_light_block(block_raw)
    if common_height >= block.height:
        raise Invalid("evidence.common_height", common=common_height, height=block.height)
    return LightClientAttack(common_height, block)


def attack_id(attack: LightClientAttack) -> bytes:
    """SHA-256 of the encoding."""
    return sha256(encode_attack(attack))


def kind_of(block: LightBlock, own: Decided) -> AttackKind:
    """How `block` conflicts with the chain's own block of that height."""
    differing = zip(block.header, own.header, block.header._fields, strict=True)
    if any(one != other and name in LUNATIC_FIELDS for one, other, name in differing):
        return AttackKind.LUNATIC
    if block.certificate.round == own.certificate.round:
        return AttackKind.EQUIVOCATION
    return AttackKind.AMNESIA


def verify_attack(attack: LightClientAttack, announced: ValidatorSet, own: Decided) -> Verdict:
    """What the attack proves, before a node that has the chain. Raises `Invalid`.

    As `check_attack`, and then the quorum's signatures.
    """
    verdict = check_attack(attack, announced, own)
    verify_certificate(attack.block.certificate, attack.block.validators, own.header.chain_id)
    return verdict


def check_attack(attack: LightClientAttack, announced: ValidatorSet, own: Decided) -> Verdict:
    """What the attack proves if its signatures are good: hashes alone. Raises `Invalid`.

    `announced` signs the height after `common_height`, and `own` is the chain's block at the
    attack's height. A light client must have believed the block in one step: nothing else is an
    attack, since anyone can sign headers for a set of strangers.
    """
    block = attack.block
    assert block.height == own.header.height
    if not attack.common_height < block.height:
        raise Invalid("evidence.common_height", common=attack.common_height, height=block.height)
    if block.block_id == own.certificate.block_id:
        raise Invalid("evidence.canonical", height=block.height)
    check_light_block(block, own.header.chain_id)
    if attack.common_height + 1 == block.height:
        believed = block.header.validators_hash == announced.hash()
    else:
        believed = announced.is_third(power_signed(block, announced))
    if not believed:
        raise Invalid("evidence.unbelievable", height=block.height)
    check_certificate(block.certificate, block.validators)
    kind = kind_of(block, own)
    return Verdict(kind, _guilty(kind, block, announced, own))


def nearest(attack: LightClientAttack, verdict: Verdict) -> LightClientAttack:
    """The same attack from the latest common block from which it proves as much.

    A second block of one round names the same keys from everywhere, and has the right set for who
    trusts the block before it: told so it is as young as it can be, and one piece however far back
    each light client began. Of a lunatic header the common block decides who is named.
    """
    if verdict.kind is not AttackKind.EQUIVOCATION:
        return attack
    return LightClientAttack(attack.block.height - 1, attack.block)


def _guilty(
    kind: AttackKind, block: LightBlock, announced: ValidatorSet, own: Decided
) -> tuple[bytes, ...]:
    signed = _signers(block.certificate, block.validators)
    if kind is AttackKind.LUNATIC:
        return tuple(member.key for member in announced.members if member.key in signed)
    if kind is AttackKind.EQUIVOCATION:
        both = signed & _signers(own.certificate, own.validators)
        return tuple(member.key for member in block.validators.members if member.key in both)
    return ()


def _signers(certificate: Certificate, validators: ValidatorSet) -> frozenset[bytes]:
    return frozenset(validators.members[place].key for place in certificate.signers())


assert LIGHT_BLOCK_BYTES_MAX + 16 <= EVIDENCE_BYTES_MAX
