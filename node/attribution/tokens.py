"""Tokenizer and chat template of a base, read without transformers.

Why not transformers: counting the tokens of a prompt must not cost a payer 4 s and 300 MB. The
files are the same, and a test compares the ids.
What this file does not know: records, windows, models.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consensus.primitives.errors import Invalid


class TextTokenizer:
    """Text to ids and back, for one base folder (tokenizer.json and its settings)."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        root = Path(folder)
        self._tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        settings = json.loads((root / "tokenizer_config.json").read_bytes())
        template = root / "chat_template.jinja"
        self.chat_template: str | None = (
            template.read_text("utf-8") if template.is_file() else settings.get("chat_template")
        )
        # A base's template is text from outside: sandboxed, with the switches transformers uses.
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = sandbox.from_string(self.chat_template or "")
        self.bos_token = _special(settings, "bos_token")
        self.eos_token = _special(settings, "eos_token")
        self.bos_token_id = self._id_of(self.bos_token)
        self.eos_token_id = self._id_of(self.eos_token)
        self._special = frozenset(
            int(number)
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        )

    def _id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token) if token else None
        return found

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids; names of special tokens in `text` become those tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
    ) -> Any:
        """The conversation as the base reads it: ids, or text with `tokenize=False`."""
        text = self._template.render(
            messages=list(conversation),
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )
        return self.encode(text) if tokenize else text

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text: starts, ends, turns."""
        return self._special

    def pieces(self) -> list[bytes]:
        """The bytes that each token id shows, by id; special tokens show nothing."""
        special = self._special
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        spell = _bytes_of_symbols if "ByteLevel" in json.dumps(decoder) else _bytes_of_words
        size = len(self)
        words = [self._tokenizer.id_to_token(number) for number in range(size)]
        return [
            b"" if word is None or number in special else spell(word)
            for number, word in enumerate(words)
        ]


def open_tokenizer(folder: str | os.PathLike[str]) -> TextTokenizer:
    """Of a base that came from outside; raises Invalid `tokenizer.unreadable`. Blocks."""
    try:
        return TextTokenizer(folder)
    except Exception as error:  # what the parsers say of a stranger's file is theirs
        why = str(error)[:200]
        raise Invalid("tokenizer.unreadable", base=Path(folder).name, why=why) from error


def _special(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def byte_symbols() -> dict[int, str]:
    """The byte-level alphabet: printable bytes stand for themselves, others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


_BYTE_OF = {symbol: byte for byte, symbol in byte_symbols().items()}


def _bytes_of_symbols(word: str) -> bytes:
    """A byte-level token; one added later as plain text has letters that stand for no byte."""
    if any(letter not in _BYTE_OF for letter in word):
        return word.encode()
    return bytes(_BYTE_OF[letter] for letter in word)


def _bytes_of_words(word: str) -> bytes:
    """A SentencePiece token: ▁ is a space, <0xAB> is one byte."""
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return bytes([int(word[3:5], 16)])
    return word.replace("▁", " ").encode()
