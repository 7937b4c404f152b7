"""Which header a snapshot may stand on: followed as a light client follows, peers as witnesses.

    a block that is trusted → skipping verification with bisection → the header
    a header below a trusted block → its place in the history of that block

Why witnesses: whoever signs a header that a light client believes can sign a second one for us
alone. Nothing is believed that no other peer confirms; where two peers prove two headers, both
proofs are kept and neither is believed. Going back needs neither witness nor signature.
Why one limit of time for all headers, and a share of it for each peer: whoever claims a height may
answer slowly without end, and nothing else of a node runs meanwhile.
Why it is kept in the light client's file: an ended process goes on from there, and what this home
trusts is one thing.
What this file does not know: what a verified header is used for.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from consensus.header import Header
from consensus.primitives.errors import Invalid
from consensus.skipping import Expired, LightBlock, TrustOptions, is_expired, verify_history
from consensus.validators import ValidatorSet
from node.following import (
    Attack,
    Clock,
    Followed,
    NoSource,
    Unanswered,
    follow,
    trust_block,
    trust_genesis,
)
from node.observe import get_log
from node.peering.lightsource import PeerSource
from node.storage.attackfiles import keep_attack
from node.storage.errors import REFUSALS, Damaged
from node.storage.lightfile import LightFile
from node.storage.views import Tip
from p2p.errors import Unreachable
from p2p.limits import PENALTIES
from p2p.network import Network, PeerId

SOURCES_MAX: Final = 8  # peers asked for one header: one leads, the others bear witness
WITNESSES_MIN: Final = 1
VERIFY_S: Final = 60.0  # for all headers of one start, all questions together
VERIFY_NAMED_S: Final = 600.0  # the same where the operator named a block: the way may be long
SHARES: Final = 6  # one peer takes at most this part of it, however often it is asked
SLOW_S: Final = 2.0  # an answer that takes as long costs its peer a little
PAUSE_S: Final = 1.0  # before a witness is asked again
PROGRESS_HEADERS: Final = 16  # between two lines that tell how far we are
BLOCK_MS_MIN: Final = 250  # between two blocks, by the shortest interval that we ship
MEND: Final = (
    "[chain] trusted_height and trusted_id in config.toml: a recent block that others confirm to "
    "you; until then blocks are fetched one by one"
)

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("statesync")


class Named(NamedTuple):
    """The block that the operator trusts."""

    height: int
    block_id: bytes


# The operator's block, our own newest one, or the set of our genesis, which signs block 1.
Root = Named | LightBlock | ValidatorSet


def find_root(
    tip: Tip, named: Named | None, *, gap_blocks: int, options: TrustOptions, now_ms: int
) -> Root | None:
    """By what a snapshot's header would be believed; None: no need, or nothing to believe it by.

    A node whose tip is younger than `gap_blocks` can take cannot be further behind than that.
    """
    age_ms = now_ms - tip.time_ms
    if named is not None and named.height - tip.height > gap_blocks:
        return named
    if age_ms < gap_blocks * BLOCK_MS_MIN:
        return None
    if age_ms < options.period_ms:
        return _root_of(tip)
    if named is not None and named.height > tip.height:
        return named
    log.warning("our own chain is too old to believe a snapshot by", height=tip.height, mend=MEND)
    return None


def _root_of(tip: Tip) -> Root:
    if tip.header is None or tip.certificate is None or tip.signers is None:
        return tip.validators
    return LightBlock(tip.header, tip.certificate, tip.signers, tip.validators)


class _Asked(PeerSource):
    """A peer whose answers are counted, so that a long way shows that it goes on; slow ones cost.

    It lives as long as the start: what it has taken of our time is not forgotten.
    """

    def __init__(
        self, network: Network, peer: PeerId, counters: Counter[str], look_s: float
    ) -> None:
        super().__init__(network, peer, look_s=look_s)
        self._counters = counters

    async def ask(self, height: int) -> LightBlock:
        """As any source does."""
        block = await super().ask(height)
        self._counters["headers"] += 1
        if self._counters["headers"] % PROGRESS_HEADERS == 0:
            log.info("verifying", headers=self._counters["headers"], newest=block.height)
        return block

    async def _request_once(self, body: bytes, bytes_max: int) -> bytes:
        began_s = trio.current_time()
        raw = await super()._request_once(body, bytes_max)
        if trio.current_time() - began_s >= SLOW_S:  # no answer at all costs the same, in p2p
            self._counters["slow"] += 1
            self._network.penalise(self.peer, PENALTIES["timeout"], "timeout")
        return raw


class Trusting:
    """Verifies headers from one root of trust, for one start of a node.

    `file` and the folder `evidence` are the home's.
    """

    def __init__(
        self,
        *,
        network: Network,
        chain_id: bytes,
        root: Root,
        options: TrustOptions,
        file: LightFile,
        evidence: Path,
        now_ms: Clock,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._network = network
        self._chain_id = chain_id
        self._root = root
        self._options = options
        self._file = file
        self._evidence = evidence
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._known: dict[int, LightBlock] = {}  # trusted, by height; empty before the first look
        self._is_attacked = False
        self._asked: dict[PeerId, _Asked] = {}
        self._verify_s = VERIFY_NAMED_S if isinstance(root, Named) else VERIFY_S
        self._spent_s = 0.0
        self.counters: Counter[str] = Counter()

    async def verify(self, height: int) -> Header:
        """The header of `height`. Raises `Invalid` `trust.…` when it cannot be believed, and a
        NetworkError when no peer shows the way to it, or none within half of the time that is
        left for all headers. A cancel leaves what was verified before."""
        limit_s = (self._verify_s - self._spent_s) / 2
        began_s = trio.current_time()
        try:
            with trio.move_on_after(limit_s):
                return await self._verify(height)
        finally:
            self._spent_s += trio.current_time() - began_s
        self.counters["too_slow"] += 1
        raise Unreachable(f"header {height} was not verified within {limit_s:.0f} s")

    async def _verify(self, height: int) -> Header:
        if self._is_attacked:
            raise Invalid("trust.attacked", height=height)
        if not self._known:
            self._known = await self._begin(height)
        if height in self._known:
            return self._known[height].header
        above = [known for known in self._known if known > height]
        if above:
            return await self._look_back(self._known[min(above)], height)
        return await self._go_on(self._known[max(self._known)], height)

    def _sources(self, height: int) -> list[_Asked]:
        """Peers that let us believe in a block of `height`: a claim that only makes us ask.

        The least guilty first, so that who was slow or lied does not lead again.
        """
        views = [view for view in self._network.peers() if view.admitted]
        views = [view for view in views if view.facts.height >= height]
        views.sort(key=lambda view: view.score)
        return [self._source(view.peer) for view in views[:SOURCES_MAX]]

    def _source(self, peer: PeerId) -> _Asked:
        if peer not in self._asked:
            share_s = self._verify_s / SHARES
            self._asked[peer] = _Asked(self._network, peer, self.counters, share_s)
        return self._asked[peer]

    # -- the first block

    async def _begin(self, height: int) -> dict[int, LightBlock]:
        """What is trusted before the first look: the root, and what was kept with it."""
        kept = await self._find_kept()
        root = self._root
        if isinstance(root, ValidatorSet):
            found = kept.get(1) or await self._ask_first(height, root)
            is_agreed = found.header.validators_hash == root.hash()
        elif isinstance(root, Named):
            found = kept.get(root.height) or await self._ask_named(root)
            is_agreed = found.block_id == root.block_id
        else:
            found = root
            is_agreed = kept.get(root.height, root).block_id == root.block_id
        if not is_agreed:
            self._tell_contradiction(found.height)
        log.info("trusting", height=found.height, kept=len(kept))
        # What was kept without the root was trusted for other reasons.
        return kept if found.height in kept else {found.height: found}

    async def _ask_named(self, root: Named) -> LightBlock:
        sources = self._sources(root.height)
        try:
            return await trust_block(sources, self._chain_id, root.height, root.block_id)
        except NoSource as error:
            raise Unreachable(str(error)) from None

    async def _ask_first(self, height: int, validators: ValidatorSet) -> LightBlock:
        try:
            return await trust_genesis(self._sources(height), self._chain_id, validators)
        except NoSource as error:
            raise Unreachable(str(error)) from None

    def _tell_contradiction(self, height: int) -> None:
        self.counters["contradicted"] += 1
        log.error(
            "this home trusts another block of that height",
            height=height,
            mend=f"find out which is true; then remove {self._file.path}, or mend [chain]",
        )
        raise Invalid("trust.contradicted", height=height)

    # -- a header above what is trusted

    async def _go_on(self, trusted: LightBlock, height: int) -> Header:
        log.info("verifying a header", height=height, trusted=trusted.height)
        if is_expired(trusted, self._options, self._now_ms()):
            raise self._expired(trusted.height)
        try:
            followed = await follow(
                trusted,
                self._sources(height),
                options=self._options,
                now_ms=self._now_ms,
                pause=_pause,
                target=height,
            )
        except Expired:
            raise self._expired(trusted.height) from None
        except NoSource as error:
            self.counters["no_source"] += 1
            raise Unreachable(str(error)) from None
        await self._take(followed, height)
        self.counters["verified"] += 1
        log.info(
            "header verified",
            height=height,
            steps=len(followed.blocks),
            headers=self.counters["headers"],
            witnesses=len(followed.confirmed),
        )
        return followed.blocks[-1].header

    async def _take(self, followed: Followed, height: int) -> None:
        """Keep what was followed, or raise `Invalid`: an attack, or no witness."""
        for name, why in followed.dropped:
            self.counters["dropped"] += 1
            log.info("a peer gave nothing to believe", peer=name, why=why)
        for attack in followed.attacks:
            await self._note(attack)
        if self._is_attacked:
            raise Invalid("trust.attacked", height=height)
        if len(followed.confirmed) < WITNESSES_MIN:
            self.counters["no_witness"] += 1
            raise Invalid("trust.no_witness", height=height, primary=followed.primary)
        self._known |= {block.height: block for block in followed.blocks}
        await self._keep()

    async def _find_kept(self) -> dict[int, LightBlock]:
        """What the file holds, by height; nothing where it cannot be read: we can verify anew."""
        try:
            return await self._load()
        except OSError as error:
            self._tell_unkept("what this home trusts cannot be read", error)
            return {}

    async def _load(self) -> dict[int, LightBlock]:
        """The file, by height; a damaged one is as none, and the next header replaces it."""
        try:
            return {block.height: block for block in await self._run_blocking(self._file.load)}
        except Damaged as damage:
            self.counters["file_damaged"] += 1
            log.warning(
                "what this home trusts is damaged: it is not used",
                why=damage.told,
                mend="none is needed: it is written anew with the next header that is verified",
            )
            return {}

    async def _keep(self) -> None:
        """Into the file, beside what else this home trusts; no two blocks of one height.

        Where the disk refuses, what was verified holds for this process alone.
        """
        try:
            kept = await self._load()
            for height, block in self._known.items():
                if kept.get(height, block).block_id != block.block_id:
                    self._tell_contradiction(height)
            await self._run_blocking(self._file.save, (kept | self._known).values())
        except OSError as error:
            self._tell_unkept("what was verified could not be kept", error)

    def _tell_unkept(self, what: str, error: OSError) -> None:
        self.counters["file_refused"] += 1
        mend = REFUSALS.get(error.errno or 0, f"see that {self._file.path} can be read and written")
        log.warning(what, why=str(error), mend=mend)

    async def _note(self, attack: Attack) -> None:
        """Two believable chains: keep both proofs and believe nothing any more."""
        self._is_attacked = True
        self.counters["attacks"] += 1
        try:
            for proof in attack.proofs:
                await self._run_blocking(keep_attack, self._evidence, proof)
        except OSError as error:
            self._tell_unkept("a proof of two chains could not be kept", error)
        log.error(
            "two peers prove two chains: no snapshot is used",
            primary=attack.primary,
            witness=attack.witness,
            height=attack.by_primary.block.height,
            mend=f"find out which is true; both proofs are in {self._evidence}",
        )

    def _expired(self, height: int) -> Invalid:
        self.counters["expired"] += 1
        log.warning(
            "the block that is trusted is too old: its validators may have left unpunished",
            height=height,
            mend=MEND,
        )
        return Invalid("trust.expired", height=height)

    # -- a header below it

    async def _look_back(self, trusted: LightBlock, height: int) -> Header:
        for source in self._sources(trusted.height):
            try:
                block_id, path = await source.ask_history(height, trusted.height)
                verify_history(trusted.header, height, block_id, path)
                block = await source.ask(height)
                if block.block_id != block_id:
                    raise Invalid("trust.other_block", height=height)
            except Unanswered as error:
                log.debug("no header from a peer", peer=source.name, why=str(error))
            except Invalid as refusal:
                self.counters["false"] += 1
                log.warning("a peer sent a false header", peer=source.name, code=refusal.code)
                source.blame(refusal)
            else:
                self.counters["looked_back"] += 1
                return block.header
        self.counters["no_source"] += 1
        raise Unreachable(f"no peer shows header {height} in the history of {trusted.height}")


async def _pause() -> None:
    await trio.sleep(PAUSE_S)
