"""Text to token ids and back, by the checkpoint's tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from qwen3moe_plugins.errors import InputError

FILE_NAME = "tokenizer.json"


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

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
