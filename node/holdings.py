"""The models this node holds: bases, adapters and indices, by hash, fetched when missing.

Why by hash and checked: what a peer sends is believed only when its identity, computed here, is
the one on the ledger (page 70 §10). Why names alone are configured: a new version of a model is
picked up by the node itself.
What this file does not know: who asks, what anything costs, how tokens are made.
"""

import difflib
import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution.attribute import Version
from node.attribution.citing import Citing
from node.attribution.datanets import Record, contribution_root, parse_records
from node.attribution.index import Index, find_inflated
from node.attribution.kernels import kernel_for
from node.attribution.score import NoExactKernel
from node.attribution.tokens import open_tokenizer
from node.ledger import tables
from node.ledger.rules.models import has_ended, is_servable
from node.ledger.state import State
from node.ledger.wire import claims
from node.ledger.wire.openings import NormOpened
from node.observe import get_log
from node.peering.blobs import Blobs
from node.peering.blobstore import ADAPTER, BASE, CONTENT, INDEX, BlobStore
from node.serving.adapters import base_hash, read_adapter
from node.serving.attributing import HeldIndex
from node.serving.manifest import Manifest, decode_manifest
from p2p.errors import NetworkError
from p2p.network import PeerId

LOOK_S: Final = 1.0  # between two looks at ledger and peers
UNKNOWN_S: Final = 60.0  # until a name that is not on the ledger is told: it may be behind
NAMES_LIKE_MAX: Final = 5
NAMES_COMPARED_MAX: Final = 1_000
WRONG_S: Final = 60.0  # and at what is not as it should be: all of it is read to see that again
GIB: Final = 1 << 30
BYTES_MAX: Final = {ADAPTER: 2 * GIB, BASE: 64 * GIB, INDEX: 16 * GIB, CONTENT: 1 << 20}
OUR_ERRORS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EDQUOT}
)  # no file of a stranger's can cause them
PASSING_ERRORS: Final = OUR_ERRORS - {errno.EIO}  # a disk that cannot read it now never will
CITED_ROWS_MAX: Final = 100_000  # of a version that cites: their texts are held in memory,
CITED_BYTES_MAX: Final = 64 << 20  # with their words twelve times as much;
CITED_BYTES_OF_ALL_MAX: Final = 2 * CITED_BYTES_MAX  # of all versions: the old one, and the next
FOLDERS: Final = {ADAPTER: "adapters", BASE: "models", INDEX: "indexes", CONTENT: "manifests"}

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("holdings")


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model version that is here. Folders are None for what this node did not want."""

    name: str
    model: int
    version: int
    manifest: Manifest
    base: Path | None
    adapter: Path | None
    checkpoints: tuple[Path, Path] | None
    index: HeldIndex | None
    is_ready: bool = False  # its adapters are loaded in the engine

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


class Holdings:
    """Keeps the current version of each wanted model here; look-ups are by (model, version).

    An older one stays as long as the ledger settles answers of it.
    """

    def __init__(
        self,
        *,
        home: Path,
        chain_id: bytes,
        blobs: Blobs,
        store: BlobStore,
        get_state: Callable[[], State],
        find_sources: Callable[[], Sequence[PeerId]],
        names: Sequence[str],
        serves: bool,
        now_ms: Callable[[], int],
        on_inflated: Callable[[tuple[int, int], NormOpened], None] = lambda which, opened: None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._home, self._chain_id = home, chain_id
        self._blobs, self._store = blobs, store
        self._get_state, self._find_sources = get_state, find_sources
        self._names, self._serves, self._now_ms = names, serves, now_ms
        self._on_inflated, self._run_blocking = on_inflated, run_blocking
        self._inflated: dict[bytes, NormOpened] = {}  # by index root
        self._held: dict[tuple[int, int], HeldModel] = {}
        self._fetching: dict[tuple[int, bytes], trio.Lock] = {}  # two at once would share a folder
        self.counters: Counter[str] = Counter()

    def find(self, model: int, version: int) -> HeldModel | None:
        """What is held of a version."""
        return self._held.get((model, version))

    def find_index(self, model: int, version: int) -> HeldIndex | None:
        """The opened index of a version."""
        held = self._held.get((model, version))
        return None if held is None else held.index

    def find_audited(self, model: int, version: int) -> tuple[Index, Version] | None:
        """The same with the version that its panel is drawn for."""
        held = self.find_index(model, version)
        return None if held is None else (held.index, held.version)

    def find_by_root(self, root: bytes) -> Index | None:
        """An opened index by its identity."""
        held_now = list(self._held.values())  # other threads ask: a copy is made in one step
        indices = (held.index.index for held in held_now if held.index is not None)
        return next((index for index in indices if index.root == root), None)

    def find_indexed(self) -> frozenset[tuple[int, int]]:
        """The versions whose index is here."""
        return frozenset(which for which, held in self._held.items() if held.index is not None)

    def all(self) -> tuple[HeldModel, ...]:
        """Everything held."""
        return tuple(self._held.values())

    def find_unknown(self) -> tuple[str, ...]:
        """Wanted names that the ledger does not have: mistyped, or not registered yet."""
        state = self._get_state()
        is_there = partial(state.has, tables.MODEL_NAME)
        return tuple(name for name in self._names if not is_there(name.encode()))

    def note_ready(self, held: HeldModel) -> None:
        """The engine has loaded its adapters."""
        self._held[held.model, held.version] = replace(held, is_ready=True)

    async def run(self) -> None:
        """Look at the ledger for wanted versions and fetch what is missing, for ever."""
        again_s: dict[str, float] = {}  # name → when to look again at what was wrong
        told: set[str] = set()
        started_s = trio.current_time()
        while True:
            for name in self._names:
                if trio.current_time() < again_s.get(name, 0.0):
                    continue
                try:
                    await self._look_for(name)
                except (NetworkError, Invalid, OSError) as error:
                    self.counters["failed"] += 1
                    log.warning("a model is not here yet", model=name, why=str(error))
                    if isinstance(error, Invalid):
                        again_s[name] = trio.current_time() + WRONG_S
            self._let_go()
            if trio.current_time() - started_s > UNKNOWN_S:
                self._tell_unknown(told)
            await trio.sleep(LOOK_S)

    def _tell_unknown(self, told: set[str]) -> None:
        """Warn once of each name that the ledger does not have."""
        for name in self.find_unknown():
            if name not in told:
                told.add(name)
                names = ", ".join(names_like(self._get_state(), name))
                log.warning("the ledger has no such model", model=name, it_has=names)

    def _let_go(self) -> None:
        """Forget versions that ended so long ago that nothing of them settles any more (B3)."""
        state, now_ms = self._get_state(), self._now_ms()
        for which, held in list(self._held.items()):
            is_over = state.get(tables.VERSION, *which).status == tables.VERSION_SUPERSEDED
            is_over |= has_ended(state, which, now_ms)
            if is_over and not is_servable(state, which, now_ms):
                del self._held[which]
                self.counters["let_go"] += 1
                log.info("holds no longer", model=held.label)

    async def fetch(self, kind: int, identity: bytes, bytes_max: int | None = None) -> Path:
        """The folder of an identity, from the disk or from a peer.

        `bytes_max`: what the ledger says of its size, where the kind's own bound is too small.
        Raises Unreachable when nobody has it. Its content is checked in either case; what has
        rotted on the disk is fetched anew.
        """
        folder = self._home / FOLDERS[kind] / identity.hex()
        check = partial(self._check_index if kind == INDEX else check_identity, kind, identity)
        async with self._fetching.setdefault((kind, identity), trio.Lock()):
            if not await self._find_here(kind, identity, folder, check):
                await self._blobs.fetch(
                    kind,
                    identity,
                    folder,
                    peers=self._find_sources(),
                    bytes_max=BYTES_MAX[kind] if bytes_max is None else bytes_max,
                    check=check,
                )
                self.counters["fetched"] += 1
        return folder

    def _check_index(self, kind: int, identity: bytes, folder: Path) -> None:
        """As `check_identity`; what is wrong with an index that is the ledger's is kept."""
        try:
            check_identity(kind, identity, folder)
        except Invalid:
            found = find_inflated(folder, identity)
            if found is not None:
                self._inflated[identity] = found
            raise

    async def _find_here(
        self, kind: int, identity: bytes, folder: Path, check: Callable[[Path], None]
    ) -> bool:
        """Whether `folder` holds it, or does now from the blobs that we serve."""
        entries = self._store.listing(kind, identity)
        try:
            if not await self._run_blocking(folder.is_dir):
                if entries is None:
                    return False
                await self._run_blocking(self._store.link_into, entries, folder)
            await self._run_blocking(check, folder)
        except (Invalid, OSError) as error:
            if isinstance(error, OSError) and error.errno in PASSING_ERRORS:
                raise  # it may be whole: only this moment keeps us from reading it
            self.counters["rotted"] += 1
            log.warning("damaged here, fetched anew", folder=str(folder), why=str(error))
            return False
        return True

    async def _look_for(self, name: str) -> None:
        which = find_current(self._get_state(), name)
        if which is None or which in self._held:
            return
        if has_ended(self._get_state(), which, self._now_ms()):
            return
        record = self._get_state().get(tables.VERSION, *which)
        manifest_folder = await self.fetch(CONTENT, record.manifest)
        raw = await self._run_blocking((manifest_folder / "content").read_bytes)
        manifest = decode_manifest(raw)
        base_there = self._get_state().get(tables.MODEL, which[0]).base
        on_ledger = (base_there, record.adapter, record.index_root)
        if (manifest.base, manifest.adapter, manifest.index_root) != on_ledger:
            raise Invalid("holdings.manifest", model=name)
        base = adapter = None
        checkpoints = None
        if self._serves:
            base = await self.fetch(BASE, manifest.base)
            adapter = await self.fetch(ADAPTER, manifest.adapter) if manifest.adapter else None
            if manifest.early:
                early = await self.fetch(ADAPTER, manifest.early)
                checkpoints = (early, await self.fetch(ADAPTER, manifest.middle))
        index = None
        if manifest.index_root:
            version = Version(self._chain_id, *which, record.published_ms)
            index = await self._open_index(manifest, version, base)
        self._held[which] = HeldModel(name, *which, manifest, base, adapter, checkpoints, index)
        log.info("holds", model=f"{name}@{which[1]}", serves=self._serves)

    async def _open_index(
        self, manifest: Manifest, version: Version, base: Path | None
    ) -> HeldIndex:
        """The version's index; who serves it holds the texts too, where its mix cites them."""
        root = manifest.index_root
        try:
            folder = await self.fetch(INDEX, root)
        except (NetworkError, Invalid) as error:
            found = self._inflated.pop(root, None)
            if found is None:
                raise
            self._on_inflated((version.model, version.version), found)
            raise Invalid("holdings.inflated", index=root) from error
        index = await self._run_blocking(Index.open, folder, manifest.index_root)
        try:
            await self._run_blocking(kernel_for, index.header.rows)  # now, not at the first answer
        except NoExactKernel as error:  # this machine's fault: what it computed would be no proof
            raise Invalid("holdings.no_kernel") from error
        citing = None
        if base is not None and claims.RETRIEVAL in dict(index.header.mix):
            records = await self._canonical_records(index)
            citing = await self._run_blocking(make_citing, base, records, manifest.max_model_len)
        return HeldIndex(index, str(folder), version, citing)

    async def _canonical_records(self, index: Index) -> list[Record]:
        """The text of each row, from contributions that are those of the ledger.

        Raises Invalid `holdings.too_many_texts`, `holdings.texts` (not what was contributed).
        """
        most = min(CITED_BYTES_MAX, CITED_BYTES_OF_ALL_MAX - self._cited_bytes())
        if index.header.rows > CITED_ROWS_MAX:
            raise Invalid("holdings.too_many_texts", rows=index.header.rows, most=CITED_ROWS_MAX)
        places = [index.place_of(row) for row in range(index.header.rows)]
        records: list[Record] = []
        given: tuple[Record, ...] = ()
        before = size = 0  # rows are in ledger order, so that each contribution is read once
        for number, position in places:
            if number != before:
                given, before = await self._contribution(number), number
            if position >= len(given):
                raise Invalid("holdings.texts", contribution=number, position=position)
            records.append(given[position])
            size += len(given[position].raw)
            if size > most:
                raise Invalid("holdings.too_many_texts", bytes=size, most=most)
        return records

    def _cited_bytes(self) -> int:
        """Of the texts that are held for citing."""
        indices = (held.index for held in self._held.values() if held.index is not None)
        return sum(index.citing.text_bytes for index in indices if index.citing is not None)

    async def _contribution(self, number: int) -> tuple[Record, ...]:
        about = self._get_state().find(tables.CONTRIBUTION, number)
        if about is None:
            raise Invalid("holdings.texts", contribution=number)
        folder = await self.fetch(CONTENT, about.content_hash, about.size_bytes)
        raw = await self._run_blocking((folder / "content").read_bytes)
        records = tuple(await self._run_blocking(parse_records, raw))
        if contribution_root(records) != about.root:
            raise Invalid("holdings.texts", contribution=number)
        return records


def make_citing(base: Path, records: Sequence[Record], tokens_max: int) -> Citing:
    """By the tokenizer of the base in `base`. Blocks: it reads every text.

    Raises Invalid `tokenizer.unreadable` where the base has none.
    """
    return Citing(records, open_tokenizer(base), tokens_max)


def find_current(state: State, name: str) -> tuple[int, int] | None:
    """(model, version) of the current release of a model name; None if it has none, or ended."""
    number = state.find(tables.MODEL_NAME, name.encode())
    if number is None:
        return None
    model = state.get(tables.MODEL, number.number)
    is_served = model.current and model.status != tables.MODEL_RETIRED
    return (number.number, model.current) if is_served else None


def names_like(state: State, name: str) -> list[str]:
    """Model names that `name` may have been meant for, the likest first; if there is none, the
    first of all."""
    rows = state.scan(tables.MODEL_NAME)[:NAMES_COMPARED_MAX]
    names = [raw.decode("ascii") for (raw,), _ in rows]
    return difflib.get_close_matches(name, names, NAMES_LIKE_MAX) or names[:NAMES_LIKE_MAX]


def check_identity(kind: int, identity: bytes, folder: Path) -> None:
    """Raise Invalid `holdings.identity` unless `folder` holds what `identity` names. Blocks.

    Raises Invalid `holdings.kind` for goods whose identity cannot be computed here, and OSError
    where it is this machine that cannot read them now.
    """
    if kind not in FOLDERS:
        raise Invalid("holdings.kind", kind=kind)
    try:
        found: Any
        if kind == ADAPTER:
            found = read_adapter(folder).hash
        elif kind == BASE:
            found = base_hash(folder)
        elif kind == CONTENT:
            found = sha256((folder / "content").read_bytes())
        else:
            Index.open(folder, identity)  # raises unless its root is the identity
            return
    except Exception as error:
        ours = _find_our_error(error)
        if ours is not None:  # or honest peers would pay for it
            raise ours from error
        # Whatever a stranger's bytes made a parser say: they are not what was asked for.
        raise Invalid("holdings.identity", why=str(error)[:200]) from error
    if found != identity:
        raise Invalid("holdings.identity", found=found)


def _find_our_error(error: BaseException | None) -> OSError | None:
    """What went wrong on this machine, also where a parser made another error of it."""
    while error is not None:
        if isinstance(error, MemoryError):
            return OSError(errno.ENOMEM, "no memory to read it")
        if isinstance(error, OSError) and error.errno in OUR_ERRORS:
            return OSError(error.errno, error.strerror)
        error = error.__cause__ or error.__context__
    return None
