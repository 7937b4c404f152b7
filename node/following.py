"""Following a chain by its headers: one source leads, the others bear witness.

Why witnesses: a third of the power, corrupted for an hour, can show one client a chain of its own.
It cannot show it to everybody, so whoever asks two more operators sees the difference, holds the
proof of it, and gives it to both sides. Then neither is trusted: which branch the world goes on
with, a person must find out.
Why nothing is kept that no witness confirmed: silence is what a liar's friends would answer.
What this file does not know: how sources are asked, where trusted blocks are kept, what time it is.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from consensus.attacks import Examination, LightClientAttack, encode_attack
from consensus.primitives.errors import Invalid
from consensus.skipping import (
    Bisection,
    Expired,
    LightBlock,
    NotTrusted,
    TrustOptions,
    verify_light_block,
)
from consensus.validators import ValidatorSet

NEWEST: Final = 0
WITNESSES_MIN: Final = 2  # of other operators
WITNESS_TRIES: Final = 3  # a witness may be a block or two behind
STALE_MS: Final = 300_000  # ten heartbeats without a block
# Faults that may be ours: we were told to trust another chain's block, or our clock is behind.
NO_LIES: Final = frozenset({"light.other_block", "light.root", "light.future"})

Clock = Callable[[], int]  # wall clock in milliseconds
Pause = Callable[[], Awaitable[None]]  # until it is worth asking a witness again


class Unanswered(Exception):
    """A source has no answer: unreachable, too slow, or it does not hold that height."""


class NoSource(Exception):
    """Nobody gave a chain that can be believed; `refusals` are (name, why) of each source."""

    def __init__(self, refusals: Sequence[tuple[str, str]]) -> None:
        told = "; ".join(f"{name}: {why}" for name, why in refusals)
        super().__init__(f"no source gave a believable answer ({told or 'there is none'})")
        self.refusals = tuple(refusals)


class Source(Protocol):
    """Somebody who may be asked for light blocks; nothing of it is believed unchecked."""

    @property
    def name(self) -> str: ...

    async def ask(self, height: int) -> LightBlock:
        """The light block of a height, or the newest for 0; raises `Unanswered` or `Invalid`."""
        ...

    async def report(self, evidence: bytes) -> None:
        """Hand over an encoded attack; raises `Unanswered` and nothing else, whatever it says."""
        ...

    def blame(self, refusal: Invalid) -> None:
        """It said what cannot be true; where that costs something, it is made to."""
        ...


@dataclass(frozen=True, slots=True)
class Attack:
    """Two believable chains: `primary` and `witness` each led us to their own block."""

    primary: str
    witness: str
    by_primary: LightClientAttack  # what convicts the primary's signers before the witness's nodes
    by_witness: LightClientAttack | None  # None when the primary would not answer any more
    reported: tuple[str, ...]  # the sources that took the evidence

    @property
    def proofs(self) -> tuple[LightClientAttack, ...]:
        """Against each side, as far as there is one."""
        found = (self.by_primary, self.by_witness)
        return tuple(proof for proof in found if proof is not None)


@dataclass(frozen=True, slots=True)
class Followed:
    """What one look at the chain gave. `blocks` are newly trusted, ascending; none after attacks.

    `dropped` holds (name, why) of sources that could not prove what they said.
    """

    blocks: tuple[LightBlock, ...]
    primary: str
    confirmed: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    attacks: tuple[Attack, ...] = ()


# --- the first trusted block


async def trust_block(
    sources: Sequence[Source], chain_id: bytes, height: int, block_id: bytes
) -> LightBlock:
    """The light block that the operator named by height and id; raises `NoSource`."""

    def check(block: LightBlock) -> None:
        if block.height != height or block.block_id != block_id:
            raise Invalid("light.other_block", height=block.height, block_id=block.block_id)
        verify_light_block(block, chain_id)

    return await _first_that_holds(sources, height, check)


async def trust_genesis(
    sources: Sequence[Source], chain_id: bytes, validators: ValidatorSet
) -> LightBlock:
    """Block 1, signed by the set of the genesis; raises `NoSource`."""

    def check(block: LightBlock) -> None:
        header = block.header
        if block.height != 1 or header.parent_id != chain_id:
            raise Invalid("light.parent", height=block.height)
        if header.validators_hash != validators.hash():
            raise Invalid("light.announced", height=block.height)
        verify_light_block(block, chain_id)

    return await _first_that_holds(sources, 1, check)


async def _first_that_holds(
    sources: Sequence[Source], height: int, check: Callable[[LightBlock], None]
) -> LightBlock:
    refusals = []
    for source in sources:
        try:
            block = await source.ask(height)
            check(block)
        except (Unanswered, Invalid) as error:
            refusals.append(_refused(source, error))
        else:
            return block
    raise NoSource(refusals)


def _refused(source: Source, error: Exception) -> tuple[str, str]:
    """(name, why) of a source that gave nothing to believe; one that lied is blamed."""
    if isinstance(error, Invalid) and error.code not in NO_LIES:
        source.blame(error)
    return source.name, str(error)


# --- a later block


async def follow(
    trusted: LightBlock,
    sources: Sequence[Source],
    *,
    options: TrustOptions,
    now_ms: Clock,
    pause: Pause,
    target: int = NEWEST,
) -> Followed:
    """From `trusted` to the newest block that a source has, or `target`, if witnesses confirm it.

    The first source with a newer, believable block leads; every other one is a witness. Raises
    `Expired` when `trusted` is too old for anything, `NoSource` when no source has anything.
    """
    assert target == NEWEST or target > trusted.height
    dropped: list[tuple[str, str]] = []
    primary, trace = await _lead(trusted, target, sources, options, now_ms, dropped)
    warnings = list(_stale(trace[-1], now_ms()))
    if len(sources) == 1:
        warnings.append("no witness: one operator alone tells you what the chain is")
    if len(trace) == 1:
        return Followed((), primary.name, (), tuple(dropped), tuple(warnings))
    failed = {name for name, _ in dropped}
    witnesses = [one for one in sources if one is not primary and one.name not in failed]
    confirmed: list[str] = []
    attacks: list[Attack] = []
    for witness in witnesses:
        try:
            found = await _examine(trace, witness, options, now_ms, pause)
        except (Unanswered, Invalid, NotTrusted) as error:
            dropped.append(_refused(witness, error))
            continue
        if found.attack is None:
            confirmed.append(witness.name)
        else:
            attacks.append(await _prove(trace, found, primary, witness, options, now_ms))
    if len(sources) > 1 and not confirmed:
        warnings.append("no witness confirmed this: nothing new is trusted")
    elif 0 < len(confirmed) < WITNESSES_MIN:
        warnings.append(f"{len(confirmed)} witness confirmed; {WITNESSES_MIN} or more are better")
    is_kept = not attacks and (bool(confirmed) or len(sources) == 1)
    return Followed(
        blocks=trace[1:] if is_kept else (),
        primary=primary.name,
        confirmed=tuple(confirmed),
        dropped=tuple(dropped),
        warnings=tuple(warnings),
        attacks=tuple(attacks),
    )


async def _lead(
    trusted: LightBlock,
    target: int,
    sources: Sequence[Source],
    options: TrustOptions,
    now_ms: Clock,
    dropped: list[tuple[str, str]],
) -> tuple[Source, tuple[LightBlock, ...]]:
    """The first source that leads us further, and the way; the way is empty if none does."""
    idle: Source | None = None
    for source in sources:
        try:
            newest = await source.ask(target)
            if newest.height > trusted.height:
                return source, await _walk(trusted, newest, source, options, now_ms)
            idle = idle or source
        except Expired:
            raise
        except (Unanswered, Invalid, NotTrusted) as error:
            dropped.append(_refused(source, error))
    if idle is None:
        raise NoSource(dropped)
    return idle, (trusted,)


async def _walk(
    trusted: LightBlock,
    target: LightBlock,
    source: Source,
    options: TrustOptions,
    now_ms: Clock,
) -> tuple[LightBlock, ...]:
    bisection = Bisection(trusted, target.height, options)
    bisection.give(target, now_ms())
    while bisection.wanted is not None:
        bisection.give(await source.ask(bisection.wanted), now_ms())
    return bisection.trace


# --- witnesses


async def _examine(
    trace: tuple[LightBlock, ...],
    witness: Source,
    options: TrustOptions,
    now_ms: Clock,
    pause: Pause,
) -> Examination:
    examination = Examination(trace, options)
    while examination.wanted is not None:
        block = await _ask_patiently(witness, examination.wanted, pause)
        examination.give(block, now_ms())
    return examination


async def _ask_patiently(witness: Source, height: int, pause: Pause) -> LightBlock:
    """A witness that has not got there yet is asked again, WITNESS_TRIES times in all."""
    for _ in range(WITNESS_TRIES - 1):
        try:
            return await witness.ask(height)
        except Unanswered:
            await pause()
    return await witness.ask(height)


async def _prove(
    trace: tuple[LightBlock, ...],
    found: Examination,
    primary: Source,
    witness: Source,
    options: TrustOptions,
    now_ms: Clock,
) -> Attack:
    """Evidence against each side, sent to the other: its full nodes can judge and punish."""
    assert found.attack is not None
    back = Examination(found.theirs, options)
    seen = {block.height: block for block in trace}
    try:
        while back.wanted is not None:
            block = seen.get(back.wanted) or await primary.ask(back.wanted)
            back.give(block, now_ms())
    except (Unanswered, Invalid, NotTrusted):
        back.attack = None  # what it will not show, it cannot have believed: ours stands alone
    reported = []
    for attack, judge in ((found.attack, witness), (back.attack, primary)):
        if attack is None:
            continue
        try:
            await judge.report(encode_attack(attack))
        except Unanswered:
            continue
        reported.append(judge.name)
    return Attack(primary.name, witness.name, found.attack, back.attack, tuple(reported))


def _stale(newest: LightBlock, now_ms: int) -> tuple[str, ...]:
    """A warning when even an idle chain would have made a block since."""
    age_ms = now_ms - newest.header.time_ms
    if age_ms < STALE_MS:
        return ()
    return (f"the newest block is {age_ms // 60_000} minutes old: withheld, or the chain stands",)
