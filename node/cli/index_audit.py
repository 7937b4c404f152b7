"""`olnode index audit`: make some rows of an index again, and see whether they are what was posted.

Why by hand too: who publishes is audited by drawn auditors, and anybody who holds the records can
do the same with any rows; the seed of the draw is printed, so another can repeat it.
What it does not know: how a row is made (`attribution/rowaudit.py`), what a bad one costs.
"""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.arguments import hash_in, read_file
from node.cli.frame import NOT_VERIFIED, CommandError, Frame, frame_of, note, usage

if TYPE_CHECKING:
    from node.attribution.attribute import Place
    from node.attribution.datanets import Record
    from node.attribution.index import Index
    from node.attribution.rowaudit import Folders, RowAudit
    from node.attribution.tokens import TextTokenizer
    from node.attribution.wholeaudit import WholeAudit

CONTENT_BYTES_MAX: Final = 1 << 30
SHOWN_MAX: Final = 20  # bad rows in text


def audit(
    ctx: typer.Context,
    which: Annotated[
        str, typer.Argument(help="the index's root, held in this home, or its folder")
    ],
    records: Annotated[
        list[str] | None, typer.Option(help="NUMBER=FILE of a contribution's records; repeat")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="folder of the base; else the home's")] = None,
    early: Annotated[Path | None, typer.Option(help="folder of the early checkpoint")] = None,
    middle: Annotated[Path | None, typer.Option(help="folder of the middle checkpoint")] = None,
    rows: Annotated[int, typer.Option(min=1, max=8_192, help="how many to draw")] = 300,
    seed: Annotated[str | None, typer.Option(help="of the draw, 64 hex digits")] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="clusters and basis too; all records must be given")
    ] = False,
) -> None:
    """Make drawn rows again and compare each half: its cosine must be 0.995 at least.

    Exit 0 when all given rows are alike, 6 when one is not. Rows whose records are not given are
    not looked at, and counted. With --whole no weight of the basis may differ by more than 2 %,
    every record must be in its cluster, and whatever has a gradient must have a row. Needs torch.
    """
    from consensus.primitives.errors import Invalid
    from node.attribution.rowaudit import audit_rows, draw
    from node.serving.engine import EngineError

    frame = frame_of(ctx)
    chosen = hash_in(seed, "--seed") if seed is not None else secrets.token_bytes(32)
    try:
        held = _open(frame, which)
        folders = _folders(frame, held, base, early, middle)
        texts = _records(records or [])
        note(f"making {min(rows, held.header.rows)} rows again")
        drawn = draw(chosen, held, rows)
        tokenizer = tokenizer_of(Path(folders.base))
        found = audit_rows(held, drawn, texts, folders, tokenizer)
        all_of_it = _audit_whole(held, texts, folders, tokenizer) if whole else None
    except (Invalid, EngineError, OSError) as error:
        raise CommandError(f"no audit: {error}", code=getattr(error, "code", "")) from error
    if not found.rows:
        usage("no drawn row is of the records given", "--records NUMBER=FILE for contributions")
    is_good = not found.bad and (all_of_it is None or all_of_it.is_good)
    if is_good or not frame.as_json:
        lines = [*_lines(held, chosen, found), *_whole_lines(all_of_it)]
        fields = {**_fields(held, chosen, found), "whole": _whole_fields(all_of_it)}
        frame.show("index.audit/1", fields, [*lines, "VERIFIED"] if is_good else lines)
    if found.bad:
        worst = [f"row {bad.row}: {bad.why}" for bad in found.bad[:SHOWN_MAX]]
        raise CommandError(
            f"{len(found.bad)} of {found.rows} rows are not what their records give: {worst}",
            status=NOT_VERIFIED,
            code="index.rows",
        )
    if not is_good:
        raise CommandError(
            f"the index is not what its records give: {'; '.join(_whole_lines(all_of_it))}",
            status=NOT_VERIFIED,
            code="index.whole",
        )


def _audit_whole(
    held: "Index",
    texts: "dict[Place, Record]",
    folders: "Folders",
    tokenizer: "TextTokenizer",
) -> "WholeAudit":
    """Of records that are the whole snapshot; ends the command for others."""
    from node.attribution.datanets import contribution_root, place_records, snapshot_root
    from node.attribution.wholeaudit import audit_whole

    members: dict[int, list[Record]] = {}
    for (number, _), record in sorted(texts.items()):
        members.setdefault(number, []).append(record)
    given = [(number, contribution_root(some)) for number, some in sorted(members.items())]
    if snapshot_root(given) != held.header.snapshot_root:
        usage(
            "--whole: the records given are not the index's snapshot",
            "--records NUMBER=FILE for each contribution of it",
        )
    note(f"making the basis of {held.header.records} records again")
    return audit_whole(held, place_records(members.items()), folders, tokenizer)


def _whole_fields(found: "WholeAudit | None") -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "basis_records": found.basis_records,
        "weight_ppm": found.weight_ppm,
        "joined": found.joined,
        "omitted": [list(place) for place in found.omitted],
    }


def _whole_lines(found: "WholeAudit | None") -> list[str]:
    if found is None:
        return []
    lines = [
        f"basis of {found.basis_records} records: its weights differ by "
        f"{found.weight_ppm / 1e4:.4f} % at most"
    ]
    if found.joined is not None:
        number, position = found.joined
        lines.append(f"record {number}.{position} is not in its cluster")
    if found.omitted:
        shown = [f"{number}.{position}" for number, position in found.omitted[:SHOWN_MAX]]
        lines.append(f"{len(found.omitted)} records have a gradient and no row: {shown}")
    return lines


def _open(frame: Frame, which: str) -> "Index":
    """By its root in the home, or the folder that is named by it."""
    from node.attribution.index import Index, read_header
    from node.ledger.wire.claims import encode_header, index_root

    folder = Path(which)
    if not folder.is_dir():
        folder = frame.initialised().home / "indexes" / hash_in(which, "INDEX").hex()
    return Index.open(folder, index_root(encode_header(read_header(folder))))


def _folders(
    frame: Frame, held: "Index", base: Path | None, early: Path | None, middle: Path | None
) -> "Folders":
    """Those given, or the home's, by the hashes of the index; ends the command for others."""
    from node.attribution.rowaudit import Folders
    from node.serving.adapters import base_hash, read_adapter

    header = held.header
    wanted = (
        ("base", base, "models", header.base),
        ("early", early, "adapters", header.early),
        ("middle", middle, "adapters", header.middle),
    )
    chosen = []
    for name, given, room, identity in wanted:
        folder = given or frame.initialised().home / room / identity.hex()
        if not folder.is_dir():
            usage(f"{folder} is not here", f"--{name} FOLDER")
        found = base_hash(folder) if name == "base" else read_adapter(folder).hash
        if found != identity:
            usage(f"{folder} is not the {name} that the index was made with")
        chosen.append(str(folder))
    return Folders(*chosen)


def tokenizer_of(base: Path) -> "TextTokenizer":
    """The base's; raises CommandError where its files do not make one."""
    from consensus.primitives.errors import Invalid
    from node.attribution.tokens import open_tokenizer

    try:
        return open_tokenizer(base)
    except Invalid as error:
        raise CommandError(f"{base} has no tokenizer: {error}", code=error.code) from error


def _records(given: list[str]) -> "dict[Place, Record]":
    """By contribution and position; ends the command for what is no NUMBER=FILE."""
    from node.attribution.datanets import parse_records

    texts: dict[Place, Record] = {}
    for word in given:
        number, equals, file = word.partition("=")
        if not equals or not (number.isascii() and number.isdecimal()):
            usage(f"--records {word!r} is not NUMBER=FILE")
        found = parse_records(read_file(Path(file), CONTENT_BYTES_MAX))
        texts.update({(int(number), place): record for place, record in enumerate(found)})
    return texts


def _fields(held: "Index", seed: bytes, found: "RowAudit") -> dict[str, Any]:
    return {
        "index": held.root.hex(),
        "seed": seed.hex(),
        "index_rows": held.header.rows,
        "rows": found.rows,
        "missing": found.missing,
        "least_ppm": found.least_ppm,
        "bad": [
            {
                "row": bad.row,
                "contribution": bad.contribution,
                "position": bad.position,
                "early_ppm": bad.early_ppm,
                "middle_ppm": bad.middle_ppm,
                "why": bad.why,
            }
            for bad in found.bad
        ],
    }


def _lines(held: "Index", seed: bytes, found: "RowAudit") -> list[str]:
    return [
        f"index {held.root.hex()}, {held.header.rows} rows; drawn by --seed {seed.hex()}",
        f"{found.rows} rows made again, {found.missing} without their record",
        f"lowest cosine of a half: {found.least_ppm / 1e6:.6f}",
    ]
