"""Bundles that others keep: what is taken, when it is told, and that a dead provider is paid."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import LaneSession, party
from chain_kit import CONTRIBUTORS, OPEN, PAYER, PROVIDER, TinyChain, golden_answer
from exchange_kit import at_once
from network_kit import not_here

from consensus.primitives.encoding import decode, encode
from node.ledger import tables
from node.ledger.pool import BundlePool, TransactionPool
from node.ledger.wire import transactions as wire
from node.ledger.wire.bundles import Bundle, build_bundle, decode_body
from node.peering import watching
from node.peering.audits import Audits
from node.peering.relay import Relay
from node.peering.watching import (
    AGAIN_S,
    EVERY_S,
    GRACE_S,
    KEEP,
    KEPT_MS_MAX,
    LOOK_S,
    REPLY,
    Watching,
)
from p2p.errors import Code, Misbehaving, Refused
from p2p.memory import MemoryHub

PEER = PROVIDER.key  # the story registers the provider under its own key
SQUATTER = CONTRIBUTORS[0]  # an account with a balance
OTHERS = [party(f"node {i}").key for i in range(3)]
MINUTE_MS = 60_000
FEE = 27_309_200


class Ledger:
    """A chain in memory with a channel, and what time it is."""

    def __init__(self) -> None:
        self.chain = TinyChain()
        self.chain.tell_story()
        self.lane = self.chain.open_channel()
        self.later_ms = 0

    @property
    def channel(self) -> bytes:
        return self.lane.channel

    def now_ms(self) -> int:
        return self.chain.time_ms + self.later_ms

    def other_lane(self, number: int = 1) -> LaneSession:
        rng = random.Random(number)
        return LaneSession(self.channel, number, PAYER, PROVIDER, rng, self.chain.chain_id)

    def bundle(self, number: int = 1_024, *lanes: LaneSession, from_hold: bool = True) -> Bundle:
        parts = []
        for lane in lanes or (self.lane,):
            golden_answer(lane, ())
            parts.append(lane.cut(from_hold))
        return build_bundle(
            chain_id=self.chain.chain_id, provider=PROVIDER.key, bundle_seq=number, parts=parts,
            sign=PROVIDER.sign,
        )  # fmt: skip

    def close(self) -> None:
        done = self.chain.block(self.chain.tx(PAYER, wire.CloseChannel(self.channel)))
        assert done.codes == (0,)

    def paid(self) -> int:
        return self.chain.state().get(tables.CHANNEL, self.channel).paid


class Keeper:
    """A `Watching` alone, which tells to a list."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder
        self.told: list[Bundle] = []
        self.watching = self.open()

    def open(self) -> Watching:
        nobody: Any = None
        return Watching(
            network=nobody, chain_id=self.ledger.chain.chain_id, folder=self.folder,
            get_state=self.ledger.chain.state, get_height=lambda: self.ledger.chain.height,
            find_validators=list, tell=self.tell, now_ms=self.ledger.now_ms, run_blocking=at_once,
        )  # fmt: skip

    async def tell(self, bundle: Bundle) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(bundle)

    async def give(self, bundle: Bundle, peer: bytes = PEER) -> int:
        raw = await self.watching.answer(peer, encode((KEEP, *bundle)))  # type: ignore[arg-type]
        (until_ms,) = decode(raw, REPLY, 64, "reply")
        return int(until_ms)

    async def refusal(self, bundle: Bundle, peer: bytes = PEER) -> tuple[int, int]:
        with pytest.raises(Refused) as refused:
            await self.give(bundle, peer)
        return refused.value.code, refused.value.retry_ms

    async def watch(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.watching.run()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def keeper(ledger: Ledger, tmp_path: Path) -> Keeper:
    return Keeper(ledger, tmp_path / "watchtower")


# ---- what is taken


async def test_bundle_of_a_provider_is_kept_until_its_vouchers_end(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    bundle = ledger.bundle()
    assert await keeper.give(bundle) == ledger.now_ms() + KEPT_MS_MAX, "these last for years"
    assert keeper.watching.kept == 1
    (file,) = keeper.folder.iterdir()
    assert file.name == PROVIDER.key.hex()


async def test_newer_one_takes_its_place_and_an_older_one_does_not(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    first, second = ledger.bundle(2_048), ledger.bundle(3_072, ledger.other_lane())
    await keeper.give(first)
    await trio.sleep(EVERY_S)
    await keeper.give(second)
    await trio.sleep(EVERY_S)
    for old in (first, second):
        assert (await keeper.refusal(old))[0] == Code.EXPIRED
    assert keeper.watching.kept == 1
    assert keeper.watching.counters["refused.older"] == 2


async def test_only_the_providers_own_peer_gives(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    """Others could push out what it gave by what it once told by gossip."""
    assert (await keeper.refusal(ledger.bundle(), OTHERS[0]))[0] == Code.NOT_ALLOWED


async def test_stranger_to_the_ledger_gives_nothing(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    who = party("stranger")
    lane = LaneSession(ledger.channel, 0, PAYER, who, random.Random(1), ledger.chain.chain_id)
    golden_answer(lane, ())
    bundle = build_bundle(
        chain_id=ledger.chain.chain_id, provider=who.key, bundle_seq=1, parts=[lane.cut()],
        sign=who.sign,
    )  # fmt: skip
    assert (await keeper.refusal(bundle, who.key))[0] == Code.NOT_ALLOWED


async def test_settled_number_is_refused(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    bundle = ledger.bundle()
    ledger.chain.block(bundles=(bundle,))
    assert (await keeper.refusal(bundle))[0] == Code.EXPIRED


async def test_lane_that_went_on_is_refused(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    settled = ledger.bundle(1)
    stale = replace_number(ledger, settled, 2_048)
    ledger.chain.block(bundles=(settled,))
    assert (await keeper.refusal(stale))[0] == Code.EXPIRED
    assert keeper.watching.counters["refused.void"] == 1


# ---- nor what no block would take


def squat(ledger: Ledger, cap: int = 0) -> Bundle:
    """A bundle of another provider on our provider's channel, signed as it should be.

    `cap`: of a channel of its own that is opened for it.
    """
    register = wire.RegisterProvider(SQUATTER.key, SQUATTER.key)
    bond = wire.Bond(tables.ROLE_PROVIDER, SQUATTER.key, 2 * OPEN)
    done = [ledger.chain.block(ledger.chain.tx(SQUATTER, register))]
    if cap:
        opened = wire.OpenChannel(SQUATTER.key, PAYER.key, cap, 0)
        done += [ledger.chain.block(ledger.chain.tx(SQUATTER, bond))]
        done += [ledger.chain.block(ledger.chain.tx(PAYER, opened))]
    assert all(outcome.codes == (0,) for outcome in done)
    lane = LaneSession(ledger.channel, 0, PAYER, SQUATTER, random.Random(1), ledger.chain.chain_id)
    golden_answer(lane, ())
    return build_bundle(
        chain_id=ledger.chain.chain_id, provider=SQUATTER.key, bundle_seq=1,
        parts=[lane.cut(from_hold=True)], sign=SQUATTER.sign,
    )  # fmt: skip


async def test_provider_without_a_channel_has_nothing_checked(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account with a deposit and no bond could else fill what is kept for honest ones."""
    monkeypatch.setattr(watching, "is_signed_by", None)
    assert (await keeper.refusal(squat(ledger), SQUATTER.key))[0] == Code.BUSY
    assert keeper.watching.counters["refused.unserved"] == 1


async def test_bundle_on_anothers_channel_is_refused(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    assert (await keeper.refusal(squat(ledger, OPEN), SQUATTER.key))[0] == Code.EXPIRED
    assert keeper.watching.kept == 0


async def test_bundle_behind_a_gap_is_refused(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    ledger.bundle(1)  # neither told nor settled: the lane goes on behind it
    assert (await keeper.refusal(ledger.bundle()))[0] == Code.BUSY
    assert keeper.watching.counters["refused.unfit"] == 1


async def test_bundle_above_a_channels_cap_is_refused(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    ledger.lane = ledger.chain.open_channel(cap=2 * FEE - 1)
    both = ledger.bundle(1_024, ledger.lane, ledger.other_lane())
    assert (await keeper.refusal(both))[0] == Code.EXPIRED
    assert keeper.watching.kept == 0


async def test_it_is_dropped_once_other_lanes_used_up_the_channel(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    ledger.lane = ledger.chain.open_channel(cap=2 * FEE - 1)
    await keeper.give(ledger.bundle())
    ledger.chain.block(bundles=(ledger.bundle(7, ledger.other_lane()),))
    await keeper.watch(2 * LOOK_S)
    assert keeper.watching.kept == 0


async def test_lanes_stand_still_while_their_providers_number_does(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of lanes are not read at each block."""
    await keeper.give(ledger.bundle())
    monkeypatch.setattr(watching, "lane_of", None)
    ledger.chain.block()
    await keeper.watch(2 * LOOK_S)
    assert keeper.watching.kept == 1


def replace_number(ledger: Ledger, bundle: Bundle, number: int) -> Bundle:
    """The same sections under another number."""
    return build_bundle(
        chain_id=ledger.chain.chain_id, provider=PROVIDER.key, bundle_seq=number,
        parts=decode_body(bundle.body), sign=PROVIDER.sign,
    )  # fmt: skip


Spoil = Callable[[Bundle], Bundle]


@pytest.mark.parametrize(
    ("desc", "spoil"),
    [
        ("a false signature", lambda b: b._replace(signature=bytes(64))),
        ("another body", lambda b: b._replace(body=b.body + b"\0")),
        ("no header", lambda b: b._replace(header=b"\x90")),
        ("no body", lambda b: b._replace(body=b"")),
    ],
)
async def test_false_bundle_is_its_givers_fault(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, desc: str, spoil: Spoil
) -> None:
    with pytest.raises(Misbehaving):
        await keeper.give(spoil(ledger.bundle()))
    assert keeper.watching.kept == 0, desc


async def test_false_voucher_is_its_givers_fault(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    ledger.lane.payer = party("somebody")
    with pytest.raises(Misbehaving):
        await keeper.give(ledger.bundle())


async def test_channel_that_our_ledger_lacks_is_nobodys_fault(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    lane = LaneSession(bytes(32), 0, PAYER, PROVIDER, random.Random(1), ledger.chain.chain_id)
    assert (await keeper.refusal(ledger.bundle(1_024, lane)))[0] == Code.BUSY


async def test_nothing_is_verified_for_whom_the_cheap_checks_refuse(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.give(ledger.bundle(2_048))
    for name in ("is_signed_by", "admit_bundle"):
        monkeypatch.setattr(watching, name, None)
    for number, peer in ((1_024, PEER), (4_096, OTHERS[0]), (4_096, PEER)):
        await keeper.refusal(ledger.bundle(number, ledger.other_lane()), peer)
    told = keeper.watching.counters
    assert (told["refused.older"], told["refused.stranger"], told["refused.soon"]) == (1, 1, 1)


async def test_provider_is_told_when_to_come_again(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    await keeper.give(ledger.bundle(1_024))
    await trio.sleep(1)
    bundle = ledger.bundle(2_048, ledger.other_lane())
    assert await keeper.refusal(bundle) == (Code.BUSY, 4_000)
    await trio.sleep(4)
    await keeper.give(bundle)


async def test_whole_checks_of_all_providers_are_bounded(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "CHECKED_BURST", 1)
    monkeypatch.setattr(watching, "EVERY_S", 0.0)
    await keeper.give(ledger.bundle(1_024))
    bundle = ledger.bundle(2_048, ledger.other_lane())
    assert await keeper.refusal(bundle) == (Code.BUSY, 250)
    await trio.sleep(0.25)
    await keeper.give(bundle)


@pytest.mark.parametrize("limit", ["KEPT_MAX", "KEPT_BYTES_MAX", "KEPT_LANES_MAX"])
async def test_what_is_kept_is_bounded(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    bundle = ledger.bundle(1_024, ledger.lane, ledger.other_lane())
    length = len(bundle.header) + len(bundle.body)
    size = {"KEPT_MAX": 1, "KEPT_BYTES_MAX": length, "KEPT_LANES_MAX": 2}[limit]
    monkeypatch.setattr(watching, limit, size - 1)
    assert (await keeper.refusal(bundle))[0] == Code.BUSY
    await trio.sleep(EVERY_S)
    monkeypatch.setattr(watching, limit, size)
    await keeper.give(bundle)


async def test_full_disk_is_our_failure_and_promises_nothing(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(watching, "write_durably", full)
    assert (await keeper.refusal(ledger.bundle()))[0] == Code.OUR_FAILURE
    assert keeper.watching.kept == 0


async def test_its_name_is_durable_before_it_is_promised(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, int]] = []

    def sync(folder: Path) -> None:
        synced.append((folder, len(list(keeper.folder.iterdir()))))

    monkeypatch.setattr(watching, "sync_directory", sync)
    await keeper.give(ledger.bundle())
    assert synced == [(keeper.folder.parent, 0), (keeper.folder, 1)]
    await trio.sleep(EVERY_S)
    await keeper.give(ledger.bundle(2_048, ledger.other_lane()))
    assert synced[2:] == [(keeper.folder, 1)]


# ---- when it is told


async def test_it_is_told_once_a_channel_closes_and_its_provider_is_silent(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    bundle = ledger.bundle()
    await keeper.give(bundle)
    await keeper.watch(5 * GRACE_S)
    assert keeper.told == []
    ledger.close()
    await keeper.watch(GRACE_S)
    assert keeper.told == [], "a provider that is up settles by itself"
    await keeper.watch(2 * LOOK_S)
    assert keeper.told == [bundle]
    await keeper.watch(AGAIN_S + 2 * LOOK_S)
    assert keeper.told == [bundle, bundle], "gossip may have lost it"


@pytest.mark.parametrize("why", ["settled by itself", "another lane settled", "channel ended"])
async def test_it_is_dropped_once_no_block_would_take_it(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, why: str
) -> None:
    other = ledger.other_lane()
    bundle = ledger.bundle(1_024, ledger.lane, other)
    await keeper.give(bundle)
    ledger.close()
    if why == "settled by itself":
        ledger.chain.block(bundles=(replace_number(ledger, bundle, 7),))
    elif why == "another lane settled":
        fresh = ledger.other_lane()
        ledger.chain.block(bundles=(ledger.bundle(7, fresh),))
    else:
        ledger.chain.block(ledger.chain.tx(PROVIDER, wire.CloseChannel(ledger.channel)))
    await keeper.watch(3 * GRACE_S)
    assert (keeper.told, keeper.watching.kept) == ([], 0)
    assert list(keeper.folder.iterdir()) == []


async def test_it_is_dropped_with_the_time_it_was_promised_for(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    await keeper.give(ledger.bundle())
    ledger.later_ms = KEPT_MS_MAX
    ledger.chain.block()
    await keeper.watch(3 * LOOK_S)
    assert keeper.watching.kept == 0


async def test_disk_that_lets_go_of_nothing_ends_no_node(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "read-only file system")

    await keeper.give(ledger.bundle())
    monkeypatch.setattr(Path, "unlink", refuse)
    ledger.later_ms = KEPT_MS_MAX
    ledger.chain.block()
    await keeper.watch(3 * LOOK_S)
    assert keeper.watching.kept == 0


async def test_it_is_told_after_a_restart_too(
    ledger: Ledger, keeper: Keeper, autojump_clock: Any
) -> None:
    bundle = ledger.bundle()
    await keeper.give(bundle)
    again = Keeper(ledger, keeper.folder)
    ledger.close()
    await again.watch(2 * GRACE_S)
    assert again.told == [bundle]


@pytest.mark.parametrize("raw", [b"", b"\x90", b"\xff" * 99])
async def test_file_that_cannot_be_read_is_removed(
    ledger: Ledger, tmp_path: Path, raw: bytes
) -> None:
    path = trio.Path(tmp_path / "00")
    await path.write_bytes(raw)
    keeper = Keeper(ledger, tmp_path)
    assert (keeper.watching.kept, keeper.watching.counters["unreadable"]) == (0, 1)
    assert not await path.exists()


# ---- all of it over a network


class Node:
    """A peer with its pool and relay."""

    def __init__(self, ledger: Ledger, hub: MemoryHub, key: bytes, folder: Path) -> None:
        class NoIndex:
            def holds(self, model: int, version: int) -> bool:
                return False

        class Store(dict[bytes, Bundle]):
            def append(self, bundle: Bundle) -> None:
                self[bundle.hash] = bundle

            confirm = append

        auditor: Any = NoIndex()
        store: Any = Store()
        self.network = hub.network(key)
        self.bundles = BundlePool()
        self.scope = trio.CancelScope()
        audits = Audits(
            network=self.network, get_state=ledger.chain.state, find_bundle=store.get,
            find_stated=lambda _: None, may_see_sketch=lambda *_: False,
            open_rows=lambda *_: None, run_blocking=at_once,
        )  # fmt: skip
        self.relay = Relay(
            network=self.network, chain_id=ledger.chain.chain_id, bundles=self.bundles,
            transactions=TransactionPool(ledger.chain.chain_id), store=store,
            get_state=ledger.chain.state, auditor=auditor, audits=audits,
            may_be_shown=lambda: True, fetch_body=not_here, evidence_folder=folder,
            watch_folder=folder / "kept",
            get_height=lambda: ledger.chain.height, find_validators=lambda: OTHERS,  # type: ignore[return-value,arg-type]
            now_ms=ledger.now_ms, run_blocking=at_once,
        )  # fmt: skip

    async def run(self, *, task_status: Any) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.network.run)
                await nursery.start(self.relay.run)
                task_status.started()


@asynccontextmanager
async def network_of(ledger: Ledger, folder: Path) -> AsyncIterator[list[Node]]:
    """The provider first, then three others."""
    hub = MemoryHub(seed=1)
    keys = [PEER, *OTHERS]
    nodes = [Node(ledger, hub, key, folder / key.hex()[:8]) for key in keys]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        await trio.sleep(3)
        yield nodes
        nursery.cancel_scope.cancel()


async def test_provider_that_died_is_paid_when_its_payer_closes(
    ledger: Ledger, tmp_path: Path, autojump_clock: Any
) -> None:
    """It hands over, dies, the payer closes: whoever proposes next has the bundle from a keeper."""
    async with network_of(ledger, tmp_path) as nodes:
        bundle = ledger.bundle(1_024, ledger.lane, ledger.other_lane())
        assert await nodes[0].relay.watching.hand(bundle) == watching.KEEPERS
        assert sorted(node.relay.watching.kept for node in nodes) == [0, 0, 1, 1]
        nodes[0].scope.cancel()
        ledger.close()
        closes_ms = ledger.chain.state().get(tables.CHANNEL, ledger.channel).close_at_ms
        await trio.sleep(2 * GRACE_S)
        assert all(bundle.hash in node.bundles for node in nodes[1:]), "anybody may propose it"
        picked = nodes[3].bundles.pick()
        settled = tuple(bundle for one in picked if one.bundle.hash == bundle.hash)
        ledger.chain.block(bundles=settled, later_ms=round(2_000 * GRACE_S))
        assert ledger.chain.time_ms < closes_ms
        assert ledger.paid() == 2 * FEE
        before = ledger.chain.state().account(PAYER.key).balance
        ledger.chain.block(later_ms=MINUTE_MS)
        record = ledger.chain.state().get(tables.CHANNEL, ledger.channel)
        assert (record.state, record.paid) == (tables.CHANNEL_CLOSED, 2 * FEE)
        assert ledger.chain.state().account(PAYER.key).balance == before + 10 * OPEN - 2 * FEE
        await trio.sleep(2 * LOOK_S)
        assert [node.relay.watching.kept for node in nodes[1:]] == [0, 0, 0]


async def test_same_validators_keep_it_while_they_are_here(
    ledger: Ledger, tmp_path: Path, autojump_clock: Any
) -> None:
    async with network_of(ledger, tmp_path) as nodes:
        await nodes[0].relay.watching.hand(ledger.bundle(1_024))
        first = [node.relay.watching.kept for node in nodes]
        await trio.sleep(EVERY_S)
        await nodes[0].relay.watching.hand(ledger.bundle(2_048, ledger.other_lane()))
        assert [node.relay.watching.kept for node in nodes] == first
        assert nodes[0].relay.watching.counters["handed"] == 4


async def test_refusals_are_counted_and_told_once_where_they_matter(
    ledger: Ledger, tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(watching.log, "warning", lambda event, **_: told.append(event))
    async with network_of(ledger, tmp_path) as nodes:
        bundle = ledger.bundle()
        ledger.chain.block(bundles=(bundle,))
        assert await nodes[0].relay.watching.hand(bundle) == 0
        assert nodes[0].relay.watching.counters["hand_void"] == 2
        monkeypatch.setattr(watching, "KEPT_MAX", 0)
        fresh = ledger.bundle(2_048, ledger.other_lane())
        assert await nodes[0].relay.watching.hand(fresh) == 0
        assert nodes[0].relay.watching.counters["hand_refused"] == 2
        assert told == ["no peer keeps what is not settled"], "not of what needs no keeping"
