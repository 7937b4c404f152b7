"""`olnode start`: the node of this home, in the foreground, until Ctrl-C or `olnode stop`.

Keys are unlocked here, by role, before anything is opened: a wrong password costs nothing. The
daemon gets keys and settings and asks nobody.
"""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.frame import INTERRUPTED, Frame, frame_of, new_noun, note
from node.cli.passwords import read_password

if TYPE_CHECKING:
    from node.config import Settings

app = new_noun()


@app.command()
def start(
    ctx: typer.Context,
    role: Annotated[
        list[str] | None, typer.Option(help="validator, provider, payer; else the config's")
    ] = None,
    password_file: Annotated[
        str | None, typer.Option(help="file whose first line is the password")
    ] = None,
) -> int:
    """Run the node of this home."""
    from node import observe
    from node.collecting import collect_seldom

    # Read when numpy is imported: more of BLAS's threads would spin beside the loop.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    frame = frame_of(ctx)
    settings = frame.initialised(roles=role or None)
    log = settings.config.log
    observe.set_up(log.level, log.format, log.levels)
    if settings.config.profile == "devnet":
        note("profile devnet: the keys lie in the clear; never put value on this chain")
    keys = _unlocked(frame, settings, password_file)
    collect_seldom()
    import trio

    from node.daemon import Keys, run

    try:
        trio.run(run, settings, Keys(**keys))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _unlocked(frame: Frame, settings: "Settings", password_file: str | None) -> dict[str, Any]:
    """The keys that the roles need, each opened once; one password for all of a home."""
    config = settings.config
    store = frame.keystore(settings)
    names: dict[str, str | None] = {
        "node": "node",
        "validator": "validator" if "validator" in config.roles else None,
        "spending": config.payer.spending_key if "payer" in config.roles else None,
    }
    sealed = any(store.get(name).is_sealed for name in names.values() if name)
    password = read_password(password_file, "password") if sealed else None
    keys: dict[str, Any] = {}
    for role, name in names.items():
        keys[role] = store.unlock(name, password) if name else None
    return keys
