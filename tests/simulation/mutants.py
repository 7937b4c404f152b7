"""The mutation gate: one fault at a time in a copy of the core, and which test notices it.

    python tests/simulation/mutants.py [--search] [NAME…]

Not part of `make test`. Each mutant replaces one piece of source, which must stand there exactly
once, and runs the scenarios that should notice; `--search` asks the random runs too. Exit 1 when
more than SURVIVORS_MAX of page 20's fifteen live on, or any of the glue.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = ("consensus", "node", "p2p", "tests", "pyproject.toml")
SURVIVORS_MAX: Final = 1
TIMEOUT_S: Final = 600

ROUND, VOTES, VALIDATORS = "consensus/round.py", "consensus/votes.py", "consensus/validators.py"
JOURNAL, CHAIN, CERTIFICATE = (
    "node/storage/journal.py",
    "node/storage/chain.py",
    "consensus/certificate.py",
)
RULES: Final = ("tests/unit/consensus",)
STORAGE: Final = tuple(f"tests/unit/storage/test_{n}.py" for n in ("journal", "chain", "opening"))
SEARCH: Final = (
    "tests/simulation/test_twins.py",
    "tests/simulation/test_engine_faults.py",
    "tests/simulation/test_exhaustive.py",
)


class Mutant(NamedTuple):
    """One fault: where, what stands there, what stands there now, who should notice."""

    name: str
    fault: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...] = RULES


# fmt: off
MUTANTS: Final = (
    Mutant("1", "L22 ignores the lock", ROUND,
           "free = state.locked[0] == NO_ROUND or state.locked[1] == block_id", "free = True"),
    Mutant("2", "L28 ignores the lock", ROUND,
           "free = state.locked[0] <= pol_round or state.locked[1] == block_id", "free = True"),
    Mutant("3", "L28 with < for ≤", ROUND,
           "state.locked[0] <= pol_round", "state.locked[0] < pol_round"),
    Mutant("4", "quorum at ≥ 2/3", VALIDATORS,
           "return 3 * power > 2 * self.total", "return 3 * power >= 2 * self.total"),
    Mutant("5", "quorum at 1/2", VALIDATORS,
           "return 3 * power > 2 * self.total", "return 2 * power > self.total"),
    Mutant("6", "skips at ≥ 1/3", VALIDATORS,
           "return 3 * power > self.total", "return 3 * power >= self.total"),
    Mutant("7", "never skips", ROUND, "    if not highest:\n", "    if True:\n"),
    Mutant("8", "valid is not renewed after the precommit", ROUND,
           "    state.valid = (state.round, block_id)\n    if state.step != Step.PREVOTE:\n"
           "        return []\n",
           "    if state.step != Step.PREVOTE:\n        return []\n"
           "    state.valid = (state.round, block_id)\n"),
    Mutant("9", "proposes a new block though it has a valid one", ROUND,
           "    if valid_round == NO_ROUND:\n", "    if True:\n"),
    Mutant("10", "accepts an invalid block", ROUND,
           "good = offer.valid and offer.timely and free", "good = offer.timely and free"),
    Mutant("11", "decides in the current round only", ROUND,
           "for round, ids in state.book.decisions.items():",
           "for round, ids in [p for p in state.book.decisions.items() if p[0] == state.round]:"),
    Mutant("12", "sets no lock", ROUND, "    state.locked = (state.round, block_id)\n", ""),
    Mutant("13", "counts a vote twice", VOTES,
           "        if vote.index not in signers:\n", "        if True:\n"),
    Mutant("14", "no nil precommit at the prevote timeout", ROUND,
           "return _precommit(state, NIL) if state.step == Step.PREVOTE else []", "return []"),
    Mutant("15", "ignores a nil polka", ROUND, "    line_44_nil_polka,\n", ""),
    Mutant("g1", "Broadcast before Persist", ROUND,
           "return [Persist(record), Broadcast(message)]",
           "return [Broadcast(message), Persist(record)]"),
    Mutant("g2", "signs what no record holds", JOURNAL,
           "if self._promises.get(record.place()) != record.body:", "if False:", STORAGE),
    Mutant("g3", "commits before the block log's sync", CHAIN,
           "        self._log.sync()\n        batch.write_to(self._store)\n",
           "        batch.write_to(self._store)\n        self._log.sync()\n", STORAGE),
    Mutant("g4", "counts a certificate's bit twice", CERTIFICATE,
           "power for member in signers)", "power for member in (*signers, *signers[:1]))"),
    Mutant("g5", "asks in L28 whether it is timely", ROUND,
           "block_id if offer.valid and free else NIL",
           "block_id if offer.valid and offer.timely and free else NIL"),
    Mutant("g6", "a first vote masks a certificate", VOTES,
           "if vote.index not in signers:", "if vote.index not in signers | self.first.keys():"),
    Mutant("g7", "the record holds no locks", ROUND,
           "message.body(), state.locked, state.valid", "message.body()"),
    Mutant("g8", "a promise that only the signer kept is not said again", JOURNAL,
           "recovered.signed not in recovered.promises", "False", STORAGE),
)
# fmt: on


class Verdict(NamedTuple):
    """The first test that noticed, or "" when none did; and how long that took."""

    killer: str
    took_s: float


@contextmanager
def mutated(mutant: Mutant, folder: Path) -> Iterator[None]:
    """The copy with this fault in it; mended again behind it."""
    path = folder / mutant.path
    source = path.read_text("utf-8")
    count = source.count(mutant.before)
    assert count == 1, f"mutant {mutant.name}: its source stands {count} times in {mutant.path}"
    path.write_text(source.replace(mutant.before, mutant.after), "utf-8")
    try:
        yield
    finally:
        path.write_text(source, "utf-8")


def try_mutant(mutant: Mutant, folder: Path, tests: tuple[str, ...]) -> Verdict:
    """Run the tests on the copy with this fault in it."""
    began_s = time.monotonic()
    with mutated(mutant, folder):
        return Verdict(_first_failure(folder, tests), time.monotonic() - began_s)


def _first_failure(folder: Path, tests: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    paths = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing ended within {TIMEOUT_S} s"
    if ran.returncode == 0:
        return ""
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert failed, f"pytest did not run:\n{ran.stdout}\n{ran.stderr}"
    name = failed[0].split(" ", 1)[1].split(" - ")[0]
    return name.removeprefix("tests/")


def told_by(folder: Path, program: Path, *words: str) -> str:
    """The last line of what a program of the copy prints, or of its error; "" when it is silent."""
    paths = os.pathsep.join((str(folder), str(folder / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            [sys.executable, str(folder / program.relative_to(ROOT)), *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing ended within {TIMEOUT_S} s"
    lines = (ran.stdout if ran.returncode == 0 else ran.stderr).splitlines()
    return lines[-1] if lines else ""


def pass_gate(mutants: Sequence[Mutant], notice: Callable[[Path], str]) -> int:
    """Try all, print what noticed each; 1 when one lives on. `notice` looks at the copy."""
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="olnode-mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        assert not (broken := notice(folder)), f"fails without a mutant: {broken}"
        for mutant in mutants:
            began_s = time.monotonic()
            with mutated(mutant, folder):
                noticed = notice(folder)
            survivors += not noticed
            told = f"{noticed or 'SURVIVED'}  ({time.monotonic() - began_s:.0f} s)"
            print(f"{mutant.name:>3}  {mutant.fault:<52} {told}", flush=True)  # noqa: T201
    print(f"{len(mutants) - survivors} of {len(mutants)} noticed")  # noqa: T201
    return 1 if survivors else 0


def copy_tree(folder: Path) -> None:
    """What tests need, without caches."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def main() -> int:
    """Try all mutants, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="1 to 15, g1 to g8")
    parser.add_argument("--search", action="store_true", help="ask the random runs instead")
    given = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="olnode-mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        tests = SEARCH if given.search else tuple(dict.fromkeys((*RULES, *STORAGE)))
        assert not (broken := _first_failure(folder, tests)), f"fails without a mutant: {broken}"
        for mutant in chosen:
            verdict = try_mutant(mutant, folder, SEARCH if given.search else mutant.tests)
            if not verdict.killer:
                survivors.append(mutant)
            told = f"{verdict.killer or 'SURVIVED'}  ({verdict.took_s:.0f} s)"
            print(f"{mutant.name:>3}  {mutant.fault:<52} {told}", flush=True)  # noqa: T201
    rules = [mutant for mutant in survivors if mutant.name.isdigit()]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed")  # noqa: T201
    is_good = len(rules) <= SURVIVORS_MAX and len(rules) == len(survivors)
    return 0 if is_good or given.search else 1


if __name__ == "__main__":
    sys.exit(main())
