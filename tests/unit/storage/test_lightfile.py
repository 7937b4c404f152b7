"""The file of trusted light blocks: whole or refused, bounded, the oldest thinned first."""

from pathlib import Path

import pytest
from light_kit import CHAIN_ID, LightChain, Powers

from consensus.primitives.errors import Invalid
from consensus.skipping import encode_light_block
from node.storage.errors import Damaged
from node.storage.lightfile import (
    BLOCKS_MAX,
    FILE_NAME,
    LightFile,
    decode_light_file,
    encode_light_file,
    thinned,
)


def changing(height: int) -> Powers:
    return {f"m{number}": 1 for number in range(height // 5, height // 5 + 4)}


CHAIN = LightChain(20, changing)
ALL = [encode_light_block(block) for block in CHAIN.blocks]


def test_file_gives_back_what_it_was_given_in_order(tmp_path: Path) -> None:
    store = LightFile(tmp_path, CHAIN_ID)
    assert store.load() == ()
    store.save(reversed(CHAIN.blocks))
    assert [encode_light_block(block) for block in store.load()] == ALL


def test_file_is_the_owners_alone_and_leaves_no_temporary(tmp_path: Path) -> None:
    LightFile(tmp_path, CHAIN_ID).save(CHAIN.blocks)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_left_temporary_is_written_over(tmp_path: Path) -> None:
    (tmp_path / (FILE_NAME + ".new")).write_bytes(b"torn" * 10_000)
    store = LightFile(tmp_path, CHAIN_ID)
    store.save(CHAIN.blocks)
    assert len(store.load()) == 20


def test_each_set_stands_once(tmp_path: Path) -> None:
    still = LightChain(40)
    LightFile(tmp_path, CHAIN_ID).save(still.blocks)
    alone = sum(len(encode_light_block(block)) for block in still.blocks)
    assert (tmp_path / FILE_NAME).stat().st_size < alone * 3 // 4


RAW = encode_light_file(CHAIN.blocks[:2], CHAIN_ID)


def test_torn_file_is_refused_at_every_length() -> None:
    for length in range(len(RAW)):
        with pytest.raises(Invalid):
            decode_light_file(RAW[:length], CHAIN_ID)


def test_changed_bit_is_refused_everywhere() -> None:
    for place in range(len(RAW)):
        changed = bytearray(RAW)
        changed[place] ^= 1 << place % 8
        with pytest.raises(Invalid):
            decode_light_file(bytes(changed), CHAIN_ID)


@pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b"\0", b"\0" * len(RAW)])
def test_damaged_file_is_told_with_its_mend(tmp_path: Path, raw: bytes) -> None:
    store = LightFile(tmp_path, CHAIN_ID)
    store.path.write_bytes(raw)
    with pytest.raises(Damaged) as told:
        store.load()
    assert "--trust" in told.value.mend


def test_file_of_another_chain_is_refused(tmp_path: Path) -> None:
    LightFile(tmp_path, CHAIN_ID).save(CHAIN.blocks)
    with pytest.raises(Damaged, match="another chain"):
        LightFile(tmp_path, b"\7" * 32).load()


@pytest.mark.parametrize(
    ("count", "kept"),
    [(4, [0, 1, 2, 3]), (5, [0, 2, 3, 4]), (6, [0, 3, 4, 5]), (9, [0, 6, 7, 8])],
)
def test_oldest_are_thinned_first_and_first_and_newest_stay(count: int, kept: list[int]) -> None:
    numbers = tuple(range(count))
    found = thinned(numbers, 4)  # type: ignore[arg-type]
    assert list(found) == kept  # type: ignore[comparison-overlap]


def test_no_more_than_the_limit_is_kept() -> None:
    numbers = tuple(range(BLOCKS_MAX))
    assert thinned(numbers, BLOCKS_MAX) == numbers  # type: ignore[arg-type]
    fewer = thinned((*numbers, BLOCKS_MAX), BLOCKS_MAX)  # type: ignore[arg-type]
    assert len(fewer) <= BLOCKS_MAX
    assert fewer[-BLOCKS_MAX // 2 :] == tuple(range(BLOCKS_MAX // 2 + 1, BLOCKS_MAX + 1))
