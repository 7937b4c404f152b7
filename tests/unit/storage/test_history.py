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
