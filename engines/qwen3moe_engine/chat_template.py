"""Chat messages to the text of a prompt, by the template beside a checkpoint's tokenizer.

Owns: finding the template, and the environment it is rendered in, which is transformers' (`apply_chat_template`): a
sandbox, blocks trimmed, `raise_exception`, `strftime_now`, `tojson`, loop controls and generation blocks. A template is
a program that came with the checkpoint: it sees the messages and nothing of the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen3moe_plugins.errors import InputError

CONFIG_NAME, JINJA_NAME, JSON_NAME = "tokenizer_config.json", "chat_template.jinja", "chat_template.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")  # an assistant's thoughts; templates read the first two

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """Messages with a `role` and a `content` each, and what else the template takes.

    tools: JSON schemas of functions. options: the template's own variables, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """Raises InputError if `source` is no template. special_tokens: by name, variables of the template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "chat template"):
        self._where, self._special_tokens = where, dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise _bad_template(where, error) from None

    def render(self, chat: Chat) -> str:
        """The prompt's text. Raises InputError for what the template refuses."""
        own = {"messages", "tools", "documents", "add_generation_prompt"}
        if taken := sorted(own & set(chat.options)):
            raise InputError("chat", got=f"options {taken}", expected="the template's own", remedy="leave them out")
        variables = {
            **self._special_tokens,
            **chat.options,
            "messages": [_with_reasoning(dict(message)) for message in chat.messages],
            "tools": None if chat.tools is None else [dict(tool) for tool in chat.tools],
            "documents": None,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            return self._template.render(**variables)
        except Exception as error:  # a template raises whatever its operations on the messages raise
            got = f"what {self._where} refuses ({type(error).__name__}: {error})"
            raise InputError("chat", got=got, expected="messages of its form", remedy="change the messages") from None


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """Of the tokenizer in `folder`: chat_template.jinja, else chat_template.json, else tokenizer_config.json's."""
    config = _read_json(folder / CONFIG_NAME)
    tokens = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    if (path := folder / JINJA_NAME).is_file():
        return ChatTemplate(_read_text(path), tokens, str(path))
    for name, values in ((JSON_NAME, _read_json(folder / JSON_NAME)), (CONFIG_NAME, config)):
        if (source := values.get("chat_template")) is not None:
            return ChatTemplate(_default_of(source, str(folder / name)), tokens, str(folder / name))
    return None


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = [message[name] for name in REASONING if message.get(name) is not None]
    return {"thinking": thoughts[0], **message, "reasoning_content": thoughts[0]} if thoughts else message


def _default_of(source: Any, where: str) -> str:
    """A tokenizer may have several templates: the one named `default` is for chats."""
    if isinstance(source, list):
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        expected = "text, or templates of which one is named default"
        raise InputError(f"{where}: chat_template", got=repr(source), expected=expected, remedy="fetch the file again")
    return source


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) and "content" in token else token)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), got=str(error), expected="text in UTF-8", remedy="fetch the file again") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; nothing if there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        got, remedy = f"invalid JSON ({error})", "fetch the file again"
        raise InputError(str(path), got=got, expected="a JSON object", remedy=remedy) from None
    if not isinstance(values, dict):
        got, remedy = type(values).__name__, "fetch the file again"
        raise InputError(str(path), got=got, expected="a JSON object", remedy=remedy)
    return values


def _bad_template(where: str, error: Exception) -> InputError:
    return InputError(where, got=f"{error}", expected="a Jinja template", remedy="fetch the file again")


class _GenerationBlock(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is text like any other."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson  # jinja2's own escapes HTML and sorts keys
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
