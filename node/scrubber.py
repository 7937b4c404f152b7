"""Scrubs the ledger's files of a running node: once in so many days, at so many bytes a second.

Why beside the chain and slow: what it looks for took months to happen; a vote must not wait for it.
What peers have is fetched again, damage of the database ends the node (its next start makes the
database again), and the rest is told with its mend until a pass finds it no more.
What this file does not know: what a whole file looks like (`storage/scrubbing.py`).
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from node.observe import get_log
from node.storage.checking import Finding
from node.storage.scrubbing import Scrub, Step, load_progress, lost_body, save_progress

DAY_MS: Final = 86_400_000
LOOK_EVERY_S: Final = 600.0  # whether a pass is due
SAVED_EVERY_S: Final = 60.0
FINDINGS_MAX: Final = 20  # told of one pass; all are counted

FetchBodies = Callable[[Sequence[bytes]], Awaitable[Sequence[bytes]]]  # gives those nobody had
RunBlocking = Callable[..., Awaitable[Any]]  # (function, *arguments), in a thread

log = get_log("scrub")


class Scrubber:
    """The scrub of one node. Run `run` in a nursery."""

    def __init__(
        self,
        *,
        home: Path,
        begin: Callable[..., Scrub],  # (progress): a pass from there on
        fetch_bodies: FetchBodies,
        every_days: int,
        bytes_s: int,
        now_ms: Callable[[], int],
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> None:
        self._home = home
        self._begin = begin
        self._fetch_bodies = fetch_bodies
        self._every_ms = every_days * DAY_MS
        self._bytes_s = bytes_s
        self._now_ms = now_ms
        self._run_blocking = run_blocking
        self._progress = load_progress(home)
        self._told: list[Finding] = []
        self._found: list[Finding] = []  # in this pass, so far
        self.counters: Counter[str] = Counter()
        """`passes`, `bytes`, `errors` (`ledger_scrub_errors_total`), `bodies_fetched`."""

    @property
    def damage(self) -> str:
        """What the newest pass found, with the mend of the first; "" for nothing."""
        found = self._told or self._found
        if not found:
            return ""
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{found[0].what}{more}; mend: {found[0].mend}"

    async def run(self) -> None:
        """Forever. Raises `DatabaseDamaged`, which must end the node."""
        while True:
            if self._progress.is_begun or self._is_due():
                await self._pass()
            else:
                await trio.sleep(LOOK_EVERY_S)

    def _is_due(self) -> bool:
        return self._now_ms() >= self._progress.ended_ms + self._every_ms

    async def _pass(self) -> None:
        scrub, self._found = self._begin(self._progress), []
        log.info("scrub begins", height=scrub.progress.height)
        saved_s = trio.current_time()
        while not scrub.is_over:
            step = await self._run_blocking(scrub.step)
            await self._take(step)
            if trio.current_time() - saved_s >= SAVED_EVERY_S:
                saved_s = trio.current_time()
                await self._save(scrub)
            await trio.sleep(step.bytes_read / self._bytes_s)
        scrub.end(self._now_ms())
        self._told, self._found = self._found, []
        await self._save(scrub)
        self.counters["passes"] += 1
        log.info("scrub is over", findings=len(self._told), **self.counters)

    async def _take(self, step: Step) -> None:
        self.counters["bytes"] += step.bytes_read
        for finding in step.findings:
            self._note(finding)
        if step.lost:
            still = await self._fetch_bodies(step.lost)
            self.counters["bodies_fetched"] += len(step.lost) - len(still)
            for name in still:
                self._note(lost_body(name))

    def _note(self, finding: Finding) -> None:
        self.counters["errors"] += 1
        if len(self._found) < FINDINGS_MAX:
            log.error("the disk has lost something", **finding._asdict())
            self._found.append(finding)

    async def _save(self, scrub: Scrub) -> None:
        self._progress = scrub.progress
        try:
            await self._run_blocking(save_progress, self._home, scrub.progress)
        except OSError as error:
            log.warning("how far the scrub is could not be kept", why=str(error))
