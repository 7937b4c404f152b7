"""Versions whose data was taken back: where the charter says so, and when they end."""

import pytest
from chain_kit import (
    CONTRIBUTORS,
    CREATOR,
    FAUCET,
    PRICES,
    STEWARD,
    TERMS,
    TinyChain,
    golden_answer,
)

from consensus.primitives.encoding import INT_MAX
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules import lasting, models
from node.ledger.wire.transactions import (
    Contribute,
    Curate,
    PublishVersion,
    RegisterModel,
    Snapshot,
    WithdrawContribution,
)

KEEPS, RETIRES = TERMS, TERMS._replace(withdrawal=1)
LASTS_MS = 600_000  # ten minutes in a devnet, and as many of grace
SUPERSEDED_MS = 600_000
REASON = bytes(32)
GIVER = CONTRIBUTORS[0]
RELEASE = PublishVersion(1, b"\2" * 32, 1, b"\3" * 32, b"\4" * 32, b"", *PRICES, ())


def told(terms: tables.Terms = RETIRES) -> TinyChain:
    """A chain with snapshot 1 of three contributions, and model 1 trained on it."""
    chain = TinyChain()
    chain.tell_story(terms)
    return chain


def code(chain: TinyChain, who, payload, **fields) -> int:
    return chain.block(chain.tx(who, payload), **fields).codes[0]


def withdrawn(chain: TinyChain, number: int = 1) -> int:
    """When versions with this contribution end."""
    assert code(chain, CONTRIBUTORS[number - 1], WithdrawContribution(number)) == 0
    return chain.time_ms + LASTS_MS


def one_more(chain: TinyChain, number: int) -> None:
    """Another contribution, accepted."""
    content = bytes([number]) * 32
    assert code(chain, GIVER, Contribute(1, 0, content, content, 10, 9, 1, 0, b"")) == 0
    assert code(chain, STEWARD, Curate(number, 1, REASON)) == 0


def test_a_version_ends_where_the_charter_says_so() -> None:
    chain = told()
    assert models.ends_ms(chain.state(), (1, 1)) == INT_MAX
    end_ms = withdrawn(chain)
    assert models.ends_ms(chain.state(), (1, 1)) == end_ms
    assert models.is_servable(chain.state(), (1, 1), end_ms + SUPERSEDED_MS - 1)
    assert not models.is_servable(chain.state(), (1, 1), end_ms + SUPERSEDED_MS)


def test_a_charter_that_only_ends_pay_ends_no_version() -> None:
    chain = told(KEEPS)
    withdrawn(chain)
    assert models.ends_ms(chain.state(), (1, 1)) == INT_MAX
    assert chain.state().scan(tables.TAKEN, lasting.TAKEN_NAME) == []


def test_the_first_withdrawal_sets_the_end_and_no_other_moves_it() -> None:
    chain = told()
    end_ms = withdrawn(chain, 2)
    withdrawn(chain, 1)
    assert models.ends_ms(chain.state(), (1, 1)) == end_ms
    assert chain.state().scan(tables.TAKEN, lasting.TAKEN_NAME) == []


def test_only_snapshots_that_hold_it_are_ended() -> None:
    """One made before it was accepted, one that ends before its number, one that it is in."""
    chain = told()
    one_more(chain, 4)
    assert code(chain, STEWARD, Snapshot(1, REASON, 3, 40)) == 0
    assert code(chain, STEWARD, Snapshot(1, REASON, 4, 40)) == 0
    assert code(chain, GIVER, WithdrawContribution(4)) == 0
    state = chain.state()
    lasts = [lasting.snapshot_lasts_ms(state, number) for number in (1, 2, 3)]
    assert lasts == [INT_MAX, INT_MAX, chain.time_ms + LASTS_MS]
    taken = [key[-1] for key, _ in state.scan(tables.TAKEN, lasting.TAKEN_NAME)]
    assert sorted(int.from_bytes(number, "big") for number in taken) == [1, 2]


def test_a_later_snapshot_without_it_lasts() -> None:
    chain = told()
    withdrawn(chain)
    assert code(chain, STEWARD, Snapshot(1, REASON, 3, 20)) == 0
    assert lasting.snapshot_lasts_ms(chain.state(), 2) == INT_MAX


def test_a_composite_version_ends_with_the_data_of_its_parts() -> None:
    chain = told()
    assert code(chain, FAUCET, RegisterModel(b"other", b"\7" * 32, 7, 1, 1_000)) == 0
    alone = RELEASE._replace(model=2, adapter=b"\5" * 32, snapshot=0, index_root=b"")
    assert code(chain, FAUCET, alone._replace(parts=((1, 1, 1_000),))) == 0
    end_ms = withdrawn(chain)
    assert models.ends_ms(chain.state(), (2, 1)) == end_ms


def test_an_ended_snapshot_is_published_no_more() -> None:
    chain = told()
    withdrawn(chain)
    assert code(chain, CREATOR, RELEASE) == 0  # it lasts ten minutes
    assert code(chain, CREATOR, RELEASE, later_ms=LASTS_MS - 2_000) == 0
    assert code(chain, CREATOR, RELEASE, later_ms=1_000) == 23


@pytest.mark.parametrize(
    ("desc", "started", "later_ms", "is_paid"),
    [
        ("started before the end", -1, SUPERSEDED_MS - 1, True),
        ("started at the end", 0, 1_000, False),
        ("settled too late", -1, SUPERSEDED_MS, False),
    ],
)
def test_what_was_started_before_the_end_settles_for_a_while(
    desc: str, started: int, later_ms: int, is_paid: bool
) -> None:
    chain = told()
    session = chain.open_channel()
    end_ms = withdrawn(chain)
    chain.block(later_ms=LASTS_MS)
    session.serve(((2, 10_000),), model=1, model_version=1, tokens_in=812, tokens_out=143,
                  fee=27_309_200, started_ms=end_ms + started)  # fmt: skip
    bundle = chain.bundle(session)
    if is_paid:
        assert chain.execute(bundles=(bundle,), later_ms=later_ms).bundle_headers, desc
    else:
        with pytest.raises(Invalid, match=r"bundle\.price"):
            chain.execute(bundles=(bundle,), later_ms=later_ms)


def test_until_the_end_all_goes_on() -> None:
    chain = told()
    session = chain.open_channel()
    withdrawn(chain)
    golden_answer(session, ((2, 10_000),))
    assert chain.block(bundles=(chain.bundle(session),)).bundle_headers


def test_a_pending_contribution_ends_nothing() -> None:
    chain = told()
    content = b"\4" * 32
    assert code(chain, GIVER, Contribute(1, 0, content, content, 10, 9, 1, 0, b"")) == 0
    assert code(chain, GIVER, WithdrawContribution(4)) == 0
    assert models.ends_ms(chain.state(), (1, 1)) == INT_MAX
