"""A scrub reads all there is, in small steps, and finds what a disk has lost."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from files_kit import flip
from stored_kit import GENESIS, Told

from node.storage import scrubbing
from node.storage.chain import Chain
from node.storage.errors import DatabaseDamaged
from node.storage.scrubbing import Progress, Scrub, Step, load_progress, save_progress
from node.storage.views import View

BEGINNING = Progress()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("written") / "home"
    told = Told(home)
    for _ in range(5):
        told.made.block(told.made.pay())
    told.made.chain.close()
    Chain.open(home, GENESIS).close()
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "STEP_BYTES", 2_000)
    monkeypatch.setattr(scrubbing, "CHECKED_IN", 1)


def begin(chain: Chain, progress: Progress = BEGINNING) -> Scrub:
    return chain.scrub(progress, is_archive=True)


def run_to_end(scrub: Scrub) -> list[Step]:
    steps = []
    while not scrub.is_over:
        steps.append(scrub.step())
    return steps


def test_pass_reads_blocks_bodies_and_every_key_in_small_steps(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    pairs = list(chain.view().reader.scan(b"\x00", b"\xff"))
    steps = run_to_end(begin(chain))
    assert not any(step.findings or step.lost for step in steps)
    logs = sum((home / name / "000001").stat().st_size for name in ("blocks", "bundles"))
    keys = sum(len(key) + len(value) for key, value in pairs)
    assert keys < sum(step.bytes_read for step in steps) < keys + logs
    assert max(step.bytes_read for step in steps) < 2_000 + 3_000  # and one block with its body
    chain.close()


def test_pass_goes_on_where_it_was_and_over_new_blocks(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    scrub, whole = begin(chain), run_to_end(begin(chain))
    for _ in range(len(whole) // 2):
        scrub.step()
    save_progress(home, scrub.progress)
    rest = run_to_end(begin(chain, load_progress(home)))
    assert len(rest) == len(whole) - len(whole) // 2
    assert load_progress(home / "elsewhere") == Progress()
    (home / "scrub").write_bytes(b"rotten")
    assert load_progress(home) == Progress()
    chain.close()


def test_pass_that_is_over_begins_anew(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    scrub = begin(chain)
    run_to_end(scrub)
    assert scrub.progress.is_begun
    scrub.end(7)
    save_progress(home, scrub.progress)
    assert load_progress(home) == Progress(ended_ms=7)
    assert not load_progress(home).is_begun
    chain.close()


def test_damaged_block_is_found_and_the_rest_is_read(home: Path) -> None:
    chain = Chain.open(home, GENESIS)
    flip(home / "blocks" / "000001", 2_000)
    findings = [finding for step in run_to_end(begin(chain)) for finding in step.findings]
    assert [finding.part for finding in findings] == ["blocks"]
    assert "fresh home" in findings[0].mend
    chain.close()


def test_sector_that_cannot_be_read_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.open(home, GENESIS)

    def fail(descriptor: int, count: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        steps = run_to_end(begin(chain))
    findings = [finding for step in steps for finding in step.findings]
    assert len(findings) == chain.height
    assert os.strerror(errno.EIO) in findings[0].what
    chain.close()


@pytest.mark.parametrize("is_kept", [True, False])
def test_lost_body_of_a_young_block_is_named(home: Path, is_kept: bool) -> None:
    chain = Chain.open(home, GENESIS)
    flip(home / "bundles" / "000001", 200)
    scrub = begin(chain)
    if not is_kept:  # its block is older than bodies are kept
        scrub = Scrub(chain.view, chain.bundles, chain.chain_id, lambda: chain.height, Progress())
    lost = [name for step in run_to_end(scrub) for name in step.lost]
    assert len(lost) == is_kept
    assert chain.bodies_from() == 0, "all of them are young"
    chain.close()


@pytest.mark.parametrize("is_read", [False, True])
def test_body_that_is_dropped_during_a_pass_is_not_lost(
    home: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """Before its block is read, or while it is."""
    chain, bodies_from = Chain.open(home, GENESIS), 0

    def get(name: bytes) -> None:
        nonlocal bodies_from
        bodies_from = chain.height

    monkeypatch.setattr(chain.bundles, "get", get)
    scrub = Scrub(chain.view, chain.bundles, chain.chain_id, lambda: bodies_from, Progress())
    first = scrub.step()
    assert bodies_from == 0, "the body is of a later block"
    if not is_read:
        get(b"")
    assert not any(step.lost for step in [first, *run_to_end(scrub)])
    chain.close()


@pytest.mark.parametrize("table", [b"h", b"n", b"s"])
def test_false_or_missing_record_of_the_database_ends_the_pass(home: Path, table: bytes) -> None:
    chain = Chain.open(home, GENESIS)
    pairs = list(chain.view().reader.scan(table, bytes([table[0] + 1])))
    key, value = pairs[-1]
    if table == b"s":
        chain._store.write([(key, value + b"\0")])
    else:
        chain._store.write([], [key])
    snapshot = chain._store.snapshot()
    view = View(snapshot, chain.tip, chain._log, chain.bundles, chain.pasts)
    with pytest.raises(DatabaseDamaged):
        run_to_end(Scrub(lambda: view, chain.bundles, chain.chain_id, lambda: 0, BEGINNING))
    snapshot.close()
    chain.close()
