"""Lives ended by SIGKILL at points that a seed chooses, each judged by the life after it.

A home is lived in until its story is over, and checked as `olnode db check` does; then comes the
next. Half of the lives end at one of their operations on files, so that the points between any two
are met; a fourth with half of a write done; the rest whenever the kill comes, in the middle of
what LevelDB or the system do.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

from crashes.judging import Told
from crashes.life import KEPT_MS, Plan
from crashes.story import CHAIN_ID, new_home, told

from node.storage.checking import check_home

ROOT: Final = Path(__file__).resolve().parents[2]
OPERATIONS_MAX: Final = 200  # of a life that ends by count: some ten blocks
DELAY_S_MAX: Final = 0.03  # of a kill from outside, after a block was told
BLOCKS_MAX: Final = 6  # before that
CATCHES_UP: Final = 0.3  # of all lives
PRUNES: Final = 0.5  # of all homes
END: Final = 1 << 40  # no life has so many operations


@dataclass
class Found:
    """What a campaign came to."""

    points: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    homes: int = 0
    at: Counter[str] = field(default_factory=Counter)  # instead of which operation

    @property
    def faults(self) -> list[str]:
        """Everything that may not be."""
        return [*self.lost, *self.different, *self.refused]


class Lives:
    """The process that forks lives; `with` ends it."""

    def __enter__(self) -> Self:
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("life.py"))],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._next()["what"] == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def live(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """What one life tells, to its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(plan)).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            event = self._next()
            yield event
            if event["what"] == "ended":
                return

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks lives is gone"
        event: dict[str, Any] = json.loads(line)
        return event


class Campaign:
    """Kills and judges in homes under `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.found = Found()
        self._folder = folder
        self._chance = random.Random(seed)

    def run(self, points: int) -> Found:
        """So many kills, each of them judged."""
        with Lives() as lives:
            while self.found.points < points and not self.found.faults:
                self._live_in_a_home(lives, points)
        return self.found

    def run_one_block(self, height: int) -> Found:
        """End a life at each operation of opening, one block and closing, writes torn and not."""
        with Lives() as lives:
            grown = new_home(self._folder / "grown")
            told_before = Told()
            self._live_once(lives, Plan(str(grown), END, blocks=height, prunes=True), told_before)
            for last in count(1):
                before = self.found.at.copy()
                self._end_in_a_copy(lives, grown, told_before, last, tears=False)
                at = self.found.at - before
                if not at:
                    return self.found
                if "pwrite" in at:
                    self._end_in_a_copy(lives, grown, told_before, last, tears=True)

    def _end_in_a_copy(
        self, lives: Lives, grown: Path, told_before: Told, last: int, *, tears: bool
    ) -> None:
        home = Path(shutil.copytree(grown, self._folder / "copy"))
        before = replace(told_before)
        for operation in (last, END):
            plan = Plan(str(home), operation, tears, blocks=1, prunes=True, told=asdict(before))
            self._live_once(lives, plan, before)
        shutil.rmtree(home)

    def _live_in_a_home(self, lives: Lives, points: int) -> None:
        home, before = new_home(self._folder / str(self.found.homes)), Told()
        prunes = self._chance.random() < PRUNES
        while self.found.points < points and before.height < len(told()):
            if self.found.faults:
                return  # the home stays as it is, to be looked at
            self._live_once(lives, self._plan(home, before, prunes=prunes), before)
        self._live_once(lives, Plan(str(home), END, prunes=prunes, told=asdict(before)), before)
        checked = check_home(home, CHAIN_ID, bodies_kept_ms=KEPT_MS if prunes else None)
        self.found.different += [finding.what for finding in checked.findings]
        self.found.homes += 1
        shutil.rmtree(home)

    def _plan(self, home: Path, before: Told, *, prunes: bool) -> Plan:
        way = self._chance.choice(("count", "count", "tear", "time"))
        last = 0 if way == "time" else self._chance.randrange(1, OPERATIONS_MAX)
        catches_up = self._chance.random() < CATCHES_UP
        told_before = asdict(before)
        return Plan(
            str(home), last, way == "tear", prunes=prunes, catches_up=catches_up, told=told_before
        )

    def _live_once(self, lives: Lives, plan: Plan, before: Told) -> None:
        """Take what it tells; a plan without a last operation is ended from here."""
        blocks = 0 if plan.last_operation else self._chance.randrange(1, BLOCKS_MAX)
        delay_s = self._chance.random() * DELAY_S_MAX
        pid = 0
        for event in lives.live(plan):
            before.take(event)
            match event["what"]:
                case "living":
                    pid = event["pid"]
                case "judged":
                    self.found.lost += event["lost"]
                    self.found.different += event["different"]
                case "refused" | "failed":
                    self.found.refused.append(event["why"])
                case "committed" if blocks:
                    blocks -= 1
                    if not blocks:
                        time.sleep(delay_s)
                        with suppress(ProcessLookupError):  # it has come to its end meanwhile
                            os.kill(pid, signal.SIGKILL)
                case "dying":
                    self.found.at[event["at"]] += 1
                case "ended":
                    self.found.points += event["killed"]
