"""The ladder of a start: what is there is compared, what is damaged is made again or named."""

import random
import shutil
from pathlib import Path

import pytest
from chain_kit import devnet
from ladder_kit import Told, balances, reopen

from node.ledger.genesis import encode_genesis
from node.ledger.wire.receipts import receipt_id
from node.storage import keyspace
from node.storage.chain import Chain
from node.storage.errors import DatabaseDamaged, StorageError
from node.storage.store import LevelKV


def test_chain_reopens_where_it_was(copy: Path, told: tuple[Told, Path]) -> None:
    chain = reopen(copy)
    assert chain.tip == told[0].tip
    assert chain.steps == (f"chain: height {told[0].height}",)
    chain.close()


def test_database_behind_the_block_log_is_brought_up(copy: Path, told: tuple[Told, Path]) -> None:
    story = told[0]
    shutil.rmtree(copy / "db")
    chain = reopen(copy)
    assert chain.tip == story.tip
    assert chain.steps[0] == f"database: replayed blocks 1 to {story.height}"
    assert chain.view().find_receipt(receipt_id(story.receipt)) is not None
    chain.close()


def test_replay_gives_the_database_that_was_there(copy: Path, told: tuple[Told, Path]) -> None:
    first = LevelKV(copy / "db")
    before = list(first.scan(b"\0", b"\xff"))
    first.close()
    shutil.rmtree(copy / "db")
    reopen(copy).close()
    second = LevelKV(copy / "db")
    assert list(second.scan(b"\0", b"\xff")) == before
    second.close()


def test_database_ahead_of_the_block_log_stops_with_a_mend(copy: Path) -> None:
    (copy / "blocks" / "000001").write_bytes(b"")
    with pytest.raises(StorageError, match="blocks/"):
        reopen(copy)


def test_genesis_of_another_chain_is_refused(copy: Path) -> None:
    other = encode_genesis(devnet(split="whitepaper"))
    with pytest.raises(StorageError, match="another chain"):
        Chain.open(copy, other)
    with pytest.raises(StorageError, match="no genesis"):
        Chain.open(copy, b"junk")


def test_newer_format_is_named(copy: Path) -> None:
    store = LevelKV(copy / "db")
    store.write([(b"mformat", (2).to_bytes(8, "big"))])
    store.close()
    with pytest.raises(StorageError, match="format 2"):
        reopen(copy)


def test_body_lost_with_the_database_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "db")
    shutil.rmtree(copy / "bundles")
    with pytest.raises(StorageError, match="cannot be replayed"):
        reopen(copy)


@pytest.mark.parametrize("table", [b"s", b"n", b"r", b"h", b"v", b"m"])
def test_lost_or_false_record_is_found_and_made_again(
    copy: Path, told: tuple[Told, Path], table: bytes
) -> None:
    """A cut MANIFEST loses records silently; only roots and proofs find that."""
    store = LevelKV(copy / "db")
    pairs = list(store.scan(table, bytes([table[0] + 1])))
    if table == b"s":
        key, value = pairs[len(pairs) // 2]
        store.write([(key, value[:-1] + bytes([value[-1] ^ 1]))])
    else:
        store.write([], [key for key, _ in pairs])
    store.close()
    chain = reopen(copy)
    assert chain.tip == told[0].tip
    assert any("made again" in step or "replayed" in step for step in chain.steps)
    chain.close()
    assert list(reopen(copy).view().reader.scan(table, bytes([table[0] + 1]))) == pairs


def test_hole_among_the_blocks_of_the_database_is_found_and_made_again(
    copy: Path, told: tuple[Told, Path]
) -> None:
    """As where the MANIFEST lost a table: a larger state's thousand keys may all be elsewhere."""
    store = LevelKV(copy / "db")
    store.write([], [b"h" + (4).to_bytes(8, "big")])
    store.close()
    chain = reopen(copy)
    assert "block 4 is missing" in chain.steps[0]
    assert "made again" in chain.steps[0]
    assert chain.tip == told[0].tip
    chain.close()


def test_database_that_failed_while_in_use_is_made_again(
    copy: Path, told: tuple[Told, Path]
) -> None:
    """Also where the ladder does not look."""
    chain = reopen(copy)
    before = list(chain.view().reader.scan(b"\0", b"\xff"))
    chain.close()
    store = LevelKV(copy / "db")  # as much as makes blocks of a table that no start reads
    unread = [(keyspace.ACTIVITY + b"\0%d" % i, random.Random(i).randbytes(99)) for i in range(500)]
    store.write(unread)
    store.close()
    chain = reopen(copy)  # the log becomes a table
    chain.close()
    table = max((copy / "db").glob("*.ldb"))
    whole, steps = table.read_bytes(), chain.steps
    for at in range(100, len(whole), 2_000):
        table.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        chain = reopen(copy)
        if chain.steps == steps:
            break
        chain.close()
        shutil.rmtree(copy / "db")
        (copy / "db.damaged").rename(copy / "db")
        (copy / "db" / "SUSPECT").unlink(missing_ok=True)  # the ladder may see it first
    with pytest.raises(DatabaseDamaged):
        list(chain.view().reader.scan(b"\0", b"\xff"))
    assert chain.damage is not None
    chain.close()
    again = reopen(copy)
    assert "failed while in use" in again.steps[0]
    assert list(again.view().reader.scan(b"\0", b"\xff")) == before
    assert (again.tip, again.damage) == (told[0].tip, None)
    again.close()


def test_damaged_database_files_are_refused_or_made_again(
    told: tuple[Told, Path], tmp_path: Path
) -> None:
    story, home = told
    rng = random.Random(9)
    for number in range(24):
        copy = Path(shutil.copytree(home, tmp_path / str(number)))
        files = [p for p in sorted((copy / "db").iterdir()) if p.stat().st_size and p.name != "LOG"]
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        chain = reopen(copy)
        assert chain.tip == story.tip
        assert balances(chain) > 0
        chain.close()
        shutil.rmtree(copy)


def test_damaged_block_log_is_named_never_served(told: tuple[Told, Path], tmp_path: Path) -> None:
    story, home = told
    rng = random.Random(10)
    for number in range(24):
        copy = Path(shutil.copytree(home, tmp_path / str(number)))
        path = copy / "blocks" / "000001"
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        with pytest.raises(StorageError):
            reopen(copy)
        shutil.rmtree(copy)
    assert story.height > 0


def test_torn_tail_of_every_log_is_no_obstacle(copy: Path, told: tuple[Told, Path]) -> None:
    for name in ("blocks", "bundles"):
        with (copy / name / "000001").open("ab") as file:
            file.write(b"OLBF torn")
    chain = reopen(copy)
    assert chain.tip == told[0].tip
    chain.close()
