"""`olnode config`: the settings that count, where each comes from, and whether they hold."""

from typing import Annotated

import typer

from node.cli.frame import frame_of, new_noun, table

app = new_noun("Show and validate the settings.")


@app.command()
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="where each value comes from")] = False,
) -> None:
    """Every key with the value that counts."""
    from node import config

    frame = frame_of(ctx)
    rows = config.show(frame.settings())
    fields = {
        "home": str(frame.home),
        "values": {key: value for key, value, _ in rows},
        "origins": {key: where for key, _, where in rows},
    }
    head = ("key", "value", "origin") if origin else ("key", "value")
    shown = [(key, _text(value), where)[: len(head)] for key, value, where in rows]
    frame.show("config.show/1", fields, table(head, shown))


@app.command()
def validate(ctx: typer.Context) -> None:
    """Check file, environment and flags; exit 78 names the first fault."""
    frame = frame_of(ctx)
    settings = frame.settings()
    path = settings.home / "config.toml"
    what = str(path) if path.exists() else f"no {path}: defaults"
    frame.show("config.validate/1", {"home": str(frame.home), "valid": True}, [f"{what}: valid"])


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return "-" if value == "" else str(value)
