"""Make the vectors: `python tests/vectors/make.py` writes what today's code gives.

    wire.json          every wire object: its encoding, what is signed, signature, hash
    chain.json         a small chain: genesis, ids and roots by height
    money.json         state roots of ten thousand transactions of chance
    economy.json       the same with bundles, payouts, stakes, data and models
    ARCHITECTURE.md    the worked proof of section 7
    p2p/WIRE.md        one example of each message between peers

Deterministic: keys are SHA-256 of a name, what is drawn is drawn from a seed. A change of these
files is a change of what nodes agree on: it belongs in the commit that means it, and in
CHANGELOG.md. `--print wire|chain|money|economy|proof|peers` writes one to stdout instead.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOCUMENT = ROOT / "ARCHITECTURE.md"
WIRE_DOCUMENT = ROOT / "p2p" / "WIRE.md"
COMMAND = "python tests/vectors/make.py"
FENCE = "```hex\n"
NAMED = re.compile(r"^```hex (.+)\n((?:(?!```).*\n)*)```$", re.MULTILINE)  # name, lines between


def wire_text() -> str:
    """wire.json: an object a line, so that a difference names it."""
    from vectors.agreement import agreement_examples
    from vectors.example import CHAIN, told
    from vectors.market import market_examples

    rows = {name: told(made) for name, made in (market_examples() | agreement_examples()).items()}
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    return f'{{"chain_id": "{CHAIN.hex()}",\n"objects": {{\n' + ",\n".join(lines) + "\n}}\n"


def chain_text() -> str:
    """chain.json: a block a line."""
    from vectors.small_chain import Story

    told = Story().told()
    blocks = ",\n".join(json.dumps(block) for block in told.pop("blocks"))
    head = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in told.items())
    return f'{{{head},\n"blocks": [\n{blocks}\n]}}\n'


def money_text() -> str:
    """money.json: the state root of every tenth block, a block a line."""
    from money_kit import BLOCKS, PER_BLOCK, SEED, run_money

    program = run_money(SEED, BLOCKS, PER_BLOCK)
    told = {"seed": SEED, "transactions": program.count, "codes": program.codes}
    return _program_text(told, program.chain, BLOCKS)


def economy_text() -> str:
    """economy.json: the state root of every tenth block, a block a line."""
    from economy_kit import BLOCKS, PER_BLOCK, SEED, run_economy

    market = run_economy(SEED, BLOCKS, PER_BLOCK)
    told = {
        "seed": SEED,
        "transactions": market.count,
        "receipts": market.receipts,
        "refused_bundles": market.refused,
        "codes": market.codes,
        "done": market.done,
    }
    return _program_text(told, market.chain, BLOCKS)


def _program_text(told: dict[str, Any], chain: Any, blocks: int) -> str:
    """What a program came to, and the state root of every tenth of its blocks."""
    headers = chain.headers[-blocks:][9::10]
    roots = ",\n".join(json.dumps([h.height, h.state_root.hex(), h.supply]) for h in headers)
    head = ",\n".join(
        f'"{name}": {json.dumps(value, sort_keys=True)}' for name, value in told.items()
    )
    return f'{{{head},\n"roots": [\n{roots}\n]}}\n'


def proof_text() -> str:
    """The lines of the worked proof."""
    from vectors.worked_proof import lines

    return "\n".join(lines()) + "\n"


def peers_text() -> str:
    """The blocks of p2p/WIRE.md."""
    from vectors.drawn import blocks

    return "\n".join(fenced(name, lines) for name, lines in blocks().items()) + "\n"


def fenced(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```hex {name}", *lines, "```"])


def wire_document(document: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """p2p/WIRE.md with what today's code says in each of its blocks."""
    return NAMED.sub(lambda block: fenced(block[1], blocks[block[1]]), document)


def write_documents() -> None:
    from vectors.drawn import blocks

    before, _, behind = document_text(DOCUMENT.read_text(encoding="utf-8"))
    DOCUMENT.write_text(before + proof_text() + behind, encoding="utf-8")
    document = WIRE_DOCUMENT.read_text(encoding="utf-8")
    WIRE_DOCUMENT.write_text(wire_document(document, blocks()), encoding="utf-8")


def document_text(document: str) -> tuple[str, str, str]:
    """ARCHITECTURE.md before the worked proof, the proof, and behind it."""
    before, fence, rest = document.partition(FENCE)
    worked, close, behind = rest.partition("```\n")
    assert fence, f"{DOCUMENT.name} has no block {FENCE!r}"
    assert close, f"the block {FENCE!r} does not end"
    return before + fence, worked, close + behind


MAKERS = {
    "wire": wire_text,
    "chain": chain_text,
    "money": money_text,
    "economy": economy_text,
    "proof": proof_text,
    "peers": peers_text,
}


def main(words: list[str]) -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if words:
        _, name = words
        sys.stdout.write(MAKERS[name]())
        return
    for name in ("wire", "chain", "money", "economy"):
        (HERE / f"{name}.json").write_text(MAKERS[name](), encoding="utf-8")
    write_documents()


if __name__ == "__main__":
    main(sys.argv[1:])
