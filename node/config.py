"""The operator's settings: one file, typed and checked, each value with its origin.

Why so strict: a key that is misspelt and ignored is found out months later, when the limit it
should have set is passed. So an unknown key, a wrong type or range, or a contradiction stops the
start with one sentence. Order: flag > environment > file > profile > default.
Only `daemon.py`, `devnet.py` and `cli/` unpack this; a part takes what it needs as arguments.
What it does not know: rules of money (those are on the ledger), what any part does with a value.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

# fmt: off
Int = int
Count = Annotated[Int, msgspec.Meta(ge=0, le=2**31)]
Positive = Annotated[Int, msgspec.Meta(ge=1, le=2**31)]
Bps = Annotated[Int, msgspec.Meta(ge=0, le=10_000)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1_000)]
Open = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,10}(\.[0-9]{1,9})?$")]  # an amount in OPEN
Grains = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,19}$")]
Device = Annotated[str, msgspec.Meta(pattern=r"^(cpu|cuda:[0-9]{1,2})$")]
Level = Literal["debug", "info", "warning", "error"]
Role = Literal["validator", "provider", "payer", "auditor"]
Profile = Literal["devnet", "testnet", "mainnet"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; every key has a default."""


class Chain(Section, frozen=True):
    genesis: str = "genesis"     # path, relative to the home
    trusted_height: Count = 0    # for a light start, or one from a snapshot
    trusted_id: str = ""         # block id in hex


class Log(Section, frozen=True):
    level: Level = "info"
    format: Literal["auto", "text", "json"] = "auto"  # text on a terminal, else json
    levels: dict[str, Level] = {}                     # per part


class P2p(Section, frozen=True):
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/7017",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    validator_peers: tuple[str, ...] = ()  # "validator=peer id"
    reserved: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    network: Literal["public", "lan", "devnet"] = "public"
    mdns: bool = False
    relay: Literal["off", "client", "server"] = "off"
    upload_bytes_s: Count = 16_777_216     # 0 = no limit
    blob_quota_gb: Count = 50
    max_connections: Positive = 64
    outbound_min: Annotated[Int, msgspec.Meta(ge=1, le=15)] = 8
    keepalive_s: Positive = 15
    keepalive_misses: Positive = 2


class Consensus(Section, frozen=True):
    pace: Literal["wan", "lan"] = "wan"
    adapt: bool = True
    block_interval_ms: Annotated[Int, msgspec.Meta(ge=10, le=60_000)] = 1_000
    doppelganger_wait_s: Count = 35


class Storage(Section, frozen=True):
    cache_mb: Positive = 64
    min_free_gb: Count = 5
    keep_versions: Positive = 1_000
    snapshot_every: Positive = 10_000
    snapshots_kept: Positive = 2
    scrub_days: Positive = 7
    scrub_mb_s: Positive = 5
    archive: bool = False
    prune_payloads: bool = False


class Engine(Section, frozen=True):
    kind: Literal["torch", "remote", "none"] = "torch"
    urls: tuple[str, ...] = ()
    flavour: Literal["vllm", "plain"] = "vllm"
    allow_remote: bool = False
    token_file: str = ""  # what the servers want to see
    local_gradients: bool = True  # beside remote servers: a worker for attribution
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    devices: Annotated[tuple[Device, ...], msgspec.Meta(max_length=16)] = ()  # a worker for each
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Count = 0           # 0 = cores - 1
    rows: Annotated[Int, msgspec.Meta(ge=0, le=4_096)] = 0  # 0 = the engine's own rule, here and
    slots: Annotated[Int, msgspec.Meta(ge=0, le=65_536)] = 0  # in the next three; of each rank
    kv_budget_mb: Count = 0
    slot_budget_mb: Count = 0    # adapters in slots, of each rank; lowers `slots`
    prefill_chunk: Positive = 512
    ram_budget_mb: Positive = 2_048  # adapters in memory; half of it may be pinned
    disk_budget_gb: Count = 50   # copies of adapters as they are loaded; 0 = none
    queue_tokens: Positive = 65_536
    queue_requests: Positive = 256
    aging_ms: Positive = 2_000
    stall_s: Positive = 60
    gradient_max_wait_ms: Positive = 2_000


class Serving(Section, frozen=True):
    models: tuple[str, ...] = ()
    auto_load: bool = True
    min_provider_fee: Grains = "0"  # grains an order
    max_payers: Positive = 256
    account: str = ""  # that the node key signs for since it was rotated; empty: its own


class Attribution(Section, frozen=True):
    workers: Positive = 1
    index_ram_mb: Positive = 2_048


class Audit(Section, frozen=True):
    models: tuple[str, ...] = ()
    cpu_percent: Annotated[Int, msgspec.Meta(ge=0, le=100)] = 5


class Payer(Section, frozen=True):
    spending_key: str = "spending"
    channel_cap_open: Open = "5"
    refill_at_bps: Bps = 2_000
    total_locked_open: Open = "50"
    max_fee_open: Open = "0.05"  # a request
    choose: Literal["balanced", "cheapest", "fastest"] = "balanced"
    providers_tried: Positive = 2
    lanes: Annotated[Int, msgspec.Meta(ge=1, le=64)] = 8
    recheck_bps: Bps = 100       # of answers, given to an auditor


class Metrics(Section, frozen=True):
    listen: str = "127.0.0.1:7019"  # for Prometheus; "" = off


class Shutdown(Section, frozen=True):
    drain_s: Count = 30
    engine_s: Count = 10


class Devnet(Section, frozen=True):
    faucet_open: Open = "100"
    faucet_per_hour: Count = 1
    traffic_per_s: Rate = 2.0


class Config(Section, frozen=True):
    """Everything an operator may set; a table per part."""

    config_version: Literal[1] = 1
    profile: Profile = "mainnet"
    roles: tuple[Role, ...] = ("payer",)
    sync: Literal["full", "light"] = "full"
    instance: Annotated[Int, msgspec.Meta(ge=0, le=99)] = 0  # adds 10 times itself to each port
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    chain: Chain = Chain()
    log: Log = Log()
    p2p: P2p = P2p()
    consensus: Consensus = Consensus()
    storage: Storage = Storage()
    engine: Engine = Engine()
    serving: Serving = Serving()
    attribution: Attribution = Attribution()
    audit: Audit = Audit()
    payer: Payer = Payer()
    metrics: Metrics = Metrics()
    shutdown: Shutdown = Shutdown()
    devnet: Devnet = Devnet()


PROFILES: Final[Mapping[str, Mapping[str, Any]]] = {  # what differs from the defaults
    "devnet": {
        "p2p.listen": ["/ip4/127.0.0.1/tcp/7017"], "p2p.network": "devnet",
        "p2p.upload_bytes_s": 0, "p2p.keepalive_s": 3,
        "consensus.pace": "lan", "consensus.block_interval_ms": 250,
        "consensus.doppelganger_wait_s": 0, "storage.min_free_gb": 1, "shutdown.drain_s": 5,
        "metrics.listen": "",  # many nodes on one machine
    },
    "testnet": {},
    "mainnet": {},
}

ABSENT: Final = (  # key, the value that this version can honour, what it lacks
    ("sync", "full", "nodes without the ledger"),
)
# fmt: on

HOME_VERSION: Final = 1  # of the files in a home; raised when their layout changes
CONFIG_BYTES_MAX: Final = 1_048_576
ENVIRONMENT_PREFIX: Final = "OLNODE_"
NOT_CONFIG: Final = {"OLNODE_HOME", "OLNODE_PASSWORD_FILE", "OLNODE_CACHE"}  # read elsewhere
SOCKET_PATH_BYTES_MAX: Final = 107  # of sockaddr_un
PORT_STEP: Final = 10
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


CONFIG_MEND: Final = "change it there; olnode config validate looks again"


class ConfigError(Exception):
    """The operator's settings cannot be used: one sentence that names the place."""

    exit_status = 78

    def __init__(self, what: str, *, mend: str = CONFIG_MEND) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked `Config`, where each value came from, and the home it belongs to."""

    home: Path
    config: Config
    origins: Mapping[str, str]  # "p2p.listen" -> "default", "profile devnet", "config.toml", …

    @property
    def socket_path(self) -> Path:
        """Where the daemon listens for its own operator."""
        return socket_path(self.home)


def find_home(flag: str | None, environment: Mapping[str, str]) -> Path:
    """--home > OLNODE_HOME > $XDG_DATA_HOME/olnode > ~/.local/share/olnode; absolute."""
    chosen = flag or environment.get("OLNODE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    data = environment.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "olnode"


def socket_path(home: Path) -> Path:
    """`run/olnode.sock` in the home, or a short name where a socket's path would be too long."""
    path = home / "run" / "olnode.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    from hashlib import sha256

    name = f"olnode-{sha256(os.fsencode(home)).hexdigest()[:8]}.sock"
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder) / name if folder else Path("/tmp") / f"{os.getuid()}-{name}"


def load(
    home: Path,
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of the home `home`; `flags` by dotted key, e.g. {"p2p.mdns": True}.

    A home without config.toml has only defaults. Raises ConfigError.
    """
    file = home / "config.toml"
    return _settle(
        home,
        read_file(file) if file.exists() else {},
        _from_environment(os.environ if environment is None else environment),
        flags or {},
    )


def parse(text: str, *, name: str = "config.toml", home: Path = Path("/nowhere")) -> Settings:
    """Settings of a file's text alone: no environment, no flags. Raises ConfigError."""
    return _settle(home, _flatten(_toml(text, name), name), {}, {}, name)


def read_file(path: Path) -> dict[str, Any]:
    """Dotted key -> value of a TOML file. Raises ConfigError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    return _flatten(_toml(text, path.name), path.name)


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: {error}") from None


def _flatten(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        section = _FIELDS.get(key)
        if isinstance(value, dict) and not isinstance(section, dict):
            raise ConfigError(f'{name}: unknown table "[{key}]"{_did_you_mean(key, _SECTIONS)}')
        if isinstance(section, dict):
            if not isinstance(value, dict):
                raise ConfigError(f"{name}: {key} is a table, write [{key}] on its own line")
            found.update({f"{key}.{inner}": member for inner, member in value.items()})
        else:
            found[key] = value
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`OLNODE_P2P__MDNS=true` -> {"p2p.mdns": "true"}."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): text
        for name, text in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_CONFIG
    }


def _settle(
    home: Path,
    file: Mapping[str, Any],
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    file_name: str = "config.toml",
) -> Settings:
    given: dict[str, tuple[Any, str]] = {}  # dotted key -> value, origin
    for key, value in file.items():
        given[key] = (_convert(key, value, file_name), file_name)
    for key, text in environment.items():
        origin = ENVIRONMENT_PREFIX + key.upper().replace(".", "__")
        given[key] = (_convert(key, _from_text(key, text, origin), origin), origin)
    for key, value in flags.items():
        origin = "--" + key.rsplit(".", 1)[-1].replace("_", "-")
        given[key] = (_convert(key, value, origin), origin)
    profile = given["profile"][0] if "profile" in given else Config().profile
    for key, value in PROFILES[profile].items():
        given.setdefault(key, (_convert(key, value, profile), f"profile {profile}"))
    config = _assemble({key: value for key, (value, _) in given.items()})
    origins = {key: given[key][1] if key in given else "default" for key in all_keys()}
    _check_contradictions(config, origins)
    return Settings(home, _shift_ports(config), origins)


def _convert(key: str, value: Any, origin: str) -> Any:
    """`value` as the type of `key`; raises ConfigError that names place, key and mend."""
    section, _, name = key.rpartition(".")
    fields = _FIELDS.get(section) if section else _FIELDS
    place = f"{origin}: [{section}] " if section else f"{origin}: "
    if not isinstance(fields, dict):
        raise ConfigError(f'{origin}: unknown table "[{section}]"')
    if name not in fields or isinstance(fields[name], dict):
        close = _did_you_mean(name, fields)
        raise ConfigError(f'{place}unknown key "{name}"{close}')
    try:
        return msgspec.convert(value, fields[name])
    except msgspec.ValidationError as error:
        why = str(error).split(" - at ")[0]
        words = _choices(fields[name])
        may_be = f"; one of {', '.join(map(str, words))}" if words else ""
        raise ConfigError(f"{place}{name} = {value!r}: {why}{may_be}") from None


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values that a key, or each of its list, may have; none where others may be."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for inner in get_args(kind) if (found := _choices(inner))), ())


def _from_text(key: str, text: str, origin: str) -> Any:
    """The value of an environment variable: text for text, else TOML (`true`, `7`, `["a"]`)."""
    section, _, name = key.rpartition(".")
    fields = _FIELDS.get(section) if section else _FIELDS
    kind = fields.get(name) if isinstance(fields, dict) else None
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is str or (get_origin(kind) is Literal and kind != Literal[1]) or kind is None:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"{origin}: {text!r} is not a value of {name}") from None


def _did_you_mean(word: str, known: Any) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _assemble(values: Mapping[str, Any]) -> Config:
    tables: dict[str, dict[str, Any]] = {"": {}}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        tables.setdefault(section, {})[name] = value
    top = tables.pop("")
    sections: dict[str, Any] = {name: _SECTIONS[name](**inner) for name, inner in tables.items()}
    return Config(**top, **sections)


def _check_contradictions(config: Config, origins: Mapping[str, str]) -> None:
    for key, honoured, what in ABSENT:
        value = _value(config, key)
        if value not in (honoured if isinstance(honoured, tuple) else (honoured,)):
            raise ConfigError(f"{origins[key]}: {key} = {value!r}: this version has no {what}")
    if len(set(config.roles)) != len(config.roles) or not config.roles:
        raise ConfigError(f"{origins['roles']}: roles: name each role once, and at least one")
    _check_devices(config.engine)
    if config.engine.kind == "remote":
        _check_urls(config.engine)
    if "provider" in config.roles and config.engine.kind == "none":
        raise ConfigError('roles has "provider", but [engine] kind is "none"')
    if grains_of(config.payer.max_fee_open) > grains_of(config.payer.channel_cap_open):
        raise ConfigError("[payer] max_fee_open is above channel_cap_open: no order could be paid")
    if grains_of(config.payer.channel_cap_open) > grains_of(config.payer.total_locked_open):
        raise ConfigError("[payer] channel_cap_open is above total_locked_open")
    if config.storage.archive and config.storage.prune_payloads:
        raise ConfigError("[storage] archive keeps all payloads, prune_payloads drops old ones")
    if config.chain.trusted_id and not re.fullmatch("[0-9a-f]{64}", config.chain.trusted_id):
        raise ConfigError(f"{origins['chain.trusted_id']}: [chain] trusted_id: 64 hex digits")
    if config.chain.trusted_height and not config.chain.trusted_id:
        raise ConfigError("[chain] trusted_height needs trusted_id: a height alone proves nothing")
    if config.p2p.mdns and config.p2p.network == "public":
        raise ConfigError(
            f"{origins['p2p.mdns']}: [p2p] mdns tells the local wire private addresses and dials "
            'them, which network = "public" forbids',
            mend='network = "lan" or mdns = false, under [p2p] in config.toml',
        )
    for address in (*config.p2p.listen, *config.p2p.announce):
        if not re.search(r"/tcp/\d{1,5}(/|$)", address):
            raise ConfigError(f"[p2p] {address!r} is not an address such as /ip4/0.0.0.0/tcp/7017")
    if config.metrics.listen:
        host_and_port(config.metrics.listen)


def _check_devices(engine: Engine) -> None:
    if not engine.devices:
        return
    if engine.device != "auto":
        raise ConfigError("[engine] devices and device are both set: name one or several")
    if len(set(engine.devices)) < len(engine.devices):
        raise ConfigError("[engine] devices: one worker for each, so name each once")
    if engine.kind == "remote":
        raise ConfigError('[engine] devices is for kind = "torch": servers choose their own')


def _check_urls(engine: Engine) -> None:
    if not engine.urls:
        raise ConfigError('[engine] kind is "remote", but urls is empty')
    for url in engine.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"[engine] urls: {url!r} is none such as http://127.0.0.1:8000")
        if parts.hostname not in LOOPBACK and not engine.allow_remote:
            raise ConfigError(
                f"[engine] urls: prompts would go to {parts.hostname}: allow_remote = true"
            )


def host_and_port(text: str) -> tuple[str, int]:
    """ "127.0.0.1:7019" or "[::1]:7019" in two. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65_535:
        raise ConfigError(f"[metrics] listen: {text!r} is not an address such as 127.0.0.1:7019")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _shift_ports(config: Config) -> Config:
    """Add 10·instance to each port that we listen on, so that one machine holds several nodes."""
    if not config.instance:
        return config

    def shifted(match: re.Match[str]) -> str:
        port = int(match.group(2))
        return f"{match.group(1)}{port + PORT_STEP * config.instance if port else 0}"  # 0: any free

    replace = msgspec.structs.replace
    listen = tuple(re.sub(r"(/tcp/)(\d+)", shifted, address) for address in config.p2p.listen)
    metrics = re.sub(r"(:)(\d+)$", shifted, config.metrics.listen)
    return replace(
        config,
        p2p=replace(config.p2p, listen=listen),
        metrics=replace(config.metrics, listen=metrics),
    )


def grains_of(open_text: str) -> int:
    """Grains of a decimal amount in OPEN, exactly: "0.05" -> 50,000,000."""
    whole, _, part = open_text.partition(".")
    return int(whole) * 10**9 + int((part + "0" * 9)[:9])


def _value(config: Config, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, name)


def all_keys() -> list[str]:
    """Every key that may be set, dotted, in the order of the file."""
    keys: list[str] = []
    for name, kind in _FIELDS.items():
        keys += [f"{name}.{inner}" for inner in kind] if isinstance(kind, dict) else [name]
    return keys


def show(settings: Settings) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every key."""
    return [(key, _value(settings.config, key), settings.origins[key]) for key in all_keys()]


def write_text(chosen: Mapping[str, Any]) -> str:
    """A config.toml that sets `chosen` (dotted keys) and shows all else as comments."""
    profile = chosen.get("profile", Config().profile)
    base = {key: _value(Config(), key) for key in all_keys()} | dict(PROFILES[profile])
    lines, section = ["# olnode's settings. A line with # is the default of this profile."], ""
    for key in all_keys():
        table, _, name = key.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        if key in chosen:
            lines.append(f"{name} = {_toml_value(chosen[key])}")
        else:
            lines.append(f"# {name} = {_toml_value(base[key])}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return msgspec.json.encode(value).decode()  # JSON's text and numbers are TOML's


def _fields_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    field.name: field.type
    for field in msgspec.structs.fields(Config)
    if isinstance(field.type, type) and issubclass(field.type, Section)
}
_FIELDS: Final[dict[str, Any]] = {  # key -> type, or section -> its keys and types
    name: _fields_of(_SECTIONS[name]) if name in _SECTIONS else kind
    for name, kind in _fields_of(Config).items()
}
