"""Which token comes next: noise from a seed, filters, and where an answer stops.

Why our own noise: it depends on (seed, choice, position, token id) alone, so a batch, a single
row, another device and an auditor draw the same. Frameworks' generators promise none of that.
The order of work (page 50 §6): logits → divide by temperature → top_k → top_p → argmax(z + g),
ties to the lowest id. The plain functions are the rule; the tensor twins must equal them.
What this file does not know: models, batches, adapters.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from consensus.primitives.digest import domain_hash
from node.serving.engine import Sampling

if TYPE_CHECKING:
    import torch

_MASK: Final = 2**32 - 1
_GOLD: Final = 0x9E3779B9
_MIX_1: Final = 0x85EBCA6B  # the finaliser of MurmurHash3
_MIX_2: Final = 0xC2B2AE35
SELFTEST_WORDS: Final = 1_000
UTF8_HELD_BYTES_MAX: Final = 3

Key = tuple[int, int]


def seed_commit(payer_nonce: bytes) -> bytes:
    """What an Order commits to before the provider answers."""
    return domain_hash(b"seedcommit", payer_nonce)


def joint_seed(order_hash: bytes, payer_nonce: bytes, provider_nonce: bytes) -> bytes:
    """The 32-byte seed that neither side can choose alone."""
    return domain_hash(b"seed", order_hash, payer_nonce, provider_nonce)


def noise_key(seed: bytes, choice: int, position: int) -> Key:
    """Two u32 that stand for one position of one choice."""
    digest = hashlib.sha256(
        b"olnode/1/noise\0" + seed + choice.to_bytes(4, "big") + position.to_bytes(4, "big")
    ).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def _mix(word: int) -> int:
    word = ((word ^ (word >> 16)) * _MIX_1) & _MASK
    word = ((word ^ (word >> 13)) * _MIX_2) & _MASK
    return word ^ (word >> 16)


def noise_word(key: Key, token: int) -> int:
    """The u32 of one token id: fmix(fmix(id × golden + k0) ^ k1)."""
    return _mix(_mix((token * _GOLD + key[0]) & _MASK) ^ key[1])


def noise(key: Key, token: int) -> float:
    """Gumbel noise of one token, float64; small v is large noise, so the tail is exact."""
    v = (((noise_word(key, token) + 2**31) & _MASK) + 0.5) * 2.0**-32
    return -math.log(-math.log1p(-v))


def allowed(scaled: Sequence[float], top_k: int, top_p_milli: int) -> set[int]:
    """Token ids that pass top_k, then top_p, of logits already divided by the temperature."""
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if top_k:
        order = order[:top_k]
    if top_p_milli == 1_000:
        return set(order)
    highest = scaled[order[0]]
    mass = [math.exp(scaled[i] - highest) for i in order]
    need, before = math.fsum(mass) * top_p_milli / 1_000, 0.0
    kept: set[int] = set()
    for token, weight in zip(order, mass, strict=True):
        if kept and before >= need:
            break
        kept.add(token)
        before += weight
    return kept


def choose_plain(logits: Sequence[float], sampling: Sampling, key: Key | None) -> int:
    """The rule in plain Python; `key` is None exactly for temperature 0."""
    if sampling.temperature_milli == 0:
        return max(range(len(logits)), key=lambda i: (logits[i], -i))
    assert key is not None
    scaled = [x / (sampling.temperature_milli / 1_000) for x in logits]
    inside = allowed(scaled, sampling.top_k, sampling.top_p_milli)
    return max(sorted(inside), key=lambda i: (scaled[i] + noise(key, i), -i))


# --- tensor twins


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shift_right(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    return (words >> bits) & ((1 << (32 - bits)) - 1)  # int32 shifts keep the sign


def _mix_tensor(words: "torch.Tensor") -> "torch.Tensor":
    words = (words ^ _shift_right(words, 16)) * _signed(_MIX_1)
    words = (words ^ _shift_right(words, 13)) * _signed(_MIX_2)
    return words ^ _shift_right(words, 16)


def noise_words(keys: Sequence[Key], tokens: "torch.Tensor") -> "torch.Tensor":
    """int32 [rows, ids] of int32 ids [ids] or [rows, ids]: noise_word, read as signed."""
    import torch

    pairs = [[_signed(a), _signed(b)] for a, b in keys]
    k = torch.tensor(pairs, dtype=torch.int32, device=tokens.device)
    return _mix_tensor(_mix_tensor(tokens * _signed(_GOLD) + k[:, :1]) ^ k[:, 1:])


def noise_tensor(keys: Sequence[Key], tokens: "torch.Tensor") -> "torch.Tensor":
    """float32 Gumbel noise [rows, ids]; v that rounds to 1 gives −∞ (chance 2^-25)."""
    v = noise_words(keys, tokens).float().add_(2147483648.5).mul_(2.0**-32)
    return v.neg_().log1p_().neg_().log_().neg_()


def _filter_row(scaled: "torch.Tensor", top_k: int, top_p_milli: int) -> "torch.Tensor":
    """One row [vocab] with −∞ where a filter excludes."""
    import torch

    values, order = torch.sort(scaled, descending=True, stable=True)
    if top_k:
        values, order = values[:top_k], order[:top_k]
    if top_p_milli < 1_000:
        mass = (values - values[0]).double().exp()
        before = mass.cumsum(0) - mass
        count = int((before < mass.sum() * top_p_milli / 1_000).sum())
        order = order[: max(1, count)]
    kept = torch.full_like(scaled, -math.inf)
    kept[order] = scaled[order]
    return kept


def choose(
    logits: "torch.Tensor", samplings: Sequence[Sampling], keys: Sequence[Key | None]
) -> "torch.Tensor":
    """Token ids int64 [rows] of float32 logits [rows, vocab]; each row by its own sampling."""
    import torch

    hot = [i for i, s in enumerate(samplings) if s.temperature_milli]
    if not hot:
        return logits.argmax(-1)
    at = torch.tensor(hot, device=logits.device)
    heat = torch.tensor(
        [[samplings[i].temperature_milli / 1_000] for i in hot], device=logits.device
    )
    scaled = logits[at] / heat
    for row, i in enumerate(hot):
        if samplings[i].top_k or samplings[i].top_p_milli < 1_000:
            scaled[row] = _filter_row(scaled[row], samplings[i].top_k, samplings[i].top_p_milli)
    ids = torch.arange(logits.shape[1], device=logits.device, dtype=torch.int32)
    hot_keys: list[Key] = []
    for i in hot:
        key = keys[i]
        assert key is not None, "a row above temperature 0 has a seed"
        hot_keys.append(key)
    chosen = logits.argmax(-1)
    chosen[at] = (scaled + noise_tensor(hot_keys, ids)).argmax(-1)
    return chosen


def selftest(device: str) -> None:
    """Assert that this device makes the integers' words; run before the first answer."""
    import torch

    key = noise_key(bytes(range(32)), 0, 7)
    tokens = torch.arange(SELFTEST_WORDS, dtype=torch.int32, device=device)
    words = [word & _MASK for word in noise_words([key], tokens)[0].tolist()]
    assert words == [noise_word(key, token) for token in range(SELFTEST_WORDS)], device


# --- stops


def unfinished_utf8(text: bytes) -> int:
    """How many last bytes are the beginning of a character that is not complete, 0..3."""
    for back in range(1, min(UTF8_HELD_BYTES_MAX, len(text)) + 1):
        byte = text[-back]
        if byte & 0b1100_0000 == 0b1000_0000:
            continue  # a continuation: the lead stands further left
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if length > back else 0
    return 0


class StopFilter:
    """Text of one choice: what may be shown now, what is held, and whether a stop string came.

    Held back: (longest stop − 1) bytes, and an unfinished character. A stop string is not shown.
    """

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops = tuple(stops)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = b""

    def push(self, piece: bytes) -> tuple[bytes, bool]:
        """Add one token's bytes: what to show, and True when a stop string is complete."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = b""
            return text[: min(found)], True
        safe = len(text) - self._hold
        shown = text[: max(0, safe)]
        shown = shown[: len(shown) - unfinished_utf8(shown)]
        self._held = text[len(shown) :]
        return shown, False

    def flush(self) -> bytes:
        """The held text, when the choice has ended without a stop string."""
        tail, self._held = self._held, b""
        return tail
