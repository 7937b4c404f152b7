"""Near-duplicates: which records are one idea, so that only the first of them is paid.

The leader rule of design page 60 §2: in ledger order a record joins the earliest canonical
record it is near to, else it becomes canonical. No chains: with union-find a chain of bridging
records could join a victim to a thief's older record. So every assignment is proven or refuted
by showing two records.
Why Unicode 3.2: the normal form must not move with the Python that runs it, and the standard
library keeps that one version for good.
What this file does not know: contributions, rows, what nearness costs anyone.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS: Final = 3
VALUES: Final = 64
BANDS: Final = 16  # of 4 values: finds a pair at Jaccard 0.8 with p = 0.9998
MERSENNE_61: Final = np.uint64(2**61 - 1)

Shingles = frozenset[tuple[str, ...]]


class Text(NamedTuple):
    """A record's words, and its shingles (none of a text shorter than three words)."""

    words: tuple[str, ...]
    shingles: Shingles


def normalise(text: str) -> tuple[str, ...]:
    """Words of `text`: NFKC and categories of Unicode 3.2, lower case, letters and digits."""
    folded = unicodedata.ucd_3_2_0.normalize("NFKC", text).lower()
    return tuple("".join(letter if _is_in_word(letter) else " " for letter in folded).split())


def _is_in_word(letter: str) -> bool:
    category = unicodedata.ucd_3_2_0.category(letter)
    return category[0] == "L" or category == "Nd"


def read(prompt: str, completion: str) -> Text:
    """The text that is compared: prompt and completion as one."""
    words = normalise(f"{prompt}\n{completion}")
    starts = range(len(words) - SHINGLE_WORDS + 1)
    return Text(words, frozenset(words[start : start + SHINGLE_WORDS] for start in starts))


def is_near(a: Text, b: Text) -> bool:
    """Equal words, or Jaccard of 3-word shingles at least 4/5; shorter texts only if equal."""
    if a.words == b.words:
        return True
    if not a.shingles or not b.shingles:
        return False
    shared = len(a.shingles & b.shingles)
    return 5 * shared >= 4 * (len(a.shingles) + len(b.shingles) - shared)


def find_leaders(texts: Iterable[Text]) -> list[int]:
    """For each text, in ledger order, the number of its canonical text (itself, or an earlier).

    Candidates come from equal words and from MinHash bands; each is then compared exactly.
    """
    canonical: dict[int, Text] = {}
    exact: dict[tuple[str, ...], int] = {}
    buckets: dict[bytes, list[int]] = {}
    leaders = []
    for number, text in enumerate(texts):
        keys = _band_keys(text.shingles)
        candidates = {exact[text.words]} if text.words in exact else set()
        for key in keys:
            candidates.update(buckets.get(key, ()))
        near = (other for other in sorted(candidates) if is_near(canonical[other], text))
        leader = next(near, number)
        leaders.append(leader)
        if leader != number:
            continue
        canonical[number] = text
        exact[text.words] = number
        for key in keys:
            buckets.setdefault(key, []).append(number)
    return leaders


def _band_keys(shingles: Shingles) -> list[bytes]:
    if not shingles:
        return []
    bands = min_hash(shingles).reshape(BANDS, -1)
    return [number.to_bytes(1) + band.tobytes() for number, band in enumerate(bands)]


def min_hash(shingles: Shingles) -> NDArray[np.uint64]:
    """64 values, each the least over the shingles of one word of their SHAKE-256 streams."""
    least = np.full(VALUES, MERSENNE_61, np.uint64)
    for shingle in shingles:
        # Words hold letters and digits only, so a space cannot blur where one ends.
        stream = hashlib.shake_256(" ".join(shingle).encode()).digest(8 * VALUES)
        np.minimum(least, np.frombuffer(stream, ">u8") % MERSENNE_61, out=least)
    return least
