"""What a home holds beside the ledger: each damage is told with its mend, nothing is changed."""

import shutil
from pathlib import Path

import pytest
from files_kit import contents, flip
from goods_kit import make_shelf
from stored_kit import GENESIS

from consensus.primitives.digest import sha256
from consensus.records import SignerRecord
from node.belongings import NOT_READ, check_belongings
from node.config import load
from node.holdings import FOLDERS
from node.home import keystore_of, make_home, wanted_keys
from node.peering.blobstore import BlobStore
from node.serving import book
from node.storage.checking import Checked
from node.storage.journal import LOST_MEND, open_journal
from node.storage.segments import SegmentLog
from node.storage.signer import SLOT_BYTES

CHAIN_ID = sha256(GENESIS)
CHOSEN = {"profile": "devnet", "roles": ["validator", "payer"]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a validator that has spoken twice, receipts, and the goods of one version."""
    home = tmp_path_factory.mktemp("written") / "home"
    made = make_home(home, genesis=GENESIS, chosen=CHOSEN, password=None)
    key = next(key for key in made.keys if key.role == "validator")
    journal = open_journal(home, CHAIN_ID, key.public_key)
    for height in (1, 2):
        journal.begin(height)
        journal.persist(SignerRecord(1, height, 0, b"body"))
        journal.message(b"heard")
    journal.close()
    log = SegmentLog(home / "receipts", book.FORMAT)
    for payload in (b"first", b"second"):
        log.append(1, payload)
    log.close()
    store = BlobStore(home / "blobs", 1 << 30, free_bytes_min=0)
    for (kind, identity), folder in make_shelf(home.with_name("goods")).folders.items():
        ours = home / FOLDERS[kind] / identity.hex()
        shutil.copytree(folder, ours)
        store.add_folder(kind, identity, folder)
    return home


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "home")
    return tmp_path / "home"


def check(home: Path) -> Checked:
    settings, checked = load(home), Checked()
    check_belongings(
        home,
        CHAIN_ID,
        checked,
        keystore=keystore_of(settings),
        wanted=wanted_keys(settings),
    )
    return checked


def test_what_is_whole_is_left_as_it_is_and_what_was_not_read_is_said(home: Path) -> None:
    before = contents(home)
    checked = check(home)
    assert checked.findings == []
    assert checked.notes == [NOT_READ]
    assert checked.counts["receipts"] == 2
    assert checked.counts["goods"] == 6
    assert contents(home) == before
    assert not (home / "signer.check").exists()


@pytest.mark.parametrize("name", ["node", "validator", "spending"])
def test_key_file_that_is_cut_is_told_and_makes_room_for_its_copy(home: Path, name: str) -> None:
    path = home / "keystore" / f"{name}.json"
    path.write_bytes(path.read_bytes()[:20])
    (finding,) = check(home).findings
    assert finding.part == "keystore"
    assert str(path) in finding.what
    assert finding.mend.startswith(f"mv {path} {path}.damaged, then olnode keys import FILE")
    assert ("keys add node" in finding.mend) == (name == "node")


def test_key_that_a_start_needs_and_that_is_gone_is_told(home: Path) -> None:
    (home / "keystore/node.json").unlink()
    (finding,) = check(home).findings
    assert finding.what == "no key named node"
    assert finding.mend.startswith("olnode keys import FILE")


def test_signer_record_with_one_good_slot_is_mended_by_a_start(home: Path) -> None:
    flip(home / "signer", 50)
    checked = check(home)
    assert checked.findings == []
    assert "one slot" in checked.notes[0]
    flip(home / "signer", SLOT_BYTES + 50)
    (finding,) = check(home).findings
    assert finding.part == "signer"
    assert f"both slots of the signer record {home / 'signer'} are damaged" in finding.what
    assert "bond a new one" in finding.mend


def test_signer_record_that_is_gone_is_told_unless_it_has_moved(home: Path) -> None:
    (home / "signer").rename(home / "signer.moved")
    assert check(home).findings == []
    (home / "signer.moved").unlink()
    (finding,) = check(home).findings
    assert finding.what.startswith(f"no signer record at {home / 'signer'}")


def test_damage_of_the_newest_journal_is_told_with_the_mend_that_is_safe(home: Path) -> None:
    path = home / "journal/2.log"
    flip(path, 30)
    (finding,) = check(home).findings
    assert f"the journal {path} is damaged" in finding.what
    assert f"mv {path} {path}.damaged" in finding.mend
    flip(home / "signer", 50)
    (finding,) = check(home).findings
    assert finding.mend == LOST_MEND


def test_signer_record_of_a_key_that_cannot_be_read_is_said_to_be_unread(home: Path) -> None:
    (home / "keystore/validator.json").write_bytes(b"{")
    checked = check(home)
    assert [finding.part for finding in checked.findings] == ["keystore"]
    assert f"{home / 'signer'} was not read" in checked.notes[0]


def test_damaged_receipts_are_told_as_a_start_tells_them(home: Path) -> None:
    flip(home / "receipts/000001", 12)
    (finding,) = check(home).findings
    assert (finding.part, finding.mend) == ("receipts", book.DAMAGED_MEND)
    assert "receipts/000001" in finding.what


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("indexes", "rows.bin"),
        ("models", "model.safetensors"),
        ("adapters", "adapter_model.safetensors"),
        ("manifests", "content"),
    ],
)
def test_goods_that_are_not_what_their_name_says_are_told(home: Path, part: str, file: str) -> None:
    path = next((home / part).glob(f"*/{file}"))
    flip(path, path.stat().st_size - 9)
    (finding,) = check(home).findings
    assert finding.part == part
    assert finding.what.startswith(f"{path.parent} is not what its name says")


def test_rotted_blob_is_told_and_left_where_it_is(home: Path) -> None:
    blobs = [path for path in (home / "blobs").glob("??/*") if path.stat().st_size]
    flip(blobs[0], 3)
    blobs[1].write_bytes(b"")
    before = contents(home)
    checked = check(home)
    assert {finding.what for finding in checked.findings} == {
        f"{path} is not what its name says" for path in blobs[:2]
    }
    assert contents(home) == before
