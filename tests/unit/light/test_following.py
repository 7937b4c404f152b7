"""Following headers: who leads, who confirms, who is dropped; an attack leaves nobody trusted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from light_kit import CHAIN_ID, FOUR, LightChain, Powers, a_set, light_block, now_of

from consensus.attacks import AttackKind, decode_attack, verify_attack
from consensus.primitives.errors import Invalid
from consensus.skipping import Expired, LightBlock, TrustOptions
from node.following import (
    STALE_MS,
    WITNESS_TRIES,
    Followed,
    NoSource,
    Unanswered,
    follow,
    trust_block,
    trust_genesis,
)

OPTIONS = TrustOptions()


def drifting(height: int) -> Powers:
    first = height // 4
    return {f"v{number}": 1 for number in range(first, first + 4)}


CHAIN = LightChain(40, drifting)
FIRST = CHAIN.at(1)
NOW = now_of(CHAIN.at(40))
LIE = CHAIN.fork(17, 40, params_hash=b"\7" * 32)


@dataclass
class Told:
    """A source that tells a chain, up to `height`; `late` answers come only after so many asks."""

    name: str
    chain: LightChain
    height: int = 40
    silent: bool = False
    late: int = 0
    asked: list[int] = field(default_factory=list)
    reports: list[bytes] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)

    async def ask(self, height: int) -> LightBlock:
        self.asked.append(height)
        if self.silent or (self.late and len(self.asked) <= self.late):
            raise Unanswered("silent")
        if height > self.height:
            raise Unanswered("not found")
        return self.chain.at(height or self.height)

    async def report(self, evidence: bytes) -> None:
        if self.silent:
            raise Unanswered("silent")
        self.reports.append(evidence)

    def blame(self, refusal: Invalid) -> None:
        self.blamed.append(refusal.code)


@dataclass
class Falling(Told):
    """Answers until asked for the way back, then never again."""

    async def ask(self, height: int) -> LightBlock:
        if height in self.asked[1:] or len(self.asked) > 12:
            raise Unanswered("gone")
        return await super().ask(height)


pauses: list[int] = []


async def pause() -> None:
    pauses.append(1)


@pytest.fixture(autouse=True)
def no_pauses() -> None:
    pauses.clear()


async def followed(
    sources: Sequence[Told], trusted: LightBlock = FIRST, now_ms: int = NOW
) -> Followed:
    return await follow(trusted, sources, options=OPTIONS, now_ms=lambda: now_ms, pause=pause)


async def test_two_witnesses_confirm_without_a_warning() -> None:
    sources = [Told(name, CHAIN) for name in ("one", "two", "three")]
    found = await followed(sources)
    assert found.blocks[-1].block_id == CHAIN.at(40).block_id
    assert (found.primary, found.confirmed) == ("one", ("two", "three"))
    assert found.warnings == found.dropped == found.attacks == ()
    assert [len(witness.asked) for witness in sources[1:]] == [1, 1]


async def test_one_source_alone_is_followed_with_a_warning() -> None:
    found = await followed([Told("one", CHAIN)])
    assert found.blocks
    assert any("no witness" in told for told in found.warnings)


async def test_one_witness_is_followed_with_a_warning() -> None:
    found = await followed([Told("one", CHAIN), Told("two", CHAIN)])
    assert found.blocks
    assert found.warnings == ("1 witness confirmed; 2 or more are better",)


async def test_what_no_witness_confirms_is_not_trusted() -> None:
    found = await followed([Told("one", CHAIN), Told("two", CHAIN, silent=True)])
    assert found.blocks == ()
    assert found.dropped == (("two", "silent"),)
    assert any("nothing new is trusted" in told for told in found.warnings)


async def test_witness_a_block_behind_is_waited_for() -> None:
    late = Told("two", CHAIN, late=WITNESS_TRIES - 1)
    found = await followed([Told("one", CHAIN), late])
    assert found.confirmed == ("two",)
    assert len(pauses) == WITNESS_TRIES - 1


async def test_witness_is_not_waited_for_for_ever() -> None:
    late = Told("two", CHAIN, late=WITNESS_TRIES)
    found = await followed([Told("one", CHAIN), late])
    assert found.confirmed == ()
    assert len(late.asked) == WITNESS_TRIES


async def test_silent_primary_is_passed_over() -> None:
    found = await followed([Told("one", CHAIN, silent=True), Told("two", CHAIN), Told("x", CHAIN)])
    assert found.primary == "two"
    assert found.blocks
    assert found.dropped == (("one", "silent"),)


async def test_primary_that_withholds_does_not_hold_us() -> None:
    found = await followed([Told("one", CHAIN, height=1), Told("two", CHAIN), Told("x", CHAIN)])
    assert found.primary == "two"
    assert found.blocks[-1].height == 40


async def test_nothing_newer_is_no_fault() -> None:
    found = await followed([Told("one", CHAIN, height=5), Told("two", CHAIN, 5)], CHAIN.at(5))
    assert (found.blocks, found.dropped) == ((), ())


@dataclass
class Liar(Told):
    """Its newest block is signed by strangers."""

    async def ask(self, height: int) -> LightBlock:
        block = await super().ask(height)
        return light_block(block.header, {"liar": 1}) if block.height == 40 else block


async def test_lying_primary_is_dropped_and_another_leads() -> None:
    found = await followed([Liar("one", CHAIN), Told("two", CHAIN), Told("x", CHAIN)])
    assert found.primary == "two"
    assert found.blocks[-1].block_id == CHAIN.at(40).block_id
    assert found.dropped[0][0] == "one"


async def test_who_lies_is_blamed_and_who_is_silent_or_behind_is_not() -> None:
    liars = [Liar("one", CHAIN), Liar("two", CHAIN)]
    innocent = [Told("x", CHAIN), Told("y", CHAIN, silent=True), Told("z", CHAIN, height=30)]
    await followed([liars[0], *innocent, liars[1]])
    assert [len(liar.blamed) for liar in liars] == [1, 1]
    assert [source.blamed for source in innocent] == [[], [], []]


async def test_clock_behind_the_chains_is_no_lie_of_its_teller() -> None:
    source = Told("one", CHAIN)
    with pytest.raises(NoSource, match="future"):
        await followed([source], now_ms=CHAIN.at(20).header.time_ms)
    assert source.blamed == []


async def test_wanted_height_is_followed_and_none_above_it() -> None:
    sources = [Told(name, CHAIN) for name in ("one", "two", "three")]
    found = await follow(
        FIRST, sources, options=OPTIONS, now_ms=lambda: NOW, pause=pause, target=30
    )
    assert found.blocks[-1].block_id == CHAIN.at(30).block_id
    assert max(height for source in sources for height in source.asked) == 30


async def test_lying_witness_is_dropped_and_no_attack() -> None:
    found = await followed([Told("one", CHAIN), Liar("two", CHAIN), Told("x", CHAIN)])
    assert (found.confirmed, found.attacks) == (("x",), ())
    assert found.blocks
    assert found.dropped[0][0] == "two"


def judged(raw: bytes, chain: LightChain) -> AttackKind:
    attack = decode_attack(raw)
    announced = a_set(chain.sets(attack.common_height + 1))
    verdict = verify_attack(attack, announced, chain.decided(attack.block.height))
    assert verdict.guilty
    return verdict.kind


@pytest.mark.parametrize("liar", ["primary", "witness"])
async def test_attack_is_reported_to_both_sides_and_neither_is_trusted(liar: str) -> None:
    honest, false = Told("honest", CHAIN), Told("false", LIE)
    sources = [false, honest] if liar == "primary" else [honest, false]
    found = await followed(sources)
    assert found.blocks == ()
    (attack,) = found.attacks
    assert (attack.primary, attack.witness) == (sources[0].name, sources[1].name)
    assert set(attack.reported) == {"honest", "false"}
    (to_honest,), (to_false,) = honest.reports, false.reports
    assert judged(to_honest, CHAIN) is AttackKind.LUNATIC
    assert judged(to_false, LIE) is AttackKind.LUNATIC


async def test_attack_counts_though_other_witnesses_agree_with_us() -> None:
    """One proof is enough: which of the branches lives, a person must find out."""
    sources = [Told("one", CHAIN), Told("two", CHAIN), Told("false", LIE)]
    found = await followed(sources)
    assert found.confirmed == ("two",)
    assert len(found.attacks) == 1
    assert found.blocks == ()


async def test_primary_that_falls_silent_is_still_convicted() -> None:
    """Its own signed block is in our hands: that is what its judges get."""
    false, honest = Falling("false", LIE), Told("honest", CHAIN)
    found = await followed([false, honest])
    (attack,) = found.attacks
    assert attack.by_primary is not None
    assert judged(honest.reports[0], CHAIN) is AttackKind.LUNATIC


async def test_expired_trust_is_told_and_not_replaced() -> None:
    late_ms = CHAIN.at(1).header.time_ms + OPTIONS.period_ms
    with pytest.raises(Expired):
        await followed([Told("one", CHAIN), Told("two", CHAIN)], now_ms=late_ms)


async def test_nobody_answering_is_told_by_name() -> None:
    with pytest.raises(NoSource) as told:
        await followed([Told("one", CHAIN, silent=True), Told("two", CHAIN, silent=True)])
    assert [name for name, _ in told.value.refusals] == ["one", "two"]


@pytest.mark.parametrize(("age_ms", "warns"), [(STALE_MS - 1, False), (STALE_MS, True)])
async def test_old_newest_block_is_warned_of(age_ms: int, warns: bool) -> None:
    now_ms = CHAIN.at(40).header.time_ms + age_ms
    found = await followed([Told(name, CHAIN) for name in "abc"], now_ms=now_ms)
    assert any("minutes old" in told for told in found.warnings) is warns


# --- first trust


async def test_named_block_is_trusted_by_its_id_alone() -> None:
    sources = [Told("false", LIE), Told("honest", CHAIN)]
    block = await trust_block(sources, CHAIN_ID, 30, CHAIN.at(30).block_id)
    assert block.block_id == CHAIN.at(30).block_id
    with pytest.raises(NoSource, match="other_block"):
        await trust_block([Told("false", LIE)], CHAIN_ID, 30, CHAIN.at(30).block_id)


async def test_genesis_is_trusted_by_its_set() -> None:
    sources = [Told("one", CHAIN)]
    block = await trust_genesis(sources, CHAIN_ID, a_set(CHAIN.sets(1)))
    assert block.height == 1
    with pytest.raises(NoSource, match="announced"):
        await trust_genesis(sources, CHAIN_ID, a_set(FOUR))
    with pytest.raises(NoSource, match="parent"):
        await trust_genesis(sources, b"\7" * 32, a_set(CHAIN.sets(1)))


async def test_source_that_says_nonsense_is_passed_over() -> None:
    @dataclass
    class Nonsense(Told):
        async def ask(self, height: int) -> LightBlock:
            raise Invalid("light_block.malformed")

    sources = [Nonsense("one", CHAIN), Told("two", CHAIN)]
    assert await trust_genesis(sources, CHAIN_ID, a_set(CHAIN.sets(1)))
    found = await followed([*sources, Told("three", CHAIN)])
    assert found.primary == "two"
