"""Two receipts that a provider signed for one request of ours: found, kept, brought to the ledger.

Why also what fails our checks is remembered: a provider that tells us one thing of an answer and
the ledger another is caught by whoever has both, and what it signed is all that counts.
Why both are on the disk before anything else: they are money, of the provider's bond. Why as files
of their own: `olnode tx evidence` reads them, on any machine, should this wallet not get through.
What this file does not know: streams and bundles, what a provider loses, how a transaction is sent.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules.doubles import is_punished
from node.ledger.state import State
from node.ledger.wire.receipts import Place, decode_receipt, receipt_id
from node.ledger.wire.transactions import Evidence, make_evidence
from node.observe import get_log
from node.storage.segments import put_away, sync_directory, write_durably

SEEN_MAX: Final = 4_096  # receipts remembered; the oldest are forgotten first
PAIRS_MAX: Final = (
    64  # open ones; each is an offence of its own, but the first has the provider jailed
)
LOOK_EVERY_S: Final = 30.0
PREFIX: Final = "receipt-"

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("wallet")


class Doubles:
    """What providers have signed for us, by its place. Run `run` in a nursery.

    `accuse` sends a pair and returns once a block holds it; raises Invalid.
    """

    def __init__(
        self,
        *,
        folder: Path,
        get_state: Callable[[], State],
        accuse: Callable[[Evidence], Awaitable[None]],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        """Reads the pairs that are kept in `folder`."""
        self._folder = folder
        self._get_state = get_state
        self._accuse = accuse
        self._run_blocking = run_blocking
        self._seen: dict[Place, tuple[bytes, bytes]] = {}
        self._pairs: dict[Place, Evidence] = {}
        self._told: set[Place] = set()  # of whom the operator knows that a try has failed
        self._found = trio.Event()
        self.counters: Counter[str] = Counter()
        self._read_kept()
        self._kept = set(self._pairs)  # or tried to

    def note(self, raw: bytes, signature: bytes) -> None:
        """Remember a receipt whose signature was verified; it may be the second of its place."""
        place = decode_receipt(raw).place
        first = self._seen.setdefault(place, (raw, signature))
        if first[0] != raw and place not in self._pairs:
            if len(self._pairs) >= PAIRS_MAX:
                self.counters["dropped"] += 1
                return
            self._pairs[place] = make_evidence(first, (raw, signature))
            self.counters["found"] += 1
            self._found.set()
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    async def run(self) -> None:
        """Keep what is found and bring it to the ledger, for ever."""
        while True:
            self._found = trio.Event()
            for place, pair in list(self._pairs.items()):
                await self._follow(place, pair)
            with trio.move_on_after(LOOK_EVERY_S):
                await self._found.wait()

    async def _follow(self, place: Place, pair: Evidence) -> None:
        """One step towards the ledger; what fails is tried again at the next look."""
        state = self._get_state()
        channel = state.find(tables.CHANNEL, place[0])
        if channel is None or is_punished(state, place):
            await self._end(place, pair)
            return
        if place not in self._kept:
            self._kept.add(place)
            log.error(
                "a provider signed two receipts for one request", provider=channel.provider,
                channel=place[0], lane=place[1], seq=place[2], mend="none needed: it is accused",
            )  # fmt: skip
            await self._run_blocking(self._keep, pair)
        try:
            await self._accuse(pair)
        except Invalid as refusal:
            self.counters["failed"] += 1
            if place not in self._told:
                self._told.add(place)
                mend = f"olnode tx evidence {' '.join(map(str, self._paths(pair)))}"
                log.warning("not accused yet", code=refusal.code, why=str(refusal), mend=mend)
            return
        await self._end(place, pair)
        self.counters["accused"] += 1
        log.info("the provider's bond pays for its two receipts", provider=channel.provider)

    async def _end(self, place: Place, pair: Evidence) -> None:
        """The ledger has punished it, or forgotten its channel: it makes room for others."""
        del self._pairs[place]
        self._kept.discard(place)
        self._told.discard(place)
        await self._run_blocking(self._put_away, pair)

    # --- the files

    def _paths(self, pair: Evidence) -> tuple[Path, Path]:
        first, second = (receipt_id(raw).hex() for raw in (pair.receipt_a, pair.receipt_b))
        return self._folder / f"{PREFIX}{first}.json", self._folder / f"{PREFIX}{second}.json"

    def _keep(self, pair: Evidence) -> None:
        """A full disk keeps none, and accuses all the same."""
        signed = (pair[:2], pair[2:])
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path, (raw, signature) in zip(self._paths(pair), signed, strict=True):
                told = {"body": raw.hex(), "signature": signature.hex()}
                write_durably(path, json.dumps(told).encode() + b"\n")
            sync_directory(self._folder)
        except OSError as error:
            self.counters["unkept"] += 1
            log.warning("the two receipts are not kept", why=str(error))

    def _put_away(self, pair: Evidence) -> None:
        """What stays where it was is looked at again at the next start."""
        for path in self._paths(pair):
            try:
                put_away(path)
            except OSError as error:
                log.warning("a receipt is not put away", file=str(path), why=str(error))

    def _read_kept(self) -> None:
        for path in sorted(self._folder.glob(f"{PREFIX}*.json")):
            try:
                told = json.loads(path.read_bytes())
                self.note(bytes.fromhex(told["body"]), bytes.fromhex(told["signature"]))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, Invalid) as error:
                self.counters["unreadable"] += 1
                log.warning("a kept receipt cannot be read", file=str(path), why=str(error))
