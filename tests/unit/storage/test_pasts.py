"""Evidence from before a snapshot is judged by a proved past: alike everywhere, or not at all."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accused_kit import HEIGHT, WHO, Accused
from chain_kit import VALIDATORS
from evidence_kit import raw_attack, raw_double_vote
from snapshot_kit import Snapped, put_part
from stored_kit import GENESIS

from consensus.evidence import accused_members, decode_evidence
from consensus.header import decode_header
from consensus.pastblocks import verify_past_block
from consensus.primitives.errors import Invalid
from node.ledger.wire.blocks import decode_payload
from node.storage import chain, executing, keyspace, pasts
from node.storage.adopting import take_in
from node.storage.bundlestore import BundleStore
from node.storage.chain import Chain
from node.storage.checking import check_home
from node.storage.errors import StorageError
from node.storage.executing import named_heights
from node.storage.pasts import MissingPast, PastBlocks
from node.storage.proving import payout_proofs
from node.storage.snapshots import Manifest, SnapshotStore
from node.storage.views import Tip
from node.web.standing import accusation

OTHER = VALIDATORS[3]


@pytest.fixture(scope="module")
def accused(tmp_path_factory: pytest.TempPathFactory) -> Accused:
    return Accused(tmp_path_factory.mktemp("accused"))


def test_block_with_old_evidence_waits_for_its_past_and_ends_in_the_same_state(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.newcomer(tmp_path)
    with pytest.raises(MissingPast) as lacking:
        chain.commit_many(accused.later)
    assert lacking.value.heights == (HEIGHT,)
    assert chain.height == accused.accused_at - 1, "what came before it is taken"
    chain.pasts.add(accused.past(), HEIGHT)
    chain.commit_many(accused.later[chain.height - accused.height :])
    assert chain.tip == accused.made.chain.tip
    assert chain.tip.validators.index(WHO.key) is None
    assert accusation(chain.view(), accused.evidence).accused == (WHO.key,)
    chain.close()


@pytest.mark.parametrize("field", ["state_root", "params_hash"])
def test_lie_to_light_clients_from_before_is_judged_by_the_commit_that_the_chain_carries(
    tmp_path: Path, field: str
) -> None:
    """A second block of one round, or a header that no execution gives: two heights are needed."""
    snapped = Snapped(tmp_path / "source", behind=0)
    made, common, height = snapped.made, HEIGHT - 1, HEIGHT + 2
    header, validators = made.chain.header(height), made.chain.validators(height)
    assert header is not None
    assert validators is not None
    raw = raw_attack(common, header, validators, VALIDATORS[:3], round=0, **{field: b"\7" * 32})
    made.block(evidence=(raw,))
    store, home = SnapshotStore(tmp_path / "home" / "snapshots"), tmp_path / "home"
    snapped.put_part(store)
    take_in(home, store, snapped.manifest)
    chain = Chain.open(home, GENESIS)
    with pytest.raises(MissingPast) as lacking:
        chain.commit_many(made.decided[snapped.height :])
    assert lacking.value.heights == (common + 1, height)
    for one in lacking.value.heights:
        past = made.chain.view().past_block(one, snapped.height)
        assert past is not None
        chain.pasts.add(past, one)
    chain.commit_many(made.decided[snapped.height :])
    assert chain.tip == made.chain.tip
    assert len(chain.tip.validators) < len(validators)
    assert accusation(chain.view(), raw).offence != "unknown"
    chain.close()
    shutil.rmtree(home / "past")
    chain = Chain.open(home, GENESIS)
    told = accusation(chain.view(), raw)
    assert (told.offence, told.height, told.accused) == ("unknown", height, ())
    chain.close()


def test_proposed_block_gets_no_verdict_before_its_past_is_known_and_then_it_is_durable(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.newcomer(tmp_path)
    chain.commit_many(accused.later[:1])
    block = accused.later[1][0]
    assert chain.missing_past(block) == (HEIGHT,)
    with pytest.raises(MissingPast):
        chain.execute(block)
    chain.pasts.add(accused.past(), HEIGHT)
    assert chain.missing_past(block) == ()
    assert not (tmp_path / "past").exists()
    assert chain.execute(block).is_valid
    assert (tmp_path / "past" / str(HEIGHT)).exists(), "before our vote"
    chain.close()


def test_past_that_others_push_out_while_a_block_is_executed_is_asked_for_again(
    accused: Accused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No vote without its proof on the disk: a start could not judge that block again."""
    monkeypatch.setattr(pasts, "HELD_MAX", 1)
    execute = executing.execute_next

    def slowly(*parts: Any) -> executing.Executed:
        executed = execute(*parts)
        home.pasts.add(accused.past(HEIGHT + 1), HEIGHT + 1)  # for another proposal
        return executed

    home = accused.newcomer(tmp_path)
    home.commit_many(accused.later[:1])
    block = accused.later[1][0]
    home.pasts.add(accused.past(), HEIGHT)
    with monkeypatch.context() as patch:
        patch.setattr(chain, "execute_next", slowly)
        with pytest.raises(MissingPast) as lacking:
            home.execute(block)
    assert lacking.value.heights == (HEIGHT,)
    assert home.executed_block(decode_header(block.header).block_id()) is None
    home.pasts.add(accused.past(), HEIGHT)
    assert home.execute(block).is_valid
    home.close()


def test_reading_what_was_kept_pushes_nothing_out(
    accused: Accused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers may ask for any of it, at any time."""
    monkeypatch.setattr(pasts, "HELD_MAX", 1)
    known = PastBlocks(tmp_path / "past", accused.header)
    known.add(accused.past(1), 1)
    known.keep([1])
    known.add(accused.past(2), 2)
    assert known.find(1) is not None
    assert known.missing([1, 2]) == ()


def test_what_was_kept_is_shown_to_nodes_of_this_snapshot_and_of_later_ones(
    accused: Accused, tmp_path: Path
) -> None:
    """Else all who began with one snapshot could wait for ever for what one of them holds."""
    before, source = accused.height - 1, accused.made.chain.view()
    one = accused.newcomer(tmp_path / "one")
    one.pasts.add(accused.past(), HEIGHT)
    one.commit_many(accused.later)
    for height in (1, before - 1, before):
        one.pasts.add(accused.past(height), height)
    one.pasts.keep([1, before - 1, before])
    one.close()
    one = Chain.open(tmp_path / "one", GENESIS)
    for height in (1, HEIGHT, before - 1, before):
        for at in range(accused.height, one.height + 2):
            past = one.view().past_block(height, at)
            assert past == source.past_block(height, at)
            if past is not None and at <= one.height:
                verify_past_block(past, height, source.get_header(at))
    assert one.view().past_block(2, accused.height) is None, "no block spoke of it"
    assert one.view().past_block(1, accused.height - 1) is None, "its proof ends later"
    assert one.view().past_block(1, one.height + 2) is None
    two = accused.newcomer(tmp_path / "two")
    shown = one.view().past_block(HEIGHT, accused.height)
    assert shown is not None
    two.pasts.add(shown, HEIGHT)
    two.commit_many(accused.later)
    assert two.tip == one.tip
    one.close()
    two.close()


def test_block_with_old_evidence_is_told_of_when_the_snapshot_has_outlived_it(
    accused: Accused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what was kept; without it, what the evidence itself says."""
    home = accused.caught_up(tmp_path)
    home.close()
    for is_held in (True, False):
        if not is_held:
            shutil.rmtree(tmp_path / "past")
        home = Chain.open(tmp_path, GENESIS)
        for age_ms in (0, home.state().parameter("evidence_age_ms_max") + 1):
            aged = replace(home.tip, time_ms=accused.header.time_ms + age_ms)
            monkeypatch.setattr(home.view(), "tip", aged)
            told = accusation(home.view(), accused.evidence)
            assert (told.offence, told.height) == ("double_vote", HEIGHT)
            assert told.accused == ((WHO.key,) if is_held else ())
        home.close()


def test_database_made_again_judges_old_evidence_without_asking(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.caught_up(tmp_path)
    chain.close()
    shutil.rmtree(tmp_path / "db")
    again = Chain.open(tmp_path, GENESIS)
    assert again.tip == accused.made.chain.tip
    again.close()
    file = tmp_path / "past" / str(HEIGHT)
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    shutil.rmtree(tmp_path / "db")
    with pytest.raises(StorageError, match="cannot be replayed"):
        Chain.open(tmp_path, GENESIS)


def test_false_evidence_from_before_is_refused_as_everywhere_and_leaves_nothing(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.newcomer(tmp_path)
    chain.pasts.add(accused.past(), HEIGHT)
    validators = chain.pasts.find(HEIGHT).block.validators  # type: ignore[union-attr]
    good = raw_double_vote(OTHER, validators, chain.chain_id, HEIGHT)
    forged = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(Invalid, match="signature"):
        chain.build(
            proposer=chain.tip.validators.turn,
            time_ms=chain.tip.time_ms + 1,
            payload=decode_payload(accused.later[1][0].payload)._replace(evidence=(forged,)),
            last_certificate=chain.tip.certificate,
        )
    assert not (tmp_path / "past").exists()
    chain.close()


def test_all_that_is_asked_of_a_past_height_is_what_others_know_of_it(
    accused: Accused, tmp_path: Path
) -> None:
    chain, whole = accused.newcomer(tmp_path), accused.made.chain.view()
    for height in range(1, accused.height):
        chain.pasts.add(accused.past(height), height)
        ours, theirs = chain.view().find_past(height), whole.find_past(height)
        assert ours is not None
        assert theirs is not None
        assert (ours.height, ours.time_ms) == (theirs.height, theirs.time_ms)
        assert ours.validators.hash() == theirs.validators.hash()
        assert ours.decided is not None
        assert theirs.decided is not None
        assert ours.decided[:2] == theirs.decided[:2]
        assert accused_members(decode_evidence(accused.evidence), ours.validators) == (WHO.key,)
    assert chain.view().find_past(0) is None
    assert chain.view().find_past(accused.height + 1) is None
    chain.commit_many(accused.later[:1])
    assert chain.view().find_past(accused.height) == whole.find_past(accused.height)
    chain.close()


def test_node_on_a_snapshot_proves_what_stands_behind_it_and_the_block_itself(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.caught_up(tmp_path)
    view, top = chain.view(), chain.height
    for height in range(accused.height, top):
        assert view.past_block(height, top) == accused.past(height, top)
    assert view.past_block(accused.height - 1, top) is None, "of that it has only a peer's proof"
    assert view.past_block(top, top + 1) is None, "no block tells of it yet"
    assert view.past_block(top - 1, top + 2) is None
    assert payout_proofs(view, accused.height, [], trusted=top) is None, "no path leads there"
    chain.close()


@pytest.mark.parametrize(("age_ms", "is_missing"), [(0, True), (1, False)])
def test_nothing_is_asked_for_once_the_snapshot_is_older_than_evidence_may_be(
    accused: Accused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_ms: int, is_missing: bool
) -> None:
    """Then every node refuses such evidence, whatever that height was."""
    chain = accused.newcomer(tmp_path)
    chain.commit_many(accused.later[:1])
    limit_ms = chain.state().parameter("evidence_age_ms_max")
    aged = replace(chain.tip, time_ms=accused.header.time_ms + limit_ms + age_ms)
    monkeypatch.setattr(chain.view(), "tip", aged)
    block = accused.later[1][0]
    assert chain.missing_past(block) == ((HEIGHT,) if is_missing else ())
    if is_missing:
        with pytest.raises(MissingPast):
            chain.view().find_past(HEIGHT)
    else:
        assert chain.view().find_past(HEIGHT) is None
    chain.close()


def test_false_past_is_not_held(accused: Accused, tmp_path: Path) -> None:
    chain = accused.newcomer(tmp_path)
    for past in (accused.past(HEIGHT + 1), accused.past(at=accused.height - 1)):
        with pytest.raises(Invalid):
            chain.pasts.add(past, HEIGHT)
    assert chain.pasts.find(HEIGHT) is None
    chain.close()


def test_check_of_the_home_reads_what_was_kept_and_finds_a_flipped_bit(
    accused: Accused, tmp_path: Path
) -> None:
    chain = accused.caught_up(tmp_path)
    chain.close()
    assert check_home(tmp_path, chain.chain_id).findings == []
    file = tmp_path / "past" / str(HEIGHT)
    raw = file.read_bytes()
    for false in (raw[:-1] + bytes([raw[-1] ^ 1]), raw[:-1], b""):
        file.write_bytes(false)
        (found,) = check_home(tmp_path, chain.chain_id).findings
        assert (found.part, found.what[:2]) == ("past", f"{HEIGHT}:")
        assert file.exists(), "a check changes nothing"
    file.write_bytes(raw)
    file.rename(tmp_path / "past" / str(HEIGHT + 1))
    (found,) = check_home(tmp_path, chain.chain_id).findings
    assert "past.name" in found.what


def lost_database(accused: Accused, home: Path) -> tuple[Tip, Manifest]:
    """A home that has its log and a snapshot of its own newest block, and no database."""
    chain = accused.caught_up(home)
    tip = chain.tip
    made = SnapshotStore(home / "snapshots").make(chain.view())
    assert made is not None
    chain.close()
    shutil.rmtree(home / "db")
    return tip, made


def test_kept_past_is_there_when_the_chain_stands_on_its_log_again(
    accused: Accused, tmp_path: Path
) -> None:
    """A snapshot of its own was newer, and is lost as well."""
    tip, made = lost_database(accused, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundleStore, "has_dropped", True)
        chain = Chain.open(tmp_path, GENESIS)
    assert chain.view().earliest == made.height + 1
    assert chain.pasts.find(HEIGHT) is None, "it does not prove itself under this one"
    chain.close()
    assert check_home(tmp_path, chain.chain_id).findings == []
    for name in ("db", f"snapshots/{made.height}"):
        shutil.rmtree(tmp_path / name)
    chain = Chain.open(tmp_path, GENESIS)
    assert chain.tip == tip
    chain.close()


def test_damaged_database_takes_the_snapshot_that_it_alone_stood_on_with_it(
    accused: Accused, tmp_path: Path
) -> None:
    """Met at the same start: the log still says what the chain is made again from."""
    tip, made = lost_database(accused, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundleStore, "has_dropped", True)
        chain = Chain.open(tmp_path, GENESIS)
        assert chain.view().earliest == made.height + 1
        chain._store.write([], [keyspace.ROOT + keyspace.u64(chain.height)])
        chain.close()
        (tmp_path / "snapshots" / str(made.height) / "00000").write_bytes(b"rotten")
        chain = Chain.open(tmp_path, GENESIS)
    assert chain.steps[1] == f"database: loaded from the snapshot of block {accused.height}"
    assert chain.tip == tip
    chain.close()


def test_kept_past_goes_with_the_block_that_proved_it(tmp_path: Path) -> None:
    accused, home = Accused(tmp_path / "source"), tmp_path / "home"
    chain = accused.newcomer(home)
    chain.pasts.add(accused.past(), HEIGHT)
    chain.commit_many(accused.later)
    chain.close()
    accused.made.block(accused.made.pay())  # above all that the newcomer has
    newer, snapshots = SnapshotStore(tmp_path / "newer"), SnapshotStore(home / "snapshots")
    manifest = newer.make(accused.made.chain.view())
    assert manifest is not None
    put_part(snapshots, manifest, lambda index: newer.chunk(manifest.height, index))
    take_in(home, snapshots, manifest)
    assert (home / "past" / str(HEIGHT)).exists()
    chain = Chain.open(home, GENESIS)
    assert chain.pasts.footing == manifest.footing.header
    assert not (home / "past").exists()
    chain.close()


def test_file_that_proves_itself_under_another_block_is_as_none(
    accused: Accused, tmp_path: Path
) -> None:
    """As a crash may leave it: its path ends elsewhere, so it is fetched again."""
    header = accused.made.chain.header(accused.height - 1)
    older = PastBlocks(tmp_path / "past", header)
    older.add(accused.past(at=accused.height - 1), HEIGHT)
    older.keep([HEIGHT])
    assert PastBlocks(tmp_path / "past", header).find(HEIGHT) is not None
    newer = PastBlocks(tmp_path / "past", accused.header)
    assert newer.missing([HEIGHT]) == (HEIGHT,)
    newer.add(accused.past(), HEIGHT)
    newer.keep([HEIGHT])
    assert PastBlocks(tmp_path / "past", accused.header).find(HEIGHT) == accused.past()


def test_only_heights_before_the_snapshot_are_ever_missing(
    accused: Accused, tmp_path: Path
) -> None:
    known = PastBlocks(tmp_path / "past", accused.header)
    heights = (0, 1, accused.height - 1, accused.height, accused.height + 1)
    assert known.missing(heights) == (1, accused.height - 1)
    assert PastBlocks(tmp_path / "past", None).missing(heights) == ()
    assert named_heights([accused.evidence, accused.evidence]) == [HEIGHT]


def test_what_is_held_in_memory_is_bounded(
    accused: Accused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pasts, "HELD_MAX", 2)
    known = PastBlocks(tmp_path / "past", accused.header)
    for height in (1, 2, 3):
        known.add(accused.past(height), height)
    assert known.missing((1, 2, 3)) == (1,)
