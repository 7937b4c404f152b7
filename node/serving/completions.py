"""One streamed answer of OpenAI's completions, from bytes to tokens and one end.

Why strict: what a server says is another program's word. A token without an id, outside the base's
vocabulary or of a choice that nobody asked for ends the stream as a lost server does, with what was
told before; a line has a longest length. Ends and stop strings are cut here, by our own rules.
What this file does not know: HTTP, which server answers, how a question is put.
"""

import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from node.serving.basefacts import BaseFacts
from node.serving.engine import (
    IGNORE_EOS,
    Ending,
    EngineLost,
    Finish,
    GenRequest,
    Reason,
    Token,
    logprob_bytes,
)
from node.serving.sampling import StopFilter

LINE_BYTES_MAX: Final = 1 << 20
TOKEN_WORD: Final = "token_id:"


@dataclass(slots=True)
class _Choice:
    """One choice of an answer in the making."""

    text: StopFilter
    logprobs: bytearray = field(default_factory=bytearray)
    made: int = 0
    ending: Ending | None = None

    def end(self, reason: Reason) -> None:
        """No more of it."""
        self.ending = Ending(reason, self.made, self.text.flush(), bytes(self.logprobs), b"")


class Completion:
    """The events of one request: tokens as they come, cut by our own rules, then the Finish.

    No generator: a deadline may not be held open while its reader does something else.
    """

    def __init__(
        self,
        request: GenRequest,
        pieces: AsyncIterator[dict[str, Any]],
        facts: BaseFacts,
        counts: dict[str, int],
    ) -> None:
        self._request = request
        self._pieces = pieces
        self._facts = facts
        self._counts = counts
        sampling = request.sampling
        self._choices = [_Choice(StopFilter(sampling.stop)) for _ in range(sampling.n)]
        self._ready: deque[Token | Finish] = deque()
        self.is_ended = False
        counts["prompt"] += len(request.prompt)

    def reveal(self, seed: bytes) -> None:
        """Nothing: a server draws by itself."""

    def __aiter__(self) -> AsyncIterator[Token | Finish]:
        return self

    async def __anext__(self) -> Token | Finish:
        while not self._ready:
            if self.is_ended:
                raise StopAsyncIteration
            await self._hear()
        return self._ready.popleft()

    async def _hear(self) -> None:
        """One more piece, or the end: ours, the deadline's, or the server's."""
        reason: Reason = "engine_lost"
        with trio.move_on_after(_left_s(self._request.deadline_ms)) as scope:
            try:
                self._take_piece(await anext(self._pieces))
                if not all(choice.ending for choice in self._choices):
                    return
            except (EngineLost, StopAsyncIteration):
                pass
        if scope.cancelled_caught:
            reason = "deadline"
        for choice in self._choices:
            if choice.ending is None:
                choice.end(reason)
        self.is_ended = True
        self._counts["finished"] += 1
        endings = tuple(c.ending for c in self._choices if c.ending is not None)
        self._ready.append(Finish(len(self._request.prompt), endings))

    def _take_piece(self, piece: Mapping[str, Any]) -> None:
        """The tokens of one piece; what a choice says after its end is dropped."""
        for place, rows in _read_choices(piece, len(self._choices), self._facts.vocab):
            for id, logprob, top in rows:
                if self._choices[place].ending is not None:
                    break
                self._ready.append(self._take(place, id, logprob, top))

    def _take(
        self, place: int, id: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> Token:
        sampling, choice = self._request.sampling, self._choices[place]
        shown, is_stopped = choice.text.push(self._facts.pieces[id])
        position = choice.made
        choice.made += 1
        choice.logprobs += logprob_bytes(logprob)
        self._counts["generated"] += 1
        if id in self._facts.ends and not sampling.flags & IGNORE_EOS:
            shown, is_stopped = shown + choice.text.flush(), True
        if is_stopped:
            choice.end("stop")
        elif choice.made == sampling.max_tokens:
            choice.end("length")
        return Token(place, position, id, shown, logprob, top[: sampling.logprobs])


async def lines_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines of at most LINE_BYTES_MAX; raises EngineLost for a longer one."""
    held = b""
    async for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        if len(held) > LINE_BYTES_MAX:
            raise EngineLost(why="a line without end")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")


async def objects_of(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """`data:` lines as objects, until `[DONE]`; raises EngineLost for what is none."""
    try:
        async for line in lines:
            if not line.startswith("data:"):
                continue
            text = line.removeprefix("data:").strip()
            if text == "[DONE]":
                return
            found = json.loads(text)
            if not isinstance(found, dict) or "error" in found:
                raise EngineLost(why="an error in the stream")
            yield found
    except (ValueError, RecursionError) as error:
        raise EngineLost(why=repr(error)[:200]) from None


_Row = tuple[int, float, tuple[tuple[int, float], ...]]  # id, log-probability, best alternatives
STRANGE: Final = (AttributeError, LookupError, TypeError, ValueError, OverflowError)


def _read_choices(
    piece: Mapping[str, Any], choices: int, vocab: int
) -> list[tuple[int, list[_Row]]]:
    """(choice, its tokens) of one piece; raises EngineLost for whatever else a server says."""
    try:
        told = [(int(one.get("index", 0)), _read_tokens(one)) for one in piece.get("choices", ())]
    except STRANGE as error:
        raise EngineLost(why=f"no token ids in the stream: {error!r}"[:200]) from None
    if not all(0 <= place < choices for place, _ in told):
        raise EngineLost(why="a choice nobody asked for")
    rows = [row for _, rows in told for row in rows]
    if not all(0 <= id < vocab and math.isfinite(value) for id, value, _ in rows):
        raise EngineLost(why="a token outside the vocabulary")
    return told


def _read_tokens(told: Mapping[str, Any]) -> list[_Row]:
    logprobs = told.get("logprobs")
    if not logprobs:
        return []
    ids = [_id_of(word) for word in logprobs["tokens"]]
    values = [float(value) for value in logprobs["token_logprobs"]]
    tops = logprobs.get("top_logprobs") or [{}] * len(ids)
    return [
        (id, value, tuple((_id_of(word), float(x)) for word, x in (top or {}).items()))
        for id, value, top in zip(ids, values, tops, strict=True)
    ]


def _id_of(word: Any) -> int:
    text = str(word)
    if not text.startswith(TOKEN_WORD):
        raise ValueError("tokens are not told as ids")
    return int(text.removeprefix(TOKEN_WORD))


def _left_s(deadline_ms: int) -> float:
    if not deadline_ms:
        return math.inf
    return max(0.0, (deadline_ms - time.time_ns() // 1_000_000) / 1_000)
