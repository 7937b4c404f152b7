"""Who lives in the devnet: fresh keys, a genesis that sums to the supply, homes that can start."""

from pathlib import Path

import pytest
from chain_kit import START_MS

from consensus.primitives.keys import public_key
from node.config import load
from node.devnet import people as places
from node.devnet.people import (
    BOND_GRAINS,
    FAUCET_GRAINS,
    NODE_GRAINS,
    PERSON_GRAINS,
    PROVIDERS,
    VALIDATORS,
    Settled,
    new_people,
    settle,
    settled,
)
from node.home import keystore_of
from node.ledger import genesis as genesis_file
from node.ledger import tables
from node.ledger.amounts import SUPPLY_GRAINS
from node.ledger.state import EMPTY_BASE, Base, State
from node.training.demo_world import CONTRIBUTORS, COPIER, JUNK
from p2p.peers import peer_id_text

PORTS = (7001, 7002, 7003, 7004, 7005)
MODELS = ("contracts", "cooking")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settled:
    home = tmp_path_factory.mktemp("devnet") / "home"
    return settle(home, time_ms=START_MS, ports=PORTS, models=MODELS)


def test_genesis_gives_everybody_theirs_and_sums_to_the_supply(made: Settled) -> None:
    genesis = genesis_file.decode_genesis(made.genesis)
    flat = dict(genesis_file.start(genesis).changes)
    state = State(Base(flat.get, EMPTY_BASE.scan, EMPTY_BASE.read_node, EMPTY_BASE.tree_root))
    assert state.supply() == SUPPLY_GRAINS
    accounts = dict(genesis.accounts)
    for person in made.people.everyone():
        due = FAUCET_GRAINS if person is made.people.faucet else PERSON_GRAINS
        assert accounts.pop(person.account) == due
    nodes = [load(child.home) for child in made.validators]
    for settings in nodes:
        key = keystore_of(settings).get("node")
        assert accounts.pop(key.public_key) == NODE_GRAINS
    assert accounts == {}, "nobody else has anything"
    keys = {keystore_of(settings).get("validator").public_key for settings in nodes}
    assert dict(genesis.validators) == dict.fromkeys(keys, BOND_GRAINS)
    pools = {pool.number: pool.balance + pool.locked for pool in genesis.pools}
    named = sum(dict(genesis.accounts).values()) + sum(dict(genesis.validators).values())
    assert pools == {tables.COMMUNITY: SUPPLY_GRAINS - named}


def test_nobodys_key_is_known_beforehand_or_shared() -> None:
    """Keys by a recipe could be spent by anyone who reads the port of a devnet."""
    first, second = new_people(), new_people()
    seeds = [person.seed for people in (first, second) for person in people.everyone()]
    assert len(set(seeds)) == len(seeds)
    assert len(first.contributors) == CONTRIBUTORS
    assert (first.contributors[COPIER].name, first.contributors[JUNK].name) == ("copier", "junk")


def test_people_are_found_by_their_account(made: Settled) -> None:
    people = made.people
    assert people.name_of(people.contributors[3].account) == "contributor-03"
    assert people.name_of(bytes(32)) is None


def test_roles_ports_and_models_stand_in_the_homes(made: Settled) -> None:
    assert [child.name for child in made.children] == ["n0", "n1", "n2", "n3", "payer"]
    assert (len(made.validators), made.payer.name) == (VALIDATORS, "payer")
    for number, child in enumerate(made.children):
        config = load(child.home).config
        assert config.roles == child.roles
        assert config.p2p.listen == (f"/ip4/127.0.0.1/tcp/{PORTS[number]}",)
        is_provider = number < PROVIDERS
        assert config.serving.models == (MODELS if is_provider else ())
        assert (config.engine.kind == "none") is not is_provider
        assert config.audit.models == (MODELS if number < VALIDATORS else ())


def test_all_but_the_first_bootstrap_from_it_by_its_peer_id(made: Settled) -> None:
    key = keystore_of(load(made.children[0].home)).get("node").public_key
    wanted = (f"/ip4/127.0.0.1/tcp/{PORTS[0]}/p2p/{peer_id_text(key)}",)
    told = [load(child.home).config.p2p.bootstrap for child in made.children]
    assert told == [(), wanted, wanted, wanted, wanted]


def test_what_was_settled_is_found_again(made: Settled, tmp_path: Path) -> None:
    again = settled(made.home)
    assert again is not None
    assert (again.people, again.genesis) == (made.people, made.genesis)
    assert [child.home for child in again.children] == [child.home for child in made.children]
    assert settled(tmp_path) is None


def test_seeds_on_the_disk_are_for_the_owner_alone(made: Settled) -> None:
    assert made.home.stat().st_mode & 0o777 == 0o700
    assert (made.home / places.PEOPLE_FILE).stat().st_mode & 0o777 == 0o600
    assert public_key(made.people.faucet.seed) == made.people.faucet.account
