"""The walls of the house, tested: who may import whom, and what pure floors may not touch.

Why a test and not a habit: money depends on `consensus/` and `node/ledger/` giving equal bytes
on every node, and one look at the clock is enough to fork. A wall that is only written down
gets a door within a month. Every offence is a sentence: file, line, what is wrong, the mend.
What it does not know: calls through injected callables, modules imported by a computed name,
the order of a set. `PLANTED` at the end is the test of the tester.

`python tests/test_architecture.py` prints the tree with its captions, as ARCHITECTURE.md holds it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]  # tests/ lies in the root of the checkout
TOPS = ("consensus", "p2p", "node")

# fmt: off
FLOORS = (  # top down; a room imports itself and lower lines, never upwards, never across its line
    {"node.cli"},
    {"node.devnet", "node.doctor"},
    {"node.daemon", "node.lightclient"},
    {"node.backend", "node.wishes"},
    {"node.metrics"},
    {"node.telling", "node.neighbours"},
    {"node.shop", "node.purse", "node.reasons", "node.refuter", "node.sharecheck",
     "node.sketchaudit", "node.indexaccuser"},
    {"node.sender", "node.belongings"},
    {"node.holdings", "node.moving", "node.diskguard", "node.scrubber"},
    {"node.web", "node.home", "node.precheck"},
    {"node.training"},
    {"node.serving", "node.wallet", "node.peering"},
    {"node.attribution", "node.light", "node.lightshares", "node.following", "node.storage",
     "node.simulate"},
    {"node.ledger"},
    {"consensus", "p2p", "node.config", "node.observe", "node.collecting"},
)
UNPACK_CONFIG = {"node.cli", "node.devnet", "node.doctor", "node.daemon", "node.home",
                 "node.precheck", "node.wishes"}
TORCH_ROOMS = ("node/serving/", "node/training/", "node/attribution/gradients.py",
               "node/attribution/basis.py", "node/attribution/kernels.py",
               "node/attribution/torchrun.py")
ONLY_IN = {  # package -> path prefixes that may import it
    "p2p": ("p2p/", "node/peering/", "node/wallet/", "node/daemon.py", "node/holdings.py",
            "node/lightclient.py", "node/shop.py", "node/purse.py", "node/reasons.py",
            "node/sharecheck.py", "node/telling.py", "node/neighbours.py", "node/metrics.py",
            "node/precheck.py"),
    "libp2p": ("p2p/",),
    "zeroconf": ("p2p/mdns.py",), "ifaddr": ("p2p/mdns.py",),
    "plyvel": ("node/storage/store.py",),
    "nacl": ("consensus/primitives/keys.py", "node/wallet/keystore.py"),
    "ray": ("node/attribution/rays.py",),
    "torch": TORCH_ROOMS, "transformers": TORCH_ROOMS, "peft": TORCH_ROOMS,
}
PURE = ("consensus/", "node/ledger/")
# As pure, but they await what they are given.
ASKS = ("node/light.py", "node/lightshares.py", "node/following.py")
IMPURE_MODULES = {
    "asyncio", "trio", "libp2p", "plyvel", "torch", "transformers", "peft", "socket", "ssl",
    "select", "subprocess", "threading", "multiprocessing", "concurrent", "os", "io", "pathlib",
    "tempfile", "shutil", "signal", "logging", "time", "datetime", "random", "secrets", "uuid",
    "math", "cmath", "decimal", "fractions", "statistics", "locale", "platform",
}
EXACT = {"math.isqrt", "math.gcd", "math.lcm", "math.comb"}  # `from math import isqrt` is fine
IMPURE_NAMES = {"float", "complex", "hash", "id", "open", "print", "input"}  # hash() is salted
HEAVY = {"torch", "transformers", "peft", "libp2p", "zeroconf", "starlette", "structlog"}
LIGHT_ENTRIES = {
    "node.cli.main": HEAVY,
    "node.light": HEAVY | {"trio", "plyvel"},
    "node.lightshares": HEAVY | {"trio", "plyvel", "numpy"},
    "node.following": HEAVY | {"trio", "plyvel"},
    "node.storage.lightfile": HEAVY | {"trio", "plyvel"},
}
# fmt: on

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def python_files(root: Path) -> list[str]:
    """Every source file of the three packages: posix paths from the root, sorted."""
    found = (path for top in TOPS for path in (root / top).rglob("*.py"))
    return sorted(path.relative_to(root).as_posix() for path in found)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(module: str) -> str:
    """The room of a module: `consensus`, `p2p`, or `node.<first name>`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "node" else parts[0]


def imports(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also in functions and under TYPE_CHECKING: all are arrows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:  # `from node.ledger import pool` names node.ledger.pool
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in modules or base in ("node", "math") else base


def arrow_offences(path: str, line: int, target: str) -> Iterator[str]:
    at, me, you = f"{path}:{line}", room(module_name(path)), room(target)
    top = target.split(".")[0]
    if target.startswith("."):
        yield f"{at} relative import: write the whole path, it tells the floor"
        return
    if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
        yield f"{at} imports {top}: only {', '.join(ONLY_IN[top])} may; take a callable instead"
    if you == "node.config" and me not in UNPACK_CONFIG:
        yield f"{at} unpacks Config: take what the part needs as arguments"
    if you == "node.observe" and path.startswith(PURE + ASKS):
        yield f"{at} logs on a pure floor: return what happened"
    if top in TOPS and me != you and me in FLOOR_OF:
        if you not in FLOOR_OF:
            yield f"{at} imports {target}, a room with no floor in FLOORS: give it one"
        elif FLOOR_OF[you] <= FLOOR_OF[me]:
            way = "up" if FLOOR_OF[you] < FLOOR_OF[me] else "across"
            yield f"{at} imports {way}, {me} -> {you}: let daemon.py hand over a callable"
    if path.startswith(PURE + ASKS) and top in IMPURE_MODULES and target not in EXACT:
        yield f"{at} pure floor imports {target}: let the value come in as an argument"


def purity_offences(path: str, tree: ast.Module) -> Iterator[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}  # `for id in …`
    for node in ast.walk(tree):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Constant(value=float() | complex()):
                yield f"{at} float on a pure floor: count grains, milliseconds, basis points"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield f"{at} `/` on a pure floor: use // and say who gets the remainder"
            case ast.Name(id=name, ctx=ast.Load()) if name in IMPURE_NAMES - bound or (
                name in IMPURE_NAMES and id(node) in called
            ):
                yield f"{at} {name}() on a pure floor: differs by process or touches the outside"
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                if not path.startswith(ASKS):
                    yield f"{at} async on a pure floor: return an effect, peering/ performs it"


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def offences(root: Path) -> list[str]:
    """Every broken wall under `root`, as sentences; an empty list means that the house stands."""
    trees = {p: ast.parse((root / p).read_text(encoding="utf-8"), p) for p in python_files(root)}
    modules = {module_name(path) for path in trees}
    arrows: dict[str, set[str]] = {module: set() for module in modules}
    found: list[str] = []
    for path, tree in trees.items():
        me = module_name(path)
        if ast.get_docstring(tree) is None:
            found.append(f"{path}:1 no head: open the file with its caption")
        if path.endswith("__init__.py") and not all(map(is_docstring, tree.body)):
            found.append(f"{path}:1 code in __init__.py: move it to a file with a name")
        if room(me) not in FLOOR_OF and me != "node":
            found.append(f"{path}:1 {room(me)} has no floor in FLOORS: give it one")
        for line, target in imports(tree, modules):
            found += arrow_offences(path, line, target)
            if target in modules and target != me:
                arrows[me].add(target)
        if path.startswith(PURE + ASKS):
            found += purity_offences(path, tree)
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found.append("circle of imports: " + " -> ".join(error.args[1]))
    return found


def captions(root: Path) -> dict[str, str]:
    """path -> first line of its head, for every file but __init__.py."""
    files = [path for path in python_files(root) if not path.endswith("__init__.py")]
    trees = {path: ast.parse((root / path).read_text(encoding="utf-8")) for path in files}
    heads = {path: ast.get_docstring(tree) or "" for path, tree in trees.items()}
    return {path: head.split("\n")[0].rstrip(".") for path, head in heads.items()}


def picture(text: str) -> dict[str, str]:
    """path -> caption, from the lines `path/from/the/root.py  caption` of ARCHITECTURE.md."""
    starts = tuple(f"{top}/" for top in TOPS)
    lines = (line.partition(" ") for line in text.splitlines() if line.startswith(starts))
    return {path: caption.strip().rstrip(".") for path, _, caption in lines}


def test_house_keeps_its_walls() -> None:
    assert offences(ROOT) == []


def test_picture_in_architecture_md_is_true() -> None:
    """Mend: paste what `python tests/test_architecture.py` prints."""
    assert picture((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")) == captions(ROOT)


@pytest.mark.parametrize("entry", LIGHT_ENTRIES)
def test_light_entry_loads_nothing_heavy(entry: str) -> None:
    code = f"import sys, {entry}; print(*({LIGHT_ENTRIES[entry]!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# fmt: off
SOUND = {  # a small house that stands
    "consensus/round.py": "LIMIT = 7",
    "p2p/network.py": "import libp2p",
    "node/__init__.py": "",
    "node/config.py": "import msgspec",
    "node/observe.py": "import structlog",
    "node/ledger/execute.py": "from consensus import round\nfrom math import isqrt\nHALF = 7 // 2",
    "node/light.py": "from node.ledger import execute\nasync def follow(ask): return await ask()",
    "node/storage/store.py": "import plyvel\nimport node.observe",
    "node/attribution/kernels.py": "def scan(): import torch",
    "node/peering/replica.py": "import time\nimport p2p.network\nimport node.storage.store",
    "node/serving/engine.py": "import torch\nRATIO = 1 / 2",
    "node/daemon.py": "import node.config\ndef f(): import node.serving.engine",
}
PLANTED = [  # one fault, and the words that its verdict must hold
    ("ledger climbs to storage", "node/ledger/pool.py", "import node.storage.store", "imports up"),
    ("serving asks peering", "node/serving/remote.py", "import node.peering", "imports across"),
    ("ground floors meet", "p2p/gossip.py", "from consensus import round", "imports across"),
    ("consensus knows money", "consensus/votes.py", "import node.ledger.execute", "imports up"),
    ("config looks up", "node/config.py", "import node.ledger.execute", "imports up"),
    ("lazy arrow", "node/storage/chain.py", "def f(): import node.daemon", "imports up"),
    ("part takes all of Config", "node/storage/chain.py", "import node.config", "unpacks Config"),
    ("ledger logs", "node/ledger/pool.py", "import node.observe", "logs on a pure floor"),
    ("light knows the network", "node/light.py", "import p2p.network", "imports p2p"),
    ("following has a clock", "node/following.py", "import time", "imports time"),
    ("torch elsewhere", "node/attribution/score.py", "import torch", "imports torch"),
    ("second reader of LevelDB", "node/storage/chain.py", "import plyvel", "imports plyvel"),
    ("keys elsewhere", "consensus/votes.py", "from nacl import signing", "imports nacl"),
    ("clock in the ledger", "node/ledger/pool.py", "from time import time", "imports time"),
    ("chance in consensus", "consensus/votes.py", "import random", "imports random"),
    ("inexact root", "node/ledger/amounts.py", "from math import sqrt", "imports math.sqrt"),
    ("float constant", "node/ledger/amounts.py", "RATE = 0.5", "float"),
    ("true division", "node/ledger/amounts.py", "def f(a, b): return a / b", "`/`"),
    ("division in place", "node/ledger/amounts.py", "def f(a, b): a /= b", "`/`"),
    ("salted hash", "consensus/votes.py", "def f(x): return hash(x)", "hash()"),
    ("hash by reference", "consensus/votes.py", "def f(x): return sorted(x, key=hash)", "hash()"),
    ("hash in spite of a name", "consensus/votes.py", "for id in (): X = id\nY = id(1)", "id()"),
    ("await in the core", "consensus/engine.py", "async def f(): ...", "async"),
    ("relative import", "node/ledger/pool.py", "from . import execute", "relative"),
    ("room without a floor", "node/utils.py", "X = 1", "no floor"),
    ("code in __init__", "node/ledger/__init__.py", "X = 1", "__init__"),
    ("circle", "consensus/round.py", "def f(): import consensus.votes", "circle"),
]
# fmt: on


def build(root: Path, sources: dict[str, str]) -> None:
    for path, source in sources.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f'"""A caption."""\n{source}\n', encoding="utf-8")


def test_sound_house_has_no_offence(tmp_path: Path) -> None:
    build(tmp_path, SOUND)
    assert offences(tmp_path) == []


@pytest.mark.parametrize("planted", PLANTED, ids=[row[0] for row in PLANTED])
def test_planted_fault_is_named(tmp_path: Path, planted: tuple[str, str, str, str]) -> None:
    desc, path, source, verdict = planted
    half_a_circle = {"consensus/votes.py": "import consensus.round"} if desc == "circle" else {}
    build(tmp_path, {**SOUND, **half_a_circle, path: source})
    found = offences(tmp_path)
    assert len(found) == 1, desc
    assert verdict in found[0], desc


def test_file_without_a_head_is_named(tmp_path: Path) -> None:
    build(tmp_path, SOUND)
    (tmp_path / "consensus/round.py").write_text("LIMIT = 7\n", encoding="utf-8")
    assert [verdict.split(":")[0] for verdict in offences(tmp_path)] == ["consensus/round.py"]


def test_picture_reads_path_and_caption() -> None:
    text = "# Tree\nnode/light.py      follow headers, check receipts\nProse."
    assert picture(text) == {"node/light.py": "follow headers, check receipts"}


if __name__ == "__main__":
    tree = captions(ROOT)
    width = max(map(len, tree), default=0)
    for path, caption in tree.items():
        print(f"{path:<{width}}  {caption}")  # noqa: T201  # pasted into ARCHITECTURE.md
