"""Text to token ids and back, by the checkpoint's tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from qwen3moe_plugins.errors import InputError

FILE_NAME = "tokenizer.json"

# How byte-level BPE writes bytes as characters (GPT-2's table): printable ones as they are, the others from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


class Tokenizer:
    """Raises InputError if `path` (a folder, or the file) has no readable tokenizer.json."""

    def __init__(self, path: Path):
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                str(path),
                got=f"no {FILE_NAME}",
                expected="a checkpoint's tokenizer",
                remedy="give --tokenizer, or prompts as ids with --prompt-ids",
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise InputError(
                str(file),
                got=str(error),
                expected="a tokenizer of the tokenizers library",
                remedy="fetch the file again",
            ) from None
        if not isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel):
            remedy = "use the tokenizer of the checkpoint"
            got = f"decoder {self._tokenizer.decoder}"
            raise InputError(str(file), got=got, expected="byte-level BPE, as Qwen3 has it", remedy=remedy)
        added = self._tokenizer.get_added_tokens_decoder()
        self._token_bytes: dict[int, bytes] = {}  # of tokens asked for so far
        self._special_ids = {token_id for token_id, token in added.items() if token.special}

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Raises InputError for half a surrogate pair, which is no character."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the library makes of it
            got, remedy = "half a surrogate pair", "repair the text"
            raise InputError("prompt", got=got, expected="whole characters", remedy=remedy) from None

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, perhaps a part of a character; nothing for one that is special or unused."""
        if token_id not in self._token_bytes:
            token = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
            self._token_bytes[token_id] = _bytes_of(token or "")
        return self._token_bytes[token_id]

    def special_text(self, token_id: int) -> str | None:
        """How a special token is written; None for one that is not special."""
        return self._tokenizer.id_to_token(token_id) if token_id in self._special_ids else None


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:  # an added token, which is plain text
        return token.encode()
