"""One record has one form: as bytes, under a root, and as token ids."""

import json
from typing import Any

import pytest

from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution import datanets


class Letters:
    """A tokenizer whose ids are code points; 1 starts a text, 2 stops an answer."""

    chat_template = "user and assistant"
    bos_token_id = 1
    eos_token_id = 2

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        text = "\x01"
        for turn in conversation:
            end = "\n" if turn["role"] == "user" else "\x02"
            text += f"{turn['role']}: {turn['content']}{end}"
        return text + ("assistant:" if add_generation_prompt else "")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


def spoken(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


# --- bytes


def test_spelling_of_a_record_does_not_change_its_bytes() -> None:
    spellings = (
        b'{"prompt":"Q?","completion":"\xc3\xa9."}',
        b'{ "completion" : "\\u00e9." , "prompt" : "Q?" }',
    )
    raws = {datanets.decode_record(line).raw for line in spellings}
    assert raws == {b'{"completion":"\xc3\xa9.","prompt":"Q?"}'}


def test_plain_text_is_a_record_with_an_empty_prompt() -> None:
    record = datanets.decode_record(b'{"text":"A fact.","license":"CC0-1.0"}')
    assert (record.prompt, record.completion) == ("", "A fact.")
    assert datanets.make_record("", "A fact.", {"license": "CC0-1.0"}) == record


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("record.not_utf8", b'{"text":"\xff"}'),
        ("record.not_utf8", b'{"text":"\\ud800"}'),
        ("record.malformed", b"{"),
        ("record.malformed", b'["text","a"]'),
        ("record.malformed", b'{"text":1}'),
        ("record.malformed", b'{"text":{"a":"b"}}'),
        ("record.malformed", b'{"text":"a","text":"b"}'),
        ("record.malformed", b"[" * 60_000),
        ("record.fields", b"{}"),
        ("record.fields", b'{"prompt":"a"}'),
        ("record.fields", b'{"text":"a","prompt":"b"}'),
        ("record.fields", b'{"text":"a","author":"b"}'),
        ("record.empty", b'{"text":" "}'),
        ("record.empty", b'{"prompt":"","completion":"b"}'),
        ("record.not_nfc", '{"text":"e\u0301"}'.encode()),
        ("record.too_large", b'{"text":"' + b"a" * 65_536 + b'"}'),
        ("record.too_large", json.dumps({"text": "a", "source": "s" * 1_025}).encode()),
    ],
)
def test_bad_record_is_refused_by_its_code(code: str, line: bytes) -> None:
    with pytest.raises(Invalid) as refusal:
        datanets.decode_record(line)
    assert refusal.value.code == code


def test_record_of_64_kib_passes_and_one_byte_more_does_not() -> None:
    frame = len(b'{"text":""}')
    assert len(datanets.make_record("", "a" * (65_536 - frame)).raw) == 65_536
    with pytest.raises(Invalid):
        datanets.make_record("", "a" * (65_537 - frame))


def test_bad_line_is_named_by_its_number() -> None:
    with pytest.raises(Invalid) as refusal:
        datanets.parse_records(b'{"text":"a"}\n\n{"text":"b"}\n')
    assert (refusal.value.code, refusal.value.facts["line"]) == ("record.malformed", 2)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("contribution.empty", b""),
        ("record.duplicate", b'{"text":"a"}\n{ "text": "a" }'),
        ("contribution.too_many_records", b"\n" * 65_538),
    ],
)
def test_bad_contribution_is_refused_by_its_code(code: str, data: bytes) -> None:
    with pytest.raises(Invalid) as refusal:
        datanets.parse_records(data)
    assert refusal.value.code == code


def test_roots_are_of_the_canonical_bytes() -> None:
    records = datanets.parse_records(b'{ "text":"a"}\n{"text":"b"}')
    assert datanets.encode_records(records) == b'{"text":"a"}\n{"text":"b"}\n'
    assert datanets.contribution_root(records) == merkle.root([b'{"text":"a"}', b'{"text":"b"}'])
    assert datanets.content_hash(records) == sha256(b'{"text":"a"}\n{"text":"b"}\n')
    assert datanets.parse_records(datanets.encode_records(records)) == records


def test_snapshot_root_names_each_contribution_by_number() -> None:
    root = b"\7" * 32
    assert datanets.snapshot_root([(3, root)]) == merkle.root([b"\0" * 7 + b"\3" + root])
    assert datanets.snapshot_root([(3, root)]) != datanets.snapshot_root([(4, root)])


def test_ledger_order_is_by_contribution_then_position() -> None:
    a, b, c = (datanets.make_record("", text) for text in "abc")
    placed = datanets.place_records([(9, [c]), (2, [b, a])])
    assert [(p.contribution, p.position, p.record.completion) for p in placed] == [
        (2, 0, "b"),
        (2, 1, "a"),
        (9, 0, "c"),
    ]


# --- ids


def test_prompt_and_completion_go_through_the_template() -> None:
    coded = datanets.encode_record(Letters(), "Q?", "A.")
    assert spoken(coded.ids) == "\x01user: Q?\nassistant: A.\x02"
    assert spoken(coded.ids[coded.prompt_tokens :]) == " A.\x02"
    assert coded.kept_tokens == 4


def test_prompt_of_a_record_is_the_prompt_of_its_question() -> None:
    """Training, index and serving must ask the same way, or sketches are of another text."""
    coded = datanets.encode_record(Letters(), "Q?", "A.")
    assert coded.ids[: coded.prompt_tokens] == datanets.encode_prompt(Letters(), "Q?")


def test_plain_text_follows_the_start_token() -> None:
    coded = datanets.encode_record(Letters(), "", "A fact.")
    assert spoken(coded.ids) == "\x01A fact.\x02"
    assert coded.prompt_tokens == 1


def test_base_without_template_or_special_tokens_is_read_plainly() -> None:
    plain = Letters()
    plain.chat_template = plain.bos_token_id = plain.eos_token_id = None  # type: ignore[assignment]
    assert datanets.encode_record(plain, "Q", "A").ids == (81, 65)
    text = datanets.encode_record(plain, "", "abc")
    assert (text.prompt_tokens, text.kept_tokens) == (0, 2)  # the first id is never predicted


@pytest.mark.parametrize(
    ("desc", "prompt", "completion", "kept_prompt", "kept"),
    [
        ("all fits", 500, 500, 500, 500),
        ("prompt loses its start", 600, 500, 524, 500),
        ("completion loses its end", 600, 513, 512, 512),
        ("a start token alone leaves the window to the text", 1, 1_024, 1, 1_023),
        ("no prompt at all", 0, 1_025, 0, 1_024),
    ],
)
def test_window(desc: str, prompt: int, completion: int, kept_prompt: int, kept: int) -> None:
    before, after = tuple(range(prompt)), tuple(range(10_000, 10_000 + completion))
    coded = datanets.window(before, after)
    assert coded.prompt_tokens == kept_prompt, desc
    assert coded.ids == before[prompt - kept_prompt :] + after[:kept], desc
