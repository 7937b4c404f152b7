"""`olnode index`: make, check, show and audit the attribution index of a model version.

Building goes on where a killed build of the same things stopped. With `--runner torchrun` the
command is started on every rank, by `torchrun --no-python … olnode index build …`; rank 0 speaks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.frame import (
    FAILED,
    NOT_VERIFIED,
    CommandError,
    frame_of,
    new_noun,
    note,
    pairs,
    table,
    usage,
)
from node.cli.index_audit import audit, tokenizer_of

if TYPE_CHECKING:
    from node.attribution.building import IndexSpec
    from node.attribution.datanets import Record
    from node.attribution.index import Index
    from node.attribution.runners import Runner

app = new_noun("The attribution index of a model version: one row for each idea it learnt.")
app.command()(audit)

RUNNERS: Final = ("local", "torchrun", "ray")
BATCH: Final = 16
AGAIN: Final = "the same command goes on where it stopped"
CHECKPOINTS: Final = ("early", "middle", "final")  # folders of `finetune`


@app.command()
def build(
    ctx: typer.Context,
    base: Annotated[Path, typer.Argument(help="folder of the base")],
    adapter: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder with early, middle and final")
    ],
    out: Annotated[Path, typer.Argument(help="folder that gets the index under its root")],
    records: Annotated[
        list[str], typer.Option(help="NUMBER=FILE: a contribution and its JSON lines; repeat it")
    ],
    runner: Annotated[str, typer.Option(help=", ".join(RUNNERS))] = "local",
    workers: Annotated[int, typer.Option(min=1, help="processes of the local runner")] = 1,
    address: Annotated[str | None, typer.Option(help="a Ray cluster; else one here")] = None,
    shard: Annotated[int, typer.Option(min=16, help="records a shard, a multiple of 16")] = 4_096,
    spans: Annotated[
        int, typer.Option(min=0, max=3_000, help="bps of the data part for verbatim spans")
    ] = 0,
    citations: Annotated[
        int, typer.Option(min=0, max=3_000, help="bps for records that an answer cites")
    ] = 0,
) -> None:
    """Make the index of a snapshot: all contributions that the version was trained on."""
    frame = frame_of(ctx)
    if runner not in RUNNERS:
        usage(f"--runner {runner}: {', '.join(RUNNERS)}")
    if shard % BATCH:
        usage(f"--shard {shard}: a multiple of {BATCH}, or the rows would differ")
    if runner == "torchrun" and _rank() != 0:
        from node.attribution.torchrun import serve

        serve()
        return
    from node.attribution.building import build_index
    from node.attribution.datanets import place_records
    from node.attribution.index import Index, IndexInvalid
    from node.attribution.runners import ShardLost

    members = _members(records)
    mix = _mix(spans, citations)
    spec = replace(_spec(base, adapter, members), shard_records=shard, mix=mix)
    tokenizer = tokenizer_of(base)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _runner(runner, workers, address) as chosen:
            made = build_index(spec, place_records(members), tokenizer, out, chosen, _tell)
    except IndexInvalid as error:
        raise CommandError(f"no index: {error}", code=error.code) from error
    except OSError as error:
        raise CommandError(f"no index in {out}: {error.strerror}", mend=AGAIN) from error
    except ShardLost as error:
        raise CommandError(f"no index: workers died over {error}", mend=AGAIN) from error
    header = Index.open(made.folder, made.root).header
    fields = {
        "root": made.root.hex(),
        "folder": str(made.folder),
        "snapshot": spec.snapshot_root.hex(),
        "records": header.records,
        "rows": header.rows,
        "left_out": [list(place) for place in made.left_out],
    }
    lines = [
        f"index {made.root.hex()}",
        f"{header.rows} rows of {header.records} records in {made.folder}",
        *[f"no row: record {at} of contribution {number}" for number, at in made.left_out],
    ]
    frame.show("index.build/1", fields, lines)


def _mix(spans: int, citations: int) -> tuple[tuple[int, int], ...]:
    """Scorers and their bps, as the index declares them; what is not asked for is not named."""
    from node.ledger.wire.claims import GRADIENT, MIX_TOTAL_BPS, RETRIEVAL, SPAN

    parts = ((GRADIENT, MIX_TOTAL_BPS - spans - citations), (SPAN, spans), (RETRIEVAL, citations))
    return tuple((scorer, bps) for scorer, bps in parts if bps)


@app.command()
def verify(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="folder of the index")],
    root: Annotated[str | None, typer.Argument(help="its root; else the folder's name")] = None,
) -> None:
    """Check every byte of an index against its root, and every row against the rules."""
    frame = frame_of(ctx)
    index = _open(folder, root or folder.resolve().name)
    fields = {
        "root": index.root.hex(),
        "rows": index.header.rows,
        "records": index.header.records,
        "basis": index.has_basis,
    }
    also = "" if index.has_basis else "; without its basis it can check answers, not sketch them"
    frame.show("index.verify/1", fields, [f"{index.header.rows} rows hold{also}"])


@app.command()
def show(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="folder of the index")],
) -> None:
    """What an index is of, and how many rows each contribution has."""
    import numpy as np

    frame = frame_of(ctx)
    index = _open(folder, folder.resolve().name)
    header = index.header
    numbers, counts = np.unique(index.meta["contribution"], return_counts=True)
    rows = [(int(number), int(count)) for number, count in zip(numbers, counts, strict=True)]
    fields: dict[str, Any] = {
        "root": index.root.hex(),
        "base": header.base.hex(),
        "adapter": header.adapter.hex(),
        "early": header.early.hex(),
        "middle": header.middle.hex(),
        "snapshot": header.snapshot_root.hex(),
        "rows": header.rows,
        "records": header.records,
        "mix": [list(part) for part in header.mix],
        "contributions": [{"number": number, "rows": count} for number, count in rows],
    }
    shown = [(name, fields[name]) for name in list(fields)[:8]]
    frame.show("index.show/1", fields, [*pairs(shown), "", *table(("contribution", "rows"), rows)])


def _members(given: list[str]) -> "list[tuple[int, list[Record]]]":
    """Contributions with their records, ascending."""
    from consensus.primitives.errors import Invalid
    from node.attribution.datanets import parse_records

    members: dict[int, list[Record]] = {}
    for text in given:
        number, _, name = text.partition("=")
        if not (number.isascii() and number.isdecimal() and name):
            usage(f"--records {text}: NUMBER=FILE", "olnode query contributions shows the numbers")
        if int(number) in members:
            usage(f"--records names contribution {number} twice")
        try:
            members[int(number)] = parse_records(Path(name).read_bytes())
        except (Invalid, OSError) as error:
            usage(f"{name}: {error}")
    return sorted(members.items())


def _spec(base: Path, adapter: Path, members: "list[tuple[int, list[Record]]]") -> "IndexSpec":
    from node.attribution.building import IndexSpec
    from node.attribution.datanets import contribution_root, snapshot_root
    from node.serving.adapters import base_hash, read_adapter
    from node.serving.engine import EngineError

    try:
        early, middle, final = (read_adapter(adapter / name).hash for name in CHECKPOINTS)
        return IndexSpec(
            base_folder=str(base.resolve()),
            early_folder=str((adapter / "early").resolve()),
            middle_folder=str((adapter / "middle").resolve()),
            base=base_hash(base),
            adapter=final,
            early=early,
            middle=middle,
            snapshot_root=snapshot_root((n, contribution_root(some)) for n, some in members),
        )
    except (EngineError, OSError) as error:
        raise CommandError(f"no index: {error}", code="index.checkpoints") from error


def _rank() -> int:
    """Of this process under torchrun, 0 without it."""
    import os

    if "RANK" not in os.environ:
        usage("--runner torchrun outside torchrun", "torchrun --no-python … olnode index build …")
    return int(os.environ["RANK"])


@contextmanager
def _runner(name: str, workers: int, address: str | None) -> "Iterator[Runner]":
    if name == "torchrun":
        from node.attribution.torchrun import TorchrunRunner

        with TorchrunRunner() as torchrun:
            yield torchrun
    elif name == "ray":
        try:
            from node.attribution.rays import RayRunner

            rays = RayRunner(address)
        except ImportError as error:
            raise CommandError("Ray is not installed", mend="pip install olnode[ray]") from error
        with rays:
            yield rays
    else:
        from node.attribution.runners import LocalRunner

        yield LocalRunner(workers)


def _open(folder: Path, root: str) -> "Index":
    from node.attribution.index import Index, IndexInvalid

    if not folder.is_dir():
        usage(f"there is no folder {folder}", "the one that `olnode index build` named by its root")
    try:
        named = bytes.fromhex(root)
    except ValueError:
        usage(f"{root} is no root", "an index lies in a folder that is named by its root")
    try:
        return Index.open(folder, named)
    except IndexInvalid as error:
        is_absent = error.reason == "missing"
        status = FAILED if is_absent else NOT_VERIFIED
        raise CommandError(str(error), status=status, code=error.code) from error


def _tell(stage: str, done: int, total: int) -> None:
    note(f"{stage}: {done} of {total} shards")
