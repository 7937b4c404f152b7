"""What a command believes beforehand: a block that is named, a genesis, or what this home followed.

Why this order: what the call names wins over what lies in the home, and headers that a light
client has followed say more than a genesis, whose validators may have left long ago.
What it does not know: proofs.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.frame import Frame, usage

if TYPE_CHECKING:
    from node.ledger.genesis import Genesis
    from node.ledger.proofs import Trust

HEIGHT_DIGITS_MAX = 18
ID_DIGITS = 64


def named_block(text: str) -> tuple[int, bytes]:
    """Height and id of `HEIGHT:BLOCK_ID`; anything else is a usage fault."""
    height, _, block_id = text.partition(":")
    if not (height.isdecimal() and len(height) <= HEIGHT_DIGITS_MAX and len(block_id) == ID_DIGITS):
        usage("--trust is HEIGHT:BLOCK_ID")
    try:
        return int(height), bytes.fromhex(block_id)
    except ValueError:
        usage("--trust: the block id is 64 hex digits")


def read_genesis(path: Path) -> "Genesis":
    """The genesis of a file; what is none is a usage fault."""
    from consensus.primitives.errors import Invalid
    from node.ledger.genesis import decode_genesis

    if not path.is_file():
        usage(f"nothing to trust: there is no {path}", "--genesis FILE, or olnode init")
    try:
        return decode_genesis(path.read_bytes())
    except Invalid as error:
        usage(f"{path} is no genesis: {error}")


def trusted(
    frame: Frame, named: str | None, genesis: Path | None, raw: bytes
) -> "tuple[Trust, bool]":
    """(what is believed, whether it is what this home's light client followed).

    A named block needs no genesis: its id commits to its chain, so the chain that the file `raw`
    names may stand. With a genesis at hand, the file must be of that chain too.
    """
    from node.light import trust_block, trust_genesis

    if named is not None and genesis is None and not (frame.home / "genesis").is_file():
        return trust_block(*named_block(named), raw), False
    found = read_genesis(genesis or frame.home / "genesis")
    believed = trust_genesis(found)
    if named is not None:
        height, block_id = named_block(named)
        return believed._replace(validators=(), blocks={height: block_id}), False
    followed = None if genesis is not None else _followed(frame.home, found)
    return (believed, False) if followed is None else (followed, True)


def _followed(home: Path, genesis: "Genesis") -> "Trust | None":
    """What `olnode light` kept in this home; None where it has not run. Raises `Damaged`."""
    from node.light import trust_light_blocks, trust_options
    from node.storage.lightfile import LightFile

    blocks = LightFile(home, genesis.chain_id).load()
    if not blocks:
        return None
    return trust_light_blocks(genesis.chain_id, blocks, trust_options(genesis), now_ms())


def now_ms() -> int:
    """The wall clock: an old set's signatures count only while its members could be punished."""
    return time.time_ns() // 1_000_000
