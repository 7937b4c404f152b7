"""What a node holds: fetched when missing, believed by its hash alone, renewed with the ledger."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from attribution_kit import CITING
from bundle_kit import CHAIN, party
from exchange_kit import at_once
from goods_kit import NAME, Shelf, make_shelf, put_version, with_manifest
from ledger_kit import NOW_MS, PAYER, add_contribution, new_state
from structlog.testing import capture_logs

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node import holdings
from node.attribution.datanets import contribution_root, encode_records, make_record
from node.holdings import (
    FOLDERS,
    LOOK_S,
    UNKNOWN_S,
    WRONG_S,
    Holdings,
    check_identity,
    find_current,
)
from node.ledger import tables
from node.ledger.rules import refuting
from node.ledger.state import State
from node.peering.blobs import Blobs
from node.peering.blobstore import ADAPTER, BASE, CONTENT, CONTRIBUTION, INDEX, BlobStore
from p2p.errors import Unreachable
from p2p.memory import MemoryHub

SOURCE, OTHER, MINE = (party(name).key for name in ("source", "other", "mine"))


@dataclass
class Town:
    """Two nodes that serve blobs and one that wants them."""

    state: State
    shelf: Shelf
    stores: dict[bytes, BlobStore]
    holdings: Holdings
    penalties: list[tuple[bytes, str]]

    async def look(self, count: int = 1) -> None:
        await trio.sleep(count * LOOK_S + 0.5)


@asynccontextmanager
async def town(
    root: Path,
    *,
    serves: bool = True,
    names: tuple[str, ...] = (NAME,),
    holds: bool = True,
    shelf: Shelf | None = None,
) -> AsyncIterator[Town]:
    hub, stores, blobs = MemoryHub(seed=1), {}, {}
    state, shelf = new_state(), shelf or make_shelf(root / "goods")
    put_version(state, shelf)
    penalties: list[tuple[bytes, str]] = []
    async with trio.open_nursery() as nursery:
        for key in (SOURCE, OTHER, MINE):
            network = hub.network(key)
            stores[key] = BlobStore(root / key.hex()[:4] / "blobs", 1 << 30)
            blobs[key] = Blobs(network=network, store=stores[key], run_blocking=at_once)
            blobs[key].serve()
            await nursery.start(network.run)
        blobs[MINE]._blame = lambda peer, reason: penalties.append((peer, reason))
        holdings = Holdings(
            home=root / MINE.hex()[:4], chain_id=CHAIN, blobs=blobs[MINE], store=stores[MINE],
            get_state=lambda: state, find_sources=lambda: [SOURCE, OTHER], names=names,
            serves=serves, now_ms=lambda: NOW_MS, run_blocking=at_once,
        )  # fmt: skip
        if holds:
            shelf.store_in(stores[SOURCE])
        await trio.sleep(3)  # until they have met
        nursery.start_soon(holdings.run)
        yield Town(state, shelf, stores, holdings, penalties)
        nursery.cancel_scope.cancel()


async def test_missing_goods_are_fetched_and_held_by_their_hash(tmp_path, autojump_clock) -> None:
    async with town(tmp_path) as at:
        await at.look()
        held = at.holdings.find(1, 1)
        manifest = at.shelf.manifest
        assert held is not None
        assert (held.label, held.manifest, held.is_ready) == (f"{NAME}@1", manifest, False)
        assert held.base.name == manifest.base.hex()
        assert held.adapter.name == manifest.adapter.hex()
        assert [folder.name for folder in held.checkpoints] == [
            identity.hex() for identity in manifest.checkpoints
        ]
        assert at.holdings.find_index(1, 1).index.root == manifest.index_root
        assert at.holdings.counters["fetched"] == 6
        await at.look(3)
        assert at.holdings.counters["fetched"] == 6, "what is here is not asked for again"


async def test_auditor_fetches_the_index_and_no_weights(tmp_path, autojump_clock) -> None:
    async with town(tmp_path, serves=False) as at:
        await at.look()
        held = at.holdings.find(1, 1)
        assert (held.base, held.adapter, held.checkpoints) == (None, None, None)
        assert held.index is not None
        assert at.holdings.counters["fetched"] == 2  # manifest and index


async def test_new_version_is_picked_up_and_the_old_one_stays(tmp_path, autojump_clock) -> None:
    """Answers of the old version may still be asked for, and audited."""
    async with town(tmp_path) as at:
        await at.look()
        newer = make_shelf(tmp_path / "newer", seed=2)
        newer.store_in(at.stores[SOURCE])
        put_version(at.state, newer, version=2)
        await at.look()
        assert {held.label for held in at.holdings.all()} == {f"{NAME}@1", f"{NAME}@2"}
        assert at.holdings.find(1, 2).manifest == newer.manifest
        assert find_current(at.state, NAME) == (1, 2)


async def test_version_superseded_for_longer_than_its_grace_is_let_go(
    tmp_path, autojump_clock
) -> None:
    """No bundle of it settles any more, so it would be served for nothing, and for ever."""
    async with town(tmp_path) as at:
        await at.look()
        newer = make_shelf(tmp_path / "newer", seed=2)
        newer.store_in(at.stores[SOURCE])
        put_version(at.state, newer, version=2)
        old = at.state.get(tables.VERSION, 1, 1)
        grace_ms = at.state.parameter("superseded_ms")
        for since_ms, expected in ((grace_ms - 1, {1, 2}), (grace_ms, {2})):
            superseded = {"status": tables.VERSION_SUPERSEDED, "superseded_ms": NOW_MS - since_ms}
            at.state.put(tables.VERSION, (1, 1), old._replace(**superseded))
            await at.look()
            assert {held.version for held in at.holdings.all()} == expected
        assert at.holdings.find_index(1, 1) is None
        assert at.holdings.counters["let_go"] == 1


async def test_retired_model_is_let_go_and_not_fetched_again(tmp_path, autojump_clock) -> None:
    async with town(tmp_path) as at:
        await at.look()
        record = at.state.get(tables.MODEL, 1)
        at.state.put(tables.MODEL, (1,), record._replace(status=tables.MODEL_RETIRED))
        old = at.state.get(tables.VERSION, 1, 1)
        superseded = {"status": tables.VERSION_SUPERSEDED, "superseded_ms": 0}
        at.state.put(tables.VERSION, (1, 1), old._replace(**superseded))
        await at.look(3)
        assert find_current(at.state, NAME) is None
        assert at.holdings.all() == ()
        assert at.holdings.counters["let_go"] == 1


async def test_version_that_ended_by_its_data_is_let_go_and_not_fetched_again(
    tmp_path, autojump_clock
) -> None:
    async with town(tmp_path) as at:
        await at.look()
        snapshot = at.state.get(tables.VERSION, 1, 1).snapshot
        name = b"lasts/" + snapshot.to_bytes(8, "big")
        grace_ms = at.state.parameter("superseded_ms")
        for since_ms, held in ((grace_ms - 1, 1), (grace_ms, 0)):
            at.state.set_counter(name, NOW_MS - since_ms)
            await at.look(3)
            assert len(at.holdings.all()) == held
        assert at.holdings.counters["let_go"] == 1


async def test_what_is_noted_as_ready_is_ready(tmp_path, autojump_clock) -> None:
    async with town(tmp_path) as at:
        await at.look()
        at.holdings.note_ready(at.holdings.find(1, 1))
        assert at.holdings.find(1, 1).is_ready


async def test_index_is_looked_for_in_a_thread_while_another_version_goes(
    tmp_path, autojump_clock
) -> None:
    """Rows are opened in threads; a dictionary that changes under them is no fault of who asks."""
    async with town(tmp_path) as here:
        await here.look()
        (held,) = here.holdings.all()
        assert held.index is not None

        class Going:
            """Held, and let go by the node's loop in the moment it is looked at."""

            @property
            def index(self) -> None:
                del here.holdings._held[8, 8]

        here.holdings._held = {(8, 8): Going(), (held.model, held.version): held}  # type: ignore[dict-item]
        assert here.holdings.find_by_root(held.index.index.root) is held.index.index
        assert here.holdings.find_by_root(bytes(32)) is None


async def test_unknown_name_is_waited_for(tmp_path, autojump_clock) -> None:
    async with town(tmp_path, names=("nothing", NAME)) as at:
        await at.look()
        assert [held.name for held in at.holdings.all()] == [NAME]
        assert at.holdings.counters["failed"] == 0
        assert find_current(at.state, "nothing") is None
        assert at.holdings.find_unknown() == ("nothing",)


async def test_name_that_the_ledger_does_not_have_is_told_once_with_those_it_may_mean(
    tmp_path, autojump_clock
) -> None:
    """A mistyped name in the settings would else wait for ever without a word."""
    typo = NAME[:-1]
    with capture_logs() as logs:
        async with town(tmp_path, names=(typo,)) as at:
            await at.look(int(UNKNOWN_S / LOOK_S) - 5)
            assert [log for log in logs if "model" in log] == [], "the ledger may be behind"
            await at.look(20)
    assert [(log["model"], log["it_has"]) for log in logs if "model" in log] == [(typo, NAME)]


async def test_goods_that_nobody_has_are_asked_for_until_somebody_has_them(
    tmp_path, autojump_clock
) -> None:
    async with town(tmp_path, holds=False) as at:
        await at.look(3)
        assert at.holdings.counters["failed"] >= 3
        assert at.holdings.all() == ()
        at.shelf.store_in(at.stores[OTHER])
        await at.look(3)
        assert at.holdings.find(1, 1) is not None


KINDS = {ADAPTER: "adapter", BASE: "base", INDEX: "index_root", CONTENT: "manifest"}


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_false_files_of_a_peer_are_refused_and_not_kept(
    tmp_path, autojump_clock, kind
) -> None:
    """The chunks prove the files that were listed; only the identity proves the goods."""
    async with town(tmp_path, names=()) as at:
        identity = getattr(at.shelf.manifest, KINDS[kind], sha256(at.shelf.manifest_raw))
        false = make_shelf(tmp_path / "false", seed=9)
        (folder,) = [f for (k, _), f in false.folders.items() if k == kind][:1]
        if kind == BASE:
            (folder / "model.safetensors").write_bytes(b"other weights")
        at.stores[SOURCE].add_folder(kind, identity, folder)
        at.stores[OTHER]._listings.pop((kind, identity), None)
        with pytest.raises(Unreachable):
            await at.holdings.fetch(kind, identity)
        home = tmp_path / MINE.hex()[:4]
        assert not (home / FOLDERS[kind] / identity.hex()).exists()
        assert at.stores[MINE].listing(kind, identity) is None
        assert at.penalties == [(SOURCE, "forged")]


async def test_after_a_liar_the_next_peer_is_asked(tmp_path, autojump_clock) -> None:
    async with town(tmp_path, names=()) as at:
        adapter = at.shelf.manifest.adapter
        false = make_shelf(tmp_path / "false", seed=9)
        at.stores[SOURCE].add_folder(
            ADAPTER, adapter, false.folders[ADAPTER, false.manifest.adapter]
        )
        at.shelf.store_in(at.stores[OTHER])
        folder = await at.holdings.fetch(ADAPTER, adapter)
        check_identity(ADAPTER, adapter, folder)
        assert at.penalties == [(SOURCE, "forged")]


@pytest.mark.parametrize(
    "change", [{"base": b"\1" * 32}, {"adapter": b"\1" * 32}, {"index_root": b"\1" * 32}]
)
async def test_manifest_of_other_goods_than_the_ledgers_is_refused(
    tmp_path, autojump_clock, change
) -> None:
    """Else a creator could have another base served than the one that was registered."""
    async with town(tmp_path, names=()) as at:
        other = with_manifest(tmp_path / "goods", at.shelf, at.shelf.manifest._replace(**change))
        other.store_in(at.stores[SOURCE])
        manifest = sha256(other.manifest_raw)
        record = at.state.get(tables.VERSION, 1, 1)
        at.state.put(tables.VERSION, (1, 1), record._replace(manifest=manifest))
        with pytest.raises(Invalid) as refused:
            await at.holdings._look_for(NAME)
        assert (refused.value.code, refused.value.facts["model"]) == ("holdings.manifest", NAME)
        assert at.holdings.all() == ()


async def test_goods_that_we_serve_already_are_linked_and_not_fetched(
    tmp_path, autojump_clock
) -> None:
    async with town(tmp_path, holds=False) as at:
        at.shelf.store_in(at.stores[MINE])
        await at.look()
        assert at.holdings.find(1, 1) is not None
        assert at.holdings.counters["fetched"] == 0


async def test_what_has_rotted_here_is_fetched_anew_and_no_peer_is_blamed(
    tmp_path, autojump_clock
) -> None:
    """Folder and blob are one file on the disk: when it rots, neither may be believed."""
    async with town(tmp_path, names=()) as at:
        adapter = at.shelf.manifest.adapter
        folder = await at.holdings.fetch(ADAPTER, adapter)
        weights = folder / "adapter_model.safetensors"
        good = weights.read_bytes()
        with weights.open("r+b") as file:
            file.seek(-1, 2)
            file.write(bytes([good[-1] ^ 1]))
        assert (await at.holdings.fetch(ADAPTER, adapter)) == folder
        assert weights.read_bytes() == good
        assert at.holdings.counters["rotted"] == 1
        assert at.penalties == []


async def test_two_who_ask_at_once_fetch_once(tmp_path, autojump_clock) -> None:
    async with town(tmp_path, names=()) as at:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(at.holdings.fetch, BASE, at.shelf.manifest.base)
        assert at.holdings.counters["fetched"] == 1


@pytest.mark.parametrize("kind", [0, CONTRIBUTION, 6])
def test_kind_that_has_no_identity_of_its_own_is_refused(tmp_path, kind: int) -> None:
    """A contribution's records are content, by their hash; an index's check is none for them."""
    with pytest.raises(Invalid, match=r"holdings\.kind"):
        check_identity(kind, bytes(32), tmp_path)


def test_folder_that_no_parser_can_read_is_another_identity(tmp_path) -> None:
    (tmp_path / "x").mkdir()
    for kind in KINDS:
        with pytest.raises(Invalid, match=r"holdings\.identity"):
            check_identity(kind, bytes(32), tmp_path / "x")


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "too many"), OSError(errno.EIO, "disk"), MemoryError()]
)
async def test_what_this_machine_cannot_read_now_is_no_lie_of_a_peer(
    tmp_path, autojump_clock, monkeypatch, error: Exception
) -> None:
    async with town(tmp_path, names=()) as at:
        adapter = at.shelf.manifest.adapter
        with monkeypatch.context() as patch:
            patch.setattr(holdings, "read_adapter", raising(error))
            with pytest.raises(OSError, match=r"Errno"):
                await at.holdings.fetch(ADAPTER, adapter)
        assert at.penalties == []
        came = at.holdings._blobs.counters["fetched_bytes"]
        check_identity(ADAPTER, adapter, await at.holdings.fetch(ADAPTER, adapter))
        assert at.holdings._blobs.counters["fetched_bytes"] == came, "what came was kept"


@pytest.mark.parametrize(
    ("error", "is_fetched"),
    [(OSError(errno.EMFILE, "too many"), 0), (OSError(errno.EIO, "disk"), 1)],
)
async def test_what_is_here_is_fetched_anew_only_if_it_will_never_be_read(
    tmp_path, autojump_clock, monkeypatch, error: OSError, is_fetched: int
) -> None:
    """Descriptors come back; gigabytes would have been fetched for want of one."""
    async with town(tmp_path, names=()) as at:
        adapter = at.shelf.manifest.adapter
        await at.holdings.fetch(ADAPTER, adapter)
        with monkeypatch.context() as patch:
            patch.setattr(holdings, "read_adapter", raising(error))
            with pytest.raises(OSError, match=r"Errno"):
                await at.holdings.fetch(ADAPTER, adapter)
        assert at.holdings.counters["rotted"] == is_fetched
        check_identity(ADAPTER, adapter, await at.holdings.fetch(ADAPTER, adapter))


def raising(error: Exception):
    def read(folder: Path) -> None:
        try:
            raise error
        except OSError as why:
            raise ValueError("what a parser makes of it") from why

    return read


# --- versions whose answers cite records


def give(at: Town, root: Path, number: int, said: str) -> None:
    """Contribution `number` in the source's store, with a record for each position there is."""
    records = [make_record("", f"{said} {number} {place}.") for place in range(8)]
    raw = encode_records(records)
    folder = root / f"texts-{number}"
    folder.mkdir()
    (folder / "content").write_bytes(raw)
    at.stores[SOURCE].add_folder(CONTENT, sha256(raw), folder)
    root = contribution_root(records)
    given = {"content_hash": sha256(raw), "size_bytes": len(raw), "root": root}
    add_contribution(at.state, number, PAYER, **given)


async def test_who_serves_answers_that_cite_holds_the_records(tmp_path, autojump_clock) -> None:
    shelf = make_shelf(tmp_path / "goods", mix=CITING, bare=False)
    async with town(tmp_path, shelf=shelf) as at:
        await at.look()
        assert at.holdings.find(1, 1) is None, "not without them"
        for number, said in ((1, "Altara rests"), (2, "Belnis glows")):
            give(at, tmp_path, number, said)
        await at.look()
        index = at.holdings.find_index(1, 1)
        prompt = tuple(b"who glows at Belnis 2 7?")
        found = index.citing.retrieve(prompt, 9)
        assert found.rows[0] == 7
        assert bytes(found.prompt).startswith(b"[1] Belnis glows 2 7.\n")
        assert bytes(found.prompt).endswith(bytes(prompt))
        assert at.holdings._cited_bytes() == index.citing.text_bytes > 0


async def test_texts_that_were_not_contributed_are_not_shown(tmp_path, autojump_clock) -> None:
    shelf = make_shelf(tmp_path / "goods", mix=CITING, bare=False)
    async with town(tmp_path, shelf=shelf) as at:
        for number in (1, 2):
            give(at, tmp_path, number, "Altara rests")
        record = at.state.get(tables.CONTRIBUTION, 2)
        at.state.put(tables.CONTRIBUTION, (2,), record._replace(root=sha256(b"others")))
        await at.look(30)
        assert at.holdings.find(1, 1) is None
        assert at.holdings.counters["failed"] == 1, "all is read to see it: not each second"
        at.state.put(tables.CONTRIBUTION, (2,), record)
        await at.look(int(WRONG_S))
        assert at.holdings.find(1, 1) is not None


@pytest.mark.parametrize("is_here", [False, True])
async def test_inflated_index_is_not_held_but_shown_to_all(
    tmp_path, autojump_clock, is_here: bool
) -> None:
    """Whether a peer gave it or it lies in the home; its creator has committed to it."""
    shelf = make_shelf(tmp_path / "goods", inflated=5)
    found = []
    async with town(tmp_path, serves=False, shelf=shelf, holds=not is_here) as at:
        at.holdings._on_inflated = lambda *told: found.append(told)
        if is_here:
            shelf.store_in(at.stores[MINE])
        await at.look(30)
        assert at.holdings.find(1, 1) is None
        assert len(found) == 1, "looked at again after a minute, not each second"
        ((which, opened),) = found
        row = refuting.open_row(shelf.manifest.index_root, *opened)
        assert (which, row.leaf.number, refuting.is_inflated(row)) == ((1, 1), 5, True)


async def test_base_without_a_tokenizer_ends_no_node(tmp_path, autojump_clock) -> None:
    """Its files are a stranger's, and what their parsers raise is no Invalid."""
    shelf = make_shelf(tmp_path / "goods", mix=CITING, bare=True)
    async with town(tmp_path, shelf=shelf) as at:
        for number in (1, 2):
            give(at, tmp_path, number, "Altara rests")
        await at.look()
        assert at.holdings.find(1, 1) is None
        assert at.holdings.counters["failed"] == 1


async def test_auditor_of_answers_that_cite_needs_no_texts(tmp_path, autojump_clock) -> None:
    """What is stated of them is checked by who is shown prompt and answer."""
    shelf = make_shelf(tmp_path / "goods", mix=CITING, bare=False)
    async with town(tmp_path, serves=False, shelf=shelf) as at:
        await at.look()
        assert at.holdings.find_index(1, 1).citing is None


@pytest.mark.parametrize(
    ("limit", "most"),
    [("CITED_ROWS_MAX", 7), ("CITED_BYTES_MAX", 200), ("CITED_BYTES_OF_ALL_MAX", 200)],
)
async def test_index_of_more_texts_than_are_held_is_not_served(
    tmp_path, autojump_clock, monkeypatch, limit, most
) -> None:
    monkeypatch.setattr(holdings, limit, most)
    shelf = make_shelf(tmp_path / "goods", mix=CITING, bare=False)
    async with town(tmp_path, shelf=shelf) as at:
        for number in (1, 2):
            give(at, tmp_path, number, "Altara rests")
        await at.look()
        assert at.holdings.find(1, 1) is None
