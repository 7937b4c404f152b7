"""RFC 6962 trees: published roots and paths, every path, and forged ones."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.primitives import merkle
from consensus.primitives.errors import Invalid

# google/certificate-transparency, merkletree/merkle_tree_test.cc: inputs, and roots of the
# first 1..8 of them (the tree of RFC 6962 section 2.1).
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_published_roots() -> None:
    assert merkle.root([]).hex() == EMPTY
    frontier = merkle.Frontier()
    for size, expected in enumerate(ROOTS, start=1):
        frontier.append(INPUTS[size - 1])
        assert merkle.root(INPUTS[:size]).hex() == frontier.root().hex() == expected


def test_published_path() -> None:
    """The example of RFC 6962 section 2.1.3: in the tree of seven, d0 has the path [b, h, l]."""
    leaves = [merkle.leaf_hash(data) for data in INPUTS[:7]]
    b, h = leaves[1], merkle.node_hash(leaves[2], leaves[3])
    i, j = merkle.node_hash(leaves[4], leaves[5]), leaves[6]
    assert merkle.prove(INPUTS[:7], 0) == (b, h, merkle.node_hash(i, j))
    g = merkle.node_hash(leaves[0], leaves[1])
    k = merkle.node_hash(g, h)
    assert merkle.prove(INPUTS[:7], 3) == (leaves[2], g, merkle.node_hash(i, j))
    assert merkle.prove(INPUTS[:7], 4) == (leaves[5], j, k)
    assert merkle.prove(INPUTS[:7], 6) == (i, k)


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_leaves_and_nodes_hashed_together_are_those_hashed_alone(leaves: list[bytes]) -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves]
    assert merkle.leaf_hashes(leaves) == hashes
    for lower, upper in pairwise(merkle.levels_of(hashes) if hashes else []):
        pairs = zip(lower[::2], lower[1::2], strict=False)
        rest = lower[len(lower) // 2 * 2 :]
        assert upper == [*(merkle.node_hash(left, right) for left, right in pairs), *rest]


@pytest.mark.parametrize("size", range(1, 34))
def test_every_path_of_small_trees(size: int) -> None:
    leaves = [bytes([n]) for n in range(size)]
    root = merkle.root(leaves)
    for index in range(size):
        path, leaf = merkle.prove(leaves, index), merkle.leaf_hash(leaves[index])
        assert len(path) == merkle.path_length(index, size)
        merkle.verify_path(root, leaf, index, size, path)
        for other in range(size):
            if other != index and merkle.path_length(other, size) == len(path):
                with pytest.raises(Invalid):
                    merkle.verify_path(root, leaf, other, size, path)


def refusal(*arguments: object) -> str:
    with pytest.raises(Invalid) as refused:
        merkle.verify_path(*arguments)  # type: ignore[arg-type]
    return refused.value.code


def test_malformed_path_is_refused_by_its_code() -> None:
    leaves = [b"a", b"b", b"c"]
    root, leaf = merkle.root(leaves), merkle.leaf_hash(b"a")
    path = merkle.prove(leaves, 0)
    assert refusal(root, leaf, 3, 3, path) == "merkle.index"
    assert refusal(root, leaf, -1, 3, path) == "merkle.index"
    assert refusal(root, leaf, 0, 0, path) == "merkle.index"
    assert refusal(root, leaf, 0, 3, path[:1]) == "merkle.path_length"
    assert refusal(root, leaf, 0, 3, (*path, root)) == "merkle.path_length"
    assert refusal(root, leaf, 0, 3, (path[0], b"short")) == "merkle.hash_length"
    assert refusal(root, leaf, 0, 3, (path[1], path[0])) == "merkle.root"


def test_node_is_never_taken_for_a_leaf() -> None:
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.root([b"a", b"b"]) != merkle.root([left + right])


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_frontier_is_the_tree_and_can_be_stored(leaves: list[bytes]) -> None:
    frontier = merkle.Frontier()
    for leaf in leaves:
        frontier = merkle.Frontier(frontier.size, frontier.hashes)
        frontier.append(leaf)
    assert frontier.root() == merkle.root(leaves)
    assert len(frontier.hashes) == len(leaves).bit_count()
