"""Records of a Datanet: their one canonical form, their roots, and their token ids.

Why one place: a record is hashed when it is contributed, trained on, and given a gradient; an
answer is sketched in the same window. If any two of these read a record differently, shares are
noise. A record is one JSON object a line, `{"prompt", "completion"}` or `{"text"}`; design
page 60 §1 and page 40 §7.
What this file does not know: near-duplicates (clusters.py), who contributed, torch. The tokenizer
is an argument.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid

RECORD_BYTES_MAX: Final = 64 * 1024
RECORDS_MAX: Final = 65_536  # of one contribution
NOTE_CHARS_MAX: Final = 1_024
NOTES: Final = frozenset({"source", "consent", "license"})
WINDOW_TOKENS: Final = 1_024
COMPLETION_TOKENS_MAX: Final = 512  # of a record with a prompt; without one, the whole window


class Tokenizer(Protocol):
    """What we ask of a transformers tokenizer loaded from the base's folder."""

    chat_template: Any
    bos_token_id: Any
    eos_token_id: Any

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The conversation as the base wants to read it."""
        ...

    def encode(self, text: Any, *, add_special_tokens: bool) -> Any:
        """Token ids of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One example. `prompt` is empty for plain text. `raw` is the canonical bytes, hashed."""

    prompt: str
    completion: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class PlacedRecord:
    """A record and its place in ledger order: contribution number, position in it."""

    contribution: int
    position: int
    record: Record


class RecordIds(NamedTuple):
    """Token ids within the window; loss and gradient are of the ids from `prompt_tokens` on."""

    ids: tuple[int, ...]
    prompt_tokens: int

    @property
    def kept_tokens(self) -> int:
        """How many completion tokens are predicted: the very first id of a text never is."""
        return len(self.ids) - max(1, self.prompt_tokens)


# --- records as bytes


def make_record(prompt: str, completion: str, notes: dict[str, str] | None = None) -> Record:
    """A record from its parts. Raises `Invalid` `record.…` as `decode_record` does."""
    fields = {"prompt": prompt, "completion": completion} if prompt else {"text": completion}
    return decode_record(_canonical({**fields, **(notes or {})}))


def decode_record(line: bytes) -> Record:
    """The record in one JSON line; other spellings of the same object give the same bytes.

    Raises `Invalid`: `record.too_large`, `record.not_utf8`, `record.malformed` (not one flat
    object of strings), `record.fields`, `record.empty`, `record.not_nfc`.
    """
    if len(line) > RECORD_BYTES_MAX:
        raise Invalid("record.too_large", bytes=len(line), bytes_max=RECORD_BYTES_MAX)
    fields = _flat_object(line)
    if set(fields) - NOTES not in ({"prompt", "completion"}, {"text"}):
        raise Invalid("record.fields", fields=",".join(sorted(fields)))
    for name, text in fields.items():
        if not unicodedata.is_normalized("NFC", text):
            raise Invalid("record.not_nfc", field=name)
        if not text.strip():
            raise Invalid("record.empty", field=name)
        if name in NOTES and len(text) > NOTE_CHARS_MAX:
            raise Invalid("record.too_large", field=name, chars=len(text))
    raw = _canonical(fields)
    if len(raw) > RECORD_BYTES_MAX:
        raise Invalid("record.too_large", bytes=len(raw), bytes_max=RECORD_BYTES_MAX)
    return Record(fields.get("prompt", ""), fields.get("completion", fields.get("text", "")), raw)


def _flat_object(line: bytes) -> dict[str, str]:
    try:
        pairs = json.loads(line.decode("utf-8"), object_pairs_hook=list)
    except UnicodeDecodeError:
        raise Invalid("record.not_utf8") from None
    except (ValueError, RecursionError) as error:
        raise Invalid("record.malformed", why=str(error)) from None
    # An object comes as (name, value) tuples, a JSON array as plain values: only tuples pass.
    if type(pairs) is not list or not all(type(pair) is tuple for pair in pairs):
        raise Invalid("record.malformed", why="not an object")
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Invalid("record.malformed", why="a field twice")
    for name, value in fields.items():
        if type(value) is not str:
            raise Invalid("record.malformed", why=f"{name} is not a string")
        if any("\ud800" <= letter <= "\udfff" for letter in name + value):
            raise Invalid("record.not_utf8")
    return fields


def _canonical(fields: dict[str, str]) -> bytes:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", errors="surrogatepass")


def parse_records(data: bytes) -> list[Record]:
    """The records of a contribution's JSON lines, each line ended by a newline (the last may not).

    Raises `Invalid` with the codes of `decode_record` and `line` (from 1), `record.duplicate`,
    `contribution.empty`, `contribution.too_many_records`.
    """
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if not lines:
        raise Invalid("contribution.empty")
    if len(lines) > RECORDS_MAX:
        raise Invalid("contribution.too_many_records", records=len(lines))
    records: list[Record] = []
    seen: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = decode_record(line)
        except Invalid as refusal:
            raise Invalid(refusal.code, line=number, **refusal.facts) from None
        first = seen.setdefault(record.raw, number)
        if first != number:
            raise Invalid("record.duplicate", line=number, first=first)
        records.append(record)
    return records


def encode_records(records: Iterable[Record]) -> bytes:
    """Canonical JSON lines: the bytes that are stored and fetched."""
    return b"".join(record.raw + b"\n" for record in records)


def contribution_root(records: Sequence[Record]) -> bytes:
    """RFC 6962 root over the canonical bytes of the records, in order."""
    return merkle.root(record.raw for record in records)


def content_hash(records: Sequence[Record]) -> bytes:
    """SHA-256 of the canonical JSON lines: the same content twice in a Datanet is refused."""
    return sha256(encode_records(records))


def snapshot_root(contributions: Iterable[tuple[int, bytes]]) -> bytes:
    """RFC 6962 root over (contribution number u64 ‖ contribution root), ascending by number."""
    members = list(contributions)
    numbers = [number for number, _ in members]
    assert numbers == sorted(set(numbers))
    return merkle.root(number.to_bytes(8) + root for number, root in members)


def place_records(contributions: Iterable[tuple[int, Sequence[Record]]]) -> list[PlacedRecord]:
    """All records in ledger order: by contribution number, then position."""
    return [
        PlacedRecord(number, position, record)
        for number, records in sorted(contributions, key=lambda member: member[0])
        for position, record in enumerate(records)
    ]


# --- records as token ids


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """The ids before an answer to `prompt`, through the base's chat template.

    An empty prompt gives the start token alone, where the tokenizer has one.
    """
    if not prompt:
        return () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    return _ids(tokenizer, _conversation(tokenizer, prompt, None))


def encode_record(tokenizer: Tokenizer, prompt: str, completion: str) -> RecordIds:
    """The ids that training and index see: template, completion with its stop token, window.

    Prompt and completion are tokenised apart, as they are when an answer is generated.
    """
    before = encode_prompt(tokenizer, prompt)
    if not prompt:
        return window(before, (*_ids(tokenizer, completion), *_stop(tokenizer)))
    asked = _conversation(tokenizer, prompt, None)
    whole = _conversation(tokenizer, prompt, completion)
    if whole.startswith(asked) and len(whole) > len(asked) + len(completion):
        # The template closes the turn itself, with the token that stops generation.
        return window(before, _ids(tokenizer, whole[len(asked) :]))
    return window(before, (*_ids(tokenizer, completion), *_stop(tokenizer)))


def window(prompt: Sequence[int], completion: Sequence[int]) -> RecordIds:
    """At most 1,024 ids: the first 512 of the completion, then the end of the prompt.

    With no prompt but a start token, the completion may take the whole window. For answers
    `completion` is what was signed, with its stop token if one was generated.
    """
    has_prompt = len(prompt) > 1
    kept = completion[: COMPLETION_TOKENS_MAX if has_prompt else WINDOW_TOKENS - len(prompt)]
    room = WINDOW_TOKENS - len(kept)
    before = prompt[max(0, len(prompt) - room) :]
    return RecordIds((*before, *kept), len(before))


def _conversation(tokenizer: Tokenizer, prompt: str, completion: str | None) -> str:
    if tokenizer.chat_template is None:
        return prompt + (completion or "")
    turns = [{"role": "user", "content": prompt}]
    if completion is not None:
        turns.append({"role": "assistant", "content": completion})
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=completion is None
    )
    return str(text)


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _stop(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
