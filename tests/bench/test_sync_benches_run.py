"""The benches of block and state sync still run; their figures are for a quiet machine."""

from pathlib import Path

from bench import catchup, statesync


def test_block_sync_is_measured(tmp_path: Path) -> None:
    figures = catchup.measure(tmp_path, blocks=128)
    assert min(value for name, value in figures.items() if name.endswith("blocks_s")) > 0


def test_state_sync_is_measured(tmp_path: Path) -> None:
    figures = statesync.measure(tmp_path, keys=2_000)
    assert figures["keys"] == 2_000
    assert figures["keys_s"] > 0
