"""Shares are exact, sum to 10,000, cannot be raised by splitting, and lies need no row to fall."""

import hashlib
import json
import random
from itertools import product
from math import isqrt, log, sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives.errors import Invalid
from node.ledger.rules import shares
from node.ledger.wire import claims

VECTORS = json.loads(Path("tests/vectors/attribution.json").read_text(encoding="utf-8"))
ROOT = bytes(range(32))


def header(rows: int = 3, **fields: object) -> claims.IndexHeader:
    h = bytes(32)
    plain = claims.IndexHeader(
        version=1,
        base=h,
        adapter=h,
        early=h,
        middle=h,
        snapshot_root=h,
        basis_hash=h,
        rows=rows,
        records=max(rows, 200),
        rule=1,
        narrow=128,
        mix=claims.GRADIENT_ONLY,
        min_span=6,
        rows_root=h,
        clusters_root=h,
        spans_root=h,
    )
    return plain._replace(**fields)


def state(floors: tuple[int, ...], paid: tuple[tuple[int, int, int], ...]) -> claims.Statement:
    return claims.Statement(1, ROOT, floors, paid, (), ())


def honest(scores: list[int], owners: list[int]) -> claims.Statement:
    seats = shares.draw_panel(ROOT, len(scores))
    floors = tuple(abs(scores[row]) for row in seats)
    tau = shares.threshold(floors, len(scores))
    paid = shares.choose_paid(enumerate(scores), tau, shares.paid_cap(claims.GRADIENT_ONLY))
    return state(floors, tuple((row, owners[row], s) for row, s in paid))


# --- the rule


def test_z_is_the_formula_of_the_design() -> None:
    formula = [round(16 * sqrt(2 * log(2**b)) / 0.6745) for b in range(1, 25)]
    assert list(shares.Z[1:]) == formula
    assert VECTORS["z"] == formula


@pytest.mark.parametrize("vector", VECTORS["panels"], ids=lambda vector: str(vector["rows"]))
def test_panel_is_the_promised_one(vector: dict[str, object]) -> None:
    seed = shares.panel_seed(
        bytes.fromhex(str(vector["chain_id"])),
        bytes.fromhex(str(vector["index_root"])),
        vector["model"],
        vector["version"],
        vector["published_ms"],
    )
    assert seed.hex() == vector["seed"]
    assert list(shares.draw_panel(seed, vector["rows"])) == vector["panel"]


@pytest.mark.parametrize("rows", [1, 2, 126, 127])
def test_small_index_has_all_its_rows_in_the_panel(rows: int) -> None:
    assert shares.draw_panel(ROOT, rows) == tuple(range(rows))


@pytest.mark.parametrize("rows", [128, 129, 4_097, claims.ROWS_MAX])
def test_large_index_has_127_distinct_rows_in_the_panel(rows: int) -> None:
    seats = shares.draw_panel(ROOT, rows)
    assert len(set(seats)) == len(seats) == 127
    assert 0 <= min(seats) <= max(seats) < rows


def test_panel_seed_depends_on_every_part() -> None:
    parts = (b"\1" * 32, b"\2" * 32, 3, 4, 5)
    others = (b"\0" * 32, b"\0" * 32, 0, 0, 0)
    seeds = {shares.panel_seed(*parts)}
    seeds |= {shares.panel_seed(*parts[:i], others[i], *parts[i + 1 :]) for i in range(5)}
    assert len(seeds) == 6


def test_score_reads_bytes_as_signed() -> None:
    row = bytes([127] * 512 + [0x81] * 512)  # 0x81 is −127
    assert shares.score(row, bytes([127] * 1_024)) == 0
    assert shares.score(row, row) == shares.SCORE_MAX < 2**24


def test_median_of_an_even_panel_is_the_lower() -> None:
    assert shares.threshold((9, 1, 5, 7), 4) == shares.Z[3] * 5


def test_row_at_the_threshold_is_not_paid() -> None:
    assert shares.choose_paid([(0, 10), (1, 11)], tau=160, cap=64) == [(1, 11)]


def test_of_65_equal_rows_the_last_is_not_paid() -> None:
    paid = shares.choose_paid([(row, 5) for row in range(65)], tau=0, cap=64)
    assert [row for row, _ in paid] == list(range(64))


def test_cap_leaves_room_for_other_scorers() -> None:
    assert shares.paid_cap(claims.GRADIENT_ONLY) == 64
    assert shares.paid_cap(((0, 7_000), (1, 3_000))) == 44
    assert shares.paid_cap(((0, 6_000), (1, 3_000), (2, 1_000))) == 40


@pytest.mark.parametrize(
    ("desc", "weights", "parts"),
    [
        ("nothing to share", [], []),
        ("one row takes all", [(4, 1)], [(4, 10_000)]),
        ("a tie in the remainder goes to the lower row", [(2, 1), (7, 1), (9, 1)], None),
        ("a part may round to nothing", [(0, 1), (1, 30_000)], [(0, 0), (1, 10_000)]),
    ],
)
def test_apportioning(
    desc: str, weights: list[tuple[int, int]], parts: list[tuple[int, int]] | None
) -> None:
    expected = [(2, 3_334), (7, 3_333), (9, 3_333)] if parts is None else parts
    assert shares.apportion(weights, 10_000) == expected, desc


@given(st.lists(st.integers(1, 2**30), min_size=1, max_size=64), st.integers(1, 10_000))
def test_parts_sum_to_the_total_and_miss_the_exact_part_by_less_than_one(
    weights: list[int], total: int
) -> None:
    parts = shares.apportion(list(enumerate(weights)), total)
    assert sum(part for _, part in parts) == total
    whole = sum(weights)
    assert all(abs(part * whole - weights[row] * total) < whole for row, part in parts)


# --- credits


def random_scores(chance: random.Random, rows: int) -> list[int]:
    scores = [int(chance.gauss(0, 5_000)) for _ in range(rows)]
    for row in chance.sample(range(rows), min(rows, chance.randint(1, 80))):
        scores[row] = chance.randint(20_000, 500_000)
    return scores


def test_splitting_rows_over_accounts_never_moves_a_basis_point() -> None:
    """A contributor cannot earn more by spreading records over contributions: 300 random splits."""
    chance = random.Random("splits")
    for _ in range(300):
        rows = chance.randint(20, 300)
        scores = random_scores(chance, rows)
        owners = [chance.randint(1, 9) for _ in range(rows)]
        split = [owner * 1_000 + chance.randint(0, 99) for owner in owners]
        whole = shares.credits_of(honest(scores, owners), rows)
        parts = shares.credits_of(honest(scores, split), rows)
        merged: dict[int, int] = {}
        for contribution, bps in parts:
            merged[contribution // 1_000] = merged.get(contribution // 1_000, 0) + bps
        assert tuple(sorted(merged.items())) == whole
        assert sum(bps for _, bps in whole) in (0, 10_000)


def test_honest_statements_pass_and_decode_to_themselves() -> None:
    chance = random.Random("honest")
    for _ in range(200):
        rows = chance.randint(1, 300)
        statement = honest(random_scores(chance, rows), [7] * rows)
        raw = claims.encode_statement(statement)
        assert claims.decode_statement(raw) == statement
        shares.check_statement(statement, header(rows), ROOT)


@pytest.mark.parametrize("scores", [[0] * 50, [12_345], [-5_000, -9]])
def test_noise_alone_earns_nothing(scores: list[int]) -> None:
    """One row cannot stand above itself; all zero and all negative are never paid."""
    statement = honest(scores, [1] * len(scores))
    assert statement.paid == ()
    assert shares.credits_of(statement, len(scores)) == ()


@pytest.mark.parametrize(
    ("highest", "credits"),
    [
        (1_706, ()),
        (1_707, ((0, 9_995), (5, 5))),
        (2_437, ((0, 5_004), (5, 4_996))),
        (3_168, ((0, 6), (5, 9_994))),
        (3_169, ((5, 10_000),)),
        (9_999, ((5, 10_000),)),
    ],
)
def test_pay_grows_from_seven_quarters_of_the_threshold_to_thirteen(
    highest: int, credits: shares.Credits
) -> None:
    """The less the data knows of what was asked, the more is the model's fund's."""
    assert shares.threshold((400,) * 3, 3) == 16 * 975
    statement = state((400,) * 3, ((0, 5, highest), (2, 6, 976)))
    shares.check_statement(statement, header(3), ROOT)
    assert shares.credits_of(statement, 3) == credits
    whole = shares.credits_of(statement, 3, standing=10_000)
    assert whole == ((5, 10_000),)


def test_without_noise_any_score_stands_out() -> None:
    assert shares.credits_of(state((0, 0, 0), ((1, 6, 1),)), 3) == ((6, 10_000),)
    assert shares.credits_of(state((0, 0, 0), ()), 3) == ()


def test_what_the_gradient_leaves_is_for_the_other_scorers() -> None:
    """And for the fund only where no other found anything."""
    mix = ((0, 6_000), (2, 4_000))
    half = state((400,) * 3, ((0, 5, 2_437), (2, 6, 976)))  # paid by 4,996 of 10,000
    cited = half._replace(retrieved=((1, 7),))
    assert shares.row_shares(half, 3, mix) == [(0, 4_996), (2, 0)]
    assert shares.row_shares(cited, 3, mix) == [(0, 2_997), (1, 7_003), (2, 0)]
    assert shares.row_shares(cited, 3, mix, standing=10_000) == [(0, 6_000), (1, 4_000), (2, 0)]
    assert shares.row_shares(cited, 3, mix, standing=0) == [(1, 10_000)]


def test_a_row_of_no_contribution_is_the_funds_too() -> None:
    paid = state((0, 0, 0), ((0, 0, 30), (1, 6, 10), (2, 6, 10)))
    assert shares.credits_of(paid, 3) == ((0, 8_182), (6, 1_818))
    assert shares.credits_of(state((0, 0, 0), ((0, 0, 30),)), 3) == ()


def test_rows_are_paid_by_the_square_of_their_excess() -> None:
    statement = state((0, 0, 0), ((0, 5, 30), (1, 6, 10), (2, 6, 10)))
    assert shares.row_shares(statement, 3) == [(0, 8_182), (1, 909), (2, 909)]


@given(
    st.lists(st.integers(0, shares.SCORE_MAX), min_size=1, max_size=300),
    st.sampled_from([0, 1, -1]),
)
def test_shares_of_any_scores_sum_to_what_stands_out(scores: list[int], sign: int) -> None:
    """Extremes and ties among them; the order in which rows are given does not matter."""
    scores = [score if sign >= 0 or row % 2 else -score for row, score in enumerate(scores)]
    scores = [score * abs(sign) or score % 7 for score in scores]
    statement = honest(scores, list(range(len(scores))))
    parts = shares.row_shares(statement, len(scores))
    assert sum(bps for _, bps in parts) == shares.standing_bps(statement, len(scores))
    assert all(bps >= 0 for _, bps in parts)
    credits = shares.credits_of(statement, len(scores))
    assert sum(bps for _, bps in credits) == (10_000 if credits else 0)
    tau = shares.threshold(statement.floors, len(scores))
    pairs = list(enumerate(scores))
    assert shares.choose_paid(pairs[::-1], tau, 64) == shares.choose_paid(pairs, tau, 64)
    backwards = [(row, (16 * s - tau) ** 2) for row, _, s in statement.paid][::-1]
    assert not parts or shares.apportion(backwards, sum(bps for _, bps in parts)) == parts


def test_zero_credits_are_left_out() -> None:
    statement = state((0, 0, 0), ((0, 5, 1), (2, 6, 30_000)))
    assert shares.credits_of(statement, 3) == ((6, 10_000),)


# --- refusals


@pytest.mark.parametrize(
    ("code", "statement"),
    [
        ("statement.index_root", state((1, 1, 1), ())._replace(index_root=bytes(32))),
        ("statement.floors", state((1, 1), ())),
        ("statement.floors", state((1, 1, 1, 1), ())),
        ("statement.floors", state((1, 1, shares.SCORE_MAX + 1), ())),
        ("statement.rows", state((1, 1, 1), ((1, 5, 900), (0, 5, 900)))),
        ("statement.rows", state((1, 1, 1), ((1, 5, 900), (1, 5, 900)))),
        ("statement.rows", state((1, 1, 1), ((3, 5, 900),))),
        ("statement.unpaid_row", state((16, 16, 16), ((0, 5, 39),))),
        ("statement.unpaid_row", state((0, 0, 0), ((0, 5, shares.SCORE_MAX + 1),))),
        ("statement.scorer", state((1, 1, 1), ())._replace(retrieved=((0, 4),))),
        (
            "statement.scorer",
            state((1, 1, 1), ())._replace(spans=(claims.Span(0, 9, ((1, 0),)),)),
        ),
    ],
)
def test_false_statement_is_refused_by_its_code(code: str, statement: claims.Statement) -> None:
    with pytest.raises(Invalid) as refusal:
        shares.check_statement(statement, header(3), ROOT)
    assert refusal.value.code == code


def test_statement_at_its_limits_passes() -> None:
    shares.check_statement(state((16, 16, 16), ((2, 5, 40),)), header(3), ROOT)
    paid = tuple((row, 1, shares.SCORE_MAX) for row in range(64))
    full = state((0,) * 127, paid)
    shares.check_statement(full, header(200), ROOT)
    assert len(claims.encode_statement(full)) < claims.STATEMENT_BYTES_MAX


def test_more_paid_rows_than_the_mix_allows_are_refused() -> None:
    paid = tuple((row, 1, 9) for row in range(45))
    mixed = header(200, mix=((0, 7_000), (1, 3_000)), spans_root=b"\1" * 32)
    shares.check_statement(state((0,) * 127, paid[:44]), mixed, ROOT)
    with pytest.raises(Invalid) as refusal:
        shares.check_statement(state((0,) * 127, paid), mixed, ROOT)
    assert refusal.value.code == "statement.cap"


@pytest.mark.parametrize(
    ("desc", "sketch"),
    [
        ("too short", bytes([31] * 1_023)),
        ("holds −128", bytes([0x80] + [31] * 1_023)),
        ("a half below 464,000", bytes([30] * 512 + [31] * 512)),
        ("a half above 521,300", bytes([31] * 512 + [32] * 512)),
        ("all zero", bytes(1_024)),
    ],
)
def test_malformed_sketch_is_refused(desc: str, sketch: bytes) -> None:
    with pytest.raises(Invalid) as refusal:
        shares.check_sketch(sketch)
    assert refusal.value.code == "sketch.malformed", desc


def test_norm_bounds_hold_on_both_sides() -> None:
    def half(total: int) -> bytes:  # 508 equal entries, and four squares (Lagrange) for the rest
        entry = 30 if total < 480_000 else 31
        left = total - 508 * entry * entry
        for a, b, c in product(range(127, -1, -1), repeat=3):
            d = isqrt(max(0, left - a * a - b * b - c * c))
            if d <= 127 and a * a + b * b + c * c + d * d == left:
                return bytes([entry] * 508 + [a, b, c, d])
        raise AssertionError(total)

    good = half(490_000)
    for total, is_sound in ((463_999, False), (464_000, True), (521_300, True), (521_301, False)):
        assert shares.is_sound_row(good + half(total)) is is_sound
        assert shares.is_sound_row(half(total) + good) is is_sound


# --- wire shapes


def test_header_decodes_to_itself_and_names_the_index() -> None:
    raw = claims.encode_header(header())
    assert claims.decode_header(raw) == header()
    assert claims.index_root(raw) == hashlib.sha256(raw).digest()
    assert len(raw) < 600


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("index_header.version", {"version": 2}),
        ("index_header.rule", {"rule": 2}),
        ("index_header.rows", {"rows": 0}),
        ("index_header.rows", {"rows": 201, "records": 200}),
        ("index_header.rows", {"rows": 2**23 + 1, "records": 2**24}),
        ("index_header.narrow", {"narrow": 7}),
        ("index_header.mix", {"mix": ((0, 9_999),)}),
        ("index_header.mix", {"mix": ((1, 3_000), (0, 7_000))}),
        ("index_header.mix", {"mix": ((0, 5_000), (0, 5_000))}),
        ("index_header.mix", {"mix": ((0, 3_999), (1, 3_000), (2, 3_001))}),
        ("index_header.mix", {"mix": ((0, 7_000), (3, 3_000))}),
        ("index_header.mix", {"mix": ((0, 10_000), (1, 0))}),
        ("index_header.min_span", {"min_span": 3}),
        ("index_header.spans_root", {"spans_root": b"\1" * 32}),
        ("index_header.spans_root", {"mix": ((0, 7_000), (1, 3_000))}),
        ("index_header.malformed", {"base": bytes(31)}),
    ],
)
def test_false_header_is_refused_by_its_code(code: str, fields: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refusal:
        claims.decode_header(claims.encode_header(header(**fields)))
    assert refusal.value.code == code


@given(st.binary(max_size=300))
def test_decoders_raise_nothing_but_invalid(raw: bytes) -> None:
    for decode in (claims.decode_header, claims.decode_statement, claims.decode_row_leaf):
        with pytest.raises(Invalid):
            decode(raw)


def test_statement_of_another_version_is_refused() -> None:
    with pytest.raises(Invalid) as refusal:
        claims.decode_statement(claims.encode_statement(state((1,), ())._replace(version=2)))
    assert refusal.value.code == "statement.version"


def test_row_leaf_is_1044_bytes_and_decodes_to_itself() -> None:
    leaf = claims.RowLeaf(5, 2**40, 9, 44, bytes(range(256)) * 4)
    raw = claims.encode_row_leaf(leaf)
    assert len(raw) == 1_044
    assert claims.decode_row_leaf(raw) == leaf


def test_sketch_hash_is_the_tree_over_sketch_and_statement() -> None:
    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    assert claims.sketch_hash(b"s", b"t") == sha(b"\1" + sha(b"\0s") + sha(b"\0t"))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("statement.spans", {"spans": (claims.Span(0, 5, ((1, 0),)),)}),
        ("statement.spans", {"spans": (claims.Span(0, 6, ((2, 0), (1, 0))),)}),
        ("statement.spans", {"spans": (claims.Span(0, 6, ((1, 0), (1, 9))),)}),
        ("statement.spans", {"spans": (claims.Span(0, 6, ((3, 0),)),)}),
        ("statement.spans", {"spans": tuple(claims.Span(n, 6, ((1, 0),)) for n in (9, 0))}),
        ("statement.retrieved", {"retrieved": ((1, 0),)}),
        ("statement.retrieved", {"retrieved": ((2, 4), (1, 4))}),
        ("statement.retrieved", {"retrieved": ((3, 4),)}),
    ],
)
def test_false_parts_of_other_scorers_are_refused(code: str, changes: dict[str, object]) -> None:
    mixed = header(3, mix=((0, 5_000), (1, 3_000), (2, 2_000)), spans_root=b"\1" * 32)
    plain = state((16, 16, 16), ())
    sound = (claims.Span(0, 6, ((1, 0), (2, 9))),)
    shares.check_statement(plain._replace(spans=sound, retrieved=((1, 4), (2, 1))), mixed, ROOT)
    with pytest.raises(Invalid) as refusal:
        shares.check_statement(plain._replace(**changes), mixed, ROOT)
    assert refusal.value.code == code
