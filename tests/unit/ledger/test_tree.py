"""The tree equals a rebuild after any changes; its proofs hold and forged ones do not."""

from hashlib import sha256
from random import Random

import pytest

from consensus.primitives.errors import Invalid
from node.ledger import tree


class Nodes:
    """A store of nodes that also prunes what is stale."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.record, self.version = tree.EMPTY_RECORD, 0

    def apply(self, changes: dict[bytes, bytes | None]) -> bytes:
        self.version += 1
        done = tree.update(self.nodes.get, self.record, self.version, changes.items())
        for key in done.stale:
            del self.nodes[key]
        self.nodes.update(done.nodes)
        self.record = done.record
        assert tree.root_hash(done.record) == done.root
        return done.root


def rebuilt_root(model: dict[bytes, bytes]) -> bytes:
    return Nodes().apply(dict(model))


def refusal(root: bytes, key: bytes, value: bytes | None, proof: tree.Proof) -> str | None:
    try:
        tree.verify(root, key, value, proof)
    except Invalid as error:
        return error.code
    return None


def test_root_depends_only_on_keys_and_values() -> None:
    """150 versions with deletions, stale nodes deleted at once, against a rebuild."""
    chance, nodes, model = Random(1), Nodes(), {}
    for _ in range(150):
        changes: dict[bytes, bytes | None] = {}
        for _ in range(chance.randrange(1, 30)):
            key = b"%d" % chance.randrange(400)
            changes[key] = None if chance.random() < 0.35 else chance.randbytes(20)
        root = nodes.apply(changes)
        model |= changes
        model = {key: value for key, value in model.items() if value is not None}
        assert root == rebuilt_root(model)
        for _ in range(5):
            key = b"%d" % chance.randrange(500)
            proof = tree.prove(nodes.nodes.get, nodes.record, key)
            assert refusal(root, key, model.get(key), proof) is None
            assert refusal(root, key, b"forged", proof) is not None
            if key in model:
                assert refusal(root, key, None, proof) == "tree.present"
    assert rebuilt_root(model) == nodes.apply({})


class Pruned(Nodes):
    """Keeps the last `kept` versions, as storage does: what a version made stale goes later."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self._kept = kept
        self._stale: dict[int, list[bytes]] = {}
        self.roots: dict[int, tuple[bytes, bytes, dict[bytes, bytes]]] = {}

    def change(self, changes: dict[bytes, bytes | None], model: dict[bytes, bytes]) -> None:
        """`model`: all keys afterwards."""
        self.version += 1
        done = tree.update(self.nodes.get, self.record, self.version, changes.items())
        self.record = done.record
        self.nodes.update(done.nodes)
        self._stale[self.version] = done.stale
        self.roots[self.version] = (done.root, done.record, model)
        self.prune(self.version - self._kept)

    def prune(self, last: int) -> None:
        """Versions up to `last` can no longer be asked."""
        for version in [each for each in self._stale if each <= last + 1]:
            for key in self._stale.pop(version):
                del self.nodes[key]
        for version in [each for each in self.roots if each <= last]:
            del self.roots[version]


def forgeries(
    chance: Random, proof: tree.Proof, key: bytes, value: bytes | None, other: tree.Proof
) -> list[tuple[bytes | None, tree.Proof]]:
    """Claims about `key` that are false, from a true proof of it and one of another key."""
    siblings, made = list(proof.siblings), []
    own = tree.Leaf(sha256(key).digest(), sha256(b"lie").digest())
    made += [(b"lie", proof), (b"lie", proof._replace(leaf=own))]
    made += [(b"lie", proof._replace(siblings=tuple(siblings[:n]), leaf=own)) for n in range(3)]
    if value is not None:
        made += [(None, proof), (None, proof._replace(leaf=None)), (None, other)]
        made += [(None, proof._replace(leaf=other.leaf))]
        made += [(None, tree.Proof(None, tuple(siblings[:n]))) for n in range(len(siblings))]
    for place, sibling in enumerate(siblings):
        flipped = bytearray(sibling)
        flipped[chance.randrange(32)] ^= 1 << chance.randrange(8)
        changed = [*siblings[:place], bytes(flipped), *siblings[place + 1 :]]
        made.append((value, proof._replace(siblings=tuple(changed))))
        made.append((value, proof._replace(siblings=(*siblings[:place], *siblings[place + 1 :]))))
        made.append((value, proof._replace(siblings=(*siblings[:place], *siblings[place:][::-1]))))
    made.append((value, proof._replace(siblings=(*siblings, tree.EMPTY_ROOT))))
    return [(said, forgery) for said, forgery in made if (said, forgery) != (value, proof)]


def test_kept_versions_prove_and_no_forgery_does() -> None:
    """160 versions with deletions, the last 20 kept: inclusion and exclusion, and every lie."""
    chance, nodes, model, lies = Random(4), Pruned(20), dict[bytes, bytes](), 0
    for _ in range(160):
        changes: dict[bytes, bytes | None] = {}
        for _ in range(chance.randrange(1, 40)):
            key = b"%d" % chance.randrange(300)
            changes[key] = None if chance.random() < 0.45 else chance.randbytes(20)
        merged = {**model, **changes}
        model = {key: value for key, value in merged.items() if value is not None}
        nodes.change(changes, model)
        root, record, held = nodes.roots[chance.choice(list(nodes.roots))]
        assert root == rebuilt_root(held)
        for _ in range(3):
            key, another = (b"%d" % number for number in chance.sample(range(400), 2))
            proof = tree.prove(nodes.nodes.get, record, key)
            other = tree.prove(nodes.nodes.get, record, another)
            assert refusal(root, key, held.get(key), proof) is None
            for said, forgery in forgeries(chance, proof, key, held.get(key), other):
                assert refusal(root, key, said, forgery) is not None, (said, forgery)
                lies += 1
    assert len(nodes.roots) == 20
    assert lies > 5_000
    nodes.prune(nodes.version - 1)
    whole = Nodes()
    whole.apply(dict(model))
    assert len(nodes.nodes) == len(whole.nodes), "nothing stays that no version needs"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 300, 5_000])
def test_tree_built_at_once_is_the_tree_of_one_update(count: int) -> None:
    """A node that began from a snapshot must go on exactly as all others."""
    chance = Random(count)
    model = {chance.randbytes(8): chance.randbytes(20) for _ in range(count)}
    slow, builder = Nodes(), tree.Builder(1)
    root = slow.apply(dict(model))
    for key, value in model.items():
        builder.add(key, value)
    fast = Nodes()
    fast.nodes = dict(builder.nodes())
    assert builder.record is not None
    fast.record, fast.version = builder.record, 1
    assert (fast.nodes, fast.record) == (slow.nodes, slow.record)
    assert tree.root_hash(fast.record) == root
    changes: dict[bytes, bytes | None] = dict.fromkeys(list(model)[::3]) | {b"new": b"x"}
    assert fast.apply(changes) == slow.apply(changes)


def test_builder_of_two_keys_that_part_late_stores_the_whole_path() -> None:
    keys = _keys_of_equal_start()
    slow, builder = Nodes(), tree.Builder(1)
    slow.apply(dict.fromkeys(keys, b"x"))
    for key in keys:
        builder.add(key, b"x")
    assert dict(builder.nodes()) == slow.nodes
    assert len(slow.nodes) >= 3


def _keys_of_equal_start() -> tuple[bytes, bytes]:
    """Two keys whose hashes agree in the first byte: the parts of the builder hide nothing."""
    first = sha256(b"0").digest()[0]
    return b"0", next(b"%d" % i for i in range(1, 9_999) if sha256(b"%d" % i).digest()[0] == first)


def test_all_deleted_is_the_empty_tree() -> None:
    nodes = Nodes()
    nodes.apply({b"a": b"1", b"b": b"2"})
    assert nodes.apply({b"a": None, b"b": None}) == tree.EMPTY_ROOT
    assert nodes.nodes == {}
    proof = tree.prove(nodes.nodes.get, nodes.record, b"a")
    tree.verify(tree.EMPTY_ROOT, b"a", None, proof)


def test_one_leaf_is_its_own_root() -> None:
    nodes = Nodes()
    leaf = tree.Leaf(sha256(b"a").digest(), sha256(b"1").digest())
    assert nodes.apply({b"a": b"1"}) == tree.leaf_hash(leaf)
    assert nodes.nodes == {}


@pytest.fixture(scope="module")
def grown() -> Nodes:
    nodes = Nodes()
    nodes.apply({b"key%d" % i: b"value%d" % i for i in range(300)})
    return nodes


def forged(proof: tree.Proof, **changes: object) -> tree.Proof:
    return proof._replace(**changes)


def test_each_forgery_is_refused_by_its_code(grown: Nodes) -> None:
    root = tree.root_hash(grown.record)
    proof = tree.prove(grown.nodes.get, grown.record, b"key7")
    other = tree.prove(grown.nodes.get, grown.record, b"key8")
    siblings, leaf = proof.siblings, proof.leaf
    assert leaf is not None
    flipped = bytes([siblings[0][0] ^ 1]) + siblings[0][1:]
    assert refusal(root, b"key7", b"value7", proof) is None
    cases = [
        (b"key7", b"value8", proof, "tree.value"),
        (b"key8", b"value7", proof, "tree.key"),
        (b"key7", None, proof, "tree.present"),
        (b"key7", b"value7", forged(proof, leaf=None), "tree.key"),
        (b"key7", None, forged(proof, leaf=None), "tree.root"),
        (b"key7", None, forged(proof, leaf=other.leaf), "tree.other_path"),
        (b"key7", b"value7", forged(proof, siblings=siblings[1:]), "tree.root"),
        (b"key7", b"value7", forged(proof, siblings=(flipped, *siblings[1:])), "tree.root"),
        (b"key7", b"value7", forged(proof, siblings=(b"short", *siblings[1:])), "tree.sibling"),
        (b"key7", b"value7", forged(proof, siblings=siblings[:1] * 257), "tree.depth"),
    ]
    for key, value, forgery, code in cases:
        assert refusal(root, key, value, forgery) == code


def test_absence_is_shown_by_the_leaf_met_or_an_empty_slot(grown: Nodes) -> None:
    root = tree.root_hash(grown.record)
    met = set()
    for i in range(60):
        proof = tree.prove(grown.nodes.get, grown.record, b"absent%d" % i)
        tree.verify(root, b"absent%d" % i, None, proof)
        met.add(proof.leaf is None)
    assert met == {True, False}


def test_missing_node_is_corruption_and_no_refusal(grown: Nodes) -> None:
    with pytest.raises(tree.MissingNode):
        tree.prove(lambda _: None, grown.record, b"key7")
    with pytest.raises(tree.MissingNode):
        tree.prove(lambda _: b"\0\0\0\1", grown.record, b"key7")


def check_all(read_node: tree.ReadNode, record: bytes) -> tree.Checker:
    checker = tree.Checker(read_node, record)
    for i in range(300):
        checker.check(b"key%d" % i, b"value%d" % i)
    return checker


def test_checker_knows_each_key_its_value_and_no_other(grown: Nodes) -> None:
    checker = check_all(grown.nodes.get, grown.record)
    with pytest.raises(Invalid) as refused:
        checker.check(b"key7", b"value8")
    assert refused.value.code == "tree.value"
    with pytest.raises(Invalid) as refused:
        checker.check(b"absent", b"")
    assert refused.value.code == "tree.key"


def test_checker_finds_any_byte_changed_in_any_node(grown: Nodes) -> None:
    """All 300 keys are asked for, so that each node lies on a way."""
    for place, raw in grown.nodes.items():
        for at in range(0, len(raw), 23):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            with pytest.raises((Invalid, tree.MissingNode)):
                check_all({**grown.nodes, place: changed}.get, grown.record)


def test_checker_of_an_empty_node_says_so(grown: Nodes) -> None:
    checker = tree.Checker(dict.fromkeys(grown.nodes, bytes(4)).get, grown.record)
    with pytest.raises(Invalid) as refused:
        checker.check(b"key7", b"value7")
    assert refused.value.code == "tree.node"


def defined_root(leaves: list[tree.Leaf], depth: int = 0) -> bytes:
    """The rules as they are defined, one bit at a time: nothing of nibbles or stored nodes."""
    if len(leaves) < 2:
        return tree.leaf_hash(leaves[0]) if leaves else tree.EMPTY_ROOT
    halves: tuple[list[tree.Leaf], list[tree.Leaf]] = ([], [])
    for leaf in leaves:
        halves[leaf.key[depth // 8] >> 7 - depth % 8 & 1].append(leaf)
    left, right = (defined_root(half, depth + 1) for half in halves)
    return sha256(b"JMT::IntrnalNode" + left + right).digest()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 300])
def test_root_is_that_of_the_definition(count) -> None:
    pairs = {b"key%d" % i: b"value%d" % i for i in range(count)}
    leaves = [
        tree.Leaf(sha256(key).digest(), sha256(value).digest()) for key, value in pairs.items()
    ]
    assert rebuilt_root(pairs) == defined_root(leaves)
