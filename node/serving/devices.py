"""On what an engine computes, and in which numbers: what is asked for, beside what there is.

Why pure: a choice that depends on the machine is tested without that machine, and the daemon,
which never imports torch, judges a version's numbers by the same rule. Why fp32 may serve what
is pinned as bf16 and never the reverse: its noise is inside what a bf16 version allows, but not
the other way round (page 50 §7).
What this file does not know: torch, the config's file, what else a version pins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from node.serving.engine import AUTO, EngineSettings, NoDevice, WrongDtype

CPU: Final = "cpu"
CUDA: Final = "cuda"
CLASSES: Final = {"float32": "fp32", "bfloat16": "bf16"}  # the config's word → the manifest's
ROWS_CPU: Final = 32
ROWS_CUDA: Final = 64
PREFILL_CPU: Final = 512  # tokens of prompts a step, while rows decode
PREFILL_CUDA: Final = 2_048
SLOTS_PART: Final = 2  # of a GPU's memory beside its base, half is for slots


def choose_device(asked: str, gpus: int) -> str:
    """`cpu` or `cuda:N`, where torch sees `gpus` of the latter; `auto` takes the first of them.

    Raises NoDevice for one that is not there, or that is no device at all.
    """
    if asked == CPU or (asked == AUTO and not gpus):
        return CPU
    kind, _, number = (f"{CUDA}:0" if asked in (AUTO, CUDA) else asked).partition(":")
    if kind == CUDA and number.isdecimal() and int(number) < gpus:
        return f"{CUDA}:{int(number)}"
    found = ", ".join([CPU, *(f"{CUDA}:{number}" for number in range(gpus))])
    raise NoDevice(asked=asked, found=found)


def rows_of(asked: int, device: str) -> int:
    """How many rows an engine has before memory bounds them; 0: the device's own number."""
    return asked or (ROWS_CPU if device == CPU else ROWS_CUDA)


def prefill_of(device: str) -> int:
    """How many tokens of prompts a step may fill while rows decode: their next token waits."""
    return PREFILL_CPU if device == CPU else PREFILL_CUDA


def slot_bytes_of(settings: EngineSettings, free: int, buckets: int) -> int:
    """What the slots of one rank bucket may take, 0 for any; every bucket may come to be used.

    `free`: a GPU's bytes beside its base. The rest of it is for keys and values, for the copies
    that a batch of different adapters gathers, and for gradients. On a CPU it is 0: there only
    a slot that was filled takes memory. Who sets `slots` or their bytes has counted himself.
    """
    if settings.slots or settings.slot_bytes or not free:
        return settings.slot_bytes
    return free // SLOTS_PART // buckets


def choose_class(asked: str, pinned: Iterable[str]) -> str:
    """`fp32` or `bf16`; `auto` is the cheapest that serves every pinned class, fp32 for none."""
    if asked != AUTO:
        return asked
    return "bf16" if set(pinned) == {"bf16"} else "fp32"


def check_class(computed: str, pinned: str) -> None:
    """Raise WrongDtype where an engine's numbers are not what a version's answers need."""
    if computed not in (pinned, "fp32"):
        raise WrongDtype(engine=computed, version=pinned)


def share_out(settings: EngineSettings, devices: Sequence[str], cores: int) -> list[EngineSettings]:
    """One worker's settings for each device, or for the one that `settings` name.

    Rows, slots and what bounds them are each device's own, and so is the queue before it. Memory,
    disk and cores are the machine's: each worker gets its part, and a folder for its copies.
    """
    if not devices:
        return [settings]
    count = len(devices)
    return [
        replace(
            settings,
            device=device,
            threads=settings.threads or max(1, (cores - 1) // count),
            ram_bytes=settings.ram_bytes // count,
            disk_bytes=settings.disk_bytes // count,
            disk_folder=settings.disk_folder
            and f"{settings.disk_folder}/{device.replace(':', '')}",
        )
        for device in devices
    ]
