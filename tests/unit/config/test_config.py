"""Settings: their order, their refusals, and that what `init` writes reads back the same."""

from pathlib import Path

import pytest

from node import config
from node.config import Config, ConfigError, load, parse

EXAMPLES = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))


def read(tmp_path: Path, text: str = "", **environment: str) -> config.Settings:
    if text:
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return load(tmp_path, environment=environment)


def test_flag_beats_environment_beats_file_beats_profile_beats_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('profile = "devnet"\n[p2p]\nkeepalive_s = 1\n')
    key, name = "p2p.keepalive_s", "OLNODE_P2P__KEEPALIVE_S"
    by_flag = load(tmp_path, flags={key: 4}, environment={name: "2"})
    by_environment = load(tmp_path, environment={name: "2"})
    by_file = load(tmp_path, environment={})
    by_profile = parse('profile = "devnet"')
    by_default = parse("")
    told = [
        (settings.config.p2p.keepalive_s, settings.origins[key])
        for settings in (by_flag, by_environment, by_file, by_profile, by_default)
    ]
    assert told == [
        (4, "--keepalive-s"),
        (2, name),
        (1, "config.toml"),
        (3, "profile devnet"),
        (15, "default"),
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_loads(path: Path) -> None:
    assert parse(path.read_text(encoding="utf-8"), name=path.name)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"devnet", "validator", "provider", "payer"}


REFUSED = [  # what the file holds, and what the sentence says
    ("[p2p]\nmdsn = true", '[p2p] unknown key "mdsn", did you mean "mdns"?'),
    ("[p2q]\na = 1", 'unknown table "[p2q]", did you mean "p2p"?'),
    ("rolse = []", 'unknown key "rolse", did you mean "roles"?'),
    ("p2p = 3", "p2p is a table"),
    ('profile = "moonnet"', "profile = 'moonnet'"),
    ("[p2p]\noutbound_min = 16", "[p2p] outbound_min = 16: Expected `int` <= 15"),
    ("[p2p]\nmax_connections = 0", "[p2p] max_connections = 0: Expected `int` >= 1"),
    ("instance = true", "instance = True: Expected `int`, got `bool`"),
    ("instance = 100", "instance = 100"),
    ("name = 7", "name = 7: Expected `str`"),
    ("config_version = 2", "config_version = 2"),
    ("x = [", "config.toml: "),
    ("roles = []", "at least one"),
    ('roles = ["payer", "payer"]', "each role once"),
    ('roles = ["provider"]\n[engine]\nkind = "none"', 'roles has "provider"'),
    ('[payer]\nmax_fee_open = "5.1"', "max_fee_open is above channel_cap_open"),
    ('[payer]\nchannel_cap_open = "50.1"', "channel_cap_open is above total_locked_open"),
    ('[payer]\nmax_fee_open = "0.0000000001"', "max_fee_open"),
    ('[chain]\ntrusted_id = "12"', "64 hex digits"),
    ("[chain]\ntrusted_height = 7", "trusted_height needs trusted_id"),
    ('[p2p]\nlisten = ["localhost:7017"]', "is not an address"),
    ("[p2p]\nmdns = true", 'network = "public" forbids'),
    ('[engine]\nkind = "remote"', "urls is empty"),
    ('[engine]\nkind = "remote"\nurls = ["127.0.0.1:8000"]', "is none such as"),
    ('[engine]\nkind = "remote"\nurls = ["http://gpu:8000"]', "prompts would go to gpu"),
    ('[engine]\nflavour = "other"', "flavour"),
    ('[engine]\ndtype = "float16"', "[engine] dtype = 'float16': Invalid enum value"),
    ('[engine]\nkind = "local"', "; one of torch, remote, none"),
    ('roles = ["validatr"]', "; one of validator, provider, payer, auditor"),
    ('[engine]\ndevice = "gpu"', "[engine] device = 'gpu'"),
    ('[engine]\ndevice = "cuda:"', "[engine] device = 'cuda:'"),
    ('[engine]\ndevices = ["auto"]', "[engine] devices = ['auto']"),
    ('[engine]\ndevice = "cpu"\ndevices = ["cuda:0"]', "name one or several"),
    ('[engine]\ndevices = ["cuda:0", "cuda:0"]', "name each once"),
    (
        '[engine]\nkind = "remote"\nurls = ["http://127.0.0.1:1"]\ndevices = ["cpu"]',
        "servers choose their own",
    ),
    ("[engine]\nram_budget_mb = 0", "[engine] ram_budget_mb = 0: Expected `int` >= 1"),
    ("[engine]\nslots = 65537", "[engine] slots = 65537: Expected `int` <= 65536"),
    ("[engine]\nrows = 4097", "[engine] rows = 4097: Expected `int` <= 4096"),
    ("[engine]\ndisk_budget_gb = -1", "[engine] disk_budget_gb = -1: Expected `int` >= 0"),
    ("[engine]\nram_budget = 1", 'unknown key "ram_budget", did you mean "ram_budget_mb"?'),
]


@pytest.mark.parametrize(("text", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_bad_file_is_refused_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_status == 78


def test_neighbours_and_relays_may_be_asked_for() -> None:
    near = parse('[p2p]\nnetwork = "lan"\nmdns = true\nrelay = "client"').config.p2p
    far = parse('[p2p]\nrelay = "server"').config.p2p
    assert (near.mdns, near.relay, far.mdns, far.relay) == (True, "client", False, "server")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("OLNODE_P2P__MDSN", "true", 'OLNODE_P2P__MDSN: [p2p] unknown key "mdsn"'),
        ("OLNODE_INSTANCE", "many", "OLNODE_INSTANCE: 'many' is not a value of instance"),
        ("OLNODE_P2P__LISTEN", "7017", "OLNODE_P2P__LISTEN: [p2p] listen = 7017"),
    ],
)
def test_bad_environment_is_refused_with_its_name(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, **{name: text})
    assert told in str(refusal.value)


def test_environment_values_have_the_type_of_their_key(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        OLNODE_NAME="7",
        OLNODE_INSTANCE="2",
        OLNODE_P2P__RESERVED='["a", "b"]',
        OLNODE_CONSENSUS__ADAPT="false",
        OLNODE_CONSENSUS__PACE="lan",
        OLNODE_DEVNET__TRAFFIC_PER_S="0.5",
    )
    told = settings.config
    assert (told.name, told.instance, told.p2p.reserved) == ("7", 2, ("a", "b"))
    assert (told.consensus.adapt, told.consensus.pace) == (False, "lan")
    assert told.devnet.traffic_per_s == 0.5


def test_home_and_password_variables_are_no_settings(tmp_path: Path) -> None:
    elsewhere = {"OLNODE_HOME": "/x", "OLNODE_PASSWORD_FILE": "/y", "OLNODE_CACHE": "/z"}
    assert read(tmp_path, **elsewhere).config == Config()


def test_instance_moves_each_port_by_ten() -> None:
    text = 'instance = 3\n[p2p]\nlisten = ["/ip4/0.0.0.0/tcp/7017", "/ip4/1.2.3.4/tcp/0"]'
    told = parse(text).config.p2p.listen
    assert told == ("/ip4/0.0.0.0/tcp/7047", "/ip4/1.2.3.4/tcp/0")


def test_devnet_listens_on_this_machine_only() -> None:
    assert parse('profile = "devnet"').config.p2p.listen == ("/ip4/127.0.0.1/tcp/7017",)


def test_written_file_reads_back_and_shows_all_keys() -> None:
    chosen = {
        "profile": "devnet",
        "roles": ["validator", "payer"],
        "name": 'a "quoted" \\ name',
        "p2p.bootstrap": ["/ip4/1.2.3.4/tcp/7017"],
        "consensus.adapt": False,
        "log.levels": {"p2p": "debug"},
    }
    text = config.write_text(chosen)
    told = parse(text)
    assert told.config.name == chosen["name"]
    assert told.config.log.levels == {"p2p": "debug"}
    assert {key for key, origin in told.origins.items() if origin == "config.toml"} == set(chosen)
    for key in config.all_keys():
        assert f"{key.rpartition('.')[2]} = " in text


def test_commented_defaults_are_those_of_the_profile() -> None:
    text = config.write_text({"profile": "devnet"})
    uncommented = "\n".join(line.removeprefix("# ") for line in text.splitlines()[1:])
    assert parse(uncommented).config == parse(text).config


@pytest.mark.parametrize(
    ("text", "grains"),
    [("1", 10**9), ("0.05", 50_000_000), ("0.000000001", 1), ("50.5", 50_500_000_000)],
)
def test_open_amounts_become_exact_grains(text: str, grains: int) -> None:
    assert config.grains_of(text) == grains


def test_home_is_flag_then_variable_then_data_folder() -> None:
    given = {"OLNODE_HOME": "/b", "XDG_DATA_HOME": "/c"}
    assert config.find_home("/a", given) == Path("/a")
    assert config.find_home(None, given) == Path("/b")
    assert config.find_home(None, {"XDG_DATA_HOME": "/c"}) == Path("/c/olnode")
    assert config.find_home(None, {}) == Path.home() / ".local/share/olnode"


def test_socket_path_is_short_enough_for_any_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    at_limit = Path("/" + "h" * (107 - len("/run/olnode.sock") - 1))
    assert config.socket_path(at_limit) == at_limit / "run/olnode.sock"
    over = Path(str(at_limit) + "h")
    assert config.socket_path(over).parent == Path("/run/user/7")
    assert config.socket_path(over) != config.socket_path(Path(str(over) + "h"))
