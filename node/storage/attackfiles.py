"""Proofs of attacks on light clients: kept as files, for the operator to show to people.

Why a limit: whoever holds a third of the power can sign lies without end, and one is enough.
What this file does not know: whether an attack holds.
"""

from pathlib import Path
from typing import Final

from consensus.attacks import LightClientAttack, encode_attack
from node.storage.segments import write_durably

ATTACKS_MAX: Final = 64
PREFIX: Final = "light-"


def keep_attack(folder: Path, attack: LightClientAttack) -> Path | None:
    """Write the proof, one file per lying block; None when the folder holds enough. Blocking."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{PREFIX}{attack.block.height}-{attack.block.block_id.hex()[:16]}"
    if path.exists():
        return path
    if sum(1 for _ in folder.glob(PREFIX + "*")) >= ATTACKS_MAX:
        return None
    write_durably(path, encode_attack(attack))
    return path
