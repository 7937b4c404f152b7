"""`olnode bench`: the budgets of the design beside the figures that this machine reaches.

A bench is a program in `tests/bench/` of the checkout that olnode was installed from, run as a
child process: a node holds no tests. It hands back figures and budgets as one JSON object
(`tests/bench/protocol.py`); options that are not ours are its own.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from node.cli.frame import DONE, FAILED, NOT_INITIALISED, CommandError, frame_of, new_noun, table

ALL: Final = "all"
APART: Final = ("simulate", "sessions", "crash", "flips", "fuzz", "overload", "judging")  # long
SHORT: Final = (
    "finality", "settle", "state", "proofs", "gossip", "blobs", "serving", "attribution"
)  # fmt: skip
BENCHES: Final = (*SHORT, *APART)
PACKAGES: Final = ("olnode", "libp2p", "trio", "plyvel", "PyNaCl", "torch")

app = new_noun()


class Reached(NamedTuple):
    """One budget and the figure beside it."""

    key: str
    sense: str
    limit: float
    figure: float

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps the budget."""
        return self.figure <= self.limit if self.sense == "at most" else self.figure >= self.limit


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHES)} or {ALL}")],
    strict: Annotated[bool, typer.Option("--strict", help="exit 1 on a missed budget")] = False,
) -> int:
    """Run one bench, or all short ones, and show each budget beside the figure reached.

    A bench's own options follow `--`, as in `olnode bench attribution -- --world 2`; `-- --help`
    tells them.
    """
    if name not in (*BENCHES, ALL):
        raise typer.BadParameter(f"one of {', '.join(BENCHES)}, {ALL}", param_hint="NAME")
    folder = _find_benches()
    wanted = SHORT if name == ALL else (name,)
    programs = {each: folder / f"{each}.py" for each in wanted}
    found = {each: path for each, path in programs.items() if path.is_file()}
    if not found:
        raise _missing(f"this checkout has no bench {name}", str(folder))
    before = os.getloadavg()
    results = {each: _run(each, path, ctx.args) for each, path in found.items()}
    about = {"machine": _machine(), "versions": _versions(), "load": [before, os.getloadavg()]}
    reached = {each: _reached(result) for each, result in results.items()}
    shown = {each: _fields(results[each]["figures"], reached[each]) for each in results}
    fields: Mapping[str, Any] = shown if name == ALL else shown[name]
    frame_of(ctx).show(f"bench.{name}/1", {**fields, **about}, _lines(results, reached, about))
    is_missed = any(not each.is_met for rows in reached.values() for each in rows)
    return FAILED if strict and is_missed else DONE


def _find_benches() -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = root / "tests" / "bench"
    if not folder.is_dir():
        raise _missing("olnode was not installed from a checkout: it has no benches", str(root))
    return folder


def _missing(what: str, where: str) -> CommandError:
    return CommandError(
        what,
        status=NOT_INITIALISED,
        why=f"looked in {where}",
        mend="run it in a clone: pip install -e . && olnode bench finality",
    )


def _run(name: str, path: Path, options: list[str]) -> Mapping[str, Any]:
    """The object that a bench prints; its progress goes to our stderr, its help to our stdout."""
    root = path.parents[2]
    paths = os.pathsep.join((str(root), str(root / "tests")))
    command = [sys.executable, str(path), *options]
    ran = subprocess.run(
        command,
        cwd=root,
        env={"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if ran.returncode != 0:
        raise CommandError(f"the bench {name} failed with status {ran.returncode}")
    if ran.stdout and not ran.stdout.startswith(b"{"):
        sys.stdout.write(ran.stdout.decode())
        raise typer.Exit(DONE)
    told = json.loads(ran.stdout) if ran.stdout else {"figures": {}, "budgets": []}
    assert isinstance(told, dict)
    return told


def _reached(result: Mapping[str, Any]) -> list[Reached]:
    figures = result["figures"]
    return [Reached(key, sense, limit, figures[key]) for key, sense, limit in result["budgets"]]


def _fields(figures: Mapping[str, Any], reached: list[Reached]) -> dict[str, Any]:
    budgets = [{**each._asdict(), "met": each.is_met} for each in reached]
    return {**figures, "budgets": budgets}


def _lines(
    results: Mapping[str, Mapping[str, Any]],
    reached: Mapping[str, list[Reached]],
    about: Mapping[str, Any],
) -> Iterator[str]:
    rows = []
    for name, result in results.items():
        budgets = {each.key: each for each in reached[name]}
        for key, figure in _flat(result["figures"]):
            budget = budgets.get(key)
            asked = "" if budget is None else f"{budget.sense} {budget.limit:g}"
            verdict = "" if budget is None else ("met" if budget.is_met else "MISSED")
            rows.append((name, key, _text(figure), asked, verdict))
    yield from table(("bench", "figure", "reached", "budget", ""), rows)
    machine, load = about["machine"], about["load"]
    yield f"machine  {machine['cpu']}, {machine['cores']} cores, {machine['system']}"
    yield "versions " + ", ".join(f"{name} {said}" for name, said in about["versions"].items())
    yield f"load     {load[0][0]:.2f} before, {load[1][0]:.2f} after"


def _flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Each figure with its name; one that holds others, such as those of each seed, as these."""
    for key, figure in figures.items():
        if isinstance(figure, Mapping):
            yield from ((f"{key}.{name}", each) for name, each in figure.items())
        else:
            yield key, figure


def _text(figure: object) -> str:
    return f"{figure:,}" if isinstance(figure, int) else str(figure)


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, "unknown")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = installed_version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
