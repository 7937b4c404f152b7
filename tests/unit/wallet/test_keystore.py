"""Keys: sealed files that open again, and roles that sign no more than their own."""

import json
from pathlib import Path

import pytest

from consensus.primitives.digest import signing_bytes
from consensus.primitives.encoding import encode
from consensus.primitives.keys import is_signed_by, public_key
from node.wallet import keystore
from node.wallet.keystore import LEAST, ROLES, Key, Keystore, KeystoreError, seed_of_words
from p2p.peers import peer_id_text

CHAIN = bytes(range(32))
SEED = b"\7" * 32
TAGS = b"voucher receipt bundle tx vote proposal offer peer address audit rotate coop".split()
# Page 80 §5, written out once more: who may sign what.
TAGS_OF = {
    "operator": b"tx rotate coop",  # coop beside the page: it opens channels by default
    "node": b"address offer receipt bundle audit coop rotate tx",
    "validator": b"peer rotate tx",
    "spending": b"voucher coop tx",
}
TYPES_OF = {
    "operator": set(range(100)),
    "node": {1, 3, 12, 20, 21, 22, 23, 24, 51, 52, 53, 60, 61, 62},
    "validator": {1, 3, 22, 23, 24},
    "spending": {1, 10, 11, 12, 13, 60, 62},
}


def sealed(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path / "keystore", in_clear=False, cost=LEAST)


def key_of(role: str) -> Key:
    return Key("k", role, public_key(SEED), SEED)  # type: ignore[arg-type]


def body_of(number: int) -> bytes:
    return encode([1, number, public_key(SEED), 0, 1_000, 1_000, b""])


@pytest.mark.parametrize("role", ROLES)
def test_role_signs_its_own_tags_and_no_other(role: str) -> None:
    key, allowed = key_of(role), set()
    for tag in TAGS:
        body = body_of(1)  # a transfer: every role may move its own balance
        try:
            signature = key.sign(tag, CHAIN, body)
        except KeystoreError:
            continue
        assert is_signed_by(key.public_key, signing_bytes(tag, CHAIN, body), signature)
        allowed.add(tag)
    assert allowed == set(TAGS_OF[role].split())


@pytest.mark.parametrize("role", ROLES)
def test_role_signs_its_own_transaction_types_and_no_other(role: str) -> None:
    key, allowed = key_of(role), set()
    for number in range(100):
        try:
            key.sign(b"tx", CHAIN, body_of(number))
        except KeystoreError:
            continue
        allowed.add(number)
    assert allowed == TYPES_OF[role]


def test_votes_are_signed_by_validators_behind_the_journal_only() -> None:
    sign = key_of("validator").vote_signer(CHAIN)
    for tag in TAGS:
        if tag in (b"vote", b"proposal"):
            message = signing_bytes(tag, CHAIN, b"body")
            assert is_signed_by(public_key(SEED), message, sign(tag, b"body"))
        else:
            with pytest.raises(KeystoreError):
                sign(tag, b"body")
    for role in set(ROLES) - {"validator"}:
        with pytest.raises(KeystoreError):
            key_of(role).vote_signer(CHAIN)


def test_seed_leaves_for_the_network_only() -> None:
    assert key_of("node").network_seed() == SEED
    for role in set(ROLES) - {"node"}:
        with pytest.raises(KeystoreError):
            key_of(role).network_seed()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91\x01", encode([1, b"1"]), b"\x92\x01"])
def test_body_that_is_no_transaction_is_not_signed(body: bytes) -> None:
    with pytest.raises(KeystoreError):
        key_of("operator").sign(b"tx", CHAIN, body)


def test_key_shows_its_seed_to_no_log() -> None:
    assert SEED.hex() not in repr(key_of("node"))
    assert repr(SEED) not in repr(key_of("node"))


def test_sealed_key_opens_with_its_password(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    added = store.add("main", "operator", "correct horse")
    key = store.unlock("main", "correct horse")
    assert (key.public_key, key.role, added.is_sealed) == (added.public_key, "operator", True)
    path = tmp_path / "keystore/main.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("password", ["wrong", "", None])
def test_other_password_does_not_open(tmp_path: Path, password: str | None) -> None:
    store = sealed(tmp_path)
    store.add("main", "operator", "correct horse")
    with pytest.raises(KeystoreError):
        store.unlock("main", password)


def test_key_file_with_any_byte_changed_never_gives_another_key(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    store.add("main", "node", "p", SEED)
    path = tmp_path / "keystore/main.json"
    good = path.read_bytes()
    for i in range(0, len(good), 3):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        try:
            key = store.unlock("main", "p")
        except KeystoreError:
            continue
        assert key.public_key == public_key(SEED)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    store.add("main", "node", "p")
    with pytest.raises(KeystoreError, match="never overwritten"):
        store.add("main", "node", "p")
    (tmp_path / "copy.json").write_text("mine")
    with pytest.raises(KeystoreError, match="never overwritten"):
        store.export("main", tmp_path / "copy.json")


def test_exported_key_is_imported_elsewhere(tmp_path: Path) -> None:
    store, other = sealed(tmp_path), Keystore(tmp_path / "other", in_clear=False, cost=LEAST)
    added = store.add("main", "node", "p")
    store.export("main", tmp_path / "copy.json")
    assert other.import_file(tmp_path / "copy.json", "mine").public_key == added.public_key
    assert other.unlock("mine", "p").public_key == added.public_key


def test_one_key_has_one_name(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    store.add("main", "node", "p", SEED)
    with pytest.raises(KeystoreError, match="here already, as main"):
        store.add("twin", "validator", "p", SEED)


def test_new_password_opens_and_the_old_does_not(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    added = store.add("main", "node", "old")
    store.change_password("main", "old", "new")
    assert store.unlock("main", "new").public_key == added.public_key
    with pytest.raises(KeystoreError, match="wrong password"):
        store.unlock("main", "old")


def test_clear_key_is_for_a_devnet_only(tmp_path: Path) -> None:
    devnet = Keystore(tmp_path / "keystore", in_clear=True)
    added = devnet.add("node", "node", None)
    assert (devnet.unlock("node", None).public_key, added.is_sealed) == (added.public_key, False)
    with pytest.raises(KeystoreError, match="only a devnet"):
        sealed(tmp_path).unlock("node", None)
    with pytest.raises(KeystoreError, match="sealed by a password"):
        sealed(tmp_path).add("other", "node", None)


@pytest.mark.parametrize(("name", "amount"), [("mem", 2**30 + 1), ("ops", 11)])
def test_file_that_asks_for_too_much_work_is_refused(
    tmp_path: Path, name: str, amount: int
) -> None:
    store = sealed(tmp_path)
    store.add("main", "node", "p")
    path = tmp_path / "keystore/main.json"
    file = json.loads(path.read_bytes())
    file["kdf"][name] = amount
    path.write_text(json.dumps(file))
    with pytest.raises(KeystoreError, match="too much work"):
        store.unlock("main", "p")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"version": 2}', "x" * 5_000])
def test_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keystore").mkdir()
    (tmp_path / "keystore/main.json").write_text(content)
    with pytest.raises(KeystoreError, match="not a key file"):
        sealed(tmp_path).list()


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a" * 33, "ä", "a\n"])
def test_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeystoreError, match="no name of a key"):
        sealed(tmp_path).add(name, "node", "p")


def test_slip10_vectors_hold() -> None:
    """SLIP-0010, Ed25519 test vector 1: m/0' and m/0'/1' of 000102…0f."""
    seed = bytes(range(16))
    first = "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3"
    second = "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2"
    assert keystore._slip10(seed, (0,)).hex() == first
    assert keystore._slip10(seed, (0, 1)).hex() == second


def test_words_give_the_same_key_again_and_an_index_another() -> None:
    words = keystore.new_words()
    assert len(words.split()) == 24
    assert seed_of_words(words) == seed_of_words("  " + words.upper() + "\n")
    assert seed_of_words(words, 1) != seed_of_words(words)


def test_misspelt_words_are_refused() -> None:
    words = keystore.new_words().split()
    for wrong in (words[:-1], [*words[:-1], "olnode"], words[::-1][:12]):
        with pytest.raises(KeystoreError, match="24 words"):
            seed_of_words(" ".join(wrong))


def test_key_tells_its_peer_id_as_p2p_writes_it(tmp_path: Path) -> None:
    key = sealed(tmp_path).add("node", "node", "password", SEED)
    assert key.peer_id == peer_id_text(public_key(SEED))
