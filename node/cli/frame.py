"""What every command shares: common options, the home, output for people or programs, errors.

Results go to stdout, all else to stderr; `-o json` prints one object whose first field names its
schema. An error is what happened, then `mend:` with the safest remedy as a command to paste.
What it does not know: any noun.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from node.config import Settings
    from node.wallet.keystore import Keystore
    from node.web.ask import Node

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_INITIALISED: Final = 3
UNREACHABLE: Final = 4
FUNDS: Final = 5
NOT_VERIFIED: Final = 6
DAMAGED: Final = 7
CONFIGURATION: Final = 78
SIGNALLED: Final = 128  # + the signal's number, as a shell tells it
INTERRUPTED: Final = 130


class CommandError(Exception):
    """A command cannot do as asked; `exit_status` is one of the statuses above."""

    def __init__(
        self, what: str, *, status: int = FAILED, mend: str = "", why: str = "", code: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.exit_status = status
        self.mend = mend
        self.why = why
        self.code = code


@dataclass(frozen=True, slots=True)
class Frame:
    """The common options of one call."""

    home_flag: str | None
    profile: str | None
    instance: int | None
    as_json: bool
    log_level: str | None
    yes: bool

    @property
    def home(self) -> Path:
        """The home folder, absolute; it may not exist yet."""
        from node.config import find_home

        return find_home(self.home_flag, os.environ)

    def flags(self, **more: Any) -> dict[str, Any]:
        """Dotted config keys that the command line sets."""
        common = {
            "profile": self.profile,
            "instance": self.instance,
            "log.level": self.log_level,
        }
        return {key: value for key, value in {**common, **more}.items() if value is not None}

    def settings(self, **more: Any) -> "Settings":
        """The checked settings of the home. Raises ConfigError."""
        from node.config import load

        return load(self.home, flags=self.flags(**more))

    def initialised(self, **more: Any) -> "Settings":
        """The same of a home that `olnode init` made, of a version that we know."""
        from node.config import HOME_VERSION

        version = self.home / "version"
        if not version.exists():
            raise CommandError(
                f"{self.home} is not a home of olnode",
                status=NOT_INITIALISED,
                mend="olnode init --genesis FILE",
            )
        told = version.read_text("ascii", "replace").strip()
        if told != str(HOME_VERSION):
            raise CommandError(
                f"{self.home} has version {told}, this olnode knows {HOME_VERSION}",
                status=NOT_INITIALISED,
                mend="install the newer olnode",
            )
        return self.settings(**more)

    def keystore(self, settings: "Settings") -> "Keystore":
        """The keys of the home."""
        from node.wallet.keystore import Keystore

        in_clear = settings.config.profile == "devnet"
        return Keystore(settings.home / "keystore", in_clear=in_clear)

    def daemon(self, *, timeout_s: float = 30.0) -> "Node":
        """The running daemon of this home; asking it raises Unreachable (4) when there is none."""
        from node.web.ask import Node

        return Node(self.initialised().socket_path, timeout_s=timeout_s)

    def show(self, schema: str, fields: Mapping[str, Any], lines: Iterable[str]) -> None:
        """The result: `fields` as one object under `olnode.<schema>`, or `lines` for people."""
        if self.as_json:
            print(json.dumps({"schema": f"olnode.{schema}", **fields}, ensure_ascii=False))
        else:
            for line in lines:
                print(line)

    def confirm(self, question: str) -> None:
        """Ask on the terminal unless --yes; a no, or no terminal, ends the command."""
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise CommandError(f"{question} Not asked: no terminal", status=USAGE, mend="--yes")
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was done")


def new_noun(help: str | None = None) -> typer.Typer:
    """The app of one noun; with `help` it is a group, without it a single command."""
    return typer.Typer(
        help=help,
        no_args_is_help=help is not None,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def frame_of(ctx: typer.Context) -> Frame:
    """The frame that `main.py` put into the context."""
    frame = ctx.find_root().obj
    assert isinstance(frame, Frame)
    return frame


def note(text: str) -> None:
    """Progress or a warning: to stderr."""
    print(text, file=sys.stderr, flush=True)


def usage(what: str, mend: str = "") -> NoReturn:
    """Refuse a call that cannot be meant."""
    raise CommandError(what, status=USAGE, mend=mend)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ["(none)"]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [list(head), *cells]
    ]


def pairs(rows: Iterable[tuple[str, object]]) -> list[str]:
    """`name  value` lines, names padded to one width."""
    told = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in told), default=0)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in told]


def open_text(grains: int | str) -> str:
    """An amount for people, from a number or from the text that it is in an answer."""
    from node.ledger import amounts

    return amounts.open_text(int(grains))


def _is_number(text: str) -> bool:
    return text.removesuffix(" OPEN").removesuffix("%").replace(".", "", 1).isdigit()
