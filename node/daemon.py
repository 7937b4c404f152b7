"""The composition root: the one place that knows every part of a running node.

It reads top to bottom: open the ground, build the parts, hand each what it needs, start them in
one nursery. A two-way need is a callable that is handed over here. One task falls, all fall: the
start after it climbs the ladder, replays the journal and goes on.
What this file does not know: any rule.
"""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any, Final

import trio

from consensus.attacks import LightClientAttack, Verdict, encode_attack
from node.backend import make_backend
from node.config import Settings, host_and_port
from node.diskguard import DiskGuard
from node.holdings import Holdings
from node.indexaccuser import IndexAccuser
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire.bundles import CheckedBundle
from node.ledger.wire.receipts import Receipt
from node.light import trust_options
from node.metrics import Counts, Metrics
from node.neighbours import make_peers
from node.observe import get_log, seldom
from node.peering import pace
from node.peering.accusing import Accusing
from node.peering.auditing import IndexAuditor, RowOpener
from node.peering.audits import Audits, StatedClaim
from node.peering.bindings import find_validator, is_binding, make_binding, runs_one_of
from node.peering.blobs import Blobs
from node.peering.blobstore import FREE_BYTES_MIN, BlobStore
from node.peering.bodies import LentBodies, fetch_body
from node.peering.directory import Directory
from node.peering.lightserver import LightServer
from node.peering.proposer import Proposer
from node.peering.relay import Relay
from node.peering.replica import Replica
from node.peering.replica import Settings as Pacing
from node.peering.snapshotting import SnapshotKeeper
from node.peering.statesync import GAP_BLOCKS, GATHER_S, GATHER_UNSURE_S, StateSync
from node.peering.trusting import Named, Trusting, find_root
from node.peering.voter import Validator
from node.precheck import check_addresses, check_metrics, engine_token, rotated_account
from node.purse import Purse
from node.reasons import Reasons
from node.refuter import Refuter
from node.scrubber import Scrubber
from node.sender import Sender
from node.serving.book import has_book
from node.sharecheck import ShareChecker
from node.shop import Counter, Shop
from node.sketchaudit import SketchAuditor
from node.storage.adopting import DB_NAME, take_in
from node.storage.attackfiles import keep_attack
from node.storage.errors import DatabaseDamaged
from node.storage.ground import Ground, open_ground
from node.storage.lightfile import LightFile
from node.storage.opening import SNAPSHOTS_NAME
from node.storage.snapshots import SnapshotStore
from node.storage.store import suspect
from node.storage.views import Tip
from node.telling import Telling
from node.wallet.keystore import Key
from node.web.app import Backend, make_app, serve_socket
from node.web.metrics import run_metrics
from node.wishes import engine_maker, engine_settings, payer_limits
from p2p.network import Libp2pNetwork, PeerId, StatusFacts

PRUNE_EVERY_S: Final = 3_600.0
PEERS_WAIT_S: Final = 60.0
LOOK_EVERY_S: Final = 1.0  # for damage that only readers have met
ROLE_BITS: Final = {"validator": 1, "provider": 2, "auditor": 32}
RELAY_BIT: Final = 8

log = get_log("daemon")


@dataclass(frozen=True, slots=True)
class Keys:
    """The unlocked keys of a home, by what they are for."""

    node: Key
    validator: Key | None
    spending: Key | None


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


async def run(settings: Settings, keys: Keys) -> None:
    """The node of one home, until SIGTERM, SIGINT or `olnode stop`.

    Raises `HomeInUse`, `StorageError`, `ConfigError` or p2p's `ListenError`, each with its mend.
    """
    check_addresses(settings.config.p2p)
    engine_token(settings.config.engine)
    check_metrics(settings.config.metrics)
    rotated_account(settings.config.serving)
    while await _live(settings, keys):
        log.info("opening again on a snapshot")


async def _live(settings: Settings, keys: Keys) -> bool:
    """One life over an open home; True when the home is to be opened again on a snapshot."""
    config = settings.config
    genesis = settings.home / config.chain.genesis
    own = None if keys.validator is None else keys.validator.public_key
    ground = await trio.to_thread.run_sync(
        partial(
            open_ground,
            settings.home,
            genesis,
            validator_key=own,
            keep_versions=config.storage.keep_versions,
            cache_bytes=config.storage.cache_mb << 20,
            tell=_tell_replay,
        )
    )
    try:
        for step in ground.chain.steps:
            log.info("opened", step=step)
        silent = ground.why_silent
        if silent is not None:
            log.error("this validator does not vote", why=silent.told, mend=silent.mend)
        if ground.journal is not None and ground.journal.cut_bytes:
            log.warning("journal: a torn tail was cut", bytes=ground.journal.cut_bytes)
        node = Node(settings, keys, ground)
        try:
            return await node.run()
        except* DatabaseDamaged as damage:
            suspect(settings.home / DB_NAME, _first_of(damage).told)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(node.close)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(ground.close)


def _first_of(damage: BaseExceptionGroup[DatabaseDamaged]) -> DatabaseDamaged:
    """Nurseries nest groups in groups."""
    first = damage.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


@seldom
def _tell_replay(height: int, last: int) -> None:
    log.info("replaying blocks", height=height, last=last)


class Node:
    """All parts of one node over an open home."""

    def __init__(self, settings: Settings, keys: Keys, ground: Ground) -> None:
        self._settings, self._config, self._keys = settings, settings.config, keys
        self._ground, self._chain = ground, ground.chain
        self._provider = rotated_account(self._config.serving) or keys.node.public_key
        self._stop = trio.Event()
        floor_bytes = self._config.storage.min_free_gb << 30
        self._free_bytes_min = max(FREE_BYTES_MIN, 2 * floor_bytes)  # blobs never cost a vote
        self._disk = DiskGuard(settings.home, floor_bytes, on_change=self._wake)
        self._network = self._make_network()
        self._transactions = TransactionPool(self._chain.chain_id)
        self._bundles = BundlePool()
        self._store = BlobStore(
            settings.home / "blobs",
            self._config.p2p.blob_quota_gb << 30,
            free_bytes_min=self._free_bytes_min,
        )
        self._blobs = Blobs(
            network=self._network, store=self._store, lent=LentBodies(self._chain.bundles.get)
        )
        serves = "provider" in self._config.roles
        self._holdings = Holdings(
            home=settings.home,
            chain_id=self._chain.chain_id,
            blobs=self._blobs,
            store=self._store,
            get_state=self._chain.state,
            find_sources=self._find_sources,
            names=self._config.serving.models if serves else self._config.audit.models,
            serves=serves,
            now_ms=now_ms,
            on_inflated=lambda which, opened: self._index_accuser.note(which, opened),
        )
        self._auditor = IndexAuditor(self._holdings.find_audited)
        self._audits = Audits(
            network=self._network,
            get_state=self._chain.state,
            find_bundle=self._chain.bundles.get,
            find_stated=self._find_stated,
            may_see_sketch=self._may_see_sketch,
            open_rows=RowOpener(self._holdings.find_by_root).open,
        )
        self._relay = self._make_relay()
        self._directory = Directory(
            network=self._network,
            chain_id=self._chain.chain_id,
            get_state=self._chain.state,
            now_ms=now_ms,
        )
        self._reasons = Reasons(
            take_view=self._chain.view,
            holdings=self._holdings,
            find_own=self._find_own_statement,
            ask_statement=self._audits.ask_statement,
        )
        self._accusing = Accusing(
            chain_id=self._chain.chain_id, get_view=self._chain.view, on_pooled=self._wake
        )
        self._snapshots = SnapshotStore(
            settings.home / SNAPSHOTS_NAME, self._config.storage.snapshots_kept
        )
        self._keeper = SnapshotKeeper(
            store=self._snapshots,
            get_view=self._chain.view,
            every=self._config.storage.snapshot_every,
        )
        self._scrubber = Scrubber(
            home=settings.home,
            begin=partial(self._chain.scrub, is_archive=self._config.storage.archive),
            fetch_bodies=self._fetch_lost,
            every_days=self._config.storage.scrub_days,
            bytes_s=self._config.storage.scrub_mb_s << 20,
            now_ms=now_ms,
        )
        self._replica = self._make_replica()
        self._light = LightServer(get_view=self._chain.view, take_attack=self._take_attack)
        self._shop = self._make_shop() if serves else None
        self._purse = None if keys.spending is None else self._make_purse(keys.spending)
        sender = self._find_sender()
        self._refuter = self._make_refuter(sender)
        self._index_accuser = IndexAccuser(
            folder=settings.home / "evidence",
            get_state=self._chain.state,
            account=self._provider,
            send=sender.send,
            now_ms=now_ms,
        )
        self._checker = self._make_checker()
        self._sketch_auditor = SketchAuditor(
            take_view=self._chain.view,
            attribute=None if self._shop is None else self._shop.attribute,
            find_held=self._holdings.find,
        )
        self._telling = self._make_telling()

    # --- parts

    def _make_network(self) -> Libp2pNetwork:
        p2p, chain_id, keys = self._config.p2p, self._chain.chain_id, self._keys
        binding = b""
        if keys.validator is not None:
            sign = keys.validator.bound_to(chain_id)
            me = keys.node.public_key
            binding = make_binding(keys.validator.public_key, me, now_ms(), sign)
        return Libp2pNetwork(
            seed=keys.node.network_seed(),
            chain_id=chain_id,
            listen=p2p.listen,
            reach=p2p.network,
            announce=p2p.announce,
            bootstrap=p2p.bootstrap,
            reserved=p2p.reserved,
            deny=p2p.deny,
            book=self._settings.home / "peers.msgpack",
            mdns=p2p.mdns,
            relay=p2p.relay,
            software=f"olnode/{installed_version('olnode')}",
            facts=self._facts,
            binding=binding,
            judge_binding=lambda peer, raw: is_binding(chain_id, peer, raw),
            connections_max=p2p.max_connections,
            upload_bytes_s=p2p.upload_bytes_s,
            outbound_target=p2p.outbound_min,
            ping_every_s=float(p2p.keepalive_s),
            ping_misses_max=p2p.keepalive_misses,
        )

    def _make_relay(self) -> Relay:
        return Relay(
            network=self._network,
            chain_id=self._chain.chain_id,
            transactions=self._transactions,
            bundles=self._bundles,
            store=self._chain.bundles,
            get_state=self._chain.state,
            auditor=self._auditor,
            audits=self._audits,
            may_be_shown=self._is_member,
            fetch_body=partial(fetch_body, self._blobs),
            evidence_folder=self._settings.home / "evidence",
            watch_folder=self._settings.home / "watchtower",
            get_height=lambda: self._chain.height,
            find_validators=self._find_validators,
            now_ms=now_ms,
            on_pooled=self._wake,
            on_checked=self._note_bundle,
            on_audited=lambda name, which: self._refuter.note_audited(name, which),
            on_false=lambda found: self._refuter.note_false(found),
        )

    def _make_replica(self) -> Replica:
        consensus, validator = self._config.consensus, self._keys.validator
        journal = self._ground.journal
        voter = None
        if validator is not None and journal is not None:
            sign = validator.vote_signer(self._chain.chain_id)
            voter = Validator(validator.public_key, journal, sign)
        me = self._keys.node.public_key if validator is None else validator.public_key
        proposer = Proposer(
            chain=self._chain,
            transactions=self._transactions,
            bundles=self._bundles,
            me=me,
            accusing=self._accusing,
        )
        return Replica(
            network=self._network,
            chain=self._chain,
            proposer=proposer,
            validator=voter,
            find_peer=self._find_peer,
            fetch_bodies=self._relay.fetch_bodies,
            now_ms=now_ms,
            settings=Pacing(
                block_interval_ms=consensus.block_interval_ms,
                profile=pace.LAN if consensus.pace == "lan" else pace.WAN,
                adapts=consensus.adapt,
                doppelganger_wait_s=consensus.doppelganger_wait_s,
                snapshot_every=self._config.storage.snapshot_every,
            ),
            on_accuse=self._accusing.add,
            judge_evidence=self._accusing.judge,
            on_commit=self._note_commit,
            may_promise=self._has_room,
        )

    def _has_room(self) -> bool:
        return not self._disk.is_low

    def _make_state_sync(self) -> StateSync | None:
        """For a node that may be far behind and has a block to trust; an archive wants all."""
        chain, home = self._config.chain, self._settings.home
        if self._config.storage.archive:
            return None
        named = None
        if chain.trusted_id:
            named = Named(chain.trusted_height, bytes.fromhex(chain.trusted_id))
        options = trust_options(self._chain.genesis)
        root = find_root(
            self._chain.tip, named, gap_blocks=GAP_BLOCKS, options=options, now_ms=now_ms()
        )
        if root is None:
            return None
        trusting = Trusting(
            network=self._network,
            chain_id=self._chain.chain_id,
            root=root,
            options=options,
            file=LightFile(home, self._chain.chain_id),
            evidence=home / "evidence",
            now_ms=now_ms,
        )
        return StateSync(
            network=self._network,
            store=self._snapshots,
            get_height=lambda: self._chain.height,
            verify_header=trusting.verify,
            take_in=partial(take_in, home, self._snapshots),
            gap_blocks=GAP_BLOCKS,
            gather_s=GATHER_S if root is named else GATHER_UNSURE_S,
        )

    def _make_shop(self) -> Shop:
        node, chain_id = self._keys.node, self._chain.chain_id
        counter = Counter(
            chain_id=chain_id,
            provider=self._provider,
            peer_key=node.public_key,
            signer=lambda tag: node.message_signer(tag, chain_id),
            get_state=self._chain.state,
            offer_bundle=self._relay.offer_bundle,
            hand_bundle=self._relay.watching.hand,
            note_change=self._directory.note_change,
            addresses=self._network.announced,
            is_current=lambda: self._telling.is_current(),
            has_room=self._has_room,
            now_ms=now_ms,
        )
        folder = self._settings.home / "receipts"
        engine = self._config.engine
        wish = engine_settings(
            engine,
            packed_folder=str(self._settings.home / "packed"),
            free_bytes=self._free_bytes_min,
        )
        return Shop(counter, self._network, self._holdings, folder, wish, engine_maker(engine))

    def _make_purse(self, key: Key) -> Purse:
        return Purse(
            key=key,
            chain_id=self._chain.chain_id,
            folder=self._settings.home / "payer",
            evidence=self._settings.home / "evidence",
            claims=self._settings.home / "claims",
            limits=payer_limits(self._config.payer),
            network=self._network,
            directory=self._directory,
            holdings=self._holdings,
            get_state=self._chain.state,
            find_code=self._find_code,
            next_nonce=self._next_nonce,
            submit=self._relay.submit_transaction,
            now_ms=now_ms,
        )

    def _find_sender(self) -> Sender:
        """Of proofs: with the wallet's key, or the node's own where there is none."""
        if self._purse is not None:
            return self._purse.sender
        return Sender(
            key=self._keys.node,
            chain_id=self._chain.chain_id,
            next_nonce=self._next_nonce,
            find_code=self._find_code,
            submit=self._relay.submit_transaction,
            now_ms=now_ms,
        )

    def _make_refuter(self, sender: Sender) -> Refuter:
        return Refuter(
            folder=self._settings.home / "evidence",
            get_view=self._chain.view,
            auditor=self._auditor,
            audits=self._audits,
            find_held=self._holdings.find_indexed,
            may_be_shown=self._is_member,
            account=self._provider,
            send=sender.send,
            now_ms=now_ms,
        )

    def _make_checker(self) -> ShareChecker:
        return ShareChecker(
            chain_id=self._chain.chain_id,
            take_view=self._chain.view,
            find_claim=self._find_claim,
            find_index=self._holdings.find_audited,
            audits=self._audits,
            find_sources=self._find_sources,
            note_proof=self._refuter.note_proof,
            note_inflated=self._index_accuser.note,
        )

    def _make_telling(self) -> Telling:
        return Telling(
            profile=self._config.profile,
            name=self._config.name,
            roles=self._config.roles,
            account=self._provider,
            ground=self._ground,
            network=self._network,
            replica=self._replica,
            transactions=self._transactions,
            bundles=self._bundles,
            directory=self._directory,
            holdings=self._holdings,
            disk=self._disk,
            watching=self._relay.watching,
            scrubber=self._scrubber,
            shop=self._shop,
        )

    def _make_backend(self) -> Backend:
        own = self._keys.validator
        return make_backend(
            chain=self._chain,
            peers=make_peers(self._network),
            telling=self._telling,
            relay=self._relay,
            reasons=self._reasons,
            checker=self._checker,
            auditor=self._sketch_auditor,
            store=self._store,
            shop=self._shop,
            purse=self._purse,
            own_providers=self._find_book_owners(),
            own_validator=None if own is None else own.public_key,
            next_nonce=self._next_nonce,
            stop=self._stop.set,
        )

    def _find_book_owners(self) -> tuple[bytes, ...]:
        """Who may have receipts in this home; nobody where none was ever signed."""
        has_served = has_book(self._settings.home / "receipts")
        return (self._provider, self._keys.node.public_key) if has_served else ()

    def _next_nonce(self, account: bytes) -> int:
        return self._transactions.next_nonce(self._chain.state(), account)

    def _find_code(self, tx_id: bytes) -> int | None:
        found = self._chain.view().find_transaction(tx_id)
        return None if found is None else found.code

    def _find_sources(self) -> tuple[PeerId, ...]:
        return tuple(view.peer for view in self._network.peers() if view.admitted)

    def _is_member(self) -> bool:
        """Whether we vote now: providers then owe us the sketches of what we recompute."""
        own = self._keys.validator
        return own is not None and own.public_key in self._chain.tip.validators.powers()

    def _find_stated(self, receipt_id: bytes) -> StatedClaim | None:
        served = None if self._shop is None else self._shop.book.find_receipt(receipt_id)
        return (
            None
            if served is None
            else StatedClaim(statement=served.statement, sketch=served.sketch)
        )

    def _find_claim(self, receipt_id: bytes) -> StatedClaim | None:
        """Of an answer that this node gave, or bought."""
        bought = None if self._purse is None else self._purse.find_claim(receipt_id)
        if bought is not None:
            return StatedClaim(sketch=bought.sketch, statement=bought.statement)
        return self._find_stated(receipt_id)

    def _find_own_statement(self, receipt_id: bytes) -> bytes | None:
        own = self._find_stated(receipt_id)
        return None if own is None else own.statement

    def _find_peer(self, validator: bytes) -> PeerId | None:
        return find_validator(self._network, self._chain.chain_id, validator)

    def _find_validators(self) -> list[PeerId]:
        members = self._chain.tip.validators.powers()
        return [peer for key in members if (peer := self._find_peer(key)) is not None]

    def _may_see_sketch(self, peer: PeerId, receipt: Receipt) -> bool:
        """Current validators may: they recompute what they are asked to agree to."""
        members = self._chain.tip.validators.powers()
        return runs_one_of(self._network, self._chain.chain_id, peer, members)

    async def _take_attack(self, attack: LightClientAttack, verdict: Verdict) -> None:
        await self._replica.accuse(encode_attack(attack))  # first: a full disk keeps no file
        folder = self._settings.home / "evidence"
        path = await trio.to_thread.run_sync(keep_attack, folder, attack)
        log.error(
            "validators signed another chain",
            kind=verdict.kind.name.lower(),
            height=attack.block.height,
            guilty=[key.hex() for key in verdict.guilty],
            mend=f"show others the proof in {path or 'evidence/'}",
        )

    def _note_bundle(self, bundle: CheckedBundle) -> None:
        if self._purse is not None:
            self._purse.note_bundle(bundle)

    def _note_commit(self, tip: Tip) -> None:
        self._keeper.note(tip)
        self._refuter.note_commit(tip)

    def _wake(self) -> None:
        self._replica.wake()

    def _facts(self) -> StatusFacts:
        view = self._chain.view()
        tip, snapshot = view.tip, self._keeper.height
        roles = sum(ROLE_BITS.get(role, 0) for role in self._config.roles)
        roles |= RELAY_BIT if self._config.p2p.relay == "server" else 0
        return StatusFacts(roles, tip.height, tip.block_id, view.earliest_whole, snapshot)

    # --- running

    async def run(self) -> bool:
        """Start every part, then wait for the end.

        True: a snapshot was taken in instead, and the home is to be opened again on it.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_signal)
            if self._config.metrics.listen:  # first, so that a long catching up can be watched
                nursery.start_soon(self._run_metrics)
            start: Any = nursery.start  # libp2p brings old types for trio
            await start(self._network.run)
            log.info("listening", addresses=self._network.addresses())
            self._keeper.serve(self._network)
            if await self._sync_state():
                nursery.cancel_scope.cancel()
                return not self._stop.is_set()
            self._blobs.serve()
            await start(self._relay.run)
            await start(self._replica.run)
            nursery.start_soon(self._disk.run)
            nursery.start_soon(self._watch_database)
            nursery.start_soon(self._scrubber.run)
            nursery.start_soon(self._prune)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._directory.run)
            self._light.serve(self._network)
            nursery.start_soon(self._holdings.run)
            nursery.start_soon(self._refuter.run)
            nursery.start_soon(self._index_accuser.run)
            if self._purse is not None:
                nursery.start_soon(self._purse.run)
                nursery.start_soon(self._checker.run, self._purse.find_bought)
            if self._shop is not None:
                nursery.start_soon(self._shop.run)
                sign = self._keys.node.message_signer(b"offer", self._chain.chain_id)
                nursery.start_soon(self._directory.run_sender, self._shop.make_offer, sign)
            app = make_app(self._make_backend())
            serve = partial(
                serve_socket,
                app,
                self._settings.socket_path,
                wait_for_stop=self._stop.wait,
                drain_s=self._config.shutdown.drain_s,
            )
            async with trio.open_nursery() as front:
                await front.start(serve)
                log.info("ready", height=self._chain.height)
                await self._stop.wait()
                log.info("stopping", height=self._chain.height)
                if self._shop is not None:
                    await self._shop.drain(self._config.shutdown.drain_s)
            # Only now: answers, bought and sold, had drain_s to end, and `olnode stop` its own.
            nursery.cancel_scope.cancel()
        return False

    async def _run_metrics(self) -> None:
        events: dict[str, Counts] = {
            "blobs": self._blobs.statistics,
            "directory": lambda: self._directory.counters,
            "audits": lambda: self._audits.counters,
            "refuter": lambda: self._refuter.counters,
            "indexaccuser": lambda: self._index_accuser.counters,
            "checker": lambda: self._checker.counters,
            "relay": lambda: self._relay.counters,
            "replica": lambda: self._replica.statistics().counters,
            "scrubber": lambda: self._scrubber.counters,
        }
        if self._shop is not None:
            shop = self._shop
            events["service"] = lambda: shop.work().counters
            events["attribution"] = shop.attributed
        if self._purse is not None:
            claims = self._purse.claims
            events["claims"] = lambda: claims.counters
        text = Metrics(self._telling, events).text
        host, port = host_and_port(self._config.metrics.listen)
        await run_metrics(text, host, port, wait_for_stop=self._stop.wait)

    async def _sync_state(self) -> bool:
        """Before anything else: True when this life is over, for a snapshot or a stop."""
        sync = self._make_state_sync()
        if sync is None:
            return False
        found = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_stop, nursery.cancel_scope)
            found = await sync.run()
            nursery.cancel_scope.cancel()
        return found is not None or self._stop.is_set()

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    def close(self) -> None:
        """Let go of the files of wallet and shop. Blocks; after `run` only."""
        if self._purse is not None:
            self._purse.close()
        if self._shop is not None:
            self._shop.close()

    async def _prune(self) -> None:
        """Forever: drop what is too old, as far as a database could be made again without."""
        storage, chain = self._config.storage, self._chain
        ways = [] if storage.archive else [("bodies", chain.prune_bodies)]
        ways += [("payloads", chain.prune_payloads)] if storage.prune_payloads else []
        while True:
            for what, prune in ways:
                oldest = self._snapshots.oldest_height(chain.view().earliest)
                gone = await trio.to_thread.run_sync(prune, oldest)
                if gone:
                    log.info("what was old is dropped", what=what, number=gone)
            await trio.sleep(PRUNE_EVERY_S)

    async def _fetch_lost(self, names: Sequence[bytes]) -> Sequence[bytes]:
        """Bodies that the disk has lost, from whoever has them; gives those nobody had."""
        with trio.move_on_after(PEERS_WAIT_S):  # at a start nobody is here yet
            while True:
                if self._find_sources():
                    break
                await trio.sleep(LOOK_EVERY_S)
        still = await self._relay.fetch_bodies(names, self._find_sources())
        await trio.to_thread.run_sync(self._chain.bundles.sync)
        return still

    async def _watch_database(self) -> None:
        """End the node once a reader met damage: routes and peers are only told of an error."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if self._chain.damage is not None:
                raise self._chain.damage

    async def _wait_for_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._stop.set()
                return
