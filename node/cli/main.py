"""The command `olnode`: the table of nouns, the common options, and one exit status per fault.

Why a table: a noun's file is imported only when it is called, so `olnode --help` takes 0.3 s and
loads no torch, libp2p or web server. Common options may stand anywhere before `--`.
Exit: 0 done, 1 failed, 2 usage, 3 not initialised, 4 node unreachable, 5 funds, 6 verification
failed, 7 damage that no restart mends, 78 configuration, 129, 130 and 143 signals.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from node.cli.frame import FAILED, Frame

NOUNS: Final = {  # noun -> module of node.cli, help
    "devnet": ("devnet", "a funded network on this machine"),
    "init": ("init", "make a home: folders, keys, config"),
    "start": ("start", "run the node of this home"),
    "status": ("status", "the running node at a glance"),
    "stop": ("stop", "end the running node in order"),
    "infer": ("infer", "ask a model and pay for the answer"),
    "light": ("light", "follow headers, for verify"),
    "prove": ("prove", "a file that shows what the ledger holds"),
    "verify": ("verify", "check a proof file, offline"),
    "earnings": ("earnings", "what an account earned, and why"),
    "tx": ("tx", "make, sign and send transactions"),
    "query": ("query", "accounts, blocks, receipts, models and more"),
    "model": ("model", "models that this node holds; calibrate a version"),
    "index": ("index", "build, verify, show and audit attribution indexes"),
    "peers": ("peers", "list, add, ban and unban peers"),
    "keys": ("keys", "add, list, show, export, import keys"),
    "snapshot": ("snapshot", "make, list, export, import snapshots"),
    "backup": ("backup", "copy the ledger's state and the settings, never a key"),
    "restore": ("restore", "take the ledger of a backup into this home"),
    "db": ("db", "check, rebuild and size up the files of the ledger"),
    "bench": ("bench", "figures that this machine reaches, beside their budgets"),
    "config": ("config", "show and validate the settings"),
    "version": ("version", "versions of program, home and rules"),
}
COMMON_FLAGS: Final = frozenset({"--yes"})
COMMON_OPTIONS: Final = frozenset({"--home", "--profile", "--instance", "-o", "--log-level"})
SHARED: Final = {  # noun -> flags and options that all its sub-commands take
    "tx": (
        frozenset({"--dry-run", "--no-wait"}),
        frozenset({"--from", "--account", "--max-fee", "--offline", "--password-file"}),
    ),
}
EXITS: Final = (
    "Exit: 0 done, 1 failed, 2 usage, 3 not initialised, 4 node unreachable, 5 funds, "
    "6 verification failed, 7 damage that no restart mends, 78 configuration, 129/130/143 signals."
)


class Nouns(TyperGroup):
    """The group that imports a noun when it is called, not when it is listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The nouns, in the table's order."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A shadow with its help line alone: for listings."""
        if cmd_name not in NOUNS:
            return None
        return TyperCommand(cmd_name, help=NOUNS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, imported now."""
        name, shadow, rest = super().resolve_command(ctx, args)
        if name is None or shadow is None:
            return name, shadow, rest
        module = importlib.import_module(f"node.cli.{NOUNS[name][0]}")
        command = get_command(module.app)
        command.name = name
        return name, command, rest


app = typer.Typer(
    cls=Nouns,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXITS,
)


@app.callback()
def common(
    ctx: typer.Context,
    home: Annotated[str | None, typer.Option(help="home folder")] = None,
    profile: Annotated[str | None, typer.Option(help="devnet, testnet or mainnet")] = None,
    instance: Annotated[int | None, typer.Option(help="adds 10 times itself to ports")] = None,
    output: Annotated[str, typer.Option("-o", help="text or json")] = "text",
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="answer questions with yes")] = False,
) -> None:
    """olnode: peer-to-peer models that pay those whose data shaped the answer."""
    if output not in ("text", "json"):
        raise typer.BadParameter("text or json", param_hint="-o")
    ctx.obj = Frame(home, profile, instance, output == "json", log_level, yes)


def main() -> None:
    """The console script. Ends the process with the status of what happened."""
    if not __debug__:
        sys.stderr.write("olnode: refuses to run with -O or PYTHONOPTIMIZE: its checks are off\n")
        sys.exit(FAILED)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """One call; returns its exit status."""
    hoisted = hoist(arguments)
    try:
        result = get_command(app).main(hoisted, prog_name="olnode", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads us has gone: nothing more to say, and nothing to say at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BaseException as error:  # noqa: BLE001  # the last edge: every fault gets a status
        from node.cli.faults import tell

        return tell(error, as_json=_wants_json(hoisted))
    return result if isinstance(result, int) else 0


def hoist(arguments: Sequence[str]) -> list[str]:
    """The common options first, so that they may stand after the noun too; `--` ends them.

    The options that all sub-commands of a noun share move behind the noun in the same way.
    """
    common_part, rest = _taken(arguments, COMMON_FLAGS, COMMON_OPTIONS)
    if rest and rest[0] in SHARED:
        shared_part, after = _taken(rest[1:], *SHARED[rest[0]])
        rest = [rest[0], *shared_part, *after]
    return common_part + rest


def _taken(
    words: Sequence[str], flags: frozenset[str], options: frozenset[str]
) -> tuple[list[str], list[str]]:
    """(the flags and options with their values, all other words), each in order."""
    taken: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            rest += [word, *waiting]
        elif word in flags or word.partition("=")[0] in options - {word}:
            taken.append(word)
        elif word in options:
            taken += [word, *itertools.islice(waiting, 1)]
        else:
            rest.append(word)
    return taken, rest


def _wants_json(hoisted: Sequence[str]) -> bool:
    return any(pair == ("-o", "json") for pair in itertools.pairwise(hoisted))
