"""What a batch will write can already be read from it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.storage.batch import Batch
from node.storage.store import MemoryKV

KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=3)), max_size=20)


@given(st.dictionaries(KEYS, st.binary(max_size=3), max_size=12), CHANGES, KEYS, KEYS)
@settings(max_examples=150, deadline=None)
def test_batch_reads_as_the_store_will_after_it(
    stored: dict[bytes, bytes],
    changes: list[tuple[bytes, bytes | None]],
    start: bytes,
    stop: bytes,
) -> None:
    store = MemoryKV()
    store.write(stored.items())
    batch, model = Batch(store), dict(stored)
    for key, value in changes:
        if value is None:
            batch.delete(key)
            model.pop(key, None)
        else:
            batch.put(key, value)
            model[key] = value
    expected = [(k, v) for k, v in sorted(model.items()) if start <= k < stop]
    assert list(batch.scan(start, stop)) == expected
    assert all(batch.get(key) == model.get(key) for key, _ in changes)
    batch.write_to(store)
    assert list(store.scan(b"", b"\xff" * 3)) == sorted(model.items())
