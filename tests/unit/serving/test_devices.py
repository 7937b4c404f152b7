"""Which device and which numbers: what is asked for, beside what there is."""

import pytest

from node.serving.devices import (
    check_class,
    choose_class,
    choose_device,
    prefill_of,
    rows_of,
    share_out,
    slot_bytes_of,
)
from node.serving.engine import EngineSettings, NoDevice, WrongDtype


@pytest.mark.parametrize(
    ("asked", "gpus", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:01", 2, "cuda:1"),
    ],
)
def test_device_is_chosen_from_what_is_there(asked: str, gpus: int, chosen: str) -> None:
    assert choose_device(asked, gpus) == chosen


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:-1", 2), ("tpu", 2), ("", 2), ("1", 2)],
)
def test_device_that_is_not_there_is_refused_with_those_that_are(asked: str, gpus: int) -> None:
    with pytest.raises(NoDevice) as refusal:
        choose_device(asked, gpus)
    assert refusal.value.code == "engine.no_device"
    found = ["cpu", "cpu", "cpu, cuda:0, cuda:1"][gpus]
    assert refusal.value.facts == {"asked": asked, "found": found}


@pytest.mark.parametrize(
    ("asked", "pinned", "chosen"),
    [
        ("auto", [], "fp32"),
        ("auto", ["fp32"], "fp32"),
        ("auto", ["bf16", "bf16"], "bf16"),
        ("auto", ["bf16", "fp32"], "fp32"),
        ("fp32", ["bf16"], "fp32"),
        ("bf16", ["fp32"], "bf16"),
    ],
)
def test_numbers_are_those_that_serve_what_is_pinned(
    asked: str, pinned: list[str], chosen: str
) -> None:
    assert choose_class(asked, pinned) == chosen


def test_fp32_serves_both_classes_and_bf16_its_own_alone() -> None:
    check_class("fp32", "fp32")
    check_class("fp32", "bf16")
    check_class("bf16", "bf16")
    with pytest.raises(WrongDtype) as refusal:
        check_class("bf16", "fp32")
    assert refusal.value.code == "engine.wrong_dtype"


def test_rows_are_the_devices_own_where_none_are_said() -> None:
    assert [rows_of(0, "cpu"), rows_of(0, "cuda:1"), rows_of(5, "cuda:1")] == [32, 64, 5]


def test_gpu_fills_four_times_the_prompt_in_a_step() -> None:
    assert [prefill_of("cpu"), prefill_of("cuda:0"), prefill_of("cuda:3")] == [512, 2_048, 2_048]


def test_slots_of_all_ranks_take_half_of_a_gpu_at_most() -> None:
    free = 62 << 30  # beside an 8B base in bfloat16, of 78 GiB
    own = slot_bytes_of(EngineSettings(""), free, 4)
    assert 0 < 4 * own <= free // 2
    assert own // 84_000_000 >= 64, "of rank 16, as many as rows"


def test_slots_are_bounded_as_said_or_by_what_a_cpu_fills() -> None:
    assert slot_bytes_of(EngineSettings("", slot_bytes=7), 1_000, 4) == 7
    assert slot_bytes_of(EngineSettings("", slots=9), 1_000, 4) == 0
    assert slot_bytes_of(EngineSettings(""), 0, 4) == 0


def test_one_device_takes_all_that_is_the_machines() -> None:
    whole = EngineSettings("", device="cuda", ram_bytes=9, disk_folder="/packed")
    assert share_out(whole, (), 8) == [whole]


def test_several_devices_share_memory_disk_and_cores() -> None:
    """And never a folder: each writes and evicts as if it were alone."""
    whole = EngineSettings(
        "", rows=7, kv_bytes=11, ram_bytes=100, disk_bytes=50, disk_folder="/packed"
    )
    one, two = share_out(whole, ("cuda:0", "cuda:1"), 9)
    assert (one.device, two.device) == ("cuda:0", "cuda:1")
    assert (one.disk_folder, two.disk_folder) == ("/packed/cuda0", "/packed/cuda1")
    for each in (one, two):
        assert (each.ram_bytes, each.disk_bytes, each.threads) == (50, 25, 4)
        assert (each.rows, each.kv_bytes) == (7, 11)
    (bare,) = share_out(EngineSettings("", threads=3, disk_folder=""), ("cpu",), 2)
    assert (bare.threads, bare.disk_folder) == (3, "")
