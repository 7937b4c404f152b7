"""What was generated of one answer, and what of it was delivered, within what is promised.

Why tokens wait at the edge of a quantum: what was not promised is not shown. Why only what was
written counts: a payer pays for what it could read.
What this file does not know: vouchers, prices, receipts.
"""

from dataclasses import dataclass, field
from typing import Final

import trio

from node.ledger.wire.exchange import Cancel, Tokens
from node.ledger.wire.orders import pack_ids
from node.serving.engine import Finish, Stream, Token
from node.serving.line import Event, Line, Lost

FLUSH_S: Final = 0.05
IDS_PER_FRAME: Final = 4_096
_DONE: Final = frozenset({"stop", "length"})


@dataclass(slots=True)
class Answer:
    """What was generated and what was delivered so far, per choice."""

    n: int
    tokens: list[list[Token]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    text: list[bytearray] = field(default_factory=list)
    finish: Finish | None = None
    is_lost: bool = False
    is_cut: bool = False

    def __post_init__(self) -> None:
        self.tokens = [[] for _ in range(self.n)]
        self.sent = [0] * self.n
        self.text = [bytearray() for _ in range(self.n)]

    @property
    def delivered(self) -> int:
        """Tokens that were written, over all choices."""
        return sum(self.sent)

    @property
    def is_all_sent(self) -> bool:
        """Whether all that was generated so far was written."""
        return all(len(t) == s for t, s in zip(self.tokens, self.sent, strict=True))

    def ids(self) -> list[list[int]]:
        """Ids of the delivered tokens, per choice."""
        pairs = zip(self.tokens, self.sent, strict=True)
        return [[token.id for token in tokens[:sent]] for tokens, sent in pairs]

    @property
    def is_complete(self) -> bool:
        """Whether all was said and delivered, and nothing cut it short."""
        return (
            self.finish is not None
            and self.is_all_sent
            and all(reason in _DONE for reason in self.finish.reasons)
        )


async def pump(stream: Stream, send: "trio.MemorySendChannel[Event]") -> None:
    """The engine's events into the request's queue, to the stream's end."""
    async for event in stream:
        await send.send(event)


async def gather(line: Line, answer: Answer) -> None:
    """Take what else the engine has within 50 ms, so that a frame carries many tokens."""
    with trio.move_on_after(FLUSH_S):
        while True:
            event = line.next_nowait()
            if event is None:
                await trio.sleep(FLUSH_S / 5)
            elif isinstance(event, Token):
                note_event(answer, event)
            else:
                line.put_back(event)
                return


def note_event(answer: Answer, event: Event) -> None:
    """What an event changes in the answer; a tick is the service's to judge."""
    match event:
        case Token():
            answer.tokens[event.choice].append(event)
        case Finish():
            answer.finish = event
        case Cancel():
            answer.is_cut = True
        case Lost():
            answer.is_lost = answer.is_cut = True
        case _:
            pass  # a second start or reveal says nothing new


async def send_tails(line: Line, answer: Answer) -> None:
    """Text that was held back until the end, behind the last token of its choice."""
    assert answer.finish is not None
    for choice, ending in enumerate(answer.finish.choices):
        if ending.tail:
            answer.text[choice] += ending.tail
            await line.write(Tokens(choice, answer.sent[choice], b"", ending.tail))


async def flush(line: Line, answer: Answer, granted: int) -> None:
    """Send what may be shown and was not; what the payer cannot get is not delivered."""
    for choice, tokens in enumerate(answer.tokens):
        while answer.sent[choice] < len(tokens) and answer.delivered < granted:
            start = answer.sent[choice]
            room = min(IDS_PER_FRAME, granted - answer.delivered)
            some = tokens[start : start + room]
            text = b"".join(token.text for token in some)
            ids = pack_ids([token.id for token in some])
            if not await line.write(Tokens(choice, start, ids, text)):
                answer.is_lost = answer.is_cut = True
                return
            answer.sent[choice] += len(some)
            answer.text[choice] += text
