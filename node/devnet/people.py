"""Who lives in the devnet, what they own at the start, and the homes of its five nodes.

Why keys before the genesis: it names validators and balances, so their keys are made first and
the homes are made with them. Every key is random, also here: a chain whose keys are known could
be spent by anyone who reads its port.
What this file does not know: processes, models, what anybody does with the money.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from consensus.primitives.keys import public_key
from node.config import load
from node.devnet.children import Child
from node.home import HomeError, keystore_of, make_home
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.genesis import devnet_genesis, encode_genesis
from node.training.demo_world import CONTRIBUTORS, COPIER, JUNK

VALIDATORS: Final = 4
PROVIDERS: Final = 2  # the first ones
PAYER: Final = "payer"
NODE_GRAINS: Final = 1_000 * GRAINS_PER_OPEN  # for deposits, bonds and fees
PERSON_GRAINS: Final = 1_000 * GRAINS_PER_OPEN
FAUCET_GRAINS: Final = 1_000_000 * GRAINS_PER_OPEN
BOND_GRAINS: Final = 10_000 * GRAINS_PER_OPEN
PEOPLE_FILE: Final = "people.json"
GENESIS_FILE: Final = "genesis"


@dataclass(frozen=True, slots=True)
class Person:
    """An account of the devnet and the seed of its key."""

    name: str
    seed: bytes

    @property
    def account(self) -> bytes:
        """The public key."""
        return public_key(self.seed)


@dataclass(frozen=True, slots=True)
class People:
    """All who are not nodes. `contributors` in the world's order: copier and junk come last."""

    faucet: Person
    creator: Person
    steward: Person
    contributors: tuple[Person, ...]

    def everyone(self) -> tuple[Person, ...]:
        """In one row, for funding."""
        return (self.faucet, self.creator, self.steward, *self.contributors)

    def name_of(self, account: bytes) -> str | None:
        """The devnet's name of an account, or None for a stranger."""
        return next((p.name for p in self.everyone() if p.account == account), None)

    def get(self, account: bytes) -> Person:
        """Whose account it is."""
        return next(person for person in self.everyone() if person.account == account)


@dataclass(frozen=True, slots=True)
class Settled:
    """A devnet on disk: who lives in it, its genesis, its five daemons (the payer is last)."""

    home: Path
    people: People
    genesis: bytes
    children: tuple[Child, ...]

    @property
    def validators(self) -> tuple[Child, ...]:
        """The four that vote."""
        return self.children[:VALIDATORS]

    @property
    def payer(self) -> Child:
        """The node whose wallet asks."""
        return self.children[-1]


def new_people() -> People:
    """Fresh keys for everybody."""

    def person(name: str) -> Person:
        return Person(name, secrets.token_bytes(32))

    names = [f"contributor-{number:02d}" for number in range(CONTRIBUTORS)]
    names[COPIER], names[JUNK] = "copier", "junk"
    return People(person("faucet"), person("creator"), person("steward"), tuple(map(person, names)))


def settle(home: Path, *, time_ms: int, ports: tuple[int, ...], models: tuple[str, ...]) -> Settled:
    """Make people, genesis and five homes under `home`; `ports` one for each node.

    The people's file comes last: a folder that has it is whole. Raises HomeError or FileExistsError
    over anything that lies there.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    people = new_people()
    seeds = [
        {name: secrets.token_bytes(32) for name in ("node", "validator", "spending")}
        for _ in range(VALIDATORS + 1)
    ]
    genesis = _genesis(people, seeds, time_ms)
    _write_private(home / GENESIS_FILE, genesis)
    bootstrap = ""
    for number, child in enumerate(_children(home)):
        chosen: dict[str, Any] = {
            "profile": "devnet",
            "name": child.name,
            "roles": list(child.roles),
            "p2p.listen": [f"/ip4/127.0.0.1/tcp/{ports[number]}"],
            "log.format": "json",
        }
        if number:
            chosen["p2p.bootstrap"] = [bootstrap]
        if "provider" in child.roles:
            chosen["serving.models"] = list(models)
        else:
            chosen["engine.kind"] = "none"
        if "validator" in child.roles:
            chosen["audit.models"] = list(models)
        made = make_home(
            child.home, genesis=genesis, chosen=chosen, password=None, seeds=seeds[number]
        )
        if not number:
            peer_id = next(key.peer_id for key in made.keys if key.role == "node")
            bootstrap = f"/ip4/127.0.0.1/tcp/{ports[0]}/p2p/{peer_id}"
    half = home / f"{PEOPLE_FILE}.new"
    _write_private(half, _people_json(people))
    half.replace(home / PEOPLE_FILE)
    return Settled(home, people, genesis, _children(home))


def settled(home: Path) -> Settled | None:
    """The devnet that lies in `home`, or None; HomeError for a people's file of something else."""
    file = home / PEOPLE_FILE
    if not file.is_file():
        return None
    try:
        people = _people_of(json.loads(file.read_text("utf-8")))
        genesis = (home / GENESIS_FILE).read_bytes()
    except (OSError, ValueError, TypeError):
        raise HomeError(f"{home} is no whole devnet", mend="take another --home") from None
    return Settled(home, people, genesis, _children(home))


def _children(home: Path) -> tuple[Child, ...]:
    nodes = []
    for number in range(VALIDATORS):
        roles = ("validator", "provider") if number < PROVIDERS else ("validator",)
        nodes.append(Child(f"n{number}", home / f"n{number}", roles))
    return (*nodes, Child(PAYER, home / PAYER, ("payer",)))


def _genesis(people: People, seeds: list[dict[str, bytes]], time_ms: int) -> bytes:
    accounts = {person.account: PERSON_GRAINS for person in people.everyone()}
    accounts[people.faucet.account] = FAUCET_GRAINS
    for mine in seeds[:VALIDATORS]:
        accounts[public_key(mine["node"])] = NODE_GRAINS
    validators = {public_key(mine["validator"]): BOND_GRAINS for mine in seeds[:VALIDATORS]}
    return encode_genesis(
        devnet_genesis(name="devnet", time_ms=time_ms, accounts=accounts, validators=validators)
    )


def _people_json(people: People) -> bytes:
    rows = [[person.name, person.seed.hex()] for person in people.everyone()]
    return json.dumps(rows).encode()


def _people_of(rows: list[list[str]]) -> People:
    """Raises ValueError or TypeError for what `_people_json` never wrote."""
    everyone = [Person(name, bytes.fromhex(seed)) for name, seed in rows]
    if len(everyone) != 3 + CONTRIBUTORS or {len(person.seed) for person in everyone} != {32}:
        raise ValueError("not the devnet's people")
    return People(everyone[0], everyone[1], everyone[2], tuple(everyone[3:]))


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def node_of(child: Child) -> Person:
    """The account of a node's own key, which a devnet keeps in the clear."""
    key = keystore_of(load(child.home)).unlock("node", None)
    return Person(child.name, key.network_seed())


def spender_of(child: Child) -> bytes:
    """The account that the payer's wallet spends from."""
    found = keystore_of(load(child.home)).find("spending")
    assert found is not None
    return found.public_key
