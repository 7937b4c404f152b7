"""Where a password comes from: a file, a credential of the service manager, or the terminal.

Never an argument: those stand in the process list and in the shell's history.
What it does not know: what the password opens.
"""

import os
import sys
from pathlib import Path
from typing import Final

from node.cli.frame import USAGE, CommandError

PASSWORD_BYTES_MAX: Final = 1_024
CREDENTIAL: Final = "olnode-password"


def read_password(file_flag: str | None, question: str, *, again: bool = False) -> str:
    """--password-file > OLNODE_PASSWORD_FILE > the service's credential > a prompt.

    `again` asks twice on a terminal (for a new key). Raises CommandError where nobody can be asked.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    chosen = file_flag or os.environ.get("OLNODE_PASSWORD_FILE")
    if not chosen and credentials and (Path(credentials) / CREDENTIAL).exists():
        chosen = str(Path(credentials) / CREDENTIAL)
    if chosen:
        return _from_file(Path(chosen))
    if not sys.stdin.isatty():
        raise CommandError(
            f"{question}: no terminal to ask on", status=USAGE, mend="--password-file FILE"
        )
    from getpass import getpass

    password = getpass(f"{question}: ", stream=sys.stderr)
    if not password:
        raise CommandError("an empty password protects nothing", status=USAGE)
    if again and getpass("again: ", stream=sys.stderr) != password:
        raise CommandError("the two differ: nothing was done", status=USAGE)
    return password


def _from_file(path: Path) -> str:
    """The file's first line, without its end."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from None
    line = raw.partition(b"\n")[0].rstrip(b"\r")
    if not line or len(line) > PASSWORD_BYTES_MAX:
        raise CommandError(f"{path}: its first line must hold a password")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8") from None
