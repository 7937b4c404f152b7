"""What a node says of itself when it is asked: status, readiness, peers, what waits in its pools.

Why in one place: what an operator, a load balancer and a payer are told must agree.
What this file does not know: who asks, and over which socket (`web/` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from statistics import median_low
from typing import Final

from node.diskguard import DiskGuard
from node.holdings import Holdings
from node.ledger import tables
from node.ledger.amounts import part_bps
from node.ledger.pool import BundlePool, TransactionPool
from node.peering.directory import Directory
from node.peering.replica import Replica
from node.peering.watching import Watching
from node.scrubber import Scrubber
from node.shop import NOTHING, Shop
from node.storage.ground import Ground
from node.web import answers
from node.web.naming import KIND_NAMES
from p2p.network import Network

LAG_BLOCKS_MAX: Final = 2


def is_behind(told: Sequence[int], height: int) -> bool:
    """Whether most peers tell of more than `LAG_BLOCKS_MAX` blocks above `height`.

    By the middle one of them, the lower of two: one peer that lies must not close a shop.
    """
    return bool(told) and median_low(told) - height > LAG_BLOCKS_MAX


@dataclass(frozen=True, slots=True)
class Telling:
    """Looks at the parts of a node; changes none."""

    profile: str
    name: str
    roles: tuple[str, ...]
    account: bytes  # that a provider serves as
    ground: Ground
    network: Network
    replica: Replica
    transactions: TransactionPool
    bundles: BundlePool
    directory: Directory
    holdings: Holdings
    disk: DiskGuard
    watching: Watching
    scrubber: Scrubber
    shop: Shop | None

    def checks(self) -> Mapping[str, bool]:
        """What readiness is made of, by name."""
        chain, state = self.ground.chain, self.replica.statistics().state
        checks = {
            "peers": bool(self.network.peers()) or len(chain.tip.validators) == 1,
            "height_lag": self._lag() <= LAG_BLOCKS_MAX,
            "consensus": state != "diverged",
            "disk": not self.disk.is_low,
        }
        if self.shop is not None:
            checks["engine"] = self.shop.is_well
        if "validator" in self.roles:
            checks["signer"] = state in ("validating", "waiting", "following")
            checks["signer"] = checks["signer"] and self.ground.journal is not None
        return checks

    def is_current(self) -> bool:
        """Whether our ledger is about as far as most peers say theirs are."""
        return not is_behind(self._told_heights(), self.ground.chain.height)

    def _lag(self) -> int:
        return max(0, max(self._told_heights(), default=0) - self.ground.chain.height)

    def _told_heights(self) -> list[int]:
        return [view.facts.height for view in self.network.peers() if view.admitted]

    def status(self) -> answers.Status:
        """The node at a glance."""
        chain, checks = self.ground.chain, self.checks()
        tip, journal = chain.tip, self.ground.journal
        last = None if journal is None else journal.last
        return answers.Status(
            chain_id=chain.chain_id,
            profile=self.profile,
            name=self.name,
            roles=self.roles,
            node_account=self.account,
            height=tip.height,
            block_id=tip.block_id,
            time_ms=tip.time_ms,
            lag_blocks=self._lag(),
            peers=len(self.network.peers()),
            validators=len(tip.validators),
            signing=self.replica.statistics().state == "validating",
            last_signed_height=0 if last is None else last.height,
            why_silent=str(self.ground.why_silent or self.disk.why_low),
            damage=self.scrubber.damage,
            pool_transactions=self.transactions.statistics().entries,
            pool_bundles=self.bundles.statistics().entries,
            kept_bundles=self.watching.kept,
            engine="none" if self.shop is None else self.shop.engine_word,
            models=tuple(held.label for held in self.holdings.all() if held.is_ready),
            supply=chain.state().supply(),
            app_version=chain.genesis.app_version,
            build=installed_version("olnode"),
            ready=all(checks.values()),
            checks=checks,
        )

    async def models(self) -> answers.HeldModels:
        """The model versions held here, with what serving them has brought since the start."""
        takings = {} if self.shop is None else await self.shop.takings()
        state = self.ground.chain.state()
        ours_bps = dict(zip(KIND_NAMES, state.parameter_values("split_bps"), strict=True))
        held = tuple(
            answers.HeldModel(
                model=held.label,
                adapter=held.manifest.adapter,
                tier=one.tier,
                bytes=one.bytes,
                ready=held.is_ready,
                requests=one.requests,
                fees=one.fees,
                earned=part_bps(one.fees, ours_bps[tables.KIND_PROVIDER]),
            )
            for held in self.holdings.all()
            for one in (takings.get((held.model, held.version), NOTHING),)
        )
        return answers.HeldModels(held, self.holdings.find_unknown())

    def find_pending(self, tx_id: bytes) -> bytes | None:
        """The wire bytes of a transaction that waits in our pool."""
        found = self.transactions.find(tx_id)
        return None if found is None else found.raw

    def count_providers(self) -> Mapping[tuple[int, int], int]:
        """How many providers offer each (model, version) now."""
        counts: dict[tuple[int, int], int] = {}
        for offer in self.directory.offers():
            for version in {(one.model, one.model_version) for one in offer.models}:
                counts[version] = counts.get(version, 0) + 1
        return counts
