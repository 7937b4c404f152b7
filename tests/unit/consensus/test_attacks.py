"""Witnesses against our way: who agrees, who lies, what is proved before whose full nodes."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from light_kit import FOUR, LightChain, Powers, a_set, certify, key_of, light_block, now_of

from consensus.attacks import (
    AttackKind,
    Decided,
    Examination,
    LightClientAttack,
    Verdict,
    attack_id,
    check_attack,
    decode_attack,
    encode_attack,
    nearest,
    verify_attack,
)
from consensus.evidence import decode_evidence
from consensus.params import EVIDENCE_BYTES_MAX
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.skipping import (
    Bisection,
    LightBlock,
    NotTrusted,
    TooFar,
    TrustOptions,
    encode_light_block,
)

OPTIONS = TrustOptions()


def drifting(height: int) -> Powers:
    """One of four is replaced each four heights."""
    first = height // 4
    return {f"v{number}": 1 for number in range(first, first + 4)}


STILL = LightChain(40)
CHAIN = LightChain(40, drifting)
NOW = now_of(CHAIN.at(40))


def trace_of(chain: LightChain, start: int = 1) -> tuple[LightBlock, ...]:
    bisection = Bisection(chain.at(start), chain.height, OPTIONS)
    while bisection.wanted is not None:
        bisection.give(chain.at(bisection.wanted), NOW)
    return bisection.trace


def examined(trace: tuple[LightBlock, ...], witness: LightChain) -> tuple[Examination, list[int]]:
    examination, asked = Examination(trace, OPTIONS), []
    while examination.wanted is not None:
        asked.append(examination.wanted)
        examination.give(witness.at(examination.wanted), NOW)
    return examination, asked


def verdict_at(chain: LightChain, attack: LightClientAttack) -> Verdict:
    """What a full node of `chain` finds."""
    announced = a_set(chain.sets(attack.common_height + 1))
    return verify_attack(attack, announced, chain.decided(attack.block.height))


def keys(names: Iterable[str]) -> set[bytes]:
    return {key_of(name) for name in names}


def test_agreeing_witness_is_asked_once() -> None:
    examination, asked = examined(trace_of(CHAIN), CHAIN)
    assert asked == [40]
    assert examination.attack is None
    assert examination.theirs == ()


@pytest.mark.parametrize("above", [1, 5, 20, 39])
@pytest.mark.parametrize("chain", [STILL, CHAIN], ids=["one set", "changing sets"])
def test_fork_is_proved_to_both_sides(chain: LightChain, above: int) -> None:
    """Whoever lies, primary or witness: full nodes of each branch convict the other's signers."""
    other = chain.fork(above, 40, state_root=b"\7" * 32, params_hash=b"\7" * 32)
    for ours, theirs in ((chain, other), (other, chain)):
        trace = trace_of(ours)
        examination, asked = examined(trace, theirs)
        assert len(asked) == len(set(asked)), "nothing is asked twice"
        assert examination.attack is not None
        verdict = verdict_at(theirs, examination.attack)
        assert verdict.kind is AttackKind.LUNATIC
        assert verdict.guilty
        back, _ = examined(examination.theirs, ours)
        assert back.attack is not None
        assert verdict_at(ours, back.attack).guilty


def test_each_attack_is_believed_in_one_step_from_a_block_of_both() -> None:
    other = CHAIN.fork(17, 40, params_hash=b"\7" * 32)
    examination, _ = examined(trace_of(CHAIN), other)
    back, _ = examined(examination.theirs, CHAIN)
    for attack in (examination.attack, back.attack):
        assert attack is not None
        assert attack.common_height <= 17 < attack.block.height


def test_witness_on_another_chain_from_the_root_has_no_proof() -> None:
    strangers = LightChain(40, lambda height: {"x": 1, "y": 1})
    with pytest.raises((Invalid, NotTrusted)):
        examined(trace_of(CHAIN), strangers)


def test_witness_with_a_bare_header_has_no_proof() -> None:
    """A different header alone costs nothing: without the signatures it is no attack."""
    examination = Examination(trace_of(STILL), OPTIONS)
    lie = light_block(STILL.at(40).header._replace(params_hash=b"\7" * 32), FOUR, signers="ab")
    with pytest.raises(Invalid, match=r"certificate\.power"):
        examination.give(lie, NOW)
    assert examination.attack is None


def test_witness_that_differs_at_the_root_of_trust_is_told_apart() -> None:
    other = STILL.fork(0, 40, params_hash=b"\7" * 32)
    with pytest.raises(Invalid, match=r"light\.root"):
        Examination((STILL.at(1),), OPTIONS).give(other.at(1), NOW)


def test_another_height_than_asked_for_is_refused() -> None:
    with pytest.raises(Invalid, match=r"light\.unasked"):
        Examination(trace_of(CHAIN), OPTIONS).give(CHAIN.at(39), NOW)


def give_all(examination: Examination, witness: LightChain) -> None:
    while examination.wanted is not None:
        examination.give(witness.at(examination.wanted), NOW)


def test_witness_cannot_keep_us_asking() -> None:
    """Its sets have nothing in common, so each height would have to be fetched."""
    other = STILL.fork(1, 40, sets=lambda height: FOUR if height < 3 else {f"w{height}": 1})
    examination = Examination(trace_of(STILL), TrustOptions(fetch_max=3))
    with pytest.raises(TooFar):
        give_all(examination, other)


# --- kinds

COMMON = 20
LUNATIC = [
    ("params_hash", {"params_hash": b"\7" * 32}),
    ("parent_id", {"parent_id": b"\7" * 32}),
    ("history_root", {"history_root": b"\7" * 32}),
]


def attack_on(chain: LightChain, block: LightBlock, common: int = COMMON) -> LightClientAttack:
    assert block.block_id != chain.at(block.height).block_id
    return LightClientAttack(common, block)


@pytest.mark.parametrize(("name", "fields"), LUNATIC, ids=[row[0] for row in LUNATIC])
def test_header_that_execution_cannot_give_is_lunatic(name: str, fields: dict[str, bytes]) -> None:
    lie = light_block(STILL.at(30).header._replace(**fields), FOUR, signers="abc")
    verdict = verdict_at(STILL, attack_on(STILL, lie))
    assert verdict.kind is AttackKind.LUNATIC
    assert set(verdict.guilty) == keys("abc")


def test_invented_set_is_lunatic_and_only_bonded_signers_are_guilty() -> None:
    lie = light_block(STILL.at(30).header, {"a": 1, "b": 1, "liar": 1})
    verdict = verdict_at(STILL, attack_on(STILL, lie))
    assert verdict.kind is AttackKind.LUNATIC
    assert set(verdict.guilty) == keys("ab"), "a stranger has nothing to lose"


def test_second_block_of_one_round_convicts_who_signed_both() -> None:
    chain = LightChain(40, signers=lambda height: "abc")
    lie = light_block(chain.at(30).header._replace(state_root=b"\7" * 32), FOUR, signers="bcd")
    verdict = verdict_at(chain, attack_on(chain, lie))
    assert verdict.kind is AttackKind.EQUIVOCATION
    assert set(verdict.guilty) == keys("bc")


def test_second_block_of_another_round_convicts_nobody() -> None:
    lie = light_block(STILL.at(30).header._replace(state_root=b"\7" * 32), FOUR, round=1)
    verdict = verdict_at(STILL, attack_on(STILL, lie))
    assert verdict == Verdict(AttackKind.AMNESIA, ())


def test_guilty_hold_more_than_a_third_where_a_client_believed_it() -> None:
    other = CHAIN.fork(17, 40, params_hash=b"\7" * 32)
    examination, _ = examined(trace_of(CHAIN), other)
    assert examination.attack is not None
    announced = a_set(other.sets(examination.attack.common_height + 1))
    verdict = verdict_at(other, examination.attack)
    assert announced.is_third(sum(announced.power(key) for key in verdict.guilty))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=5),
    st.sampled_from(("state_root", "params_hash")),
    st.data(),
)
def test_guilty_hold_more_than_a_third_of_unequal_power(
    weights: list[int], field: str, data: st.DataObject
) -> None:
    """Whichever quorums signed the two blocks, and whichever name each of them left out."""
    powers = dict(zip("abcde", weights, strict=False))
    total = sum(weights)
    quorums = st.sets(st.sampled_from(sorted(powers))).filter(
        lambda names: 3 * sum(powers[name] for name in names) > 2 * total
    )
    ours, theirs = data.draw(quorums), data.draw(quorums)
    header = LightChain(3, lambda height: powers).at(3).header
    own = light_block(header, powers, signers=ours)
    lie = light_block(header._replace(**{field: b"\7" * 32}), powers, signers=theirs)
    validators = a_set(powers)
    decided = Decided(own.header, own.certificate, validators)
    verdict = verify_attack(LightClientAttack(1, lie), validators, decided)
    guilty = theirs if field == "params_hash" else ours & theirs
    assert set(verdict.guilty) == keys(guilty)
    assert validators.is_third(sum(validators.power(key) for key in verdict.guilty))


def test_another_commit_of_our_block_decides_whether_the_round_is_the_same() -> None:
    """Two rounds may commit one block: the chain's own is the one that the next block carries."""
    lie = light_block(STILL.at(30).header._replace(state_root=b"\7" * 32), FOUR, round=1)
    own = STILL.decided(30)
    later = own._replace(certificate=certify(own.header, FOUR, "abc", round=1))
    found = [
        verify_attack(LightClientAttack(COMMON, lie), a_set(FOUR), one) for one in (own, later)
    ]
    assert [verdict.kind for verdict in found] == [AttackKind.AMNESIA, AttackKind.EQUIVOCATION]
    assert set(found[1].guilty) == keys("abc")


def test_second_block_is_told_from_the_block_before_it_and_proves_the_same() -> None:
    second = light_block(STILL.at(30).header._replace(state_root=b"\7" * 32), FOUR)
    lunatic = light_block(STILL.at(30).header._replace(params_hash=b"\7" * 32), FOUR)
    for lie, common in ((second, 29), (lunatic, COMMON)):
        attack = attack_on(STILL, lie)
        verdict = verdict_at(STILL, attack)
        told = nearest(attack, verdict)
        assert told == LightClientAttack(common, lie)
        assert verdict_at(STILL, told) == verdict


# --- what is no attack


def test_block_of_the_chain_itself_is_no_attack() -> None:
    with pytest.raises(Invalid, match=r"evidence\.canonical"):
        verdict_at(STILL, LightClientAttack(COMMON, STILL.at(30)))


def test_strangers_cannot_accuse_anybody() -> None:
    """Exactly a third of the announced power, and a set of the attacker's own."""
    chain = LightChain(40, lambda height: {"a": 1, "b": 1, "c": 1})
    header = chain.at(30).header
    lie = light_block(header, {"a": 1, "x": 1, "y": 1})
    with pytest.raises(Invalid, match=r"evidence\.unbelievable"):
        verdict_at(chain, attack_on(chain, lie))
    lie = light_block(header, {"a": 1, "b": 1, "x": 1})
    assert set(verdict_at(chain, attack_on(chain, lie)).guilty) == keys("ab")


def test_next_height_must_have_the_announced_set() -> None:
    lie = light_block(STILL.at(21).header, {"a": 1, "b": 1, "c": 1})
    with pytest.raises(Invalid, match=r"evidence\.unbelievable"):
        verdict_at(STILL, attack_on(STILL, lie, 20))
    assert verdict_at(STILL, attack_on(STILL, lie, 19)).kind is AttackKind.LUNATIC


@pytest.mark.parametrize("signers", ["ab", ""])
def test_too_few_signers_are_no_attack(signers: str) -> None:
    lie = light_block(STILL.at(30).header._replace(params_hash=b"\7" * 32), FOUR, signers=signers)
    with pytest.raises(Invalid):
        verdict_at(STILL, attack_on(STILL, lie))


def test_signatures_are_asked_for_last() -> None:
    """A forgery is found out by them alone; all else is known before."""
    lie = light_block(STILL.at(30).header._replace(params_hash=b"\7" * 32), FOUR)
    forged = replace(lie.certificate, signatures=bytes(len(lie.certificate.signatures)))
    attack = LightClientAttack(COMMON, replace(lie, certificate=forged))
    assert check_attack(attack, a_set(FOUR), STILL.decided(30)).kind is AttackKind.LUNATIC
    with pytest.raises(Invalid, match=r"certificate\.signature"):
        verdict_at(STILL, attack)


def test_attack_on_another_chain_is_refused() -> None:
    lie = light_block(STILL.at(30).header._replace(chain_id=b"\7" * 32), FOUR)
    with pytest.raises(Invalid, match=r"light\.chain"):
        verdict_at(STILL, attack_on(STILL, lie))


# --- bytes

ATTACK = LightClientAttack(
    COMMON, light_block(STILL.at(30).header._replace(params_hash=b"\7" * 32), FOUR)
)
RAW = encode_attack(ATTACK)


def test_attack_survives_its_encoding() -> None:
    read = decode_attack(RAW)
    assert encode_attack(read) == RAW
    assert attack_id(read) == attack_id(ATTACK)
    assert verdict_at(STILL, read) == verdict_at(STILL, ATTACK)


def test_wire_bytes_are_those_we_promised() -> None:
    """The hash of these bytes names the offence on the ledger."""
    assert (
        attack_id(ATTACK).hex()
        == "c746fbcef62b7cb0d6942d80306b449f1fb35c87d186cde64483c2d189b66245"
    )


def test_genesis_may_be_the_common_block() -> None:
    assert decode_attack(encode_attack(LightClientAttack(0, ATTACK.block))).common_height == 0


@pytest.mark.parametrize("common", [30, 31])
def test_common_block_lies_below(common: int) -> None:
    raw = encode((3, common, encode_light_block(ATTACK.block)))
    with pytest.raises(Invalid, match=r"evidence\.common_height"):
        decode_attack(raw)


def test_kinds_of_evidence_are_kept_apart() -> None:
    with pytest.raises(Invalid, match=r"evidence\.kind"):
        decode_attack(encode((1, COMMON, encode_light_block(ATTACK.block))))
    with pytest.raises(Invalid, match=r"evidence\.kind"):
        decode_evidence(RAW)


def test_size_is_looked_at_first() -> None:
    with pytest.raises(Invalid, match=r"evidence\.too_large"):
        decode_attack(bytes(EVIDENCE_BYTES_MAX + 1))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Invalid):
        decode_attack(raw)


def test_changed_bytes_convict_nobody_else() -> None:
    """1,000 changed attacks: refused, or (the common height alone) the same verdict."""
    rng, first = Random(11), verdict_at(STILL, ATTACK)
    for _ in range(1_000):
        raw = bytearray(RAW)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        try:
            read = decode_attack(bytes(raw))
            if read.block.height != 30:
                continue
            assert verdict_at(STILL, read) == first
        except Invalid:
            pass
        else:
            assert encode_light_block(read.block) == encode_light_block(ATTACK.block)
