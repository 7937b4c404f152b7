"""Amounts as people write them: OPEN with at most nine decimals, read exactly."""

import re
from typing import Final

from node.cli.frame import usage
from node.config import grains_of

AMOUNT: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")
GRAINS_MAX: Final = 2**63 - 1


def grains_of_open(text: str, what: str) -> int:
    """Grains of an amount in OPEN, e.g. "0.05"; ends the command for anything else."""
    if not AMOUNT.fullmatch(text):
        usage(f"{what} {text!r} is no amount of OPEN: digits, and at most nine after the point")
    grains = grains_of(text)
    if grains > GRAINS_MAX:
        usage(f"{what} {text} is more than there can be")
    return grains
