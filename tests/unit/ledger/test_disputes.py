"""Fraud proofs of kinds 1 to 3: what each lie costs whom, what is no proof, each fact once."""

from pathlib import Path

import pytest
from attribution_kit import sound_rows, write_index
from bundle_kit import party
from chain_kit import CREATOR, FAUCET, OPEN, PAYER, PROVIDER, STEWARD, TinyChain
from fraud_kit import FEE, LIES, UNBOUND, Court, leave_out, proof_of, raise_score

from node.attribution.audit import Claim
from node.ledger import purses, tables
from node.ledger.rules.accounts import BASE_PRICE_NAME
from node.ledger.rules.channels import INCOME_NAME
from node.ledger.rules.models import is_suspended
from node.ledger.state import State
from node.ledger.wire import claims, openings
from node.ledger.wire import transactions as wire
from node.ledger.wire.codes import EFFECT_CODES
from node.ledger.wire.openings import (
    NORM,
    ROW,
    SHARES,
    NormOpened,
    RowOpened,
    SharesOpened,
    VersionSubject,
    encode_opening,
    open_receipt,
)

BOND = 2 * OPEN
LADDER = (100, 500, 1_000)
FRAUD_BOND = OPEN // 1_000
LATE, EXISTS, BAD_PROOF, BAD_VALUE, INSUFFICIENT = 27, 24, 28, 26, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Court:
    """To be read only; a test that makes blocks takes `court`."""
    return Court(tmp_path_factory.mktemp("court"))


@pytest.fixture
def court(tmp_path: Path) -> Court:
    return Court(tmp_path)


def bonded(state: State) -> int:
    return state.held(purses.bond(tables.ROLE_PROVIDER, PROVIDER.key, PROVIDER.key))


def maturing(state: State) -> int:
    return sum(record.amount for _, record in state.scan(tables.MATURING))


def is_whole(chain: TinyChain) -> bool:
    state = chain.state()
    return sum(state.totals()) == state.supply() == chain.headers[-1].supply


# ---- what it costs, and who gets it


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lie_about_shares_is_reversed_and_slashed_in_its_own_block(court: Court, lie) -> None:
    """The payer has all its fee back, but for what was burnt; the finder a quarter of the slash."""
    claim = court.claim(lie)
    bundle = court.settle(claim)
    before = court.chain.state()
    outcome = court.accuse(court.proof(bundle, claim), STEWARD)
    state, slashed = court.chain.state(), BOND * LADDER[0] // 10_000
    assert outcome.codes == (0,)
    assert state.account(PAYER.key).balance == before.account(PAYER.key).balance + FEE
    assert maturing(state) <= 8, "a grain a payee at most is left"
    assert bonded(state) == BOND - slashed
    gained = state.account(STEWARD.key).balance - before.account(STEWARD.key).balance
    still_owed = maturing(state)  # what rounding left there came out of the slash
    charge = wire.decode_transaction(court.chain.tx(STEWARD, court.proof(bundle, claim))).weight
    assert gained == (slashed - still_owed) // 4 - charge * 100
    assert is_whole(court.chain)


def test_half_of_what_the_finder_does_not_get_is_burnt(court: Court) -> None:
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    supply = court.chain.state().supply()
    court.accuse(court.proof(bundle, claim))
    state = court.chain.state()
    taken = BOND * LADDER[0] // 10_000 - maturing(state)
    payload = court.chain.tx(CREATOR, court.proof(bundle, claim))
    burnt_charge = wire.decode_transaction(payload).weight * 100 // 2
    assert supply - state.supply() == (taken - taken // 4) // 2 + burnt_charge


def test_who_accuses_itself_loses(court: Court) -> None:
    """Also one that is provider, payer and finder has less than without the answer."""
    before = wealth(court)
    claim = court.claim(leave_out)
    bundle = court.settle(claim)
    court.accuse(court.proof(bundle, claim), PAYER)
    assert before - wealth(court) >= BOND // 100 * 3 // 4 - 8


def wealth(court: Court) -> int:
    """Of provider and payer together."""
    state = court.chain.state()
    channel = state.get(tables.CHANNEL, court.session.channel)
    balances = (state.account(who.key).balance for who in (PAYER, PROVIDER))
    return bonded(state) + sum(balances) + channel.cap - channel.paid


def test_receipt_is_refuted_once_and_a_bundle_is_one_failure(court: Court) -> None:
    """A broken machine fails at every answer; it shall not end its provider."""
    lies = [court.claim(lie, number) for number, lie in enumerate((raise_score, leave_out))]
    honest = court.claim(number=3)
    bundle = court.settle(*lies, honest)
    payer = court.chain.state().account(PAYER.key).balance
    for place, claim in enumerate(lies):
        assert court.accuse(court.proof(bundle, claim, place)).codes == (0,)
        assert court.code(court.proof(bundle, claim, place)) == EXISTS
    state = court.chain.state()
    conduct = state.get(tables.CONDUCT, tables.ROLE_PROVIDER, PROVIDER.key)
    assert len(conduct.failures) == 1
    assert bonded(state) == BOND - BOND // 100
    assert abs(state.account(PAYER.key).balance - payer - 2 * FEE) <= 8
    assert is_whole(court.chain)


def test_ladder_forfeits_income_from_the_second_and_jails_from_the_third(court: Court) -> None:
    claims_ = [court.claim(raise_score, number) for number in range(3)]
    honest = court.settle(court.claim(number=4))
    bundles = [court.settle(claim) for claim in claims_]
    left = BOND
    for number, (bundle, claim) in enumerate(zip(bundles, claims_, strict=True)):
        own = income(court)
        court.accuse(court.proof(bundle, claim))
        state = court.chain.state()
        left -= left * LADDER[number] // 10_000
        assert bonded(state) == left
        conduct = state.get(tables.CONDUCT, tables.ROLE_PROVIDER, PROVIDER.key)
        assert bool(conduct.jailed_until_ms) == (number == 2)
        assert income(court) == (own - FEE * 2_000 // 10_000 if number == 0 else 0)
    assert state.has(tables.SETTLED, honest.hash)
    assert is_whole(court.chain)


def test_failure_leaves_what_comes_at_the_end_of_its_block(court: Court) -> None:
    """It is counted once it waits: the next failure takes it, and this one nobody else's for it."""
    claims_ = [court.claim(raise_score, number) for number in range(3)]
    bundles = [court.settle(claim) for claim in claims_]
    court.accuse(court.proof(bundles[0], claims_[0]))
    court.answer(court.claim(number=5))
    more = court.chain.bundle(court.session, court.bundles + 1)
    proof = court.chain.tx(CREATOR, court.proof(bundles[1], claims_[1]))
    assert court.chain.block(proof, bundles=(more,)).codes == (0,)
    assert income(court) == counted(court) == FEE * 2_000 // 10_000
    court.accuse(court.proof(bundles[2], claims_[2]))
    assert income(court) == counted(court) == 0


def counted(court: Court) -> int:
    """What a failure would take of it."""
    return sum(x.value for _, x in court.chain.state().scan(tables.INCOME, INCOME_NAME))


def income(court: Court) -> int:
    """What waits for the provider."""
    found = court.chain.state().scan(tables.MATURING)
    return sum(x.amount for (_, kind, _), x in found if kind[0] == tables.KIND_PROVIDER)


def test_money_is_taken_from_the_account_it_was_earned_for(court: Court) -> None:
    """After an UpdateProvider the new account may be anybody's, with income of its own."""
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    victim = FAUCET.key
    change = wire.UpdateProvider(PROVIDER.key, victim, tables.PROVIDER_ACTIVE)
    court.chain.block(court.chain.tx(PROVIDER, change))
    court.settle(court.claim(number=2))
    record = court.chain.state().get(tables.SETTLED, bundle.hash)
    assert record.reward == PROVIDER.key
    court.accuse(court.proof(bundle, claim))
    found = {
        payee: x.amount
        for (_, kind, payee), x in court.chain.state().scan(tables.MATURING)
        if kind[0] == tables.KIND_PROVIDER
    }
    assert found == {victim: FEE * 2_000 // 10_000}


def test_withdrawn_contribution_gives_back_only_what_it_was_paid(court: Court) -> None:
    """Paid before it was withdrawn: its entry. After: the fund, which had it in its place."""
    first = court.claim(raise_score)
    earlier = court.settle(first)
    owners = {number for number, _ in first.credits}
    state = court.chain.state()
    for number in owners:
        owner = state.get(tables.CONTRIBUTION, number).contributor
        who = next(p for p in map(party, ("giver 0", "giver 1", "giver 2")) if p.key == owner)
        court.chain.block(court.chain.tx(who, wire.WithdrawContribution(number)))
    second = court.claim(raise_score, 1)
    later = court.settle(second)
    waits = {kind for (_, kind, _), _ in court.chain.state().scan(tables.MATURING)}
    assert bytes([tables.KIND_DATA]) in waits
    court.accuse(court.proof(later, second))
    data = [x.amount for (_, k, _), x in court.chain.state().scan(tables.MATURING) if k[0] == 2]
    assert sum(data) == FEE * 4_000 // 10_000, "the fund gave it back"
    court.accuse(court.proof(earlier, first))
    assert maturing(court.chain.state()) <= 16
    assert is_whole(court.chain)


def test_what_the_fund_was_left_is_given_back_by_the_fund(court: Court) -> None:
    """Beside an honest answer whose parts have to stay, to the grain that rounding moves."""
    lie = court.claim()._replace(credits=((0, 2_345), (1, 3_333), (3, 4_322)))
    bundle = court.settle(court.claim(number=1), lie)
    own = {
        (kind[0], int.from_bytes(payee, "big")): x.amount
        for (_, kind, payee), x in court.chain.state().scan(tables.MATURING)
        if len(payee) == 8
    }
    assert court.accuse(court.proof(bundle, lie, place=1)).codes == (0,)
    kept = court.chain.state().scan(tables.MATURING)
    left = {(k[0], int.from_bytes(p, "big")): x.amount for (_, k, p), x in kept if len(p) == 8}
    for payee, part_bps in (
        ((tables.KIND_FUND, 1), 1_000 * 10_000 + 4_000 * 2_345),
        ((tables.KIND_DATA, 1), 4_000 * 3_333),
        ((tables.KIND_DATA, 3), 4_000 * 4_322),
    ):
        assert 0 <= FEE * part_bps // 10**8 - (own[payee] - left[payee]) <= 2
    assert is_whole(court.chain)


def test_unpaid_split_burnt_part_comes_out_of_the_bond(court: Court) -> None:
    """What was burnt cannot be given back; the provider's bond pays it first of all."""
    state = court.chain.state()
    split = (2_000, 3_500, 1_500, 1_000, 1_000, 500, 500)
    state.put(tables.PARAMETER, (b"split_bps",), tables.Parameter(split))
    for key, value in state.changes():
        assert value is not None
        court.chain.flat[key] = value
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    before = court.chain.state().account(PAYER.key).balance
    court.accuse(court.proof(bundle, claim))
    assert court.chain.state().account(PAYER.key).balance == before + FEE


# ---- kind 1 and credits that nothing binds


@pytest.mark.parametrize(
    ("desc", "change"),
    [
        ("other credits", lambda c: c._replace(credits=((1, 5_000), (2, 5_000)))),
        ("no credits", lambda c: c._replace(credits=())),
        ("no sketch, and credits", lambda c: UNBOUND),
        ("malformed sketch", lambda c: rebound(c, sketch=bytes(1_024))),
        ("short sketch", lambda c: rebound(c, sketch=b"")),
        ("statement that is none", lambda c: rebound(c, statement=b"\x90")),
        ("statement too long", lambda c: rebound(c, statement=bytes(5_000))),
        ("statement not canonical", lambda c: rebound(c, statement=c.statement + b"\0")),
    ],
)
def test_claim_that_does_not_hold_by_itself_falls_to_kind_1(court: Court, desc, change) -> None:
    claim = change(court.claim())
    bundle = court.settle(claim)
    assert court.opening(claim)[0] == SHARES
    assert court.accuse(court.proof(bundle, claim)).codes == (0,), desc


def rebound(claim: Claim, **fields: bytes) -> Claim:
    changed = claim._replace(**fields)
    return changed._replace(sketch_hash=claims.sketch_hash(changed.sketch, changed.statement))


# ---- kind 3: the index


def inflated(folder: Path) -> tuple[TinyChain, wire.FraudProof]:
    """A chain whose model has an index with a row of twice the norm, and the proof."""
    rows = sound_rows(20)
    rows[3] = 127
    _, root = write_index(folder, rows, [1] * 20)
    chain = TinyChain()
    chain.tell_story(index_root=root)
    return chain, norm_proof(folder / root.hex(), 3)


def norm_proof(folder: Path, row: int) -> wire.FraudProof:
    """Made by hand: nobody opens such an index."""
    from consensus.primitives import merkle

    header, meta = (folder / "header").read_bytes(), (folder / "meta.bin").read_bytes()
    rows = (folder / "rows.bin").read_bytes()
    leaves = [
        n.to_bytes(4) + meta[16 * n : 16 * n + 16] + rows[1_024 * n : 1_024 * n + 1_024]
        for n in range(len(meta) // 16)
    ]
    opened = NormOpened(header, leaves[row], merkle.prove(leaves, row))
    subject = VersionSubject(1, 1)
    return wire.FraudProof(NORM, encode_opening(subject), encode_opening(opened))


def test_inflated_row_costs_its_creator_the_deposit_and_its_data_part(tmp_path: Path) -> None:
    chain, proof = inflated(tmp_path)
    deposit = chain.state().get(tables.VERSION, 1, 1).deposit
    assert deposit > 0
    before = chain.state().account(STEWARD.key).balance
    raw = chain.tx(STEWARD, proof)
    assert chain.block(raw).codes == (0,)
    state = chain.state()
    assert is_suspended(state, (1, 1))
    assert state.get(tables.VERSION, 1, 1).deposit == 0
    charge = wire.decode_transaction(raw).weight * 100
    assert state.account(STEWARD.key).balance == before + deposit // 4 - charge
    assert is_whole(chain)
    session = chain.open_channel()
    session.serve(((1, 10_000),), model=1, model_version=1, tokens_in=8, tokens_out=1, fee=10**6)
    chain.block(bundles=(chain.bundle(session),))
    kinds = {kind[0] for (_, kind, _), _ in chain.state().scan(tables.MATURING)}
    assert tables.KIND_DATA not in kinds, "credited, and paid to the fund"
    assert chain.execute(chain.tx(STEWARD, proof)).codes == (EXISTS,)


def test_index_is_refuted_while_its_version_is_served(tmp_path: Path) -> None:
    chain, proof = inflated(tmp_path)
    release = wire.PublishVersion(
        1, b"\2" * 32, 1, b"\3" * 32, b"\4" * 32, b"", 10**9, 10**9, 10**6, ()
    )
    chain.block(chain.tx(CREATOR, release))
    lasts_ms = chain.state().parameter("superseded_ms")
    assert chain.execute(chain.tx(STEWARD, proof), later_ms=lasts_ms - 1).codes == (0,)
    assert chain.execute(chain.tx(STEWARD, proof), later_ms=lasts_ms).codes == (LATE,)


def test_next_version_with_a_good_index_credits_again(tmp_path: Path) -> None:
    chain, proof = inflated(tmp_path)
    chain.block(chain.tx(STEWARD, proof))
    release = wire.PublishVersion(
        1, b"\2" * 32, 1, b"\3" * 32, b"\4" * 32, b"", 10**9, 10**9, 10**6, ()
    )
    chain.block(chain.tx(CREATOR, release))
    assert is_suspended(chain.state(), (1, 1))
    assert not is_suspended(chain.state(), (1, 2))


def test_sound_row_of_an_index_is_no_proof(made: Court) -> None:
    proof = norm_proof(made.index.folder, 5)
    assert made.code(proof) == BAD_PROOF
    version_2 = encode_opening(VersionSubject(1, 2))
    assert made.code(proof._replace(subject=version_2)) == EFFECT_CODES["tx.not_found"]


# ---- what is no proof


@pytest.fixture(scope="module")
def honest(made: Court) -> tuple[Court, wire.FraudProof]:
    """An honest answer that is settled, and an opening that shows nothing."""
    claim = made.claim()
    bundle = made.settle(claim)
    opened = SharesOpened(claim.sketch, claim.statement, header_of(made))
    return made, proof_of(SHARES, bundle, 0, opened)


def header_of(court: Court) -> bytes:
    return claims.encode_header(court.index.header)


def row_opened(court: Court, claim: Claim, row: int) -> RowOpened:
    leaf, path = claims.encode_row_leaf(court.index.leaf(row)), court.index.prove_row(row)
    return RowOpened(claim.sketch, claim.statement, header_of(court), leaf, path)


def test_honest_answer_is_refuted_by_no_row(honest) -> None:
    court, proof = honest
    subject = openings.decode_subject(SHARES, proof.subject)
    claim = court.claim()
    for row in (9, 150, *range(0, 200, 20)):
        opened = encode_opening(row_opened(court, claim, row))
        assert court.code(wire.FraudProof(ROW, encode_opening(subject), opened)) == BAD_PROOF


def test_false_proof_burns_its_bond_and_changes_nothing_else(court: Court) -> None:
    claim = court.claim()
    bundle = court.settle(claim)
    opened = SharesOpened(claim.sketch, claim.statement, header_of(court))
    raw = court.chain.tx(STEWARD, proof_of(SHARES, bundle, 0, opened))
    before = court.chain.state()
    assert court.chain.block(raw).codes == (BAD_PROOF,)
    state = court.chain.state()
    charge = wire.decode_transaction(raw).weight * 100
    lost = before.account(STEWARD.key).balance - state.account(STEWARD.key).balance
    assert lost == charge + FRAUD_BOND
    assert before.supply() - state.supply() == charge // 2 + FRAUD_BOND
    assert bonded(state) == BOND
    assert maturing(state) == maturing(before)
    assert is_whole(court.chain)


@pytest.mark.parametrize(
    ("desc", "change", "code"),
    [
        ("an unknown kind", lambda p, s, o: p._replace(kind=7), BAD_VALUE),
        ("a kind for committees", lambda p, s, o: p._replace(kind=5), BAD_VALUE),
        ("no subject", lambda p, s, o: p._replace(subject=b""), BAD_VALUE),
        ("no opening", lambda p, s, o: p._replace(opened=b"\x90"), BAD_VALUE),
        ("another kind's opening", lambda p, s, o: p._replace(kind=ROW), BAD_VALUE),
        ("a bundle that never settled", lambda p, s, o: about(p, s, bundle=bytes(32)), LATE),
        ("a place beyond", lambda p, s, o: about(p, s, place=1), BAD_PROOF),
        ("a path too long", lambda p, s, o: about(p, s, path=(bytes(32),)), BAD_PROOF),
        ("another receipt", lambda p, s, o: about(p, s, receipt=s.receipt[:-1] + b"\2"), BAD_PROOF),
        ("other credits", lambda p, s, o: about(p, s, credits=b"\x90"), BAD_PROOF),
        ("another sketch", lambda p, s, o: showing(p, o, sketch=bytes(1_024)), BAD_PROOF),
        ("another statement", lambda p, s, o: showing(p, o, statement=b"\x90"), BAD_PROOF),
        ("another header", lambda p, s, o: showing(p, o, header=o.header[:-1] + b"\1"), BAD_PROOF),
    ],
)
def test_what_does_not_bind_is_refused_by_code(honest, desc, change, code) -> None:
    court, proof = honest
    subject = openings.decode_subject(SHARES, proof.subject)
    opened = openings.decode_opened(SHARES, proof.opened)
    assert court.code(change(proof, subject, opened)) == code, desc


def about(proof: wire.FraudProof, subject, **fields) -> wire.FraudProof:
    return proof._replace(subject=encode_opening(subject._replace(**fields)))


def showing(proof: wire.FraudProof, opened, **fields) -> wire.FraudProof:
    return proof._replace(opened=encode_opening(opened._replace(**fields)))


def test_row_under_another_path_shows_nothing(court: Court) -> None:
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    _, opened = court.opening(claim)
    assert isinstance(opened, RowOpened)
    turned = opened.leaf[:-1] + bytes([opened.leaf[-1] ^ 1])
    for changed in (opened._replace(leaf=turned), opened._replace(path=opened.path[1:])):
        assert court.code(proof_of(ROW, bundle, 0, changed)) == BAD_PROOF


def test_kind_2_does_not_judge_a_claim_that_kind_1_does(court: Court) -> None:
    claim = rebound(court.claim(), sketch=bytes(1_024))
    bundle = court.settle(claim)
    assert court.code(proof_of(ROW, bundle, 0, row_opened(court, claim, 3))) == BAD_PROOF


def test_answer_without_sketch_and_credits_is_honest(court: Court) -> None:
    """Of a private order, say; the ledger cannot see more."""
    nothing = UNBOUND._replace(credits=())
    bundle = court.settle(nothing)
    assert court.code(proof_of(SHARES, bundle, 0, SharesOpened(b"", b"", b""))) == BAD_PROOF


def test_who_cannot_pay_the_bond_proves_nothing(court: Court) -> None:
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    poor, proof = party("poor"), court.proof(bundle, claim)
    weight = wire.decode_transaction(court.chain.tx(poor, proof)).weight
    charge = weight * court.chain.state().counter(BASE_PRICE_NAME)
    for short, code in ((1, INSUFFICIENT), (0, 0)):
        give = court.chain.tx(FAUCET, wire.Transfer(poor.key, charge + FRAUD_BOND - short, b""))
        raw = court.chain.tx(poor, proof, max_fee=charge)
        assert court.chain.execute(give, raw).codes == (0, code)


# ---- in time


def test_proof_in_the_block_that_settles_is_too_early(court: Court) -> None:
    """Its money waits only at the block's end: a liar could use its receipt up for nothing."""
    claim = court.claim(raise_score)
    court.answer(claim)
    bundle = court.chain.bundle(court.session, 1)
    raw = court.chain.tx(CREATOR, court.proof(bundle, claim))
    assert court.chain.execute(raw, bundles=(bundle,)).codes == (LATE,)
    court.chain.block(bundles=(bundle,))
    assert court.chain.execute(raw).codes == (0,)


def test_proof_is_in_time_until_the_money_matures(court: Court) -> None:
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    left_ms = court.chain.state().get(tables.SETTLED, bundle.hash).bucket_ms - court.chain.time_ms
    proof = court.proof(bundle, claim)
    assert court.code(proof, left_ms - 1) == 0
    assert court.code(proof, left_ms) == LATE


def test_what_is_remembered_of_a_bundle_goes_with_it(court: Court) -> None:
    claim = court.claim(raise_score)
    bundle = court.settle(claim)
    court.accuse(court.proof(bundle, claim))
    court.chain.block(later_ms=120_000)
    state = court.chain.state()
    for table in (tables.SETTLED, tables.MATURING):
        assert state.scan(table) == []
    for key in (b"refuted/", b"income/"):
        assert not [name for name in court.chain.flat if name[1:].startswith(key)]


def test_subject_of_a_bundle_names_its_receipt(honest) -> None:
    court, proof = honest
    subject = openings.decode_subject(SHARES, proof.subject)
    assert isinstance(subject, openings.ReceiptSubject)
    assert subject.place == 0
    assert court.chain.state().has(tables.SETTLED, subject.bundle)
    with pytest.raises(IndexError):
        open_receipt(court.settle(court.claim(number=5)), 1)
