"""Each request of a mixed batch gets the tokens that it gets alone and from peft's merged adapter.

Stated tolerance, in nats, of float32 logits up to 3.4: 3·10⁻⁵ between batch and alone (seen:
8·10⁻⁶), 2·10⁻⁴ to the merged weights (seen: 4·10⁻⁵), which round the sum of base and adapter once
more. Tokens are equal.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from load_kit import assert_nothing_left, short_request

from node.serving.engine import AdapterRef, EngineSettings, Finish, GenRequest, Token

pytestmark = pytest.mark.ml

RANKS = (4, 8, 12, 16, 24, 32, 48, 64)
ROWS = 16
APART_ALONE = 3e-5
APART_MERGED = 2e-4


class Watched:
    """A core that notes the logits of every token that it makes."""

    def __init__(self, base: Path) -> None:
        from node.serving.slots import SlotCore

        self.core = SlotCore(EngineSettings(str(base), rows=ROWS, threads=1))
        self.logits: dict[tuple[bytes, int, int], Any] = {}
        self.tokens: dict[tuple[bytes, int], list[int]] = {}
        sample = self.core._sample

        def noted(rows, logits, hidden):
            for row, values in zip(rows, logits, strict=True):
                self.logits[row.live.request.id, row.choice, row.made] = values.clone()
            return sample(rows, logits, hidden)

        self.core._sample = noted

    def step(self) -> list[bytes]:
        """The ids of those that ended."""
        events = self.core.step()
        for id, event in events:
            if isinstance(event, Token):
                self.tokens.setdefault((id, event.choice), []).append(event.id)
        return [id for id, event in events if isinstance(event, Finish)]

    def take(self) -> tuple[dict, dict]:
        """Tokens and logits since last asked."""
        taken = self.tokens, self.logits
        self.tokens, self.logits = {}, {}
        return taken


@pytest.fixture(scope="module")
def watched(tiny_base: Path) -> Watched:
    return Watched(tiny_base)


@pytest.fixture(scope="module")
def adapters(watched: Watched, make_adapter) -> dict[bytes, str]:
    """Two of each rank, some on attention alone; hash → folder."""
    made = {}
    for number, rank in enumerate(RANKS + RANKS):
        few = (("q_proj", "v_proj"),) if number % 5 == 4 else ()
        hash, folder = make_adapter(40 + number, rank, *few)
        watched.core.load(AdapterRef(hash, folder))
        made[hash] = folder
    return made


def requests(adapters: dict[bytes, str]) -> list[GenRequest]:
    """Forty: every adapter and the base, prompts of 1..90 tokens, answers of 1..16."""
    chance = random.Random(3)
    names = [*adapters, None]
    return [
        short_request(
            number,
            names[number % len(names)],
            length=chance.choice((1, 2, 7, 20, 45, 90)),
            max_tokens=chance.randrange(1, 17),
            n=chance.choice((1, 1, 1, 2)),
            temperature_milli=chance.choice((0, 0, 900)),
        )
        for number in range(40)
    ]


def together(watched: Watched, asked: list[GenRequest]) -> set[bytes]:
    """All in one changing batch: they join at random, and some are cancelled on their way."""
    chance, waiting, cancelled = random.Random(4), list(asked), set()
    for _ in range(1_000):
        if not waiting and not watched.core.live:
            return cancelled
        for _ in range(min(len(waiting), chance.choice((0, 1, 3)))):
            watched.core.submit(waiting.pop())
        watched.step()
        if watched.core.live and chance.random() < 0.15:
            id = chance.choice(sorted(watched.core._live))
            watched.core.cancel(id)
            cancelled.add(id)
    raise AssertionError("requests did not finish")


def test_mixed_batch_equals_each_alone_and_pefts_merged_adapter(watched, adapters, tiny_base):
    asked = requests(adapters)
    cancelled = together(watched, asked)
    tokens, logits = watched.take()
    stats = watched.core.stats()
    assert stats.batch_adapters_max >= 8
    assert 3 <= len(cancelled) <= 15
    assert_nothing_left(watched.core)
    for each in asked:
        watched.core.submit(each)
        while watched.core.live:
            watched.step()
    alone, alone_logits = watched.take()
    assert_same(tokens, logits, alone, alone_logits, cancelled)
    for hash, folder in [*adapters.items(), (None, None)]:
        model = merged(tiny_base, folder)
        for each in asked:
            if each.adapter == hash:
                for choice in range(each.sampling.n):
                    assert_of_model(model, each, choice, alone, alone_logits)


def assert_same(tokens, logits, alone, alone_logits, cancelled) -> None:
    """What was cancelled is equal as far as it came."""
    assert set(tokens) | {key for key in alone if key[0] in cancelled} == set(alone)
    for key, made in tokens.items():
        whole = alone[key]
        assert made == whole[: len(made)]
        assert len(made) == len(whole) or key[0] in cancelled
    apart = max(float((values - alone_logits[key]).abs().max()) for key, values in logits.items())
    assert apart <= APART_ALONE


def merged(base: Path, folder: str | None) -> Any:
    """peft's own arithmetic, with the adapter added into the base's weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    return model if folder is None else PeftModel.from_pretrained(model, folder).merge_and_unload()


def assert_of_model(model: Any, each: GenRequest, choice: int, alone, alone_logits) -> None:
    """One forward over prompt and answer foretells every token of the answer."""
    import torch

    from node.serving.sampling import choose, noise_key

    made = alone[each.id, choice]
    with torch.no_grad():
        ids = torch.tensor([[*each.prompt, *made[:-1]]])
        logits = model(ids).logits[0, len(each.prompt) - 1 :]
    hot = each.sampling.temperature_milli
    for place, values in enumerate(logits):
        ours = alone_logits[each.id, choice, place]
        assert float((values - ours).abs().max()) <= APART_MERGED
        key = noise_key(each.seed, choice, place) if hot else None
        assert int(choose(values[None], [each.sampling], [key])[0]) == made[place]
