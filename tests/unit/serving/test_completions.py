"""Whatever a server says, a request ends with what was told before, and nothing is raised."""

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.serving.basefacts import BaseFacts
from node.serving.completions import Completion, objects_of
from node.serving.engine import EngineLost, Finish, GenRequest, Sampling

FACTS = BaseFacts(10, 100, (b"x",) * 10, frozenset({9}))
GOOD = {"tokens": ["token_id:1"], "token_logprobs": [-1.0]}


async def events(*pieces: Any) -> list[Any]:
    async def told() -> AsyncIterator[dict[str, Any]]:
        for piece in pieces:
            yield piece

    request = GenRequest(bytes(16), b"t", None, (1,), Sampling(4))
    counts = dict.fromkeys(("prompt", "generated", "finished"), 0)
    return [event async for event in Completion(request, told(), FACTS, counts)]


@pytest.mark.parametrize(
    "choices",
    [
        None,
        5,
        {"a": 1},
        [None],
        *([{"index": strange, "logprobs": GOOD}] for strange in (None, "x", [], math.inf, -1, 1)),
        *([{"logprobs": strange}] for strange in (5, "x", [1], {"tokens": ["token_id:1"]})),
        *([{"logprobs": {**GOOD, "top_logprobs": strange}}] for strange in (5, [5], [[1]])),
        *([{"logprobs": {**GOOD, "token_logprobs": [x]}}] for x in (None, math.nan, 10**400)),
        *([{"logprobs": {**GOOD, "tokens": [x]}}] for x in ("1", "token_id:x", "token_id:10", 1)),
    ],
    ids=lambda choices: repr(choices)[:60],
)
async def test_piece_of_another_shape_ends_the_answer_as_a_lost_server_does(choices: Any) -> None:
    token, finish = await events({"choices": [{"logprobs": GOOD}]}, {"choices": choices})
    assert token.id == 1
    assert isinstance(finish, Finish)
    assert (finish.reasons, finish.choices[0].answer_tokens) == (("engine_lost",), 1)


async def test_piece_without_tokens_says_nothing() -> None:
    empty = {"choices": []}, {"usage": {}}, {"choices": [{"index": 0, "logprobs": None}]}
    *tokens, finish = await events(*empty, *[{"choices": [{"logprobs": GOOD}]}] * 4)
    assert (len(tokens), finish.reasons) == (4, ("length",))


async def test_object_that_is_too_deep_is_a_lost_server() -> None:
    async def lines() -> AsyncIterator[str]:
        yield "data: " + "[" * 100_000

    with pytest.raises(EngineLost):
        await anext(objects_of(lines()))
