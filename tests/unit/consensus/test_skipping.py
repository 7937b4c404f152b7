"""The light client's steps: each check failing alone, both sides of each edge, bisection."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from light_kit import (
    CHAIN_ID,
    FOUR,
    LightChain,
    Powers,
    a_set,
    certify,
    key_of,
    light_block,
    now_of,
    with_header,
)

from consensus import skipping
from consensus.certificate import PREVOTE
from consensus.params import VALIDATORS_MAX
from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from consensus.primitives.keys import verify_signature as verify_signature_for_real
from consensus.skipping import (
    LIGHT_BLOCK_BYTES_MAX,
    Bisection,
    Expired,
    LightBlock,
    NotEnoughTrust,
    NotTrusted,
    TooFar,
    TrustOptions,
    decode_light_block,
    encode_light_block,
    power_signed,
    verify,
    verify_adjacent,
    verify_history,
    verify_light_block,
    verify_skipping,
)

OPTIONS = TrustOptions()
CHAIN = LightChain(12)
NOW = now_of(CHAIN.at(12))
Change = Callable[[LightBlock], LightBlock]


def resigned(block: LightBlock, **fields: object) -> LightBlock:
    """Other header fields, signed again by all: only what the fields break is wrong."""
    header = block.header._replace(**fields)
    return replace(block, header=header, certificate=certify(header, FOUR))


def other_certificate(**fields: object) -> Change:
    return lambda block: replace(block, certificate=replace(block.certificate, **fields))


def forged(block: LightBlock) -> LightBlock:
    signatures = bytearray(block.certificate.signatures)
    signatures[-1] ^= 1
    return replace(block, certificate=replace(block.certificate, signatures=bytes(signatures)))


def signed_by(*names: str) -> Change:
    return lambda block: replace(block, certificate=certify(block.header, FOUR, names))


OTHERS = a_set({"a": 1, "b": 1, "c": 1, "e": 1})
EITHER_WAY: list[tuple[str, Change, str]] = [  # one check broken, all others kept
    ("another chain", lambda b: resigned(b, chain_id=b"\7" * 32), "light.chain"),
    ("a polka for a commit", other_certificate(kind=PREVOTE), "light.certificate"),
    ("a commit of another height", other_certificate(height=99), "light.certificate"),
    ("a bitmap too long", other_certificate(bitmap=b"\x0f\0"), "light.bitmap"),
    ("a spare bit", other_certificate(bitmap=b"\x1f"), "light.bitmap"),
    ("a set that is not the header's", lambda b: replace(b, validators=OTHERS), "light.validators"),
    (
        "a next set that is not the header's",
        lambda b: replace(b, next_validators=OTHERS),
        "light.next_validators",
    ),
    ("a commit of another block", lambda b: with_header(b, supply=1), "light.block_id"),
    (
        "time standing still",
        lambda b: resigned(b, time_ms=CHAIN.at(1).header.time_ms),
        "light.time",
    ),
    (
        "time ahead by the drift",
        lambda b: resigned(b, time_ms=NOW + OPTIONS.drift_ms),
        "light.future",
    ),
    ("two of four signed", signed_by("a", "b"), "certificate.power"),
    ("too few signatures", other_certificate(signatures=bytes(64 * 3)), "certificate.signatures"),
    ("one forged signature", forged, "certificate.signature"),
]


@pytest.mark.parametrize(("desc", "change", "code"), EITHER_WAY, ids=[r[0] for r in EITHER_WAY])
@pytest.mark.parametrize("height", [2, 9], ids=["adjacent", "skipping"])
def test_each_check_fails_alone(desc: str, change: Change, code: str, height: int) -> None:
    good = CHAIN.at(height)
    verify(CHAIN.at(1), good, OPTIONS, NOW)
    with pytest.raises(Invalid) as refused:
        verify(CHAIN.at(1), change(good), OPTIONS, NOW)
    assert refused.value.code == code, desc


ADJACENT: list[tuple[str, LightBlock, str]] = [
    ("not the next height", CHAIN.at(3), "light.not_adjacent"),
    ("another parent", resigned(CHAIN.at(2), parent_id=b"\7" * 32), "light.parent"),
    (
        "a set that was not announced",
        light_block(CHAIN.at(2).header, {**FOUR, "e": 1}),
        "light.announced",
    ),
]


@pytest.mark.parametrize(("desc", "block", "code"), ADJACENT, ids=[row[0] for row in ADJACENT])
def test_next_block_must_follow(desc: str, block: LightBlock, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        verify_adjacent(CHAIN.at(1), block, OPTIONS, NOW)
    assert refused.value.code == code, desc


def test_next_block_is_never_skipped_to() -> None:
    """A third of the power would do there, where the whole set is known."""
    with pytest.raises(Invalid, match=r"light\.adjacent"):
        verify_skipping(CHAIN.at(1), CHAIN.at(2), OPTIONS, NOW)


@pytest.mark.parametrize("height", [1, 2, 5])
def test_going_back_is_refused(height: int) -> None:
    with pytest.raises(Invalid, match=r"light\.height"):
        verify(CHAIN.at(5), CHAIN.at(height), OPTIONS, NOW)


def test_trust_ends_with_its_period() -> None:
    trusted, block = CHAIN.at(1), CHAIN.at(9)
    end_ms = trusted.header.time_ms + OPTIONS.period_ms
    verify(trusted, block, OPTIONS, end_ms - 1)
    for step, height in ((verify_adjacent, 2), (verify_skipping, 9)):
        with pytest.raises(Expired):
            step(trusted, CHAIN.at(height), OPTIONS, end_ms)


def test_time_may_run_ahead_by_less_than_the_drift() -> None:
    ahead = resigned(CHAIN.at(9), time_ms=NOW + OPTIONS.drift_ms - 1)
    verify(CHAIN.at(1), ahead, OPTIONS, NOW)


def test_time_may_follow_by_one_millisecond() -> None:
    late = resigned(CHAIN.at(9), time_ms=CHAIN.at(1).header.time_ms + 1)
    verify(CHAIN.at(1), late, OPTIONS, NOW)


# --- how much must have signed


def step_to(old: Powers, new: Powers, level: tuple[int, int] = (1, 3), **more: object) -> None:
    """From a block of `old` to one two heights later of `new`."""
    first = light_block(CHAIN.at(1).header, old)
    later = light_block(CHAIN.at(3).header, new, signers=more.get("signers"))  # type: ignore[arg-type]
    verify_skipping(first, later, TrustOptions(level=level), NOW)


def test_exactly_the_level_is_not_enough_and_one_more_is() -> None:
    strangers = {"x": 20, "y": 20}
    with pytest.raises(NotEnoughTrust):
        step_to({"a": 3, "b": 6}, {**strangers, "a": 1})
    step_to({"a": 4, "b": 6}, {**strangers, "a": 1})


def test_power_is_that_of_the_trusted_set() -> None:
    """A newcomer's power, or a raised one, counts nothing in what was announced before."""
    with pytest.raises(NotEnoughTrust) as told:
        step_to({"a": 1, "b": 9}, {"a": 1_000, "x": 1})
    assert (told.value.power, told.value.total) == (1, 10)


def test_power_is_that_of_the_set_which_the_trusted_block_announced() -> None:
    """Its own set has signed already; who signs next is who is bonded for the time to come."""
    leaving = light_block(CHAIN.at(1).header, {"a": 1}, {"b": 1})
    with pytest.raises(NotEnoughTrust):
        verify_skipping(leaving, light_block(CHAIN.at(3).header, {"a": 1}), OPTIONS, NOW)
    verify_skipping(leaving, light_block(CHAIN.at(3).header, {"b": 1}), OPTIONS, NOW)


def test_only_those_who_signed_count() -> None:
    everybody = {"a": 1, "b": 1, "c": 1, "x": 9}
    with pytest.raises(NotEnoughTrust):
        step_to({"a": 1, "b": 1, "c": 1}, everybody, signers=("a", "x"))
    step_to({"a": 1, "b": 1, "c": 1}, everybody, signers=("a", "b", "x"))


def test_replaced_set_is_not_trusted() -> None:
    with pytest.raises(NotEnoughTrust) as told:
        step_to(FOUR, {"w": 1, "x": 1, "y": 1, "z": 1})
    assert told.value.power == 0


@pytest.mark.parametrize(("level", "ok"), [((1, 2), True), ((3, 4), False), ((1, 1), False)])
def test_level_is_the_operators(level: tuple[int, int], ok: bool) -> None:
    """Three of four signed: more than a half, not more than three quarters. At 1 nothing skips."""
    if ok:
        step_to(FOUR, FOUR, level, signers="abc")
        return
    with pytest.raises(NotEnoughTrust):
        step_to(FOUR, FOUR, level, signers="abc")


@pytest.mark.parametrize("level", [(1, 4), (33, 100), (4, 3), (0, 1), (-1, -3)])
def test_level_outside_a_third_and_one_cannot_be_set(level: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        TrustOptions(level=level)


def test_no_signature_is_checked_before_all_cheap_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def counted(key: bytes, message: bytes, signature: bytes, code: str) -> None:
        checked.append(code)
        verify_signature_for_real(key, message, signature, code)

    monkeypatch.setattr("consensus.certificate.verify_signature", counted)
    for _, change, code in EITHER_WAY[:-1]:
        with pytest.raises(Invalid) as refused:
            verify(CHAIN.at(1), change(CHAIN.at(9)), OPTIONS, NOW)
        assert refused.value.code == code
    with pytest.raises(NotEnoughTrust):
        step_to(FOUR, {"w": 1, "x": 1})
    assert checked == []
    verify(CHAIN.at(1), CHAIN.at(9), OPTIONS, NOW)
    assert len(checked) == 4


# --- bisection


def drive(bisection: Bisection, chain: LightChain, now_ms: int) -> list[int]:
    """The heights that were fetched."""
    asked = []
    while bisection.wanted is not None:
        asked.append(bisection.wanted)
        bisection.give(chain.at(bisection.wanted), now_ms)
    return asked


def test_same_set_is_one_fetch_whatever_the_distance() -> None:
    bisection = Bisection(CHAIN.at(1), 12, OPTIONS)
    assert drive(bisection, CHAIN, NOW) == [12]
    assert [block.height for block in bisection.trace] == [1, 12]


def drifting(height: int) -> Powers:
    """One of four is replaced each four heights: none is left after sixteen."""
    first = height // 4
    return {f"v{number}": 1 for number in range(first, first + 4)}


DRIFTING = LightChain(64, drifting)


def test_changing_set_is_halved_until_enough_signed() -> None:
    bisection = Bisection(DRIFTING.at(1), 64, OPTIONS)
    asked = drive(bisection, DRIFTING, now_of(DRIFTING.at(64)))
    assert asked == [64, 32, 16, 8, 24, 48, 40, 56], "the target, then the middle of each gap"
    heights = [block.height for block in bisection.trace]
    assert heights[0] == 1
    assert heights[-1] == 64
    assert heights == sorted(heights)
    for one, other in zip(bisection.trace, bisection.trace[1:], strict=False):
        verify(one, other, OPTIONS, now_of(DRIFTING.at(64)))


def test_wholly_replaced_set_is_reached_one_by_one_where_it_changes() -> None:
    chain = LightChain(20, lambda height: FOUR if height < 10 else {"x": 1, "y": 1})
    bisection = Bisection(chain.at(1), 20, OPTIONS)
    drive(bisection, chain, now_of(chain.at(20)))
    heights = [block.height for block in bisection.trace]
    assert {9, 10} <= set(heights), "the change is crossed by the two blocks beside it"


@pytest.mark.parametrize(("fetch_max", "ok"), [(8, True), (7, False)])
def test_bisection_fetches_no_more_than_it_may(fetch_max: int, ok: bool) -> None:
    bisection = Bisection(DRIFTING.at(1), 64, TrustOptions(fetch_max=fetch_max))
    if ok:
        assert len(drive(bisection, DRIFTING, now_of(DRIFTING.at(64)))) == fetch_max
        return
    with pytest.raises(TooFar):
        drive(bisection, DRIFTING, now_of(DRIFTING.at(64)))


def test_another_height_than_asked_for_is_refused() -> None:
    with pytest.raises(Invalid, match=r"light\.unasked"):
        Bisection(CHAIN.at(1), 12, OPTIONS).give(CHAIN.at(11), NOW)


def test_lying_primary_is_found_before_it_is_believed() -> None:
    """Strangers sign the target; the set between does not know them."""
    lie = light_block(DRIFTING.at(64).header, {"liar": 1})
    bisection = Bisection(DRIFTING.at(1), 64, OPTIONS)
    now_ms = now_of(DRIFTING.at(64))
    bisection.give(lie, now_ms)
    with pytest.raises(Invalid, match=r"light\.announced"):
        drive(bisection, DRIFTING, now_ms)
    assert all(block.header == DRIFTING.at(block.height).header for block in bisection.trace)


def test_bisection_stops_when_what_it_trusts_expires_on_the_way() -> None:
    bisection = Bisection(DRIFTING.at(1), 64, OPTIONS)
    bisection.give(DRIFTING.at(64), now_of(DRIFTING.at(64)))
    assert bisection.wanted is not None
    with pytest.raises(Expired):
        bisection.give(
            DRIFTING.at(bisection.wanted), DRIFTING.at(1).header.time_ms + OPTIONS.period_ms
        )


# --- history


@pytest.mark.parametrize("height", range(1, 12))
def test_every_older_block_stands_in_the_history(height: int) -> None:
    ids = [block.block_id for block in CHAIN.blocks[:11]]
    path = merkle.prove(ids, height - 1)
    newest = CHAIN.at(12).header
    verify_history(newest, height, ids[height - 1], path)
    with pytest.raises(Invalid, match=r"merkle\.root"):
        verify_history(newest, height, bytes(32), path)
    for wrong in (path[:-1], (*path, bytes(32)), ()):
        with pytest.raises(Invalid, match=r"merkle\.path_length"):
            verify_history(newest, height, ids[height - 1], wrong)


@pytest.mark.parametrize("height", [0, 12, 13, -1])
def test_history_holds_only_earlier_blocks(height: int) -> None:
    with pytest.raises(Invalid, match=r"history\.height"):
        verify_history(CHAIN.at(12).header, height, CHAIN.at(12).block_id, ())


def test_first_block_has_no_history() -> None:
    with pytest.raises(Invalid, match=r"history\.height"):
        verify_history(CHAIN.at(1).header, 1, CHAIN.at(1).block_id, ())


def test_history_path_with_a_short_hash_is_refused() -> None:
    ids = [block.block_id for block in CHAIN.blocks[:11]]
    path = merkle.prove(ids, 4)
    with pytest.raises(Invalid, match=r"merkle\.hash_length"):
        verify_history(CHAIN.at(12).header, 5, ids[4], (path[0][:31], *path[1:]))


# --- bytes


def test_light_block_survives_its_encoding() -> None:
    block = DRIFTING.at(9)
    read = decode_light_block(encode_light_block(block))
    assert encode_light_block(read) == encode_light_block(block)
    assert (read.header, read.certificate, read.block_id) == (
        block.header,
        block.certificate,
        block.block_id,
    )
    verify_light_block(read, CHAIN_ID)


@pytest.mark.parametrize("members", [4, 7, VALIDATORS_MAX])
def test_light_block_of_any_set_fits_its_limit(members: int) -> None:
    powers = {f"m{number}": 10**9 + number for number in range(members)}
    block = light_block(CHAIN.at(3).header, powers)
    raw = encode_light_block(block)
    assert len(raw) < LIGHT_BLOCK_BYTES_MAX
    assert power_signed(decode_light_block(raw), block.validators) == block.validators.total


def test_wire_bytes_are_those_we_promised() -> None:
    """New bytes? Then a new protocol version, told in the changelog."""
    digest = sha256(*(encode_light_block(block) for block in DRIFTING.blocks))
    assert digest.hex() == "94f8b47ee9b1818c623c77e1d50d9522c69e65e6682667a7e9b389542a41755f"


def test_size_is_looked_at_before_anything_else() -> None:
    with pytest.raises(Invalid, match=r"light_block\.too_large"):
        decode_light_block(bytes(LIGHT_BLOCK_BYTES_MAX + 1))


def test_set_of_one_more_than_the_cap_is_refused() -> None:
    parts = [b"x", b"x", b"x", b"x"]
    block = CHAIN.at(3)
    member = [(key_of(f"m{number}"), 1) for number in range(VALIDATORS_MAX + 1)]
    parts = [
        encode(block.header),
        encode((2, 3, 0, block.block_id, block.certificate.bitmap, block.certificate.signatures)),
        encode(sorted(member)),
        encode(sorted(member)),
    ]
    with pytest.raises(Invalid, match=r"validators\.malformed"):
        decode_light_block(encode(parts))


RAW = encode_light_block(DRIFTING.at(9))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Invalid):
        decode_light_block(raw)


def test_changed_bytes_are_never_believed() -> None:
    """Every changed bit is refused by the decoder or by a check: 2,000 tries, none passes."""
    rng = Random(7)
    trusted, now_ms = DRIFTING.at(8), now_of(DRIFTING.at(64))
    verify(trusted, DRIFTING.at(9), OPTIONS, now_ms)
    for _ in range(2_000):
        raw = bytearray(RAW)
        for _ in range(rng.choice((1, 1, 2, 5))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        if bytes(raw) == RAW:
            continue
        with pytest.raises((Invalid, NotTrusted)):
            verify(trusted, decode_light_block(bytes(raw)), OPTIONS, now_ms)


@pytest.mark.parametrize("cut", [0, 1, 7, len(RAW) // 2, len(RAW) - 1])
def test_torn_light_block_is_refused(cut: int) -> None:
    with pytest.raises(Invalid):
        decode_light_block(RAW[:cut])


def test_pure_file_names_no_clock() -> None:
    """Time is an argument: the same question has the same answer on any day."""
    assert not {"time", "datetime"} & set(vars(skipping))
