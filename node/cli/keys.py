"""`olnode keys`: the keys of this home, sealed by a password, never shown.

An operator key has 24 words, shown once and asked back; all others are random, and a sealed copy
(`keys export`) is their only safety. Nothing is ever overwritten. A validator moves with its last
word (`export-validator`), or it could sign twice.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli.frame import Frame, frame_of, new_noun, note, pairs, table, usage
from node.cli.passwords import read_password
from node.ledger.addresses import account_text

if TYPE_CHECKING:
    from node.moving import Moved
    from node.wallet.keystore import KeyFile, Keystore

app = new_noun("Add, list, show, export, import keys.")

WORDS_ASKED_BACK: Final = (5, 17)  # by position, from 1

PasswordFile = Annotated[str | None, typer.Option(help="file whose first line is the password")]


@app.command()
def add(
    ctx: typer.Context,
    name: str,
    role: Annotated[str, typer.Option(help="operator, node, validator or spending")] = "operator",
    password_file: PasswordFile = None,
) -> None:
    """Make a new key. An operator key shows its 24 words, on a terminal only."""
    from node.wallet.keystore import ROLES, new_words, seed_of_words

    frame, store, in_clear = _opened(ctx)
    if role not in ROLES:
        usage(f"{role!r} is no role: {', '.join(ROLES)}")
    if any(key.name == name for key in store.list()):
        usage(f"there is a key named {name}", "olnode keys list")
    seed = None
    if role == "operator" and not in_clear:
        words = new_words()
        _show_words(words)
        seed = seed_of_words(words)
    password = None if in_clear else read_password(password_file, "password", again=True)
    key = store.add(name, role, password, seed)  # type: ignore[arg-type]  # one of ROLES
    _tell(frame, "keys.add/1", key)
    if role in ("node", "validator"):
        note(f"keep a sealed copy: olnode keys export {name} FILE")


@app.command(name="list")
def list_keys(ctx: typer.Context) -> None:
    """All keys of this home."""
    frame, store, _ = _opened(ctx)
    found = store.list()
    head = ("name", "role", "account", "sealed")
    rows = [
        (k.name, k.role, account_text(k.public_key), "yes" if k.is_sealed else "NO") for k in found
    ]
    frame.show("keys.list/1", {"keys": [_fields(key) for key in found]}, table(head, rows))


@app.command()
def show(ctx: typer.Context, name: str) -> None:
    """One key: its account and public key, never its secret."""
    frame, store, _ = _opened(ctx)
    _tell(frame, "keys.show/1", store.get(name))


@app.command()
def export(ctx: typer.Context, name: str, file: Path) -> None:
    """Write a copy of the sealed file, to be kept elsewhere."""
    frame, store, _ = _opened(ctx)
    store.export(name, file)
    key = store.get(name)
    if not key.is_sealed:
        note("this copy is not sealed: who reads it has the key")
    fields = {**_fields(key), "file": str(file)}
    frame.show("keys.export/1", fields, [f"{name} is in {file}"])


@app.command(name="import")
def import_key(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="an exported file")] = None,
    name: Annotated[str | None, typer.Option(help="another name than the file's")] = None,
    words: Annotated[bool, typer.Option("--words", help="24 words from stdin instead")] = False,
    index: Annotated[int, typer.Option(help="which account of the words")] = 0,
    password_file: PasswordFile = None,
) -> None:
    """Take in an exported key file, or an operator key from its 24 words."""
    from node.wallet.keystore import seed_of_words

    frame, store, in_clear = _opened(ctx)
    if words == (file is not None):
        usage("either a file or --words")
    if file is not None:
        _tell(frame, "keys.import/1", store.import_file(file, name))
        return
    if not name or not 0 <= index < 2**31:
        usage("--words needs --name, and --index is a small number")
    note("24 words, then Enter:")
    seed = seed_of_words(sys.stdin.readline(), index)
    password = None if in_clear else read_password(password_file, "password", again=True)
    _tell(frame, "keys.import/1", store.add(name, "operator", password, seed))


@app.command()
def passwd(
    ctx: typer.Context,
    name: str,
    password_file: PasswordFile = None,
    new_password_file: Annotated[str | None, typer.Option(help="file of the new one")] = None,
) -> None:
    """Seal a key by another password."""
    frame, store, in_clear = _opened(ctx)
    sealed = store.get(name).is_sealed
    old = read_password(password_file, "old password") if sealed else None
    new = None if in_clear else read_password(new_password_file, "new password", again=True)
    store.change_password(name, old, new)
    _tell(frame, "keys.passwd/1", store.get(name))


@app.command()
def export_validator(ctx: typer.Context, file: Path) -> None:
    """Stop validating here for good, and write key and last word to FILE for another home."""
    from node import moving

    frame, store, _ = _opened(ctx)
    frame.confirm("This home will not validate any more. Move its validator out?")
    moved = moving.export_validator(frame.home, _genesis(frame), store, file)
    _tell_moved(frame, "keys.export-validator/1", moved, file)
    note("import it in one home only: olnode keys import-validator FILE, then delete the file")
    if not moved.key.is_sealed:
        note("this file is not sealed: who reads it has the key")


@app.command()
def import_validator(ctx: typer.Context, file: Path) -> None:
    """Validate from this home with what `export-validator` wrote elsewhere."""
    from node import moving

    frame, store, _ = _opened(ctx)
    moved = moving.import_validator(frame.home, _genesis(frame), store, file)
    _tell_moved(frame, "keys.import-validator/1", moved, file)
    config = frame.settings().config
    if "validator" not in config.roles:
        note('it signs nothing yet: add "validator" to roles in config.toml')
    wait_s = config.consensus.doppelganger_wait_s
    note(f"after the start it listens {wait_s:g} s for its own key before it signs")


def _genesis(frame: Frame) -> Path:
    return frame.home / frame.settings().config.chain.genesis


def _tell_moved(frame: Frame, schema: str, moved: "Moved", file: Path) -> None:
    fields = {
        **_fields(moved.key),
        "chain_id": moved.chain_id.hex(),
        "last_height": moved.last_height,
        "file": str(file),
    }
    frame.show(schema, fields, pairs(fields.items()))


def _opened(ctx: typer.Context) -> tuple[Frame, "Keystore", bool]:
    frame = frame_of(ctx)
    settings = frame.initialised()
    return frame, frame.keystore(settings), settings.config.profile == "devnet"


def _fields(key: "KeyFile") -> dict[str, Any]:
    return {
        "name": key.name,
        "role": key.role,
        "account": account_text(key.public_key),
        "public_key": key.public_key.hex(),
        "sealed": key.is_sealed,
    }


def _tell(frame: Frame, schema: str, key: "KeyFile") -> None:
    fields = _fields(key)
    frame.show(schema, fields, pairs(fields.items()))


def _show_words(words: str) -> None:
    """On the terminal, once; two are asked back, so that they were written down."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        usage(
            "the 24 words of an operator key are shown on a terminal only",
            "run it on a terminal, or olnode keys import --words --name NAME",
        )
    told = words.split()
    note("Write these words down, in order. Who has them has the account; they are not kept here.")
    for row in range(0, len(told), 6):
        note("  " + "  ".join(f"{i + 1:2d} {told[i]:<9}" for i in range(row, row + 6)))
    for position in WORDS_ASKED_BACK:
        sys.stderr.write(f"word {position}: ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() != told[position - 1]:
            usage("that is another word: nothing was made")
    note("\x1b[2J\x1b[H")  # off the screen
