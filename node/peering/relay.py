"""Transactions and bundles between peers: judged, audited where we can, pooled, told on.

Why a bundle may wait here: who holds a version's index can recompute every credit, so such a bundle
is not relayed at the door. A worker asks its provider for sketch and statement, recomputes, and
only equal credits get into our pool and go round again. A false one is neither relayed nor
proposed, and the finding is kept. Validity of blocks never depends on this (page 60 §9).
What this file does not know: how an audit recomputes, how a receipt was made, who proposes.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import trio

from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.encoding import U8, Bytes, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid
from node.ledger.admission import Admitted, admit_bundle
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.state import State
from node.ledger.wire.bundles import (
    HEADER_BYTES_MAX,
    Bundle,
    CheckedBundle,
    check_bytes,
    decode_header,
)
from node.ledger.wire.orders import ZERO_HASH
from node.ledger.wire.receipts import Credits, Receipt
from node.observe import get_log
from node.peering import topics
from node.peering.audits import Audits, StatedClaim
from node.peering.blobparts import CHUNK_BYTES
from node.peering.handing import Handing
from node.peering.topics import BUNDLES, TXS
from node.peering.watching import KEEP, Watching
from node.storage.segments import write_durably
from p2p.errors import Misbehaving, NetworkError
from p2p.limits import PENALTIES, PROTOCOLS, TOPICS
from p2p.network import Network, PeerId, Verdict

QUEUE_MAX: Final = 256  # bundles waiting for a worker
QUEUED_PROVIDER_MAX: Final = 32  # of them of one provider: its word may keep each of them waiting
PULL_MAX: Final = 16  # hashes in one request
GIVERS_MAX: Final = 1_024
EVIDENCE_MAX: Final = 64  # findings kept, a whole bundle each: a liar pays for none of them
WORKERS: Final = 4
RECHECKED_MAX: Final = 128  # answers at a time: a stop waits for the thread
AUDIT_S: Final = 45.0  # for its word on one bundle: 64 questions at two a second

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

_HASHES: Final = Record(U8, ListOf(H, PULL_MAX, 1))
# A body of more than one chunk comes as a blob (`bodies.py`), and is left out here.
_BUNDLE_OR_NONE: Final = Bytes(HEADER_BYTES_MAX + CHUNK_BYTES + 128)
_BODIES: Final = ListOf(_BUNDLE_OR_NONE, PULL_MAX)
_STORED: Final = Record(Bytes(HEADER_BYTES_MAX), Bytes(64, 64), Bytes(CHUNK_BYTES))


class FalseClaim(NamedTuple):
    """Why a receipt's credits are not what the index gives."""

    code: str
    why: str


Told = tuple[Receipt, Credits, StatedClaim]  # an answer, and what its provider states of it


class BundleStore(Protocol):
    """Where bodies lie (`storage/bundlestore.py`)."""

    def __contains__(self, bundle_hash: bytes) -> bool: ...
    def append(self, bundle: Bundle) -> None: ...
    def confirm(self, bundle: Bundle) -> None: ...
    def take_refuted(self, bundle_hash: bytes) -> bool: ...
    def get(self, bundle_hash: bytes) -> Bundle | None: ...


class Auditor(Protocol):
    """Recomputes credits for versions whose index this node holds."""

    def holds(self, model: int, version: int) -> bool:
        """Whether the index is here."""
        ...

    def recheck(self, told: Sequence[Told]) -> list[FalseClaim | None]:
        """None for each claim that is true. Blocks for a scan."""
        ...


class _Waiting(NamedTuple):
    bundle: Bundle
    provider: bytes
    sources: tuple[PeerId, ...]
    is_relayed: bool  # the judge has accepted it already


class Found(NamedTuple):
    """A receipt whose credits are false: where it stands, and what its provider stated."""

    bundle: Bundle
    place: int
    receipt: Receipt
    credits: Credits
    stated: StatedClaim


FetchBody = Callable[[Bundle, Sequence[PeerId]], Awaitable[Bundle]]  # for one without a body


class Relay:
    """Gossip of transactions and bundles. Run `run` in a nursery.

    `audits` asks what providers stated; `may_be_shown` tells whether they owe us sketches too.
    `fetch_body` brings what is larger than a chunk, or raises Unreachable. `on_pooled` wakes the
    proposer. `on_checked` gets each bundle of others whose signatures hold, `on_audited` the hash
    of each whose credits hold too, with the versions of which, `on_false` what was found false.
    """

    def __init__(
        self,
        *,
        network: Network,
        chain_id: bytes,
        transactions: TransactionPool,
        bundles: BundlePool,
        store: BundleStore,
        get_state: Callable[[], State],
        auditor: Auditor,
        audits: Audits,
        may_be_shown: Callable[[], bool],
        fetch_body: FetchBody,
        evidence_folder: Path,
        watch_folder: Path,
        get_height: Callable[[], int],
        find_validators: Callable[[], Sequence[PeerId]],
        now_ms: Callable[[], int],
        on_pooled: Callable[[], None] = lambda: None,
        on_checked: Callable[[CheckedBundle], None] = lambda _: None,
        on_audited: Callable[[bytes, frozenset[tuple[int, int]]], None] = lambda *_: None,
        on_false: Callable[[Found], None] = lambda _: None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._chain_id = chain_id
        self._transactions = transactions
        self._bundles = bundles
        self._store = store
        self._get_state = get_state
        self._auditor = auditor
        self.audits = audits
        self._may_be_shown = may_be_shown
        self._fetch_body = fetch_body
        self._evidence = evidence_folder
        self._now_ms = now_ms
        self._on_pooled = on_pooled
        self._on_checked = on_checked
        self._on_audited, self._on_false = on_audited, on_false
        self._run_blocking = run_blocking
        self._log = get_log("relay")
        self._queue: deque[_Waiting] = deque()
        self._at_work: set[bytes] = set()  # hashes queued or in a worker's hands
        self._served: set[bytes] = set()  # providers with a bundle in a worker's hands
        self._refused: deque[bytes] = deque(maxlen=1_024)
        self._givers: dict[bytes, PeerId] = {}  # hash → who gave a body that a block names
        self._arrived = trio.Event()
        self.counters: Counter[str] = Counter()
        self._handing = Handing(
            network=network,
            transactions=transactions,
            admit=self._admit_tx,
            counters=self.counters,
        )
        self.watching = Watching(
            network=network,
            chain_id=chain_id,
            folder=watch_folder,
            get_state=get_state,
            get_height=get_height,
            find_validators=find_validators,
            tell=self.offer_bundle,
            now_ms=now_ms,
            run_blocking=run_blocking,
        )

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Forever: hear, work, answer."""
        self._network.serve("bundles", self.answer_bundles, PROTOCOLS["bundles"])
        self.audits.serve()
        heard_txs = self._network.subscribe(TXS, self._judge_tx, TOPICS[TXS])
        heard_bundles = self._network.subscribe(BUNDLES, self._judge_bundle, TOPICS[BUNDLES])
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            nursery.start_soon(self._handing.run)
            nursery.start_soon(self.watching.run)
            nursery.start_soon(self._drain, heard_txs, "txs_heard")
            nursery.start_soon(self._drain, heard_bundles, "bundles_heard")
            task_status.started()

    async def _drain(self, heard: Any, counter: str) -> None:
        async for _ in heard:  # the judges have kept what they accepted
            self.counters[counter] += 1

    # --- our own

    async def submit_transaction(self, raw: bytes) -> bytes:
        """Admit and tell a signed transaction; returns its id. Raises Invalid with its word."""
        tx = self._transactions.add(self._get_state(), self._now_ms(), raw)
        self._handing.keep(tx.tx_id)
        self._on_pooled()
        await self._network.publish(TXS, topics.encode_tx_message(raw))
        return tx.tx_id

    async def offer_bundle(self, bundle: Bundle) -> None:
        """Pool and tell a bundle of our own, or one that we kept for its provider.

        One that the pool refuses is counted, and told all the same.
        """
        try:
            admitted = await self._run_blocking(self._admit, bundle)
            self._pool(bundle, admitted)
        except Invalid as refusal:
            self.counters[f"own.{refusal.code}"] += 1
            self._log.warning("bundle not pooled", code=refusal.code, why=str(refusal))
        await self._network.publish(BUNDLES, topics.encode_bundle_message(bundle))
        self.counters["own_bundles"] += 1

    # --- judges

    def _judge_tx(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        verdict = topics.judge_tx(data, self._admit_tx)
        self.counters[f"txs.{verdict.value}"] += 1
        return verdict

    def _admit_tx(self, raw: bytes) -> None:
        self._transactions.add(self._get_state(), self._now_ms(), raw)
        self._on_pooled()

    def _judge_bundle(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        verdict, bundle = topics.judge_bundle(
            data, self._get_state(), self._chain_id, self._is_known
        )
        if bundle is not None and verdict is Verdict.ACCEPT:
            # Without its body, or where we can recompute it, we do not vouch for it yet.
            is_relayed = bool(bundle.body) and not self._must_audit(bundle)
            provider = decode_header(bundle.header).provider
            sources = tuple(dict.fromkeys((forwarder, author)))
            waiting = _Waiting(bundle, provider, sources, is_relayed)
            if not self._enqueue(waiting) or not is_relayed:
                verdict = Verdict.IGNORE
        self.counters[f"bundles.{verdict.value}"] += 1
        return verdict

    def _is_known(self, name: bytes) -> bool:
        return name in self._bundles or name in self._at_work or name in self._refused

    def _must_audit(self, bundle: Bundle) -> bool:
        header = decode_header(bundle.header)
        return any(self._auditor.holds(model, version) for model, version, _ in header.totals)

    def _enqueue(self, waiting: _Waiting) -> bool:
        of_provider = sum(other.provider == waiting.provider for other in self._queue)
        if len(self._queue) >= QUEUE_MAX or of_provider >= QUEUED_PROVIDER_MAX:
            self.counters["queue_full"] += 1
            return False
        self._queue.append(waiting)
        self._at_work.add(waiting.bundle.hash)
        self._arrived.set()
        return True

    # --- the workers

    async def _work(self) -> None:
        while True:
            while (waiting := self._find_next()) is None:
                if self._arrived.is_set():  # else others wait for this one
                    self._arrived = trio.Event()
                await self._arrived.wait()
            self._queue.remove(waiting)
            self._served.add(waiting.provider)
            name = waiting.bundle.hash
            try:
                await self._take(waiting)
            except Invalid as refusal:
                self.counters[f"refused.{refusal.code}"] += 1
                if refusal.code.startswith("bundle.") and not _may_be_our_lag(refusal):
                    self._blame(waiting.sources[-1:], "forged")
                    self._refused.append(name)
            except NetworkError:
                self.counters["unreachable"] += 1
            finally:
                self._at_work.discard(name)
                self._served.discard(waiting.provider)
                self._arrived.set()

    def _find_next(self) -> _Waiting | None:
        """The oldest of a provider that no other worker serves: one's word is waited for, and must
        not keep all others waiting; and its bundles settle in the order of their numbers."""
        return next((w for w in self._queue if w.provider not in self._served), None)

    async def _take(self, waiting: _Waiting) -> None:
        """Fetch, check, audit, pool, tell on; raises Invalid or NetworkError."""
        bundle = waiting.bundle
        if not bundle.body:
            pulled = await self._pull_from(bundle.hash, waiting.sources)
            bundle = bundle._replace(body=pulled.body)  # under the signature that was judged
        admitted = await self._run_blocking(self._admit, bundle)
        self._on_checked(admitted.bundle)
        if not await self._audit(bundle, admitted, waiting.sources):
            self._refused.append(bundle.hash)
            return
        self._pool(bundle, admitted)
        if not waiting.is_relayed:
            await self._network.publish(BUNDLES, topics.announce_bundle(bundle))
            self.counters["told_on"] += 1

    def _admit(self, bundle: Bundle) -> Admitted:
        return admit_bundle(self._get_state(), self._chain_id, bundle)

    def _pool(self, bundle: Bundle, admitted: Admitted) -> None:
        self._bundles.add(self._get_state(), admitted)
        self._store.confirm(bundle)  # synced by the replica before a precommit that names it
        self.counters["pooled"] += 1
        self._on_pooled()

    def _blame(self, peers: Iterable[PeerId], reason: str) -> None:
        for peer in peers:
            self._network.penalise(peer, PENALTIES[reason], reason)

    # --- recomputing credits

    async def _audit(self, bundle: Bundle, admitted: Admitted, sources: Sequence[PeerId]) -> bool:
        """Whether every receipt that we can recompute pays what the index gives."""
        receipts = [
            (receipt, credits)
            for section in admitted.bundle.sections
            for receipt, credits in zip(section.receipts, section.credits, strict=True)
        ]
        totals = admitted.bundle.header.totals
        versions = {(model, version) for model, version, _ in totals}
        held = frozenset(which for which in versions if self._auditor.holds(*which))
        ours = [
            place
            for place, (receipt, credits) in enumerate(receipts)
            if (receipt.model, receipt.model_version) in held
            and (receipt.sketch_hash != ZERO_HASH or credits)
        ]
        if not ours:
            return True
        provider = admitted.bundle.header.provider
        stated = None
        with trio.move_on_after(AUDIT_S):
            stated = await self.audits.ask_claims(provider, sources, bundle.hash, ours)
        if stated is None:
            self.counters["audit_unanswered"] += 1
            return False
        hidden = [place for place in ours if is_hidden(receipts[place][0], stated[place])]
        if hidden:  # others judge it where we do not vote: validators are owed all
            self.counters["audit_hidden"] += 1
            return not self._may_be_shown()  # no lie either: it may not know yet that we do
        for first in range(0, len(ours), RECHECKED_MAX):
            places = ours[first : first + RECHECKED_MAX]
            told = [(*receipts[place], stated[place]) for place in places]
            findings = await self._run_blocking(self._auditor.recheck, told)
            for place, answer, false in zip(places, told, findings, strict=True):
                if false is not None:
                    await self._tell_false(Found(bundle, place, *answer), provider, false)
                    return False
        self.counters["audited"] += len(ours)
        self._on_audited(bundle.hash, held)
        return True

    async def _tell_false(self, found: Found, provider: bytes, false: FalseClaim) -> None:
        """Keep the evidence, and wake who brings it to the ledger."""
        bundle, place = found.bundle, found.place
        self.counters["audit_false"] += 1
        kept = await self._run_blocking(self._keep_evidence, bundle, place, found.stated, false)
        self.counters["evidence_unkept"] += not kept
        self._on_false(found)
        self._log.warning(
            "credits are false", provider=provider,
            bundle=bundle.hash, receipt=place, code=false.code, why=false.why,
        )  # fmt: skip

    def _keep_evidence(
        self, bundle: Bundle, place: int, stated: StatedClaim, false: FalseClaim
    ) -> bool:
        """Everything that shows the finding, durable, for people; False on a full disk, or where
        EVIDENCE_MAX are kept. What the ledger takes as proof is kept by the refuter."""
        path = self._evidence / f"{bundle.hash.hex()}-{place}"
        body = encode(
            (*bundle, place, stated.statement, stated.sketch, false.code.encode(),
             false.why.encode())
        )  # fmt: skip
        try:
            self._evidence.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sum(map(_is_finding, self._evidence.iterdir())) >= EVIDENCE_MAX:
                return False
            write_durably(path, body)
        except OSError as error:
            self._log.warning("evidence is not kept", why=str(error))
            return False
        return True

    # --- bodies

    async def fetch_bodies(
        self, names: Sequence[bytes], peers: Sequence[PeerId]
    ) -> tuple[bytes, ...]:
        """Get bodies that a block names into the store; returns those nobody had.

        Not admitted to the pool: a block decides by itself whether they are good. Who gave one
        that execution has refuted since is asked last, and a little to blame: it may have been
        fooled itself.
        """
        missing = [name for name in names if name not in self._store]
        liars = self._find_liars(missing)
        for peer in sorted(peers, key=lambda peer: peer in liars):
            if not missing:
                break
            for at in range(0, len(missing), PULL_MAX):
                try:
                    found = await self._pull(peer, missing[at : at + PULL_MAX])
                except (NetworkError, Invalid):
                    self.counters["pull_failed"] += 1
                    break
                for bundle in await self._with_bodies(found, [peer, *peers]):
                    self._store.append(bundle)
                    self._note_giver(bundle.hash, peer)
            missing = [name for name in missing if name not in self._store]
        return tuple(missing)

    def _find_liars(self, names: Iterable[bytes]) -> set[PeerId]:
        refuted = [name for name in names if self._store.take_refuted(name)]
        liars = {self._givers.pop(name) for name in refuted if name in self._givers}
        self.counters["bodies_refuted"] += len(refuted)
        self._blame(liars, "rejected")
        return liars

    def _note_giver(self, name: bytes, peer: PeerId) -> None:
        self._givers[name] = peer
        while len(self._givers) > GIVERS_MAX:
            del self._givers[next(iter(self._givers))]

    async def _pull_from(self, name: bytes, peers: Sequence[PeerId]) -> Bundle:
        held = self._store.get(name)
        if held is not None:
            return held
        for peer in peers:
            try:
                found = await self._pull(peer, [name])
            except (NetworkError, Invalid):
                self.counters["pull_failed"] += 1
                continue
            for bundle in await self._with_bodies(found, [peer, *peers, *self._admitted()]):
                return bundle
        raise Invalid("relay.no_body", bundle=name)

    def _admitted(self) -> list[PeerId]:
        return [view.peer for view in self._network.peers() if view.admitted]

    async def _with_bodies(
        self, bundles: Iterable[Bundle], peers: Sequence[PeerId]
    ) -> list[Bundle]:
        """Those whose bodies are here, or come from several of `peers` at once."""
        whole = []
        for bundle in bundles:
            found = bundle
            try:
                if not found.body:
                    found = await self._fetch_body(bundle, peers)
                check_bytes(found)
            except (NetworkError, Invalid):
                self.counters["pull_failed"] += 1
                continue
            whole.append(found)
        return whole

    async def _pull(self, peer: PeerId, names: Sequence[bytes]) -> list[Bundle]:
        """Bundles by hash from one peer, each proven by its hash; raises Invalid for others.

        Their bodies are not looked at. Those of more than a chunk are left out.
        """
        limits = PROTOCOLS["bundles"]
        raw = await self._network.request(
            peer,
            "bundles",
            encode((0, tuple(names))),
            timeout_s=limits.timeout_s,
            bytes_max=limits.reply_max,
        )
        found = []
        for entry in decode(raw, _BODIES, limits.reply_max, "bundles"):
            if not entry:
                continue
            bundle = Bundle(*decode(entry, _STORED, len(entry), "bundles"))
            if bundle.hash not in names:
                self._blame((peer,), "forged")
                raise Invalid("bundles.unasked")
            if not bundle.body and decode_header(bundle.header).body_len <= CHUNK_BYTES:
                raise Invalid("bundles.no_body")
            found.append(bundle)
        return found

    # --- answering

    async def answer_bundles(self, peer: PeerId, body: bytes) -> bytes:
        """[0, [hash…]] → [bundle bytes or empty…], as many as fit, in the order asked.

        A body of more than a chunk is left out: `blob` has it (`bodies.py`).
        [1, header, signature, body] → [until_ms]: kept (`watching.py`).
        """
        if body[1:2] == bytes([KEEP]):
            return await self.watching.answer(peer, body)
        _, names = _decoded(body, _HASHES)
        left = PROTOCOLS["bundles"].reply_max - 1_024
        found: list[bytes] = []
        for name in names:
            bundle = await self._run_blocking(self._store.get, name)
            if bundle is not None and len(bundle.body) > CHUNK_BYTES:
                bundle = bundle._replace(body=b"")
            entry = b"" if bundle is None else encode(bundle)
            left -= len(entry)
            found.append(entry if left >= 0 else b"")
        return encode(found)


def _is_finding(path: Path) -> bool:
    name, _, place = path.name.partition("-")
    return len(name) == 2 * HASH_BYTES and place.isdecimal()


def is_hidden(receipt: Receipt, stated: StatedClaim) -> bool:
    """Whether a sketch that there must be is not shown."""
    return bool(receipt.sketch_hash != ZERO_HASH and stated.statement and not stated.sketch)


def _may_be_our_lag(refusal: Invalid) -> bool:
    """Whether a newer ledger than ours may know better: then nobody who told us is to blame."""
    facts = refusal.facts
    return facts.get("why") == "unknown channel" or (
        refusal.code == "bundle.provider" and "why" not in facts  # one that we do not know yet
    )


def _decoded(body: bytes, shape: Any) -> Any:
    try:
        return decode(body, shape, PROTOCOLS["bundles"].request_max, "relay.request")
    except Invalid as refusal:
        raise Misbehaving(str(refusal)) from None
