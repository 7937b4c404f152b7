"""The stored history equals the tree of RFC 6962 at every size."""

from hashlib import sha256

from consensus.primitives import merkle
from node.storage import history
from node.storage.store import MemoryKV

IDS = [sha256(b"%d" % n).digest() for n in range(70)]


def test_roots_and_paths_equal_the_plain_tree_at_every_size() -> None:
    store = MemoryKV()
    for size in range(len(IDS) + 1):
        assert history.root(store, size) == merkle.root(IDS[:size])
        for index in range(0, size, 7):
            path = history.prove(store, index, size)
            assert path == merkle.prove(IDS[:size], index)
        if size < len(IDS):
            store.write(history.appended(store, size, IDS[size]))


def test_old_tree_can_still_be_proved_after_it_has_grown() -> None:
    store = MemoryKV()
    for size, block_id in enumerate(IDS):
        store.write(history.appended(store, size, block_id))
    for size in (1, 2, 3, 31, 32, 33, 63):
        for index in range(size):
            assert history.prove(store, index, size) == merkle.prove(IDS[:size], index)


def test_path_from_before_the_edge_is_extended_by_what_came_after_it() -> None:
    """A history that began at a snapshot proves older leaves whose path it was given."""
    for old in range(40):
        store, edge = MemoryKV(), merkle.Frontier()
        for block_id in IDS[:old]:
            edge.append(block_id)
        store.write(history.seeded(edge, IDS[old]))
        for size in range(old + 1, len(IDS) + 1):
            assert history.root(store, size) == merkle.root(IDS[:size])
            for index in {*range(0, old, 5), old - 1, old} - {-1}:
                path = merkle.prove(IDS[:old], index) if index < old else ()
                longer = history.extended(store, path, index, old, size)
                assert longer == merkle.prove(IDS[:size], index)
            if size < len(IDS):
                store.write(history.appended(store, size, IDS[size]))


def test_path_is_not_extended_where_the_edge_was_kept_without_its_last_leaf() -> None:
    """As in homes of before: no answer, and no hole found in the middle of one."""
    assert history.extended(MemoryKV(), (), 0, 1, 2) is None
