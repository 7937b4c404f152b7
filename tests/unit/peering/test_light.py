"""Light clients over the simulated network: what full nodes answer, and following them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import party
from chain_kit import PAYER, devnet
from exchange_kit import at_once
from snapshot_kit import Snapped
from stored_kit import GENESIS as GENESIS_RAW
from stored_kit import Stored, Told

from consensus.attacks import AttackKind, LightClientAttack, Verdict, encode_attack
from consensus.certificate import decode_certificate
from consensus.header import decode_header
from consensus.primitives.encoding import U63, Bytes, ListOf, Record, decode, encode
from consensus.skipping import TrustOptions, verify_history
from node.following import Followed, Unanswered, follow, trust_block, trust_genesis
from node.ledger import tables
from node.ledger.genesis import start
from node.ledger.proofs import decode_proof
from node.light import trust_genesis as trusted_by_genesis
from node.light import verify_file
from node.peering.lightserver import LightServer
from node.peering.lightsource import LOOK_S, PeerSource
from node.storage.adopting import take_in
from node.storage.chain import Chain
from node.storage.snapshots import SnapshotStore
from node.storage.views import View
from p2p.errors import Code, Refused
from p2p.memory import Link, MemoryHub
from p2p.network import PeerId

KEYS = [PeerId(party(f"light node {i}").key) for i in range(4)]
CLIENT = PeerId(party("light client").key)
GENESIS = devnet()
SET = start(GENESIS).validators
OPTIONS = TrustOptions()


class Server:
    """One full node: a chain on disk behind a network."""

    def __init__(self, hub: MemoryHub, key: bytes, view: Any) -> None:
        self.network = hub.network(key, chain_id=GENESIS.chain_id)
        self.attacks: list[tuple[LightClientAttack, Verdict]] = []
        LightServer(
            get_view=view,
            take_attack=self._take,
            run_blocking=at_once,
        ).serve(self.network)

    async def _take(self, attack: LightClientAttack, verdict: Verdict) -> None:
        self.attacks.append((attack, verdict))


@asynccontextmanager
async def client_of(views: Sequence[Any]) -> AsyncIterator[tuple[list[Server], list[PeerSource]]]:
    """Full nodes over these views, and a client that has met them all."""
    hub = MemoryHub(seed=1)
    servers = [Server(hub, key, view) for key, view in zip(KEYS, views, strict=False)]
    client = hub.network(CLIENT, chain_id=GENESIS.chain_id)
    async with trio.open_nursery() as nursery:
        for network in (*(server.network for server in servers), client):
            await nursery.start(network.run)
        await trio.sleep(10)
        yield servers, [PeerSource(client, server.network.me) for server in servers]
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("told"))


def stored(folder: Path, blocks: int, other: int | None = None) -> Stored:
    """A chain of payments; `other`: the height at which it pays another sum."""
    made = Stored(folder)
    for height in range(1, blocks + 1):
        made.block(made.pay(7 if height == other else 5))
    return made


def now_of(view: View) -> int:
    return view.tip.time_ms + 1_000


async def pause() -> None:
    await trio.sleep(1)


async def followed(sources: Sequence[PeerSource], now_ms: int) -> Followed:
    trusted = await trust_genesis(sources, GENESIS.chain_id, SET)
    return await follow(
        trusted,
        sources,
        options=OPTIONS,
        now_ms=lambda: now_ms,
        pause=pause,
    )


async def test_client_follows_full_nodes_from_the_genesis(told: Told, autojump_clock: Any) -> None:
    view = told.view()
    async with client_of([told.view] * 3) as (_, sources):
        found = await followed(sources, now_of(view))
    assert found.blocks[-1].block_id == view.tip.block_id
    assert len(found.confirmed) == 2
    assert found.warnings == ()


async def test_client_follows_from_one_named_block(told: Told, autojump_clock: Any) -> None:
    view = told.view()
    block_id = view.get_header(4).block_id()
    async with client_of([told.view]) as (_, sources):
        trusted = await trust_block(sources, GENESIS.chain_id, 4, block_id)
    assert trusted.block_id == block_id
    assert trusted == view.light_block(4)


async def test_more_questions_than_the_bucket_holds_are_all_answered(
    told: Told, autojump_clock: Any
) -> None:
    """Page 70 lets a peer ask 20 times a second: a long bisection waits, and is not dropped."""
    async with client_of([told.view]) as (_, (source,)):
        await ask_often(source, 120)


async def ask_often(source: PeerSource, times: int) -> None:
    for _ in range(times):
        assert (await source.ask(1)).height == 1


async def test_slow_source_has_a_limit_for_each_look(told: Told, autojump_clock: Any) -> None:
    """Each answer in time, all of them together for hours: then another source is asked."""
    async with client_of([told.view]) as ((server,), (source,)):
        hub: Any = server.network._hub
        hub.set_link(server.network.me, CLIENT, Link(delay_ms=(2_000, 2_000)))
        with pytest.raises(Unanswered, match="more than 120 s"):
            await ask_often(source, 256)
        assert trio.current_time() < 2 * LOOK_S
        source.begin_look()
        assert (await source.ask(1)).height == 1


async def test_every_height_is_served_and_no_other(told: Told, autojump_clock: Any) -> None:
    view = told.view()
    async with client_of([told.view]) as (_, (source,)):
        for height in range(1, view.height + 1):
            assert (await source.ask(height)).height == height
        with pytest.raises(Unanswered, match="not_found"):
            await source.ask(view.height + 1)


async def test_empty_chain_has_no_light_block(tmp_path: Path, autojump_clock: Any) -> None:
    made = Stored(tmp_path)
    async with client_of([made.chain.view]) as (_, (source,)):
        with pytest.raises(Unanswered, match="not_found"):
            await source.ask(0)


async def test_history_path_proves_an_older_block(told: Told, autojump_clock: Any) -> None:
    view = told.view()
    newest = view.get_header(view.height)
    async with client_of([told.view]) as (_, (source,)):
        block_id, path = await source.ask_history(3, view.height)
        for height, at in ((0, 3), (3, 3), (4, 3), (1, view.height + 1)):
            with pytest.raises(Unanswered, match="not_found"):
                await source.ask_history(height, at)
    verify_history(newest, 3, block_id, path)
    assert block_id == view.get_header(3).block_id()


async def test_node_on_a_snapshot_says_no_to_what_came_before_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """An honest no with what it holds: to it, a missing block is not damage."""
    snapped = Snapped(tmp_path / "snapped")
    store, home = SnapshotStore(tmp_path / "home" / "snapshots"), tmp_path / "home"
    snapped.put_part(store)
    take_in(home, store, snapped.manifest)
    chain = Chain.open(home, GENESIS_RAW)
    chain.commit_many(snapped.made.decided[snapped.height :])
    first, top = snapped.height + 1, chain.height
    async with client_of([chain.view]) as (_, (source,)):
        assert (await source.ask(first)).height == first
        await source.ask_history(first, top)
        for height in (1, snapped.height):
            with pytest.raises(Unanswered, match="not_found"):
                await source.ask(height)
            with pytest.raises(Unanswered, match="not_found"):
                await source.ask_history(height, top)
        with pytest.raises(Refused) as refused:
            await ask(source, 0, 1)
    assert decode(refused.value.body, Record(U63, U63), 64, "held") == (first, top)
    chain.close()


async def ask(source: PeerSource, *question: Any) -> bytes:
    network: Any = source._network
    answer: bytes = await network.request(
        source.peer, "light", encode(question), timeout_s=5, bytes_max=256 << 10
    )
    return answer


async def test_state_and_receipt_come_as_proofs(told: Told, autojump_clock: Any) -> None:
    view, trust = told.view(), trusted_by_genesis(GENESIS)
    key = tables.ACCOUNT.flat_key((PAYER.key,))
    found = view.find_receipt(told.receipt)
    assert found is not None
    async with client_of([told.view]) as (_, (source,)):
        state = await ask(source, 1, 0, [key, key[:-1] + b"\0"])
        receipt = await ask(source, 2, found.bundle_hash, found.index)
        with pytest.raises(Refused) as refused:
            await ask(source, 1, 1, [key])
        with pytest.raises(Refused):
            await ask(source, 2, bytes(32), 0)
    assert decode(refused.value.body, Record(U63, U63), 64, "held") == (1, view.height)
    for raw in (*_proofs(state), *_proofs(receipt)):
        assert decode_proof(raw)
        verify_file(raw, trust)


def _proofs(raw: bytes) -> tuple[bytes, ...]:
    found: tuple[bytes, ...] = decode(raw, ListOf(Bytes(64 << 10), 64), 256 << 10, "proofs")
    return found


@pytest.mark.parametrize(
    "body",
    [
        b"\x92",
        encode((9, 1)),
        encode((0, 1, 1)),
        encode((0, b"")),
        encode((1, 0, [])),
        encode((1, 0, [b"k"] * 65)),
        encode((4, b"x")),
        b"\x92\x00\xcc\x01",  # an integer longer than it need be
    ],
)
async def test_malformed_question_scores_the_caller(
    told: Told, body: bytes, autojump_clock: Any
) -> None:
    async with client_of([told.view]) as (_, (source,)):
        network: Any = source._network
        with pytest.raises(Refused) as refused:
            await network.request(source.peer, "light", body, timeout_s=5, bytes_max=1_024)
    assert refused.value.code == Code.MALFORMED


# --- attacks

FORKS = [("newest", 6, AttackKind.EQUIVOCATION), ("older", 3, AttackKind.LUNATIC)]


@pytest.mark.parametrize(("desc", "at", "kind"), FORKS, ids=[row[0] for row in FORKS])
async def test_fork_is_found_and_both_sides_get_evidence_that_convicts(
    desc: str, at: int, kind: AttackKind, tmp_path: Path, autojump_clock: Any
) -> None:
    """Two chains of one set of validators: whoever follows one and asks the other sees both."""
    one, other = stored(tmp_path / "one", 6), stored(tmp_path / "other", 6, other=at)
    async with client_of([one.chain.view, other.chain.view]) as (servers, sources):
        found = await followed(sources, now_of(one.chain.view()))
    assert found.blocks == ()
    assert len(found.attacks) == 1
    for server in servers:
        ((attack, verdict),) = server.attacks
        assert verdict.kind is kind
        assert set(verdict.guilty) <= set(SET.powers())
        assert SET.is_third(sum(SET.power(key) for key in verdict.guilty))
        assert attack.common_height < at <= attack.block.height


async def test_evidence_against_nobody_here_is_refused(told: Told, autojump_clock: Any) -> None:
    view = told.view()
    block = view.light_block(5)
    assert block is not None
    async with client_of([told.view]) as ((server,), (source,)):
        with pytest.raises(Unanswered):
            await source.report(encode_attack(LightClientAttack(3, block)))
    assert server.attacks == []


async def test_evidence_above_our_height_waits(tmp_path: Path, autojump_clock: Any) -> None:
    """We cannot judge yet: an honest no, without points."""
    short, long = stored(tmp_path / "short", 2), stored(tmp_path / "long", 5)
    block = long.chain.view().light_block(5)
    assert block is not None
    async with client_of([short.chain.view]) as ((server,), (source,)):
        with pytest.raises(Unanswered, match="not_found"):
            await source.report(encode_attack(LightClientAttack(1, block)))
        assert server.network.peers()[0].score == 0


async def test_reply_is_the_four_parts_of_page_70(told: Told, autojump_clock: Any) -> None:
    async with client_of([told.view]) as (_, (source,)):
        raw = await ask(source, 0, 2)
    part = Bytes(8 << 10, 1)
    header, certificate, _, _ = decode(raw, Record(part, part, part, part), 32 << 10, "reply")
    assert decode_header(header) == told.view().get_header(2)
    assert decode_certificate(certificate) == told.view().certificate(2)
