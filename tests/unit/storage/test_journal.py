"""Whatever a crash or a rotten bit leaves, no second body for one (height, round, kind)."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.records import SignerRecord
from node.storage.frames import read_all
from node.storage.journal import (
    FORMAT,
    HEIGHTS_KEPT,
    MAGIC,
    DoubleSign,
    Journal,
    LoggedMessage,
    Recovered,
    open_journal,
)
from node.storage.signer import SLOT_BYTES, CannotSign, create_signer

CHAIN, KEY = b"c" * 32, b"k" * 32


def vote(height: int, round: int, kind: int = 1, body: bytes = b"body") -> SignerRecord:
    return SignerRecord(kind, height, round, body)


def fresh(home: Path) -> Journal:
    home.mkdir(exist_ok=True)
    create_signer(home / "signer", CHAIN, KEY)
    return open_journal(home, CHAIN, KEY)


def echo(tag: bytes, body: bytes) -> bytes:
    return tag + b":" + body


def test_what_was_heard_and_said_comes_back(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    assert journal.begin(5).is_empty
    journal.message(b"first", timely=False)
    journal.block(b"the block")
    journal.persist(vote(5, 0))
    journal.message(b"second", valid=False)
    journal.close()
    journal = open_journal(tmp_path, CHAIN, KEY)
    found = journal.begin(5)
    assert found.signed == vote(5, 0)
    assert found.promises == (vote(5, 0),)
    assert found.blocks == (b"the block",)
    assert found.messages == (
        LoggedMessage(b"first", True, False),
        LoggedMessage(b"second", False, True),
    )
    assert not found.is_empty
    assert not found.is_ended
    journal.end()
    journal.close()
    assert open_journal(tmp_path, CHAIN, KEY).begin(5).is_ended


@pytest.mark.parametrize(
    ("desc", "record"),
    [
        ("another body in the same place", vote(5, 1, 1, b"other")),
        ("a lower round", vote(5, 0)),
        ("a lower kind", vote(5, 1, 0)),
        ("another height than the journal's", vote(6, 0)),
    ],
)
def test_second_promise_is_refused(tmp_path: Path, desc: str, record: SignerRecord) -> None:
    journal = fresh(tmp_path)
    journal.begin(5)
    journal.persist(vote(5, 1))
    with pytest.raises(DoubleSign):
        journal.persist(record)
    assert journal.last == vote(5, 1), desc


def test_same_promise_again_and_greater_ones_are_taken(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    journal.begin(5)
    for record in (vote(5, 1), vote(5, 1), vote(5, 1, 2), vote(5, 2, 0), vote(5, 2, 1)):
        journal.persist(record)
    journal.begin(6)
    journal.persist(vote(6, 0, 0))


def test_promise_survives_restart_also_at_the_next_height(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    journal.begin(5)
    journal.persist(vote(5, 3))
    journal.close()
    journal = open_journal(tmp_path, CHAIN, KEY)
    journal.begin(5)
    with pytest.raises(DoubleSign):
        journal.persist(vote(5, 3, 1, b"other"))
    assert journal.may_sign(5)
    assert journal.may_sign(6)
    assert not journal.may_sign(4)  # the chain was restored to before our record


def test_body_is_signed_only_when_recorded(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    journal.begin(5)
    with pytest.raises(DoubleSign):
        journal.sign(vote(5, 0), echo)
    journal.persist(vote(5, 0, 0, b"proposed"))
    journal.persist(vote(5, 0))
    assert journal.sign(vote(5, 0), echo) == b"vote:body"
    assert journal.sign(vote(5, 0, 0, b"proposed"), echo) == b"proposal:proposed"
    with pytest.raises(DoubleSign):
        journal.sign(vote(5, 0, 1, b"other"), echo)


def test_old_heights_are_forgotten(tmp_path: Path) -> None:
    journal = fresh(tmp_path)
    for height in range(1, HEIGHTS_KEPT + 4):
        journal.begin(height)
    names = sorted(int(path.stem) for path in (tmp_path / "journal").iterdir())
    assert names == list(range(4, HEIGHTS_KEPT + 4))


def written(home: Path) -> bytes:
    """Head, block, promise (5,0), message, promise (5,1), END; gives the file's bytes."""
    journal = fresh(home)
    journal.begin(5)
    journal.block(b"the block")
    journal.persist(vote(5, 0))
    journal.message(b"m" * 30)
    journal.persist(vote(5, 1))
    journal.end()
    journal.close()
    return (home / "journal" / "5.log").read_bytes()


def refuses_another_body(home: Path, told: list[SignerRecord]) -> None:
    """After recovery, no body that differs from one told can be promised or signed."""
    try:
        journal = open_journal(home, CHAIN, KEY)
        journal.begin(5)
    except CannotSign:
        return
    for record in told:
        other = replace(record, body=b"other")
        with pytest.raises(DoubleSign):
            journal.persist(other)
        with pytest.raises(DoubleSign):
            journal.sign(other, echo)
    journal.close()


@pytest.mark.usefixtures("_no_sync")
def test_journal_torn_at_every_byte_never_lets_us_say_another_thing(tmp_path: Path) -> None:
    whole = written(tmp_path / "base")
    signer = (tmp_path / "base" / "signer").read_bytes()
    home = tmp_path / "torn"
    (home / "journal").mkdir(parents=True)
    for cut in range(len(whole) + 1):
        (home / "journal" / "5.log").write_bytes(whole[:cut] + bytes(40 * (cut % 2)))
        (home / "signer").write_bytes(signer)
        refuses_another_body(home, [vote(5, 0), vote(5, 1)])


def test_flipped_bit_in_journal_or_signer_never_lets_us_say_another_thing(tmp_path: Path) -> None:
    """Either file alone holds the last promise."""
    written(tmp_path / "base")
    rng = random.Random(11)
    for name in ["signer"] * 60 + ["journal/5.log"] * 60:
        home = tmp_path / "flipped"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(tmp_path / "base", home)
        data = bytearray((home / name).read_bytes())
        at = rng.randrange(2) * SLOT_BYTES + rng.randrange(240)
        data[at if name == "signer" else rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (home / name).write_bytes(bytes(data))
        refuses_another_body(home, [vote(5, 0), vote(5, 1)])


def test_promise_that_only_the_signer_kept_is_said_again_for_ever(tmp_path: Path) -> None:
    """Power fails between the two syncs. A vote that is recorded and never said again is a vote
    that the others wait for: where the quorum needs it, the height would never end."""
    whole = written(tmp_path)
    message_at = whole.rindex(MAGIC, 0, whole.index(b"m" * 30))
    (tmp_path / "journal" / "5.log").write_bytes(whole[:message_at])
    journal = open_journal(tmp_path, CHAIN, KEY)
    found = journal.begin(5)
    assert found.promises == (vote(5, 0), vote(5, 1))
    assert journal.sign(found.promises[1], echo) == b"vote:body"
    for round in (2, 3):  # now both slots are of later promises
        journal.persist(vote(5, round))
    journal.close()
    found = open_journal(tmp_path, CHAIN, KEY).begin(5)
    assert found.promises == tuple(vote(5, round) for round in range(4))


def test_rotted_slot_is_written_again_from_the_journal(tmp_path: Path) -> None:
    written(tmp_path)
    data = bytearray((tmp_path / "signer").read_bytes())
    for slot in range(2):
        damaged = bytearray(data)
        damaged[slot * SLOT_BYTES + 100] ^= 4
        (tmp_path / "signer").write_bytes(bytes(damaged))
        journal = open_journal(tmp_path, CHAIN, KEY)
        assert journal.last == vote(5, 1)
        journal.close()
        assert (tmp_path / "signer").read_bytes() != bytes(damaged)


def test_damage_inside_the_journal_means_no_signing(tmp_path: Path) -> None:
    whole = bytearray(written(tmp_path))
    whole[80] ^= 1
    (tmp_path / "journal" / "5.log").write_bytes(bytes(whole))
    with pytest.raises(CannotSign, match="damaged"):
        open_journal(tmp_path, CHAIN, KEY)


def test_remedy_for_a_damaged_journal_is_safe_by_what_the_signer_record_holds(
    tmp_path: Path,
) -> None:
    """Moved aside, the journal is missed only by a record that has lost a slot."""
    whole = bytearray(written(tmp_path))
    whole[80] ^= 1
    path = tmp_path / "journal" / "5.log"
    path.write_bytes(bytes(whole))
    with pytest.raises(CannotSign) as whole_record:
        open_journal(tmp_path, CHAIN, KEY)
    assert f"mv {path} {path}.damaged" in whole_record.value.mend
    signer = bytearray((tmp_path / "signer").read_bytes())
    signer[100] ^= 1
    (tmp_path / "signer").write_bytes(bytes(signer))
    with pytest.raises(CannotSign) as half_record:
        open_journal(tmp_path, CHAIN, KEY)
    assert "mv " not in half_record.value.mend
    assert "new key" in half_record.value.mend


def test_journal_moved_aside_leaves_the_signer_record_to_guard_the_key(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "journal" / "5.log"
    path.rename(path.with_name("5.log.damaged"))
    refuses_another_body(tmp_path, [vote(5, 0), vote(5, 1)])
    assert open_journal(tmp_path, CHAIN, KEY).last == vote(5, 1)


def test_lost_journal_and_a_damaged_slot_mean_no_signing(tmp_path: Path) -> None:
    """Torn or rotted? Only the journal could tell, so the older slot is not believed."""
    written(tmp_path)
    shutil.rmtree(tmp_path / "journal")
    signer = bytearray((tmp_path / "signer").read_bytes())
    for slot in range(2):
        damaged = bytearray(signer)
        damaged[slot * SLOT_BYTES + 100] ^= 1
        (tmp_path / "signer").write_bytes(bytes(damaged))
        with pytest.raises(CannotSign, match="no journal"):
            open_journal(tmp_path, CHAIN, KEY)


def test_first_record_torn_before_any_journal_is_no_obstacle(tmp_path: Path) -> None:
    fresh(tmp_path).close()
    shutil.rmtree(tmp_path / "journal")
    signer = bytearray((tmp_path / "signer").read_bytes())
    signer[SLOT_BYTES + 100] ^= 1
    (tmp_path / "signer").write_bytes(bytes(signer))
    assert open_journal(tmp_path, CHAIN, KEY).last is None


def test_journal_of_another_chain_means_no_signing(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "signer").unlink()
    create_signer(tmp_path / "signer", b"d" * 32, KEY)
    with pytest.raises(CannotSign, match="another version, chain or height"):
        open_journal(tmp_path, b"d" * 32, KEY)


WRITER = """
import sys
from pathlib import Path
from consensus.records import SignerRecord
from node.storage.journal import open_journal
journal = open_journal(Path(sys.argv[1]), b"c" * 32, b"k" * 32)
height = (journal.last.height if journal.last else 0) + 1
while True:
    journal.begin(height)
    for kind in range(3):
        journal.block(b"b" * 500)
        journal.persist(SignerRecord(kind, height, 0, b"%d %d" % (height, kind)))
        print(height, kind, flush=True)
    journal.end()
    height += 1
"""


def test_killed_writer_remembers_every_promise_it_told(tmp_path: Path) -> None:
    fresh(tmp_path).close()
    rng = random.Random(4)
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.random() * 0.03)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split(b"\n")[:-1]
        writer.wait()
        journal = open_journal(tmp_path, CHAIN, KEY)
        assert journal.last is not None
        if lines:
            height, kind = map(int, lines[-1].split())
            assert journal.last.place() >= (height, 0, kind)
            found = journal.begin(height)
            bodies = {record.place(): record.body for record in found.promises}
            assert bodies[height, 0, kind] == b"%d %d" % (height, kind)
        journal.close()


# ---- the last three records, at every byte


def frames_of(raw: bytes) -> list[tuple[int, int]]:
    """(start, stop) of each frame of a whole file."""
    frames, gaps, end = read_all(FORMAT, raw)
    assert not gaps
    assert end == len(raw)
    return [(frame.offset, frame.offset + FORMAT.size(frame)) for frame in frames]


class Base:
    """A height with every kind of record, and what was there after each frame of its journal.

    The last three frames are a message, a promise and the end mark: each of them is torn.
    """

    def __init__(self, home: Path) -> None:
        self.raw = written(home)
        self.signer = (home / "signer").read_bytes()
        self.frames = frames_of(self.raw)
        self.first = self.frames[-3][0]
        self.home = home.with_name("case")
        (self.home / "journal").mkdir(parents=True)
        self.remedies: set[str] = set()  # what the refusals told
        self.after = {stop: self.recovered(self.raw[:stop]) for _, stop in self.frames[-4:]}

    def write(self, raw: bytes, signer: bytes | None = None) -> None:
        (self.home / "journal" / "5.log").write_bytes(raw)
        (self.home / "signer").write_bytes(signer or self.signer)

    def recovered(self, raw: bytes) -> Recovered:
        self.write(raw)
        journal = open_journal(self.home, CHAIN, KEY)
        found = journal.begin(5)
        journal.close()
        return found

    def opened(self) -> tuple[Recovered, int] | None:
        """What a start finds, and how many bytes it says that it cut; None: refused in words."""
        try:
            journal = open_journal(self.home, CHAIN, KEY)
        except CannotSign as refusal:
            self.remedies.add(refusal.mend)
            return None
        cut = journal.cut_bytes
        found = journal.begin(5)
        journal.close()
        assert journal.last == vote(5, 1), "our last word stands in one of the two files"
        return found, cut


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read does not depend on it, and a busy disk makes hundreds of syncs a minute."""
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("records") / "base")


@pytest.mark.usefixtures("_no_sync")
@pytest.mark.parametrize("tail", [b"", bytes(64), b"\xff" * 33], ids=["cut", "zeroes", "junk"])
def test_last_three_records_torn_at_any_byte_come_back_to_the_frame(base: Base, tail) -> None:
    """A crash costs whole frames at the end, never a part of one, and the cut is counted."""
    for cut in range(base.first, len(base.raw) + 1):
        base.write(base.raw[:cut] + tail)
        opened = base.opened()
        assert opened is not None
        end = max(stop for stop in base.after if stop <= cut)
        assert opened == (base.after[end], cut + len(tail) - end)


@pytest.mark.usefixtures("_no_sync")
def test_last_three_records_flipped_at_any_byte_are_found_out(base: Base) -> None:
    """Refused, or cut as a torn tail and counted: never read as something else."""
    outcomes = set()
    for place in range(base.first, len(base.raw)):
        flipped = bytearray(base.raw)
        flipped[place] ^= 1 << place % 8
        base.write(bytes(flipped))
        opened = base.opened()
        if opened is None:
            outcomes.add("refused")
            continue
        start = base.frames[-1][0]
        assert place >= start, "only the last frame looks like a torn tail"
        assert opened == (base.after[start], len(base.raw) - start)
        outcomes.add("cut")
    assert outcomes == {"refused", "cut"}
    assert all("mv " in remedy for remedy in base.remedies)


@pytest.mark.usefixtures("_no_sync")
def test_torn_slot_beside_a_torn_journal_never_loses_what_was_sent(base: Base) -> None:
    """A crash tears both at once; what left before is in the other slot, or in the journal."""
    for slot in range(2):
        for place in range(0, 240, 7):
            torn = bytearray(base.signer)
            start = slot * SLOT_BYTES + place
            torn[start : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES - place)
            for cut in (base.frames[-2][1], len(base.raw)):
                base.write(base.raw[:cut], bytes(torn))
                assert base.opened() is not None


@pytest.mark.usefixtures("_no_sync")
def test_promise_torn_in_both_files_was_never_sent_and_is_gone(base: Base) -> None:
    """Both are synced before a vote leaves; the promise before it stands."""
    newer = max(range(2), key=lambda slot: base.signer[slot * SLOT_BYTES :][5:13])  # by its seq
    torn = bytearray(base.signer)
    torn[newer * SLOT_BYTES + 50 : (newer + 1) * SLOT_BYTES] = bytes(SLOT_BYTES - 50)
    start, stop = base.frames[-2]
    for cut in range(start, stop):
        base.write(base.raw[:cut], bytes(torn))
        journal = open_journal(base.home, CHAIN, KEY)
        assert journal.last == vote(5, 0)
        journal.close()
