"""Indices with an inflated row: shown to the ledger, which then pays nobody by them.

Why at all: a node refuses to open such an index, so that nobody who is honest recomputes what is
credited by it, and any credits would settle (page 60 §10, kind 3). Why a file first, and why some
wait: as for lies about credits (`refuter.py`). A proof of an earlier life is not read: the index is
looked at again, and found again.
What this file does not know: how such a row is found, what it costs its creator.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.ledger import tables
from node.ledger.rules.models import Which, is_servable, is_suspended
from node.ledger.state import State
from node.ledger.wire import openings
from node.ledger.wire.openings import NormOpened, VersionSubject
from node.ledger.wire.transactions import FraudProof
from node.observe import get_log
from node.storage.prooffiles import keep_proof

FOUND_MAX: Final = 64
STAGGER_S: Final = 8.0  # every holder finds the same, and all but the first pay a fee for nothing
AGAIN_S: Final = 600.0  # what a block refused has cost its fee
PREFIX: Final = "inflated-"

RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("indexaccuser")


class IndexAccuser:
    """Run `run` in a nursery. `send` returns once a block holds a transaction; raises Invalid."""

    def __init__(
        self,
        *,
        folder: Path,
        get_state: Callable[[], State],
        account: bytes,
        send: Callable[[FraudProof], Awaitable[None]],
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._folder, self._get_state, self._account = folder, get_state, account
        self._send, self._now_ms, self._run_blocking = send, now_ms, run_blocking
        self._found: dict[Which, NormOpened] = {}
        self._told: set[Which] = set()
        self._woken = trio.Event()
        self.counters: Counter[str] = Counter()

    def note(self, which: Which, opened: NormOpened) -> None:
        """A version's index has this row; noted again it changes nothing."""
        if which not in self._found and self._is_due(which) and len(self._found) < FOUND_MAX:
            self._found[which] = opened
            self._woken.set()

    async def run(self) -> None:
        """Accuse what is found, for ever."""
        while True:
            self._woken = trio.Event()
            for which, opened in list(self._found.items()):
                await trio.sleep(self._stagger_s(which))
                if not self._is_due(which) or await self._accuse(which, opened):
                    del self._found[which]
            with trio.move_on_after(AGAIN_S if self._found else float("inf")):
                await self._woken.wait()

    def _is_due(self, which: Which) -> bool:
        """Whether the ledger takes a proof: it is served, and nobody was quicker."""
        state = self._get_state()
        is_there = state.find(tables.VERSION, *which) is not None
        return (
            is_there
            and is_servable(state, which, self._now_ms())
            and not is_suspended(state, which)
        )

    async def _accuse(self, which: Which, opened: NormOpened) -> bool:
        subject = openings.encode_opening(VersionSubject(*which))
        payload = FraudProof(openings.NORM, subject, openings.encode_opening(opened))
        path = self._folder / f"{PREFIX}{which[0]}-{which[1]}"
        self.counters["unkept"] += not await self._run_blocking(keep_proof, path, payload)
        try:
            await self._send(payload)
        except Invalid as refusal:
            self.counters["failed"] += 1
            if which not in self._told:
                self._told.add(which)
                log.warning(
                    "an index is not accused yet", model=which[0], version=which[1],
                    code=refusal.code, why=str(refusal), mend=f"olnode tx fraud-proof {path}",
                )  # fmt: skip
            return False
        self.counters["accused"] += 1
        log.error(
            "a version's index has an inflated row: it pays nobody from now on",
            model=which[0], version=which[1], mend="none needed: its creator is accused",
        )  # fmt: skip
        return True

    def _stagger_s(self, which: Which) -> float:
        model, version = which
        drawn = sha256(self._account, model.to_bytes(8), version.to_bytes(4))[0]
        return drawn * STAGGER_S / 256
