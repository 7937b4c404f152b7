"""Private keys: sealed files in the home, and what the key of each role may sign.

Why roles: a key that lies online for votes must not be able to move an operator's funds, so each
role has its list of tags and transaction types, and no key serves two roles. Votes and proposals
are signed only through the function that `storage/journal.py` guards.
Files are sealed by argon2id and SecretBox; those of a devnet lie in the clear and say so.
What this file does not know: where passwords come from, the chain, the network.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgpack
import nacl.exceptions
import nacl.secret
from nacl.pwhash import argon2id

from consensus.primitives.digest import signing_bytes
from consensus.primitives.keys import public_key, sign
from node.ledger.wire.transactions import type_name_of
from p2p.peers import peer_id_text

Role = Literal["operator", "node", "validator", "spending"]
ROLES: Final = get_args(Role)

FILE_VERSION: Final = 1
FILE_BYTES_MAX: Final = 4_096
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
SEED_BYTES: Final = 32
KDF_MEM_MAX: Final = 1 << 30  # a file that asks for more would fill this machine
KDF_OPS_MAX: Final = 10
WORDS: Final = 24
PATH: Final = (44, 7017)  # SLIP-0010 m/44'/7017'/i'; 7017 is ours, unregistered

_BONDS: Final = frozenset({1, 3, 22, 23, 24})
_NODE_TYPES: Final = frozenset({1, 3, 12, *range(20, 25), 51, 52, 53, 60, 61, 62})
_ALL_TYPES: Final = frozenset(range(256))
_TAGS: Final[Mapping[Role, frozenset[bytes]]] = {
    "operator": frozenset({b"tx", b"rotate", b"coop"}),  # it opens channels too
    "node": frozenset({b"address", b"offer", b"receipt", b"bundle", b"audit", b"coop", b"rotate"})
    | {b"tx"},
    "validator": frozenset({b"peer", b"rotate", b"tx"}),
    "spending": frozenset({b"voucher", b"coop", b"tx"}),
}
_TYPES: Final[Mapping[Role, frozenset[int]]] = {  # numbers of page 30 §11
    "operator": _ALL_TYPES,
    "node": _NODE_TYPES,
    "validator": _BONDS,
    "spending": frozenset({1, 10, 11, 12, 13, 60, 62}),  # 60, 62: a wallet accuses who cheats it
}
_VOTING_TAGS: Final = frozenset({b"vote", b"proposal"})


class KeystoreError(Exception):
    """A key cannot be used as asked; `mend` is what the operator may do."""

    exit_status = 1

    def __init__(self, what: str, *, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Cost:
    """What a password guess costs: argon2id operations and bytes of memory."""

    ops: int
    mem: int


ONLINE: Final = Cost(2, 64 << 20)  # 0.09 s
OPERATOR: Final = Cost(3, 256 << 20)  # 0.64 s
LEAST: Final = Cost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)  # tests only


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key's file tells without its password."""

    name: str
    role: Role
    public_key: bytes
    is_sealed: bool

    @property
    def peer_id(self) -> str:
        """The key as libp2p writes it, for a node's addresses."""
        return peer_id_text(self.public_key)


@dataclass(frozen=True, slots=True)
class Key:
    """An unlocked key; it signs what its role may sign and shows its seed to no log."""

    name: str
    role: Role
    public_key: bytes
    _seed: bytes

    def __repr__(self) -> str:
        return f"Key({self.name!r}, {self.role!r}, {self.public_key.hex()})"

    def sign(self, tag: bytes, chain_id: bytes, body: bytes) -> bytes:
        """The signature of `body` under `tag` on the chain `chain_id`.

        Raises KeystoreError for a tag or a transaction type that the role may not sign; a
        validator's votes and proposals are never signed here.
        """
        if tag not in _TAGS[self.role]:
            raise KeystoreError(f"a {self.role} key does not sign {tag.decode('ascii', 'replace')}")
        if tag == b"tx":
            number = type_of(body)
            if number not in _TYPES[self.role]:
                raise KeystoreError(
                    f"a {self.role} key does not sign {type_name_of(number)} transactions",
                    mend="--from KEY, an operator's key; olnode keys list shows what there is",
                )
        return sign(self._seed, signing_bytes(tag, chain_id, body))

    def bound_to(self, chain_id: bytes) -> Callable[[bytes, bytes], bytes]:
        """(tag, body) → signature on one chain; refuses as `sign` does."""
        return lambda tag, body: self.sign(tag, chain_id, body)

    def message_signer(self, tag: bytes, chain_id: bytes) -> Callable[[bytes], bytes]:
        """Whole message → signature, for parts that build the signed bytes themselves.

        A message of another tag or chain is our own fault: an assertion.
        """
        prefix = signing_bytes(tag, chain_id, b"")

        def sign_message(message: bytes) -> bytes:
            assert message.startswith(prefix), "a message of another tag or chain"
            return self.sign(tag, chain_id, message[len(prefix) :])

        return sign_message

    def vote_signer(self, chain_id: bytes) -> Callable[[bytes, bytes], bytes]:
        """(tag, body) → signature of votes and proposals only; for the journal, which guards it."""
        if self.role != "validator":
            raise KeystoreError(f"a {self.role} key does not vote")

        def sign_vote(tag: bytes, body: bytes) -> bytes:
            if tag not in _VOTING_TAGS:
                raise KeystoreError("only votes and proposals are signed behind the journal")
            return sign(self._seed, signing_bytes(tag, chain_id, body))

        return sign_vote

    def network_seed(self) -> bytes:
        """The node key's seed: libp2p signs its own texts with it. No other role gives it out."""
        if self.role != "node":
            raise KeystoreError(f"a {self.role} key is not the network's")
        return self._seed


def type_of(body: bytes) -> int:
    """The type number of a transaction's body: its second field."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(body) + 1)
    unpacker.feed(body)
    try:
        fields = unpacker.read_array_header()
        number = [unpacker.unpack() for _ in range(2)][1] if fields >= 2 else None
    except (ValueError, msgpack.exceptions.UnpackException):
        number = None
    if type(number) is not int:
        raise KeystoreError("not the body of a transaction")
    return number


class Keystore:
    """The key files of one home. Nothing is ever overwritten but by `change_password`.

    `in_clear` (a devnet): new keys are written unsealed and unsealed files are accepted.
    """

    def __init__(self, folder: Path, *, in_clear: bool, cost: Cost | None = None) -> None:
        self._folder = folder
        self._in_clear = in_clear
        self._cost = cost  # None: by role

    def list(self) -> list[KeyFile]:
        """All keys by name. Raises KeystoreError for a file that is not one."""
        if not self._folder.is_dir():
            return []
        return [self.get(path.stem) for path in sorted(self._folder.glob("*.json"))]

    def find(self, role: Role) -> KeyFile | None:
        """The first key of a role, by name."""
        return next((key for key in self.list() if key.role == role), None)

    def get(self, name: str) -> KeyFile:
        """What the file of `name` tells. Raises KeystoreError if there is none."""
        return _public_part(self._read(name))

    def add(
        self, name: str, role: Role, password: str | None, seed: bytes | None = None
    ) -> KeyFile:
        """Write a new key, random unless `seed` is given; `password` is None in a devnet only."""
        seed = secrets.token_bytes(SEED_BYTES) if seed is None else seed
        self._write_new(name, self._sealed(name, role, seed, password))
        return self.get(name)

    def unlock(self, name: str, password: str | None) -> Key:
        """The key itself. Raises KeystoreError for a wrong password."""
        file = self._read(name)
        seed = self._open(file, password)
        shown = _public_part(file)
        if public_key(seed) != shown.public_key:
            raise KeystoreError(f"the file of key {name} holds another key than it says")
        return Key(shown.name, shown.role, shown.public_key, seed)

    def export(self, name: str, target: Path) -> None:
        """Copy the file of `name`, sealed as it is; never over an existing file."""
        _write_exclusive(target, _dump(self._read(name)))

    def packed(self, name: str) -> bytes:
        """The bytes of the file of `name`, sealed as it is."""
        return _dump(self._read(name))

    def import_file(self, source: Path, name: str | None) -> KeyFile:
        """Take in an exported file, under its own or another name."""
        return self._import(_load(source), name)

    def import_packed(self, raw: bytes, name: str) -> KeyFile:
        """Take in what `packed` gave, under `name`."""
        return self._import(_parse(raw, "what was packed"), name)

    def _import(self, file: dict[str, Any], name: str | None) -> KeyFile:
        name = name or file["name"]
        self._check_clear(file)
        self._write_new(name, {**file, "name": name})
        return self.get(name)

    def change_password(self, name: str, old: str | None, new: str | None) -> None:
        """Seal the same key anew; the old file stays until the new one is on the disk and opens."""
        key = self.unlock(name, old)
        file = self._sealed(name, key.role, key._seed, new)
        assert self._open(file, new) == key._seed
        temporary = self._path(name).with_suffix(".new")
        temporary.unlink(missing_ok=True)
        _write_exclusive(temporary, _dump(file))
        os.replace(temporary, self._path(name))
        _sync_folder(self._folder)

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise KeystoreError(f"{name!r} is no name of a key: a-z, 0-9 and -, at most 32")
        return self._folder / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            raise KeystoreError(f"no key named {name}", mend="olnode keys list")
        file = _load(path)
        if file["name"] != name:
            raise KeystoreError(f"{path} holds the key {file['name']}, not {name}")
        return file

    def _write_new(self, name: str, file: dict[str, Any]) -> None:
        path = self._path(name)
        for known in self.list():
            if known.public_key.hex() == file["public_key"]:
                raise KeystoreError(f"this key is here already, as {known.name}")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_exclusive(path, _dump(file))
        _sync_folder(self._folder)

    def _sealed(self, name: str, role: Role, seed: bytes, password: str | None) -> dict[str, Any]:
        assert role in ROLES
        assert len(seed) == SEED_BYTES
        head = {"version": FILE_VERSION, "name": name, "role": role}
        head["public_key"] = public_key(seed).hex()
        if password is None:
            if not self._in_clear:
                raise KeystoreError("keys are sealed by a password", mend="--password-file FILE")
            return {**head, "kdf": {"name": "none"}, "cipher": "none", "box": seed.hex()}
        cost = self._cost or (OPERATOR if role == "operator" else ONLINE)
        salt = secrets.token_bytes(argon2id.SALTBYTES)
        box = nacl.secret.SecretBox(_derive(password, cost, salt)).encrypt(seed)
        kdf = {"name": "argon2id", "ops": cost.ops, "mem": cost.mem, "salt": salt.hex()}
        return {**head, "kdf": kdf, "cipher": "xsalsa20poly1305", "box": box.hex()}

    def _open(self, file: Mapping[str, Any], password: str | None) -> bytes:
        self._check_clear(file)
        if file["cipher"] == "none":
            return bytes.fromhex(file["box"])
        if password is None:
            raise KeystoreError(
                f"key {file['name']} is sealed by a password", mend="--password-file FILE"
            )
        kdf = file["kdf"]
        if kdf["mem"] > KDF_MEM_MAX or kdf["ops"] > KDF_OPS_MAX:
            raise KeystoreError(f"key {file['name']} asks for too much work to be opened")
        try:
            derived = _derive(password, Cost(kdf["ops"], kdf["mem"]), bytes.fromhex(kdf["salt"]))
            return nacl.secret.SecretBox(derived).decrypt(bytes.fromhex(file["box"]))
        except nacl.exceptions.CryptoError:
            raise KeystoreError(f"wrong password for key {file['name']}") from None

    def _check_clear(self, file: Mapping[str, Any]) -> None:
        if file["cipher"] == "none" and not self._in_clear:
            raise KeystoreError(
                f"key {file['name']} lies in the clear: only a devnet may use it",
                mend="olnode keys add with another name",
            )


def new_words() -> str:
    """24 English words of fresh chance (BIP 39)."""
    from mnemonic import Mnemonic

    return str(Mnemonic("english").generate(strength=256))


def seed_of_words(words: str, index: int = 0) -> bytes:
    """The operator seed m/44'/7017'/index' of 24 words; raises KeystoreError for wrong words."""
    from mnemonic import Mnemonic

    told = " ".join(words.split()).lower()
    english = Mnemonic("english")
    if len(told.split(" ")) != WORDS or not english.check(told):
        raise KeystoreError("these are not 24 words that fit together: one may be misspelt")
    return _slip10(english.to_seed(told), (*PATH, index))


def _slip10(seed: bytes, path: tuple[int, ...]) -> bytes:
    """SLIP-0010, Ed25519: every step hardened."""
    node = hmac.digest(b"ed25519 seed", seed, hashlib.sha512)
    for index in path:
        step = b"\0" + node[:32] + (index | 0x80000000).to_bytes(4, "big")
        node = hmac.digest(node[32:], step, hashlib.sha512)
    return node[:32]


def _derive(password: str, cost: Cost, salt: bytes) -> bytes:
    derived: bytes = argon2id.kdf(
        nacl.secret.SecretBox.KEY_SIZE,
        password.encode("utf-8"),
        salt,
        opslimit=cost.ops,
        memlimit=cost.mem,
    )
    return derived


def _public_part(file: Mapping[str, Any]) -> KeyFile:
    sealed = file["cipher"] != "none"
    return KeyFile(file["name"], file["role"], bytes.fromhex(file["public_key"]), sealed)


def _dump(file: Mapping[str, Any]) -> bytes:
    return json.dumps(file).encode() + b"\n"


def _load(path: Path) -> dict[str, Any]:
    """The checked content of a key file; raises KeystoreError for anything else."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise KeystoreError(f"{path} cannot be read: {error.strerror}") from None
    return _parse(raw, str(path))


def read_public(raw: bytes) -> KeyFile:
    """What packed bytes tell without a password; raises KeystoreError if they are no key file."""
    return _public_part(_parse(raw, "what was packed"))


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        if len(raw) > FILE_BYTES_MAX:
            raise ValueError("too large")
        file = json.loads(raw)
        _check_shape(file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KeystoreError(
            f"{where} is not a key file of olnode ({type(error).__name__})",
            mend="restore it from your sealed copy: olnode keys import FILE",
        ) from None
    return dict(file)


def _check_shape(file: Any) -> None:
    if file["version"] != FILE_VERSION or file["role"] not in ROLES:
        raise ValueError("version or role")
    if not NAME.fullmatch(file["name"]) or len(bytes.fromhex(file["public_key"])) != SEED_BYTES:
        raise ValueError("name or public key")
    if file["cipher"] == "none":
        if len(bytes.fromhex(file["box"])) != SEED_BYTES:
            raise ValueError("box")
        return
    kdf = file["kdf"]
    if file["cipher"] != "xsalsa20poly1305" or kdf["name"] != "argon2id":
        raise ValueError("cipher or kdf")
    if type(kdf["ops"]) is not int or type(kdf["mem"]) is not int:
        raise ValueError("kdf")
    if len(bytes.fromhex(kdf["salt"])) != argon2id.SALTBYTES or not bytes.fromhex(file["box"]):
        raise ValueError("salt or box")


def _write_exclusive(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeystoreError(f"{path} exists: keys are never overwritten") from None
    except OSError as error:
        raise KeystoreError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
