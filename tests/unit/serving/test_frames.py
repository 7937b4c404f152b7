"""What a worker refuses is told whatever it quotes: an adapter's file is a stranger's text."""

import pytest

from node.serving import frames
from node.serving.engine import BadAdapter, EngineError


def told(error: EngineError) -> EngineError:
    raw = frames.encode_frame(frames.failure(3, error))[frames.LENGTH_BYTES :]
    frame = frames.decode_from_worker(raw)
    assert isinstance(frame, frames.Failed)
    return frames.error_of(frame)


@pytest.mark.parametrize(
    ("fact", "heard"),
    [
        ("q_proj", "q_proj"),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (-(10**30), str(-(10**30))),
        (True, "True"),
        ([1, {"a": None}], "[1, {'a': None}]"),
        ("module.\ud800", "module.\\ud800"),
        ("x" * 10_000, "x" * frames.FACT_CHARS_MAX),
    ],
)
def test_refusal_is_told_whatever_it_quotes(fact: object, heard: object) -> None:
    error = told(BadAdapter(key=fact))
    assert (type(error), error.facts) == (BadAdapter, {"key": heard})


def test_error_of_an_unknown_code_keeps_its_facts() -> None:
    error = frames.error_of(frames.Failed(1, "engine.of_tomorrow", {"told": "x", "why": "new"}))
    assert error.facts == {"told": "engine.of_tomorrow", "why": "new"}
