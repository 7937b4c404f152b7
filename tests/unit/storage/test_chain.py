"""The chain on disk: executes once, loses nothing that was committed, trusts nothing it reads."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chain_kit import CREATOR, FAUCET, OPEN, PAYER
from ladder_kit import Told, balances, reopen
from stored_kit import GENESIS, Stored

from consensus.certificate import Certificate
from consensus.header import decode_header, encode_header
from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables, tree
from node.ledger.admission import admit_bundle
from node.ledger.wire.blocks import Block, Payload, encode_payload
from node.ledger.wire.receipts import receipt_id
from node.ledger.wire.transactions import Transfer, decode_transaction
from node.storage import activity
from node.storage.chain import EXECUTED_MAX, Chain
from node.storage.errors import Damaged, StorageError
from node.storage.executing import MissingBodies
from node.storage.store import MemoryKV

# ---- one block after another


def test_new_chain_begins_with_genesis(tmp_path: Path) -> None:
    chain = reopen(tmp_path)
    assert (chain.height, chain.tip.block_id) == (0, sha256(GENESIS))
    assert chain.state().account(FAUCET.key).balance == 1_000_000 * OPEN
    assert chain.header(0) is None
    assert chain.certificate(0) is None
    assert chain.validators(1) == chain.tip.validators
    chain.close()


def test_committed_block_is_found_by_everything_it_holds(told: tuple[Told, Path]) -> None:
    story, home = told
    chain = reopen(home)
    view = chain.view()
    assert chain.height == story.height == len(story.decided)
    for height, (block, certificate) in enumerate(story.decided, start=1):
        assert chain.block(height) == block
        assert chain.certificate(height) == certificate
        header = chain.header(height)
        assert header == decode_header(block.header)
        assert view.height_of(header.block_id()) == height
        signers = chain.validators(height)
        assert signers is not None
        assert signers.hash() == header.validators_hash
    assert chain.block(story.height + 1) is None
    chain.close()


def test_receipt_payouts_and_activity_are_found(told: tuple[Told, Path]) -> None:
    story, home = told
    chain = reopen(home)
    view = chain.view()
    found = view.find_receipt(receipt_id(story.receipt))
    assert found is not None
    assert (found.receipt, found.index, found.height) == (story.receipt, 0, story.height - 1)
    assert found.bundle_hash == story.bundle.hash
    leaves = view.payouts(found.height)
    header = view.get_header(found.height)
    assert merkle.root(leaves) == header.payouts_root
    kinds = [entry.kind for entry in view.activity(PAYER.key)]
    assert kinds == [activity.RECEIVED, activity.PAID, activity.SENT]
    earned = view.activity(CREATOR.key)[0]
    assert (earned.kind, earned.height) == (activity.EARNED, found.height)
    assert view.activity(CREATOR.key, below=earned.height)[0].height < earned.height
    assert len(view.activity(PAYER.key, entries_max=1)) == 1
    assert view.find_receipt(bytes(32)) is None
    assert view.activity(bytes(32)) == ()
    chain.close()


def test_transaction_is_found_with_its_code(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    good, bad = made.pay(), made.tx(PAYER, Transfer(FAUCET.key, 10**18, b""))
    made.block(good, bad)
    view = made.chain.view()
    for index, (raw, code) in enumerate(((good, 0), (bad, 20))):
        found = view.find_transaction(decode_transaction(raw).tx_id)
        assert found is not None
        assert (found.height, found.index, found.code, found.raw) == (1, index, code, raw)
    assert view.find_transaction(bytes(32)) is None


def test_view_stays_while_the_chain_goes_on(tmp_path: Path) -> None:
    made = Stored(tmp_path)
    made.block(made.pay())
    before = made.chain.view()
    balance = before.state().account(PAYER.key).balance
    made.block(made.pay())
    assert before.height == 1
    assert before.state().account(PAYER.key).balance == balance
    assert made.chain.state().account(PAYER.key).balance == balance + OPEN
    made.chain.close()


def test_every_state_record_is_proved_under_the_newest_header(told: tuple[Told, Path]) -> None:
    _, home = told
    chain = reopen(home)
    base, header = chain.view().base, chain.tip.header
    assert header is not None
    for key, value in base.scan(b"\0", b"\xff"):
        proof = tree.prove(base.read_node, base.tree_root, key)
        tree.verify(header.state_root, key, value, proof)
    chain.close()


def test_old_block_is_proved_by_a_later_header(told: tuple[Told, Path]) -> None:
    _, home = told
    chain = reopen(home)
    view, later = chain.view(), chain.tip.header
    assert later is not None
    for height in range(1, later.height):
        block_id = view.get_header(height).block_id()
        path = view.history_path(height, later.height)
        leaf = merkle.leaf_hash(block_id)
        merkle.verify_path(later.history_root, leaf, height - 1, later.height - 1, path)
    chain.close()


# ---- executing


def test_block_is_executed_once(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    block = made.build(made.pay())
    for _ in range(3):
        assert made.chain.execute(block).is_valid
    assert made.chain.statistics().executed == 1
    assert made.chain.executed_block(decode_header(block.header).block_id()) == block


def test_bundle_checked_before_is_not_checked_again(
    told: tuple[Told, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signatures cost most of the work of a block."""
    story, _ = told
    chain = Chain.open(tmp_path, GENESIS, store=MemoryKV())
    chain.commit_many(story.decided[:-2])
    chain.bundles.append(story.bundle)
    known = {story.bundle.hash: admit_bundle(chain.state(), chain.chain_id, story.bundle)}
    monkeypatch.setattr("node.ledger.execute.admit_bundle", None)
    assert chain.execute(story.decided[-2][0], known).is_valid


def test_only_the_newest_executed_blocks_are_kept(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    blocks = [made.build(made.pay(amount)) for amount in range(1, EXECUTED_MAX + 2)]
    ids = [decode_header(block.header).block_id() for block in blocks]
    kept = [made.chain.executed_block(block_id) is not None for block_id in ids]
    assert kept == [False] + [True] * EXECUTED_MAX


HEADERS = {
    "version": (lambda h: h._replace(height=h.height + 1), "block.height"),
    "app_version": (lambda h: h._replace(app_version=2), "block.app_version"),
    "chain": (lambda h: h._replace(chain_id=b"x" * 32), "block.chain_id"),
    "parent": (lambda h: h._replace(parent_id=b"x" * 32), "block.parent_id"),
    "time": (lambda h: h._replace(time_ms=h.time_ms - 1_000), "block.time"),
    "proposer": (lambda h: h._replace(proposer=FAUCET.key), "block.proposer"),
    "validators": (lambda h: h._replace(validators_hash=b"x" * 32), "block.validators_hash"),
    "history": (lambda h: h._replace(history_root=b"x" * 32), "block.history_root"),
}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_header_that_does_not_follow_is_refused_for_good(tmp_path: Path, name: str) -> None:
    change, code = HEADERS[name]
    made = Stored(tmp_path, MemoryKV())
    made.block(made.pay())
    good = made.build(made.pay())
    header = change(decode_header(good.header))
    verdict = made.chain.execute(good._replace(header=encode_header(header)))
    assert (verdict.is_valid, verdict.is_final, verdict.code) == (False, True, code)
    assert verdict.block_id == header.block_id()


PAYLOAD_ROOTS = ("txs_root", "bundles_root", "evidence_root")
ROOTS = ("state_root", "txs_root", "bundles_root", "payouts_root", "next_validators_hash")


@pytest.mark.parametrize("field", [*ROOTS, "params_hash", "evidence_root", "supply"])
def test_header_that_execution_does_not_give_is_refused(tmp_path: Path, field: str) -> None:
    made = Stored(tmp_path, MemoryKV())
    good = made.build(made.pay())
    header = decode_header(good.header)
    false = header.supply - 1 if field == "supply" else b"x" * 32
    changed = header._replace(**{field: false})
    verdict = made.chain.execute(good._replace(header=encode_header(changed)))
    # Only where the payload is shown to be the header's own is it the header that is wrong.
    is_final = field not in PAYLOAD_ROOTS
    assert (verdict.is_valid, verdict.is_final, verdict.code) == (False, is_final, "block.header")


def test_false_payload_under_a_true_header_does_not_condemn_the_block(tmp_path: Path) -> None:
    """Whoever hands us a block chooses its bytes; the id binds them only through execution."""
    made = Stored(tmp_path, MemoryKV())
    made.block(made.pay())
    other = Stored(tmp_path / "other", MemoryKV())
    other.block(other.pay())
    good = made.build(made.pay())
    payloads = [
        encode_payload(Payload()),
        b"\x93\x90\x90\x90\x90",
        encode_payload(Payload((b"x",))),
    ]
    for raw in payloads:
        verdict = other.chain.execute(good._replace(payload=raw))
        assert not verdict.is_valid
        assert not verdict.is_final
    forged = other.chain.execute(good._replace(last_certificate=b"forged"))
    assert (forged.code, forged.is_final) == ("block.last_commit_hash", False)
    assert other.chain.execute(good).is_valid


def test_last_certificate_must_be_a_quorum_of_the_parent(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    made.block(made.pay())
    good = made.build(made.pay())
    weak = made.certify(1, made.chain.tip.block_id, signers=2)
    header = decode_header(good.header)._replace(last_commit_hash=sha256(weak))
    verdict = made.chain.execute(Block(encode_header(header), good.payload, weak))
    assert verdict.code == "certificate.power"


def test_block_with_an_unknown_bundle_is_no_verdict(
    told: tuple[Told, Path], tmp_path: Path
) -> None:
    story, _ = told
    chain = Chain.open(tmp_path, GENESIS, store=MemoryKV())
    chain.commit_many(story.decided[:-2])
    block = story.decided[-2][0]
    assert chain.missing_bodies(block) == (story.bundle.hash,)
    with pytest.raises(MissingBodies) as missing:
        chain.execute(block)
    assert missing.value.hashes == (story.bundle.hash,)
    chain.bundles.append(story.bundle)
    assert chain.missing_bodies(block) == ()
    assert chain.execute(block).is_valid


def test_uncommitted_block_may_be_replaced_by_the_decided_one(tmp_path: Path) -> None:
    made = Stored(tmp_path, MemoryKV())
    made.build(made.pay(1))
    block = made.build(made.pay(2))
    made.chain.commit((certificate := made.decide(block)).block_id, certificate)
    assert made.chain.state().account(PAYER.key).balance == 1_000_000 * OPEN + 2


# ---- catching up


def test_database_moves_only_when_the_block_log_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a height whose block is nowhere."""
    store = MemoryKV()
    made = Stored(tmp_path, store=store)
    block = made.build(made.pay())
    certificate = made.decide(block)
    before = list(store.scan(b"", b"\xff" * 8))

    def fail(descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(StorageError):
        made.chain.commit(certificate.block_id, certificate)
    assert list(store.scan(b"", b"\xff" * 8)) == before
    assert made.chain.height == 0


def test_many_blocks_are_committed_under_one_sync(told: tuple[Told, Path], tmp_path: Path) -> None:
    story, _ = told
    chain = Chain.open(tmp_path, GENESIS)
    chain.bundles.append(story.bundle)
    assert chain.commit_many(story.decided) == story.tip
    chain.close()
    assert reopen(tmp_path).tip == story.tip


def test_what_came_before_a_bad_block_is_kept(told: tuple[Told, Path], tmp_path: Path) -> None:
    story, _ = told
    chain = Chain.open(tmp_path, GENESIS, store=MemoryKV())
    (block, certificate), other = story.decided[3], story.decided[2][1]
    with pytest.raises(Invalid, match=r"certificate\.block"):
        chain.commit_many([*story.decided[:3], (block, other)])
    assert chain.height == 3
    forged = Certificate(
        certificate.kind, 4, 0, certificate.block_id, certificate.bitmap,
        bytes(len(certificate.signatures)),
    )  # fmt: skip
    with pytest.raises(Invalid, match=r"certificate\.signature"):
        chain.commit_many([(block, forged)])
    assert chain.height == 3
    with pytest.raises(MissingBodies):
        chain.commit_many(story.decided[3:])
    assert chain.height == story.height - 2


# ---- what lies behind it


def test_old_tree_versions_are_pruned_and_the_kept_ones_still_prove(tmp_path: Path) -> None:
    made = Stored(tmp_path, store := MemoryKV(), keep_versions=3)
    sizes = []
    for _ in range(12):
        made.block(made.pay())
        sizes.append(len(list(store.scan(b"n", b"o"))))
    assert max(sizes[5:]) - min(sizes[5:]) < 30
    base = made.chain.view().base
    kept = [int.from_bytes(key[1:], "big") for key, _ in store.scan(b"r", b"s")]
    assert kept == [9, 10, 11, 12]
    for height in kept:
        record = store.get(b"r" + height.to_bytes(8, "big"))
        assert record is not None
        key = tables.ACCOUNT.flat_key((PAYER.key,))
        tree.prove(base.read_node, record, key)


def test_killed_node_loses_no_committed_block(tmp_path: Path) -> None:
    rng, here = random.Random(6), Path(__file__)
    code = (
        "import sys; from pathlib import Path; "
        f"sys.path[:0] = [{str(here.parents[2])!r}, {str(here.parent)!r}]; "
        "import test_chain; test_chain.write_forever(Path(sys.argv[1]))"
    )
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 + rng.random() * 0.06)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split(b"\n")[:-1]
        writer.wait()
        chain = reopen(tmp_path)
        if lines:
            height, block_id = lines[-1].split()
            assert chain.height >= int(height)
            header = chain.header(int(height))
            assert header is not None
            assert header.block_id().hex() == block_id.decode()
        assert balances(chain) == 1_000_000 * OPEN + chain.height
        chain.close()


def write_forever(home: Path) -> None:
    """The body of the process that is killed."""
    made = Stored(home)
    while True:
        made.block(made.pay(1))
        sys.stdout.write(f"{made.chain.height} {made.chain.tip.block_id.hex()}\n")
        sys.stdout.flush()


def test_damaged_body_is_told_as_missing(copy: Path, told: tuple[Told, Path]) -> None:
    """Peers have it by hash: it is fetched again, nothing else is lost."""
    path = copy / "bundles" / "000001"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    chain = reopen(copy)
    assert chain.tip == told[0].tip
    assert chain.view().find_bundle(told[0].bundle.hash) is None
    chain.bundles.append(told[0].bundle)
    assert chain.view().find_bundle(told[0].bundle.hash) is not None
    chain.close()


def test_damage_while_reading_a_block_is_named(copy: Path, told: tuple[Told, Path]) -> None:
    chain = reopen(copy)
    path = copy / "blocks" / "000001"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Damaged):
        chain.block(1)


def test_height_is_found_by_time(told: tuple[Told, Path]) -> None:
    _, home = told
    chain = reopen(home)
    view = chain.view()
    times = [view.get_header(height).time_ms for height in range(1, view.height + 1)]
    assert view.height_at(times[0] - 1) == 0
    for height, time_ms in enumerate(times, start=1):
        assert view.height_at(time_ms) == height
        assert view.height_at(time_ms + 1) == height
    chain.close()


def test_young_bodies_are_kept_and_old_ones_go(
    told: tuple[Told, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story, _ = told
    chain = Chain.open(tmp_path, GENESIS, store=MemoryKV())
    chain.bundles.append(story.bundle)
    chain.commit_many(story.decided)
    asked: list[int] = []
    monkeypatch.setattr(chain.bundles, "prune", lambda height, _: asked.append(height) or 0)
    chain.prune_bodies(story.height)
    window_ms = chain.state().parameter("challenge_window_ms")
    monkeypatch.setattr("node.storage.chain.BODIES_KEPT_MS", 2_000 - window_ms)
    chain.prune_bodies(story.height)
    chain.prune_bodies(3)  # the database could be made again from the snapshot of block 3 only
    assert asked == [0, story.height - 2, 3]


# ---- a body under a false signature


def until_the_bundle(story: Told, home: Path) -> Chain:
    """A chain up to the block that names the bundle, whose body is here under a false signature."""
    chain = Chain.open(home, GENESIS)
    chain.commit_many(story.decided[:-2])
    chain.bundles.append(story.bundle._replace(signature=bytes(64)))
    return chain


def test_false_signature_of_a_body_is_missing_data_and_no_verdict(
    tmp_path: Path, told: tuple[Told, Path]
) -> None:
    """A bundle's hash does not bind it: whoever gave us the body chose it."""
    story = told[0]
    chain = until_the_bundle(story, tmp_path / "home")
    block = story.decided[-2][0]
    with pytest.raises(MissingBodies) as missing:
        chain.execute(block)
    assert missing.value.hashes == chain.missing_bodies(block) == (story.bundle.hash,)
    chain.bundles.append(story.bundle._replace(signature=b"y" * 64))
    with pytest.raises(MissingBodies):
        chain.commit_many(story.decided[-2:])
    chain.bundles.append(story.bundle)
    chain.commit_many(story.decided[-2:])
    assert chain.height == story.height
    chain.close()


def test_block_that_was_checked_by_gossip_replays_over_a_body_that_was_false(
    tmp_path: Path, told: tuple[Told, Path]
) -> None:
    story, home = told[0], tmp_path / "home"
    chain = until_the_bundle(story, home)
    admitted = admit_bundle(chain.state(), chain.chain_id, story.bundle)
    chain.bundles.confirm(story.bundle)  # as the relay does with what it pools
    block, certificate = story.decided[-2]
    assert chain.execute(block, {story.bundle.hash: admitted}).is_valid
    chain.commit(certificate.block_id, certificate)
    chain.close()
    shutil.rmtree(home / "db")
    chain = Chain.open(home, GENESIS)
    assert chain.height == story.height - 1
    chain.close()
