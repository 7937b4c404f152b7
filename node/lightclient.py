"""The light client composed: a network without a ledger, its sources, and the file it fills.

Why a key of its own for each run: it serves nobody, so nobody need know it again, and the node of
this home may run beside it. Two clients of one home may run too: the file is replaced whole, and
whoever writes last has written only what it verified.
What this file does not know: the rules of trust (consensus), how results are shown.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.digest import HASH_BYTES
from consensus.skipping import Expired, LightBlock
from node.following import Attack, Followed, NoSource, follow, trust_block, trust_genesis
from node.ledger.genesis import Genesis, start
from node.light import trust_options
from node.peering.lightsource import PeerSource
from node.storage.attackfiles import keep_attack
from node.storage.lightfile import LightFile
from p2p.addresses import Reach, addresses_of
from p2p.network import Joined, Libp2pNetwork, Network, PeerId, StatusFacts

LIGHT_ROLE: Final = 16  # bit 4 of `status`
MEET_S: Final = 10.0  # to be admitted by those who answer at all
POLL_S: Final = 10.0
PAUSE_S: Final = 1.0  # before a witness is asked again
EVIDENCE_FOLDER: Final = "evidence"


class LightFailed(Exception):
    """Nothing new can be trusted; `mend` says what the operator can do."""

    def __init__(self, what: str, *, exit_status: int, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.exit_status = exit_status
        self.mend = mend


UNREACHABLE: Final = 4  # exit statuses of page 80
NO_TRUST: Final = 2
CONTRADICTED: Final = 6


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the chain gave: the newest trusted block, how many are kept, the rest."""

    head: LightBlock
    kept: int
    followed: Followed


RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread


def open_network(chain_id: bytes, addresses: Sequence[str], reach: Reach) -> Libp2pNetwork:
    """A network that listens nowhere and dials these peers, for one run."""
    return Libp2pNetwork(
        seed=os.urandom(HASH_BYTES),
        chain_id=chain_id,
        listen=(),
        reach=reach,
        reserved=addresses,
        facts=lambda: StatusFacts(LIGHT_ROLE),
    )


def peers_of(addresses: Sequence[str]) -> tuple[PeerId, ...]:
    """The peers that these addresses name, each once; ValueError for a bad address."""
    found = (address.peer for address in addresses_of(addresses, with_peer=True))
    return tuple(dict.fromkeys(peer for peer in found if peer is not None))


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


class LightClient:
    """Follows one chain and keeps what it trusts in `home`. The first of `peers` leads."""

    def __init__(
        self,
        *,
        network: Network,
        peers: Sequence[PeerId],
        home: Path,
        genesis: Genesis,
        trust: tuple[int, bytes] | None = None,
        clock: Callable[[], int] = now_ms,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._sources = [PeerSource(network, peer) for peer in peers]
        self._home = home
        self._file = LightFile(home, genesis.chain_id)
        self._genesis = genesis
        self._trust = trust
        self._options = trust_options(genesis)
        self._clock = clock
        self._run_blocking = run_blocking
        self._blocks: tuple[LightBlock, ...] = ()
        self._unreached: tuple[str, ...] = ()  # warnings of the first look

    async def run(self, tell: Callable[[Look], None], *, once: bool) -> None:
        """Look at the chain, `once` or every POLL_S seconds; ends after an attack in any case.

        Raises `LightFailed`, and `Damaged` for a file that is not what was written. After the
        first look it outlives sources that fall silent: they may come back.
        """
        async with trio.open_nursery() as nursery:
            begin: Any = nursery.start  # libp2p brings old types for trio
            await begin(self._network.run)
            await self._meet()
            await self._begin()
            look: Look | None = None
            while True:
                look = await self._look(is_first=look is None)
                tell(look)
                if once or look.followed.attacks:
                    break
                await trio.sleep(POLL_S)
            nursery.cancel_scope.cancel()

    async def _meet(self) -> None:
        """Wait until every source has admitted us, or MEET_S; one is enough to go on."""
        missing = {source.peer for source in self._sources}
        with trio.move_on_after(MEET_S):
            async for event in self._network.events():
                if isinstance(event, Joined):
                    missing.discard(event.peer)
                if not missing:
                    return
        names = [source.name for source in self._sources if source.peer in missing]
        if len(missing) == len(self._sources):
            raise LightFailed(
                f"no source was reached within {MEET_S:.0f} s: {', '.join(names)}",
                exit_status=UNREACHABLE,
                mend="olnode light --witness ADDRESS of a node that runs",
            )
        self._unreached = tuple(f"{name} was not reached within {MEET_S:.0f} s" for name in names)

    async def _begin(self) -> None:
        """What is trusted before the first look: the file, the block named, or the genesis."""
        self._blocks = await self._run_blocking(self._file.load)
        known = {block.height: block for block in self._blocks}
        if self._trust is None and known:
            return
        if self._trust is not None and self._trust[0] in known:
            self._check_agrees(known[self._trust[0]], self._trust[1])
            return
        try:
            first = await self._find_first()
        except NoSource as error:
            raise _unanswered(error) from None
        known[first.height] = first
        await self._keep(list(known.values()))

    def _check_agrees(self, held: LightBlock, named: bytes) -> None:
        if held.block_id != named:
            raise LightFailed(
                f"this home trusts another block {held.height}: {held.block_id.hex()}",
                exit_status=CONTRADICTED,
                mend=f"find out which is true; then remove {self._file.path}, or drop --trust",
            )

    async def _find_first(self) -> LightBlock:
        genesis = self._genesis
        if self._trust is not None:
            return await trust_block(self._sources, genesis.chain_id, *self._trust)
        if genesis.time_ms + self._options.period_ms <= self._clock():
            # Its validators may have left: they could sign another block 1, of any time.
            raise _expired("the genesis")
        return await trust_genesis(self._sources, genesis.chain_id, start(genesis).validators)

    async def _look(self, *, is_first: bool) -> Look:
        newest = self._blocks[-1]
        for source in self._sources:
            source.begin_look()
        try:
            followed = await follow(
                newest,
                self._sources,
                options=self._options,
                now_ms=self._clock,
                pause=_pause,
            )
        except NoSource as error:
            if is_first:
                raise _unanswered(error) from None
            followed = Followed((), "", (), error.refusals, ("no source answered: trying again",))
        except Expired as error:
            raise _expired(f"the newest block that this home trusts, {error.height},") from None
        if is_first:
            followed = replace(followed, warnings=(*self._unreached, *followed.warnings))
        if followed.blocks:
            await self._keep([*self._blocks, *followed.blocks])
        for attack in followed.attacks:
            await self._run_blocking(self._keep_evidence, attack)
        return Look(self._blocks[-1], len(self._blocks), followed)

    async def _keep(self, blocks: list[LightBlock]) -> None:
        self._blocks = await self._run_blocking(self._file.save, blocks)

    def _keep_evidence(self, attack: Attack) -> None:
        for proof in attack.proofs:
            keep_attack(self._home / EVIDENCE_FOLDER, proof)


def _unanswered(error: NoSource) -> LightFailed:
    return LightFailed(
        str(error), exit_status=UNREACHABLE, mend="olnode light --witness ADDRESS of another"
    )


def _expired(what: str) -> LightFailed:
    return LightFailed(
        f"{what} has expired: its validators may have left unpunished",
        exit_status=NO_TRUST,
        mend="olnode light --trust HEIGHT:BLOCK_ID of a block that others confirm to you",
    )


async def _pause() -> None:
    await trio.sleep(PAUSE_S)
