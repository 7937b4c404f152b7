"""`olnode version`: what this program, its home and the rules it knows are called."""

import sys
from importlib.metadata import version as installed_version

import typer

from node.cli.frame import frame_of, new_noun, pairs

app = new_noun()


@app.command()
def version(ctx: typer.Context) -> None:
    """Show the versions of program, home and rules."""
    from node.config import HOME_VERSION
    from node.ledger.genesis import APP_VERSION

    fields = {
        "version": installed_version("olnode"),
        "app_version": APP_VERSION,
        "home_version": HOME_VERSION,
        "python": sys.version.split()[0],
    }
    frame_of(ctx).show("version/1", fields, pairs(fields.items()))
