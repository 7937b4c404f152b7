"""What can be known of a base from its folder alone: lengths, token texts, which ids end an answer.

Why beside the model: an auditor, and a provider whose weights lie in another server, need these
without torch or a byte of weights.
What this file does not know: weights.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.attribution.tokens import TextTokenizer
from node.serving.engine import Unsupported


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """`pieces`: the bytes of each token id, none for ids that only pad the base's matrices.
    `ends`: ids that end an answer. `length` in tokens."""

    vocab: int
    length: int
    pieces: tuple[bytes, ...]
    ends: frozenset[int]


def read_facts(folder: str | os.PathLike[str]) -> BaseFacts:
    """Of a Hugging Face folder; raises Unsupported where its config lacks what must be there."""
    settings = _read(Path(folder) / "config.json")
    generation = _read(Path(folder) / "generation_config.json")
    tokenizer = TextTokenizer(folder)
    try:
        vocab, longest = int(settings["vocab_size"]), int(settings["max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unsupported(what=f"config.json: {error}") from None
    window = settings.get("sliding_window")
    listed = generation.get("eos_token_id", settings.get("eos_token_id"))
    ends = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    pieces = padded(tokenizer.pieces(), vocab)
    return BaseFacts(
        vocab=vocab,
        length=min(longest, int(window)) if window else longest,
        pieces=tuple(pieces),
        ends=frozenset(map(int, ends)),
    )


def padded(pieces: Sequence[bytes], vocab: int) -> list[bytes]:
    """A piece for each id that the base may say: its matrices may be wider than its tokenizer."""
    return [*pieces, *[b""] * (vocab - len(pieces))]


def _read(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    found: Mapping[str, Any] = json.loads(path.read_bytes())
    return found
