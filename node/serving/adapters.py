"""Adapters and bases on disk: what is accepted, and their identity by content.

Why content: a name that is reloaded with other weights must never serve stale or mixed
answers, so a hash of the normalised config and the exact tensor bytes selects everything.
Why our own reader: the header is checked before a byte of weights is believed, and nothing that
can run code (a pickle) is ever opened. The errors name the offending key.
What this file does not know: torch, slots, which base is loaded (shapes are compared later).
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from consensus.primitives import merkle
from consensus.primitives.encoding import encode
from node.serving.engine import BadAdapter, Unsupported

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
RANK_MAX: Final = 64
BUCKETS: Final = (8, 16, 32, 64)
FILE_BYTES_MAX: Final = 2 * 2**30
HEADER_BYTES_MAX: Final = 2**20
CONFIG_BYTES_MAX: Final = 2**16
ALPHA_MAX: Final = 65_536
NAME_CHARS_MAX: Final = 256  # of a tensor
PAIRS_MAX: Final = 2**20  # of patterns with modules: each is held against each
PREFIX: Final = "base_model.model."
SIDES: Final = (".lora_A.weight", ".lora_B.weight")
DTYPE_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}

_MATHEMATICS: Final = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "target_modules",
}
_INDIFFERENT: Final = {  # matters to training or to peft's book-keeping, not to serving
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "exclude_modules",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
}
_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {
    "bias": ("none",),
    # pissa, olora, loftq and others change the base's weights too
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]{1,256}")
_OFF: Final[tuple[Any, ...]] = (None, False, [], {})


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the file; `start`, `stop` are offsets after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter in memory. `modules`: base module path → (rank, scale)."""

    hash: bytes
    config: bytes  # normalised; what the hash covers and what we write
    weights: bytes  # the whole safetensors file
    entries: Mapping[str, TensorEntry]
    data_at: int
    modules: Mapping[str, tuple[int, float]]

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(rank for rank, _ in self.modules.values())

    @property
    def bucket(self) -> int:
        """The smallest rank bucket that holds every module."""
        return next(size for size in BUCKETS if size >= self.rank)

    @property
    def targets(self) -> tuple[str, ...]:
        """Last path components of the adapted modules, sorted."""
        return tuple(sorted({module.rsplit(".", 1)[-1] for module in self.modules}))

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32; `name` is the file's key."""
        entry = self.entries[name]
        return _as_float32(self.weights, self.data_at, entry)

    def pair(self, module: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """A [rank, in] and B [out, rank] of one module, unscaled."""
        return self.array(PREFIX + module + SIDES[0]), self.array(PREFIX + module + SIDES[1])


def _as_float32(raw: bytes, data_at: int, entry: TensorEntry) -> npt.NDArray[np.float32]:
    kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.dtype]
    count = 1
    for side in entry.shape:
        count *= side
    flat = np.frombuffer(raw, kind, count, data_at + entry.start)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (flat.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
    return flat.astype(np.float32).reshape(entry.shape)


def read_adapter(folder: str | os.PathLike[str]) -> AdapterFile:
    """Read and check a peft folder; raises BadAdapter(key=…). Reads all tensors once."""
    root = Path(folder)
    _check_listing(root)
    settings = _read_json(root / CONFIG)
    _check_settings(settings)
    weights = _read_bytes(root / WEIGHTS, FILE_BYTES_MAX)
    entries, data_at = parse_header(weights)
    modules = _pair_up(settings, entries)
    for name, entry in entries.items():
        if not np.isfinite(_as_float32(weights, data_at, entry)).all():
            raise BadAdapter(key=name, why="not finite")
    config = normalised_config(settings, modules)
    return AdapterFile(adapter_hash(config, weights), config, weights, entries, data_at, modules)


def adapter_hash(config: bytes, weights: bytes) -> bytes:
    """RFC 6962 root over the normalised config and the exact safetensors bytes."""
    return merkle.root((config, weights))


def write_adapter(folder: str | os.PathLike[str], settings: Mapping[str, Any], raw: bytes) -> bytes:
    """Write a canonical adapter folder (normalised config, given safetensors bytes); its hash.

    The folder is made by rename, so it is whole or absent.
    """
    entries, _ = parse_header(raw)
    config = normalised_config(settings, _pair_up(settings, entries))
    target = Path(folder)
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    for name, data in ((CONFIG, config), (WEIGHTS, raw)):
        with open(part / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if target.exists():
        for old in (CONFIG, WEIGHTS):
            os.replace(part / old, target / old)
        part.rmdir()
    else:
        os.rename(part, target)
    return adapter_hash(config, raw)


def normalised_config(
    settings: Mapping[str, Any], modules: Mapping[str, tuple[int, float]]
) -> bytes:
    """JSON of the fields that change the mathematics, sorted keys, no spaces.

    `target_modules` follows from the tensors: peft writes a set in any order, a list or a word.
    """
    kept = {
        "alpha_pattern": dict(settings.get("alpha_pattern") or {}),
        "lora_alpha": settings["lora_alpha"],
        "peft_type": "LORA",
        "r": settings["r"],
        "rank_pattern": dict(settings.get("rank_pattern") or {}),
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "task_type": "CAUSAL_LM",
        "use_rslora": bool(settings.get("use_rslora")),
    }
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _check_listing(root: Path) -> None:
    if not root.is_dir():
        raise BadAdapter(key=str(root), why="no such folder")
    inside = root.resolve()
    for entry in sorted(root.iterdir()):
        if entry.suffix in PICKLES:
            raise BadAdapter(key=entry.name, why="a pickle can run code")
        if entry.is_symlink() and inside not in entry.resolve().parents:
            raise BadAdapter(key=entry.name, why="link leaves the folder")


def _read_bytes(path: Path, bytes_max: int) -> bytes:
    try:
        if path.stat().st_size > bytes_max:
            raise BadAdapter(key=path.name, why="too large", bytes_max=bytes_max)
        return path.read_bytes()
    except OSError:
        raise BadAdapter(key=path.name, why="not readable") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(path, CONFIG_BYTES_MAX))
    except (ValueError, RecursionError):
        raise BadAdapter(key=path.name, why="not JSON") from None
    if not isinstance(value, dict):
        raise BadAdapter(key=path.name, why="not an object")
    return value


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise BadAdapter(key="peft_type", value=settings.get("peft_type"))
    if settings.get("task_type") != "CAUSAL_LM":
        raise BadAdapter(key="task_type", value=settings.get("task_type"))
    for key, value in sorted(settings.items()):
        if key in _MATHEMATICS or key in _INDIFFERENT or value in _HARMLESS.get(key, ()):
            continue
        if value not in _OFF:  # DoRA, biases, extra modules, and whatever peft invents next
            raise BadAdapter(key=key, value=value)
    _check_rank("r", settings.get("r"))
    _check_alpha("lora_alpha", settings.get("lora_alpha"))
    for key, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
        pattern = settings.get(key) or {}
        if not isinstance(pattern, dict):
            raise BadAdapter(key=key, why="not an object")
        for module, value in pattern.items():
            if not _PLAIN.fullmatch(module):
                raise BadAdapter(key=f"{key}.{module}", why="a regular expression")
            check(f"{key}.{module}", value)


def _check_rank(key: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= RANK_MAX:
        raise BadAdapter(key=key, value=value)


def _check_alpha(key: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 < value <= ALPHA_MAX:  # type: ignore[operator]  # narrowed by type()
        raise BadAdapter(key=key, value=value)


def parse_header(raw: bytes) -> tuple[dict[str, TensorEntry], int]:
    """Entries by name, and where the data begins; raises BadAdapter.

    The tensors must tile the data exactly: no gap, no overlap, nothing after the last.
    """
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > HEADER_BYTES_MAX or 8 + size > len(raw):
        raise BadAdapter(key=WEIGHTS, why="header")
    try:
        header = json.loads(raw[8 : 8 + size], object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise BadAdapter(key=WEIGHTS, why="header") from None
    if not isinstance(header, dict):
        raise BadAdapter(key=WEIGHTS, why="header")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value) for name, value in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != position:
            raise BadAdapter(key=name, why="overlap or gap")
        position = entry.stop
    if position != len(raw) - 8 - size:
        raise BadAdapter(key=WEIGHTS, why="length")
    return entries, 8 + size


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = dict(pairs)
    if len(kept) != len(pairs):
        raise ValueError("a name twice")
    return kept


def _entry(name: str, value: object) -> TensorEntry:
    if len(name) > NAME_CHARS_MAX:
        raise BadAdapter(key=name[:NAME_CHARS_MAX], why="too long", most=NAME_CHARS_MAX)
    if not isinstance(value, dict):
        raise BadAdapter(key=name, why="entry")
    dtype = value.get("dtype")
    shape, offsets = _naturals(value.get("shape")), _naturals(value.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BadAdapter(key=name, why="dtype", value=dtype)
    if len(shape) != 2 or len(offsets) != 2:
        raise BadAdapter(key=name, why="shape")
    entry = TensorEntry(dtype, shape, offsets[0], offsets[1])
    if entry.stop - entry.start != shape[0] * shape[1] * DTYPE_BYTES[dtype]:
        raise BadAdapter(key=name, why="length")
    return entry


def _naturals(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        return ()
    return tuple(value)


def _pair_up(
    settings: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> dict[str, tuple[int, float]]:
    modules: dict[str, tuple[int, float]] = {}
    ranks, alphas = (_compiled(settings.get(key)) for key in ("rank_pattern", "alpha_pattern"))
    if (len(ranks) + len(alphas)) * len(entries) > 2 * PAIRS_MAX:
        raise BadAdapter(key="rank_pattern", why="too many", most=PAIRS_MAX)
    for name in sorted(entries):
        side = next((s for s in SIDES if name.endswith(s)), None)
        if side is None or not name.startswith(PREFIX):
            raise BadAdapter(key=name, why="unknown tensor")
        module = name[len(PREFIX) : -len(side)]
        if "embed" in module or module.endswith("lm_head"):
            raise BadAdapter(key=name, why="embedding or output layer")
        other = PREFIX + module + SIDES[1 - SIDES.index(side)]
        if other not in entries:
            raise BadAdapter(key=name, why="half of a pair")
        rank = _of_pattern(ranks, module, settings["r"])
        alpha = _of_pattern(alphas, module, settings["lora_alpha"])
        if entries[name].shape[SIDES.index(side)] != rank:
            raise BadAdapter(key=name, why="rank", value=entries[name].shape)
        scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
        modules[module] = (rank, scale)
    if not modules:
        raise BadAdapter(key=WEIGHTS, why="no tensors")
    return modules


_Patterns = list[tuple[re.Pattern[str], Any]]


def _compiled(pattern: Mapping[str, Any] | None) -> _Patterns:
    """peft's rule: a key stands for the module's path or its end.

    peft takes a key for a regular expression. Ours are letters, digits, `_` and `.` alone: they
    match in no time, whoever wrote them; and once compiled, in less.
    """
    return [(re.compile(rf"(?:.*\.)?{key}"), value) for key, value in (pattern or {}).items()]


def _of_pattern(patterns: _Patterns, module: str, default: Any) -> Any:
    """What the first that matches says."""
    return next((value for key, value in patterns if key.fullmatch(module)), default)


# --- the base

BASE_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
)

_hashed: dict[tuple[str, int, int, int], bytes] = {}
_HASHED_MAX: Final = 1_024


def base_files(folder: str | os.PathLike[str]) -> list[str]:
    """The names that make up a base, sorted; raises Unsupported for code, pickles, or settings
    that cannot be read."""
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise Unsupported(what=f"{root}: no config.json")
    names = []
    for entry in sorted(root.iterdir()):
        if entry.suffix == ".py" or entry.suffix in PICKLES:
            raise Unsupported(what=f"{entry.name}: code or pickle in a base")
        if entry.name in BASE_FILES or entry.suffix == ".safetensors":
            names.append(entry.name)
    try:
        settings = json.loads((root / "config.json").read_bytes())
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Unsupported(what=f"{root}: config.json is no JSON object")
    if "auto_map" in settings:
        raise Unsupported(what="config.json: auto_map")
    return names


def base_hash(folder: str | os.PathLike[str]) -> bytes:
    """RFC 6962 root over sorted canonical `[path, size, SHA-256]` of the base's files.

    Each file is hashed once per (path, size, mtime, inode).
    """
    leaves = []
    for name in base_files(folder):
        path = Path(folder) / name
        leaves.append(encode((name.encode(), path.stat().st_size, _file_hash(path))))
    return merkle.root(leaves)


def _file_hash(path: Path) -> bytes:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    known = _hashed.get(key)
    if known is None:
        with open(path, "rb") as file:
            known = hashlib.file_digest(file, "sha256").digest()
        if len(_hashed) >= _HASHED_MAX:
            _hashed.clear()
        _hashed[key] = known
    return known
