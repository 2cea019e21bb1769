"""What a request may start from: text, token ids, or chat messages.

Owns: telling the forms apart, and their token ids. Must not know the scheduler.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3moe_engine.chat_template import Chat, ChatTemplate, Message
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_plugins.errors import InputError

Prompt = str | Sequence[int] | Sequence[Message] | Chat


class PromptEncoder:
    """tokenizer: none for token ids only. chat_template: none for no chats."""

    def __init__(self, tokenizer: Tokenizer | None, chat_template: ChatTemplate | None):
        self._tokenizer, self._chat_template = tokenizer, chat_template

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt. Raises InputError for one of no known form, or without what it needs."""
        if isinstance(prompt, str):
            return tuple(self._require_tokenizer().encode(prompt))
        if isinstance(prompt, Chat):
            return self._encode_chat(prompt)
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self._encode_chat(Chat(prompt))  # type: ignore[arg-type]
        return _as_token_ids(prompt)

    def _encode_chat(self, chat: Chat) -> tuple[int, ...]:
        tokenizer = self._require_tokenizer()
        if self._chat_template is None:
            expected = "a tokenizer with a chat template"
            raise InputError("chat", got="none", expected=expected, remedy="give the prompt as text")
        return tuple(tokenizer.encode(self._chat_template.render(chat)))

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            remedy = "give the tokenizer's folder, or prompts as token ids"
            raise InputError("prompt", got="text", expected="a tokenizer to read it with", remedy=remedy)
        return self._tokenizer


def _as_token_ids(prompt: Sequence[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, prompt))
    except TypeError:
        expected = "text, token ids or chat messages"
        raise InputError("prompt", got=repr(prompt)[:80], expected=expected, remedy="give one of these") from None
