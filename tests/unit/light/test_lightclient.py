"""The light client composed: what it trusts first, what it keeps, when it gives up."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from bundle_kit import party
from chain_kit import devnet
from exchange_kit import at_once
from stored_kit import Stored

from consensus.attacks import LightClientAttack, Verdict, decode_attack
from node.light import trust_options
from node.lightclient import (
    CONTRADICTED,
    NO_TRUST,
    POLL_S,
    UNREACHABLE,
    LightClient,
    LightFailed,
    Look,
    open_network,
    peers_of,
)
from node.peering.lightserver import LightServer
from node.storage.attackfiles import ATTACKS_MAX, keep_attack
from node.storage.errors import Damaged
from node.storage.lightfile import LightFile
from p2p.memory import MemoryHub
from p2p.network import PeerId
from p2p.peers import peer_id_text

GENESIS = devnet()
KEYS = [PeerId(party(f"full node {i}").key) for i in range(3)]
OPTIONS = trust_options(GENESIS)


async def ignore(attack: LightClientAttack, verdict: Verdict) -> None:
    """What a full node does with evidence is not asked here."""


class World:
    """Full nodes over chains on disk, and a home for the client; one run per `look`."""

    def __init__(self, folder: Path, chains: Sequence[Stored]) -> None:
        self.home, self.chains = folder / "light", chains
        self.home.mkdir()
        self.asked = 0

    async def run(
        self,
        *,
        trust: tuple[int, bytes] | None = None,
        later_ms: int = 1_000,
        tell: Callable[[Look], object] = lambda look: None,
        once: bool = True,
        missing: bool = False,
        beside: Sequence[PeerId] = (),
    ) -> Look:
        looks: list[Look] = []
        hub = MemoryHub(seed=1)
        servers = []
        for key, made in zip(KEYS, self.chains, strict=False):
            network = hub.network(key, chain_id=GENESIS.chain_id)
            LightServer(
                get_view=lambda made=made: made.chain.view(),
                take_attack=ignore,
                run_blocking=at_once,
            ).serve(network)
            servers.append(network)
        own = hub.network(party("the client").key, chain_id=GENESIS.chain_id)
        client = LightClient(
            network=own,
            peers=[PeerId(bytes(32))] if missing else [*KEYS[: len(self.chains)], *beside],
            home=self.home,
            genesis=GENESIS,
            trust=trust,
            run_blocking=at_once,
            clock=lambda: self.chains[0].chain.tip.time_ms + later_ms,
        )

        def hear(look: Look) -> None:
            looks.append(look)
            tell(look)

        async with trio.open_nursery() as nursery:
            for network in servers:
                await nursery.start(network.run)
            await client.run(hear, once=once)
            nursery.cancel_scope.cancel()
        return looks[-1]

    def kept(self) -> list[int]:
        return [block.height for block in LightFile(self.home, GENESIS.chain_id).load()]


def stored(folder: Path, blocks: int, other: int | None = None) -> Stored:
    made = Stored(folder)
    for height in range(1, blocks + 1):
        made.block(made.pay(7 if height == other else 5))
    return made


async def failure(run: Callable[[], Awaitable[Any]]) -> LightFailed:
    """The failure inside trio's groups."""
    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LightFailed)
    return error


async def test_first_look_begins_at_the_genesis_and_the_next_at_the_file(
    tmp_path: Path, autojump_clock: Any
) -> None:
    made = stored(tmp_path / "a", 4)
    world = World(tmp_path, [made] * 3)
    look = await world.run()
    assert (look.head.height, look.kept, world.kept()) == (4, 2, [1, 4])
    made.block(made.pay())
    look = await world.run()
    assert (look.head.height, world.kept()) == (5, [1, 4, 5])
    assert look.followed.warnings == ()


async def test_named_block_is_the_first_trust(tmp_path: Path, autojump_clock: Any) -> None:
    made = stored(tmp_path / "a", 4)
    world = World(tmp_path, [made] * 3)
    block_id = made.chain.view().get_header(3).block_id()
    await world.run(trust=(3, block_id))
    assert world.kept() == [3, 4]
    await world.run(trust=(3, block_id))
    assert world.kept() == [3, 4], "the same word again is no news"


async def test_named_block_that_the_home_contradicts_ends_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    made = stored(tmp_path / "a", 4)
    world = World(tmp_path, [made] * 3)
    await world.run()
    error = await failure(lambda: world.run(trust=(4, bytes(32))))
    assert error.exit_status == CONTRADICTED
    assert world.kept() == [1, 4]


async def test_attack_leaves_the_file_as_it_was_and_the_proofs_in_the_home(
    tmp_path: Path, autojump_clock: Any
) -> None:
    one, other = stored(tmp_path / "a", 4), stored(tmp_path / "b", 4)
    world = World(tmp_path, [one, other])
    await world.run()
    one.block(one.pay(5))
    other.block(other.pay(7))
    looks: list[Look] = []
    await world.run(tell=looks.append, once=False)
    assert len(looks) == 1, "it ends after an attack"
    assert len(looks[0].followed.attacks) == 1
    assert world.kept() == [1, 4]
    files = sorted((world.home / "evidence").iterdir())
    assert [decode_attack(file.read_bytes()).block.height for file in files] == [5, 5]


async def test_expired_trust_asks_for_a_new_one(tmp_path: Path, autojump_clock: Any) -> None:
    made = stored(tmp_path / "a", 4)
    world = World(tmp_path, [made] * 3)
    await world.run()
    made.block(made.pay())
    error = await failure(lambda: world.run(later_ms=OPTIONS.period_ms))
    assert error.exit_status == NO_TRUST
    assert "--trust" in error.mend


async def test_genesis_expires_as_any_block_does(tmp_path: Path, autojump_clock: Any) -> None:
    """Who signed block 1 and has left could sign another, with a time of their choice."""
    made = stored(tmp_path / "a", 4)
    world = World(tmp_path, [made] * 3)
    age_ms = made.chain.tip.time_ms - GENESIS.time_ms
    error = await failure(lambda: world.run(later_ms=OPTIONS.period_ms - age_ms))
    assert (error.exit_status, world.kept()) == (NO_TRUST, [])
    await world.run(later_ms=OPTIONS.period_ms - age_ms - 1)
    assert world.kept() == [1, 4]


async def test_nobody_there_is_told_after_a_while(tmp_path: Path, autojump_clock: Any) -> None:
    world = World(tmp_path, [stored(tmp_path / "a", 1)])
    error = await failure(lambda: world.run(missing=True))
    assert error.exit_status == UNREACHABLE


async def test_witness_that_is_not_there_is_named(tmp_path: Path, autojump_clock: Any) -> None:
    """Who names a witness and mistypes its address must not take silence for its word."""
    dead = PeerId(bytes(32))
    world = World(tmp_path, [stored(tmp_path / "a", 2)] * 2)
    looks: list[Look] = []
    with trio.move_on_after(2.5 * POLL_S):
        await world.run(beside=[dead], tell=looks.append, once=False)
    told = [f"{peer_id_text(dead)} was not reached" in str(x.followed.warnings) for x in looks]
    assert told == [True, *[False] * (len(told) - 1)]
    assert looks[0].head.height == 2


async def test_nodes_of_another_genesis_give_nothing(tmp_path: Path, autojump_clock: Any) -> None:
    world = World(tmp_path, [stored(tmp_path / "a", 2)])
    error = await failure(lambda: world.run(trust=(2, bytes(32))))
    assert (error.exit_status, world.kept()) == (UNREACHABLE, [])


async def test_damaged_file_is_not_followed_from(tmp_path: Path, autojump_clock: Any) -> None:
    world = World(tmp_path, [stored(tmp_path / "a", 4)] * 3)
    await world.run()
    path = LightFile(world.home, GENESIS.chain_id).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BaseExceptionGroup) as caught:
        await world.run()
    assert caught.value.split(Damaged)[0] is not None


async def test_it_goes_on_looking_until_it_is_stopped(tmp_path: Path, autojump_clock: Any) -> None:
    made = stored(tmp_path / "a", 2)
    world = World(tmp_path, [made] * 3)
    heights: list[int] = []

    def tell(look: Look) -> None:
        heights.append(look.head.height)
        if len(heights) < 3:
            made.block(made.pay())

    with trio.move_on_after(3.5 * POLL_S):
        await world.run(tell=tell, once=False)
    assert heights[:3] == [2, 3, 4]


async def test_silence_after_the_first_look_is_waited_out(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stored(tmp_path / "a", 2)
    world = World(tmp_path, [made] * 3)
    told: list[tuple[int, tuple[str, ...]]] = []
    view = made.chain.view

    def silent() -> Any:
        raise RuntimeError("the node is ill")

    def tell(look: Look) -> None:
        told.append((look.head.height, look.followed.warnings))
        monkeypatch.setattr(made.chain, "view", silent if len(told) == 1 else view)
        if len(told) == 2:
            made.block(made.pay())

    with trio.move_on_after(3.5 * POLL_S):
        await world.run(tell=tell, once=False)
    assert [height for height, _ in told[:3]] == [2, 2, 3]
    assert [bool(warnings) for _, warnings in told[:3]] == [False, True, False]


def test_addresses_name_their_peers_once() -> None:
    text = f"/ip4/127.0.0.1/tcp/7017/p2p/{peer_id_text(KEYS[0])}"
    assert peers_of([text, text.replace("7017", "7018")]) == (KEYS[0],)
    with pytest.raises(ValueError, match="p2p"):
        peers_of(["/ip4/127.0.0.1/tcp/7017"])


def test_network_of_a_run_has_a_key_of_its_own() -> None:
    made = [open_network(GENESIS.chain_id, (), "devnet") for _ in range(2)]
    assert made[0].me != made[1].me


def test_folder_of_proofs_is_bounded(tmp_path: Path) -> None:
    from light_kit import FOUR, LightChain, light_block

    from consensus.attacks import LightClientAttack

    chain = LightChain(3)
    header = chain.at(3).header
    for number in range(ATTACKS_MAX + 2):
        lie = light_block(header._replace(supply=number), FOUR, signers="a")
        path = keep_attack(tmp_path / "evidence", LightClientAttack(1, lie))
        assert (path is None) == (number >= ATTACKS_MAX)
    again = light_block(header._replace(supply=0), FOUR, signers="b")
    assert keep_attack(tmp_path / "evidence", LightClientAttack(1, again)) is not None
    assert len(list((tmp_path / "evidence").iterdir())) == ATTACKS_MAX
