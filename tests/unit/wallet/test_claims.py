"""What a wallet keeps of the answers that it bought, and what of it the next start finds."""

import os
import stat
from pathlib import Path

import pytest

from consensus.primitives.digest import sha256
from consensus.primitives.encoding import encode
from node.ledger.rules.refuting import Claim
from node.ledger.wire.claims import ROW_BYTES, STATEMENT_BYTES_MAX
from node.wallet import claims as wallet
from node.wallet.claims import KEEP_S, MAKING, Claims

NOW_MS = 1_800_000_000_000


class Clock:
    """Goes on only where a test says so."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def receipt(number: int) -> bytes:
    """Their names are in no order."""
    return sha256(number.to_bytes(4))


def claim(number: int) -> Claim:
    return Claim(bytes([number % 256]) * ROW_BYTES, number.to_bytes(4))


def keep(claims: Claims, *numbers: int) -> None:
    for number in numbers:
        claims.keep(receipt(number), claim(number))


def ids(*numbers: int) -> list[bytes]:
    return [receipt(number) for number in numbers]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_kept_outlives_a_restart(tmp_path: Path, clock: Clock) -> None:
    keep(Claims(tmp_path / "claims", now_ms=clock), 1)
    again = Claims(tmp_path / "claims", now_ms=clock)
    assert again.find(receipt(1)) == claim(1)
    assert again.find(receipt(2)) is None
    assert not again.counters


@pytest.mark.parametrize(
    "largest", [Claim(b"s" * ROW_BYTES, b"t" * STATEMENT_BYTES_MAX), Claim(b"", b"")]
)
def test_both_ends_of_what_the_wire_brings_are_kept(
    tmp_path: Path, clock: Clock, largest: Claim
) -> None:
    Claims(tmp_path, now_ms=clock).keep(receipt(1), largest)
    assert Claims(tmp_path, now_ms=clock).find(receipt(1)) == largest


def test_order_outlives_a_restart_though_the_clock_stands_still(
    tmp_path: Path, clock: Clock
) -> None:
    keep(Claims(tmp_path, now_ms=clock), *range(20))
    again = Claims(tmp_path, now_ms=clock)
    assert again.receipts() == ids(*range(20))
    clock.ms += 1
    keep(again, 20)
    assert Claims(tmp_path, now_ms=clock).receipts() == ids(*range(21))


def test_only_the_owner_may_read_them(tmp_path: Path, clock: Clock) -> None:
    """A sketch tells something of an answer."""
    folder = tmp_path / "claims"
    keep(Claims(folder, now_ms=clock), 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_the_oldest_goes_above_the_limit(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet, "CLAIMS_MAX", 3)
    claims = Claims(tmp_path, now_ms=clock)
    keep(claims, 0, 1, 2)
    assert claims.receipts() == ids(0, 1, 2)
    keep(claims, 3)
    assert claims.receipts() == ids(1, 2, 3)
    assert names(tmp_path) == {name.hex() for name in ids(1, 2, 3)}


def test_a_start_drops_the_oldest_above_the_limit(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(Claims(tmp_path, now_ms=clock), 0, 1, 2, 3)
    monkeypatch.setattr(wallet, "CLAIMS_MAX", 3)
    assert Claims(tmp_path, now_ms=clock).receipts() == ids(1, 2, 3)
    assert names(tmp_path) == {name.hex() for name in ids(1, 2, 3)}


def test_a_start_drops_what_nobody_can_dispute_any_more(tmp_path: Path, clock: Clock) -> None:
    keep(Claims(tmp_path, now_ms=clock), 1)
    clock.ms += KEEP_S * 1_000
    assert Claims(tmp_path, now_ms=clock).receipts() == ids(1), "at the limit it stays"
    clock.ms += 1
    assert Claims(tmp_path, now_ms=clock).receipts() == []
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        bytes(200),
        encode(claim(1))[:-1],
        encode((b"s" * (ROW_BYTES + 1), b"")),
        encode((b"", b"t" * (STATEMENT_BYTES_MAX + 1))),
        encode((b"", b"", b"")),
        bytes(10_000),
    ],
)
def test_a_file_that_is_not_whole_is_dropped_and_no_other(
    tmp_path: Path, clock: Clock, torn: bytes
) -> None:
    keep(Claims(tmp_path, now_ms=clock), 1, 2)
    stamp_ns = NOW_MS * 1_000_000
    (tmp_path / receipt(1).hex()).write_bytes(torn)
    os.utime(tmp_path / receipt(1).hex(), ns=(stamp_ns, stamp_ns))
    again = Claims(tmp_path, now_ms=clock)
    assert again.receipts() == ids(2)
    assert again.counters == {"torn": 1}
    assert names(tmp_path) == {receipt(2).hex()}


def test_what_a_crash_left_half_written_goes(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / (receipt(1).hex() + MAKING)).write_bytes(encode(claim(1)))
    assert Claims(tmp_path, now_ms=clock).receipts() == []
    assert names(tmp_path) == set()


def test_what_is_not_ours_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    keep(Claims(tmp_path, now_ms=clock), 1)
    (tmp_path / "note").write_bytes(encode(claim(2)))
    (tmp_path / receipt(2).hex().upper()).write_bytes(encode(claim(2)))
    (tmp_path / receipt(3).hex()).mkdir()
    os.mkfifo(tmp_path / receipt(4).hex())  # opening it would wait for ever
    (tmp_path / receipt(5).hex()).symlink_to(tmp_path / receipt(1).hex())
    before = names(tmp_path)
    again = Claims(tmp_path, now_ms=clock)
    assert again.receipts() == ids(1)
    assert again.counters == {"foreign": 5}
    assert names(tmp_path) == before


def test_a_full_disk_keeps_it_in_memory_alone(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path, now_ms=clock)

    def full(*where: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(wallet.os, "replace", full)
        keep(claims, 1, 2)
    assert claims.receipts() == ids(1, 2)
    assert claims.counters == {"unkept": 2}
    assert names(tmp_path) == set(), "no half of it stays either"
    keep(claims, 3)
    assert Claims(tmp_path, now_ms=clock).receipts() == ids(3)


def test_no_folder_is_no_reason_not_to_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "claims").write_bytes(b"a file")
    claims = Claims(tmp_path / "claims", now_ms=clock)
    keep(claims, 1)
    assert claims.find(receipt(1)) == claim(1)
    assert claims.counters == {"unreadable": 1, "unkept": 1}
