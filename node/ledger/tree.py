"""The state as one hash: a Jellyfish Merkle tree, pure over `read_node`.

Why this tree: the root depends only on the set of keys and values, a block writes only the paths
it touched, and a proof can also show that a key is absent. Nodes are 16-way in storage and binary
in hashing; a subtree with one leaf is that leaf (the rules of penumbra-zone/jmt).
Node key = version u64 ‖ one byte per nibble; version = height. Leaves sit in their parent.
Children are worked with as the bytes they are stored as: taking each apart costs more than a hash.
Root record: empty, or `L` ‖ key ‖ value hash, or `I` ‖ hash ‖ version u64.
What this file does not know: what keys mean, and how nodes are stored and pruned.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256 as _sha256
from typing import Final, NamedTuple, TypeVar

from consensus.primitives.digest import HASH_BYTES, sha256
from consensus.primitives.errors import Invalid

EMPTY_ROOT: Final = b"SPARSE_MERKLE_PLACEHOLDER_HASH__"
EMPTY_RECORD: Final = b""
SIBLINGS_MAX: Final = 256
CHECKED_NODES_MAX: Final = 500_000  # about 100 bytes each
KEY_BITS: Final = 256
_VERSION_BYTES: Final = 8
_NIBBLE_BITS: Final = 4
_NIBBLES: Final = [bytes([nibble]) for nibble in range(16)]
_LEAF_BYTES: Final = 2 * HASH_BYTES
_INNER_BYTES: Final = HASH_BYTES + _VERSION_BYTES
# A node of sixteen stored nodes: most of a large tree's upper ones, so it is not looked at by bits.
_BITMAP_BYTES: Final = 4
_FULL_BITMAPS: Final = b"\xff\xff\0\0"
_FULL: Final = [
    slice(at, at + _INNER_BYTES)
    for at in range(_BITMAP_BYTES, _BITMAP_BYTES + 16 * _INNER_BYTES, _INNER_BYTES)
]
_LEAF: Final = b"JMT::LeafNode"
_INNER: Final = b"JMT::IntrnalNode"  # the missing letter is the published rule's

T = TypeVar("T")


class Leaf(NamedTuple):
    """Key hash (SHA-256 of the flat key) and value hash (SHA-256 of the value)."""

    key: bytes
    value: bytes


Child = bytes  # a leaf's key ‖ value hash, or a stored node's hash ‖ version u64
Node = dict[int, Child]  # nibble -> child, in order
ReadNode = Callable[[bytes], bytes | None]


class Update(NamedTuple):
    """What a block does to the tree: new nodes, and keys of nodes that no later version needs."""

    root: bytes
    record: bytes
    nodes: list[tuple[bytes, bytes]]
    stale: list[bytes]


class Proof(NamedTuple):
    """The leaf met on the way to a key, or None; siblings, root first."""

    leaf: Leaf | None
    siblings: tuple[bytes, ...]


class MissingNode(Exception):
    """The store lacks a node that the tree refers to: corruption, never a peer's fault."""


def leaf_hash(leaf: Leaf) -> bytes:
    """SHA-256(`JMT::LeafNode` ‖ key ‖ value hash)."""
    return _child_hash(leaf.key + leaf.value)


def inner_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(`JMT::IntrnalNode` ‖ left ‖ right)."""
    return _sha256(_INNER + left + right).digest()


def root_hash(record: bytes) -> bytes:
    """The root of a root record."""
    top = _decode_record(record)
    return EMPTY_ROOT if top is None else _child_hash(top)


def update(
    read_node: ReadNode,
    previous: bytes,
    version: int,
    changes: Iterable[tuple[bytes, bytes | None]],
) -> Update:
    """The tree after `changes` (flat key, value or None to delete) on root record `previous`.

    `version` must be above that of every stored node. Raises `MissingNode`.
    """
    items = sorted(
        (_sha256(key).digest(), None if raw is None else _sha256(raw).digest())
        for key, raw in changes
    )
    return update_hashes(read_node, previous, version, items)


def update_hashes(
    read_node: ReadNode,
    previous: bytes,
    version: int,
    items: Sequence[tuple[bytes, bytes | None]],
) -> Update:
    """The same over key and value hashes, sorted by key hash, each key once."""
    writer = _Writer(read_node, version)
    top = _decode_record(previous)
    if items:
        top = writer.change(top, b"", items)
    root = EMPTY_ROOT if top is None else _child_hash(top)
    return Update(root, _encode_record(top), writer.nodes, sorted(writer.stale))


def prove(read_node: ReadNode, record: bytes, flat_key: bytes) -> Proof:
    """Proof of presence or absence of a flat key under a root record. Raises `MissingNode`."""
    key = sha256(flat_key)
    child, path = _decode_record(record), b""
    siblings: list[bytes] = []
    while child is not None and not _is_leaf(child):
        node = _load(read_node, child, path)
        nibble, low, high = _nibble(key, len(path)), 0, 16
        while high - low > 1:
            inside = [place for place in node if low <= place < high]
            alone = node[inside[0]] if len(inside) == 1 else None
            if not inside or (alone is not None and _is_leaf(alone)):
                return Proof(_leaf(alone), tuple(siblings))
            middle = (low + high) // 2
            if nibble < middle:
                siblings.append(_range_hash(node, middle, high))
                high = middle
            else:
                siblings.append(_range_hash(node, low, middle))
                low = middle
        child, path = node.get(nibble), path + _NIBBLES[nibble]
    return Proof(_leaf(child), tuple(siblings))


def verify(root: bytes, flat_key: bytes, value: bytes | None, proof: Proof) -> None:
    """Raise `Invalid` `tree.…` unless `flat_key` has `value` (None: is absent) under `root`."""
    key, depth = sha256(flat_key), len(proof.siblings)
    if depth > SIBLINGS_MAX:
        raise Invalid("tree.depth", siblings=depth)
    if set(map(len, proof.siblings)) - {HASH_BYTES}:
        raise Invalid("tree.sibling")
    leaf = proof.leaf
    bits = int.from_bytes(key, "big")
    if value is not None:
        if leaf is None or leaf.key != key:
            raise Invalid("tree.key")
        if leaf.value != sha256(value):
            raise Invalid("tree.value")
    elif leaf is not None:
        if leaf.key == key:
            raise Invalid("tree.present")
        met = int.from_bytes(leaf.key, "big")
        if met >> KEY_BITS - depth != bits >> KEY_BITS - depth:
            raise Invalid("tree.other_path")
    here = EMPTY_ROOT if leaf is None else leaf_hash(leaf)
    path = bits >> KEY_BITS - depth
    for sibling in reversed(proof.siblings):
        pair = sibling + here if path & 1 else here + sibling
        here = _sha256(_INNER + pair).digest()
        path >>= 1
    if here != root:
        raise Invalid("tree.root")


class Checker:
    """Whether a stored tree holds what it should, for many keys: each node is hashed once.

    As strong as a proof of each key, at a tenth of the cost. Of the nodes that were found good it
    notes at most CHECKED_NODES_MAX, then begins to note anew.
    """

    def __init__(self, read_node: ReadNode, record: bytes) -> None:
        self._read_node = read_node
        self._top = _decode_record(record)
        self._good: set[bytes] = set()

    def check(self, flat_key: bytes, value: bytes) -> None:
        """Raise `Invalid` `tree.node`, `tree.key` or `tree.value`, or `MissingNode`."""
        key = sha256(flat_key)
        child, path = self._top, b""
        while child is not None and not _is_leaf(child):
            node = self._node(child, path)
            nibble = _nibble(key, len(path))
            child, path = node.get(nibble), path + _NIBBLES[nibble]
        if child is None or child[:HASH_BYTES] != key:
            raise Invalid("tree.key")
        if child[HASH_BYTES:] != sha256(value):
            raise Invalid("tree.value")

    def _node(self, child: Child, path: bytes) -> Node:
        node, place = _load(self._read_node, child, path), _node_key(child, path)
        if place in self._good:
            return node
        if not node or _node_hash(list(node.items())) != child[:HASH_BYTES]:
            raise Invalid("tree.node", path=path.hex())
        if len(self._good) >= CHECKED_NODES_MAX:
            self._good.clear()
        self._good.add(place)
        return node


class Builder:
    """A whole tree from nothing, of keys in any order: a snapshot's, or a database's own.

    Why in parts by the first byte of the key hash: only 64 bytes a key are held, and nodes go out
    a part at a time (170,000 keys/s; a tree of a million held whole would be half a gigabyte).
    """

    def __init__(self, version: int) -> None:
        self._writer = _Writer(lambda key: None, version)
        self._parts = [bytearray() for _ in range(256)]
        self.record: bytes | None = None
        """The root record, once `nodes` is used up."""

    def add(self, flat_key: bytes, value: bytes) -> None:
        """One key, never twice."""
        key = sha256(flat_key)
        self._parts[key[0]] += key + sha256(value)

    def nodes(self) -> Iterator[tuple[bytes, bytes]]:
        """Every (node key, node) to be stored, once."""
        top: Node = {}
        for high in range(16):
            below: Node = {}
            for low in range(16):
                lowest = self._build_part(high << 4 | low)
                yield from self._written()
                if lowest is not None:
                    below[low] = lowest
            child = self._writer.stored(below, bytes([high]))
            if child is not None:
                top[high] = child
        root = self._writer.stored(top, b"")
        yield from self._written()
        self.record = _encode_record(root)

    def _build_part(self, first: int) -> Child | None:
        part, self._parts[first] = bytes(self._parts[first]), bytearray()
        leaves = sorted(part[at : at + 64] for at in range(0, len(part), 64))
        items = [(leaf[:HASH_BYTES], leaf[HASH_BYTES:]) for leaf in leaves]
        return self._writer.build(items, bytes([first >> 4, first & 15]))

    def _written(self) -> list[tuple[bytes, bytes]]:
        written, self._writer.nodes = self._writer.nodes, []
        return written


class _Writer:
    """One update in the making."""

    def __init__(self, read_node: ReadNode, version: int) -> None:
        self._read_node = read_node
        self._version = version.to_bytes(_VERSION_BYTES, "big")
        self.nodes: list[tuple[bytes, bytes]] = []
        self.stale: list[bytes] = []

    def change(
        self, child: Child | None, path: bytes, items: Sequence[tuple[bytes, bytes | None]]
    ) -> Child | None:
        """The child at `path` after `items`, all of which lie under it. Depth ≤ 64."""
        if child is None or len(child) == _LEAF_BYTES:
            return self.build(_merged(child, items), path)
        node = _load(self._read_node, child, path)
        for nibble, some in _runs(items, len(path)):
            old, (key, value) = node.get(nibble), some[0]
            if len(some) == 1 and (old is None or old[:HASH_BYTES] == key):
                # Nearly always: one key comes, goes or changes.
                below = None if value is None else key + value
            else:
                below = self.change(old, path + _NIBBLES[nibble], some)
            if below is None:
                node.pop(nibble, None)
            elif old is None:
                node = dict(sorted([*node.items(), (nibble, below)]))
            else:
                node[nibble] = below
        self.stale.append(_node_key(child, path))
        return self.stored(node, path)

    def build(self, items: Sequence[tuple[bytes, bytes]], path: bytes) -> Child | None:
        """The child at `path` over sorted (key hash, value hash) and nothing else."""
        if len(items) < 2:
            return b"".join(items[0]) if items else None
        node: Node = {}
        for nibble, some in _runs(items, len(path)):
            below = self.build(some, path + _NIBBLES[nibble])
            assert below is not None
            node[nibble] = below
        return self.stored(node, path)

    def stored(self, node: Node, path: bytes) -> Child | None:
        """`node` as the child of its parent: written, or lifted when it is a single leaf."""
        if not node:
            return None
        if len(node) == 1:
            (only,) = node.values()
            if _is_leaf(only):
                return only  # lifted: a subtree with one leaf is that leaf
        children = list(node.items())
        self.nodes.append((self._version + path, _encode_node(children)))
        return _node_hash(children) + self._version


def _merged(
    leaf: Child | None, items: Sequence[tuple[bytes, bytes | None]]
) -> list[tuple[bytes, bytes]]:
    values: dict[bytes, bytes | None] = {}
    if leaf is not None:
        values[leaf[:HASH_BYTES]] = leaf[HASH_BYTES:]
    values.update(items)
    return [(key, value) for key, value in sorted(values.items()) if value is not None]


def _runs(
    items: Sequence[tuple[bytes, T]], depth: int
) -> Iterator[tuple[int, Sequence[tuple[bytes, T]]]]:
    """Sorted items, all under one path of `depth` nibbles, cut where the next one changes."""
    if len(items) == 1:
        yield _nibble(items[0][0], depth), items
        return
    place = depth >> 1
    if depth & 1:
        nibbles = [key[place] & 15 for key, _ in items]
    else:
        nibbles = [key[place] >> 4 for key, _ in items]
    start, count = 0, len(items)
    while start < count:
        nibble = nibbles[start]
        end = bisect_right(nibbles, nibble, start)
        yield nibble, items[start:end]
        start = end


def _nibble(key: bytes, depth: int) -> int:
    return key[depth >> 1] & 15 if depth & 1 else key[depth >> 1] >> 4


def _is_leaf(child: Child) -> bool:
    return len(child) == _LEAF_BYTES


def _leaf(child: Child | None) -> Leaf | None:
    return None if child is None else Leaf(child[:HASH_BYTES], child[HASH_BYTES:])


def _child_hash(child: Child) -> bytes:
    if len(child) == _LEAF_BYTES:
        return _sha256(_LEAF + child).digest()
    return child[:HASH_BYTES]


def _range_hash(node: Node, low: int, high: int) -> bytes:
    """The hash of the children low..high−1 of a node, as a binary subtree."""
    inside = [(place, child) for place, child in node.items() if low <= place < high]
    if not inside:
        return EMPTY_ROOT
    return _subtree_hash(inside, 0, len(inside), (high - low).bit_length() - 1)


def _node_hash(children: Sequence[tuple[int, Child]]) -> bytes:
    """The hash of a node's children in order."""
    if len(children) < 1 << _NIBBLE_BITS:
        return _subtree_hash(children, 0, len(children), _NIBBLE_BITS)
    row = [_child_hash(child) for _, child in children]  # all are pairs: the upper nodes
    while len(row) > 1:
        row = [_sha256(_INNER + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)]
    return row[0]


def _subtree_hash(
    children: Sequence[tuple[int, Child]], start: int, end: int, height: int
) -> bytes:
    """The hash of a binary subtree of `height` levels whose children are `start`..`end` − 1.

    It goes from one fork to the next: levels without a fork cost no look, a lone leaf has none.
    """
    place, child = children[start]
    if end - start == 1:
        if len(child) == _LEAF_BYTES:  # a subtree with one leaf is that leaf
            return _sha256(_LEAF + child).digest()
        here, level = child[:HASH_BYTES], 0
    else:
        level = (place ^ children[end - 1][0]).bit_length()  # of the highest fork
        bit, middle = 1 << level - 1, start + 1
        while not children[middle][0] & bit:
            middle += 1
        left = _subtree_hash(children, start, middle, level - 1)
        right = _subtree_hash(children, middle, end, level - 1)
        here = _sha256(_INNER + left + right).digest()
    for lone in range(level, height):
        pair = EMPTY_ROOT + here if place >> lone & 1 else here + EMPTY_ROOT
        here = _sha256(_INNER + pair).digest()
    return here


def _node_key(child: Child, path: bytes) -> bytes:
    return child[HASH_BYTES:] + path


def _load(read_node: ReadNode, child: Child, path: bytes) -> Node:
    key = _node_key(child, path)
    raw = read_node(key)
    if raw is None:
        raise MissingNode(f"version {int.from_bytes(child[HASH_BYTES:], 'big')}, path {path.hex()}")
    return _decode_node(raw)


def _encode_node(children: Sequence[tuple[int, Child]]) -> bytes:
    body = b"".join([child for _, child in children])
    if len(children) == len(_FULL) and len(body) == len(_FULL) * _INNER_BYTES:
        return _FULL_BITMAPS + body
    inner = leaves = 0
    for place, child in children:
        if len(child) == _LEAF_BYTES:
            leaves |= 1 << place
        else:
            inner |= 1 << place
    return (inner << 16 | leaves).to_bytes(_BITMAP_BYTES, "big") + body


def _decode_node(raw: bytes) -> Node:
    if raw[:_BITMAP_BYTES] == _FULL_BITMAPS and len(raw) == _FULL[-1].stop:
        return {place: raw[where] for place, where in enumerate(_FULL)}
    inner, leaves = int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big")
    node: Node = {}
    at, rest = _BITMAP_BYTES, inner | leaves
    while rest:
        lowest = rest & -rest
        rest ^= lowest
        end = at + (_INNER_BYTES if inner & lowest else _LEAF_BYTES)
        node[lowest.bit_length() - 1] = raw[at:end]
        at = end
    if at != len(raw):
        raise MissingNode(f"{len(raw)} bytes are no node")
    return node


def _encode_record(top: Child | None) -> bytes:
    if top is None:
        return EMPTY_RECORD
    return (b"L" if _is_leaf(top) else b"I") + top


def _decode_record(record: bytes) -> Child | None:
    if record == EMPTY_RECORD:
        return None
    assert len(record) == 1 + (_LEAF_BYTES if record[:1] == b"L" else _INNER_BYTES)
    assert record[:1] in (b"L", b"I"), "no root record"
    return record[1:]
