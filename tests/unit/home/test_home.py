"""A home is made once, whole or not at all, for its owner alone, and never over anything."""

import os
from pathlib import Path
from typing import Any

import pytest
from chain_kit import devnet

from consensus.primitives.errors import Invalid
from consensus.primitives.keys import public_key
from node import home as homes
from node.config import ConfigError, load
from node.home import FOLDERS, HomeError, NewHome, keystore_of, make_home
from node.ledger.genesis import encode_genesis
from node.storage.errors import StorageError

GENESIS = encode_genesis(devnet())
DEVNET = {"profile": "devnet"}


def make(home: Path, **chosen: Any) -> NewHome:
    return make_home(home, genesis=GENESIS, chosen=DEVNET | chosen, password=None)


@pytest.fixture
def strict_umask() -> Any:
    """The loosest of masks: what is private must be so by its own mode."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_folders_are_for_the_owner_alone_and_files_too(tmp_path: Path, strict_umask: Any) -> None:
    make(tmp_path / "home", roles=["validator", "payer"])
    home = tmp_path / "home"
    assert {path.name for path in home.iterdir() if path.is_dir()} == set(FOLDERS)
    for path in [home, *home.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_empty_folder_that_is_there_becomes_the_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    make(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["file", "hidden", "folder", "home", "is a file"])
def test_nothing_is_made_over_anything(tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    if what == "is a file":
        home.write_bytes(b"mine")
    elif what == "home":
        make(home)
    else:
        home.mkdir()
        {"file": (home / "x").touch, "hidden": (home / ".x").touch, "folder": (home / "d").mkdir}[
            what
        ]()
    before = {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}
    with pytest.raises(HomeError) as refused:
        make(home)
    assert (refused.value.exit_status, "not empty" in refused.value.what) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]} == before


@pytest.mark.parametrize(
    ("genesis", "chosen", "error"),
    [
        (GENESIS[:-1], {}, Invalid),
        (b"", {}, Invalid),
        (GENESIS, {"roles": ["king"]}, ConfigError),
        (GENESIS, {"instance": -1}, ConfigError),
        (GENESIS, {"p2p.outbound_min": "many"}, ConfigError),
    ],
)
def test_refusal_comes_before_a_byte_is_written(
    tmp_path: Path, genesis: bytes, chosen: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_home(tmp_path / "home", genesis=genesis, chosen=DEVNET | chosen, password=None)
    assert list(tmp_path.iterdir()) == []


KEYS = {
    ("auditor",): {"node"},
    ("provider",): {"node"},
    ("validator",): {"node", "validator"},
    ("payer",): {"node", "spending"},
    ("validator", "payer"): {"node", "validator", "spending"},
}


@pytest.mark.parametrize("roles", sorted(KEYS))
def test_roles_decide_which_keys_there_are(tmp_path: Path, roles: tuple[str, ...]) -> None:
    made = make(tmp_path / "home", roles=list(roles))
    assert {key.name for key in made.keys} == KEYS[roles]
    assert len({key.public_key for key in made.keys}) == len(made.keys), "no key has two roles"
    assert (tmp_path / "home" / "signer").exists() == ("validator" in roles)


def test_given_seeds_give_the_keys_and_the_others_are_random(tmp_path: Path) -> None:
    homes_made = [
        make_home(
            tmp_path / name, genesis=GENESIS, chosen=DEVNET | {"roles": ["validator"]},
            password=None, seeds={"node": b"\7" * 32},
        )
        for name in ("a", "b")
    ]  # fmt: skip
    keys = [{key.name: key.public_key for key in made.keys} for made in homes_made]
    assert {mine["node"] for mine in keys} == {public_key(b"\7" * 32)}
    assert len({mine["validator"] for mine in keys}) == 2


def test_home_is_what_a_start_reads(tmp_path: Path) -> None:
    made = make(tmp_path / "home", name="n0", roles=["payer"])
    settings = load(tmp_path / "home")
    assert (settings.config.name, settings.config.roles) == ("n0", ("payer",))
    assert made.chain_id == devnet().chain_id
    assert settings.socket_path == tmp_path / "home/run/olnode.sock"
    assert [key.name for key in keystore_of(settings).list()] == ["node", "spending"]
    assert (tmp_path / "home/genesis").read_bytes() == GENESIS


def test_sealed_home_opens_by_its_password_alone(tmp_path: Path) -> None:
    chosen = {"profile": "testnet", "roles": ["payer"]}
    made = make_home(tmp_path / "home", genesis=GENESIS, chosen=chosen, password="correct horse")
    store = keystore_of(made.settings)
    assert all(key.is_sealed for key in made.keys)
    assert store.unlock("node", "correct horse").public_key == made.keys[0].public_key
    with pytest.raises(Exception, match="password"):
        store.unlock("node", "wrong")


def test_half_made_home_has_no_version_and_is_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signer record comes before the version: a start cannot find keys without a record."""

    def full_disk(*_: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(homes, "create_signer", full_disk)
    with pytest.raises(StorageError):
        make(tmp_path / "home", roles=["validator"])
    assert (tmp_path / "home/keystore/validator.json").exists()
    assert not (tmp_path / "home/version").exists()
