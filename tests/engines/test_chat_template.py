"""Chat templates: what transformers' apply_chat_template renders, and files and chats that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qwen3moe_engine.chat_template import Chat, ChatTemplate, load_chat_template
from qwen3moe_engine.prompt import PromptEncoder
from qwen3moe_engine.tokenizer import Tokenizer
from qwen3moe_plugins.errors import InputError

TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "qwen3moe-tiny"

# Written for these tests in the manner of a model that thinks and calls tools: macros, namespaces, loops backwards,
# filters, tests, splits of strings, comments, and blocks whose whitespace is trimmed.
THINKING = """
{#- one block for the system's words and the tools -#}
{%- macro turn(role, text) %}
    {{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}
{%- endmacro %}
{%- set first = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {%- set listed = namespace(text=first + '\\n\\nTools:') %}
    {%- for tool in tools %}
        {%- set listed.text = listed.text + '\\n' + (tool | tojson) %}
    {%- endfor %}
    {{- turn('system', listed.text) }}
{%- elif first %}
    {{- turn('system', first) }}
{%- endif %}
{%- set seen = namespace(last_query=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set seen.last_query = messages | length - loop.index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if content is not string %}
        {%- set content = content | map(attribute='text') | join %}
    {%- endif %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('The system speaks first.') }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if thought and loop.index0 > seen.last_query %}
            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content %}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set content = content + '\\n<tool_call>\\n' + (call.function | tojson(indent=1)) + '\\n</tool_call>' %}
        {%- endfor %}
        {{- turn('assistant', content) }}
    {%- elif message.role in ('user', 'tool') %}
        {{- turn('user', content if message.role == 'user' else '<tool_response>' + content + '</tool_response>') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {
    "thinking": THINKING,
    "whitespace": "{% for m in messages %}\n    {% if m.role %}\n  [{{ m.role }}]\n  {% endif %}\n{% endfor %}\n.\n",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ messages[0].content }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }};{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{{ messages | length }}",
}
CHATS = {
    "one": [{"role": "user", "content": 'Who is <she> & "why"? äß\n'}],
    "many": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nold\n</think>\n\nTwo."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "then?"}]},
        {"role": "assistant", "content": "Three.", "reasoning_content": "\nnew\n"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "see", "arguments": {"at": "é"}}}]},
        {"role": "tool", "content": "rain"},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "see", "parameters": {"b": 1, "a": ["<", "é"]}}}]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_what_transformers_renders(folder, name, chat):
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_chat_template(folder)
    for tools, prompted, options in (
        (None, True, {}),
        (TOOLS, True, {"enable_thinking": False}),
        (None, False, {"enable_thinking": True}),
    ):
        expected = theirs.apply_chat_template(
            CHATS[chat], tools=tools, tokenize=False, add_generation_prompt=prompted, **options
        )
        assert ours.render(Chat(CHATS[chat], tools, prompted, options)) == expected


def test_token_ids_are_those_of_transformers(folder):
    (folder / "chat_template.jinja").write_text(THINKING)
    encoder = PromptEncoder(Tokenizer(folder), load_chat_template(folder))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHATS["many"], add_generation_prompt=True)
    assert list(encoder.encode(CHATS["many"])) == expected["input_ids"]


def test_where_a_template_comes_from(folder):
    """The .jinja file goes before chat_template.json, and that before the configuration, text or list."""
    chat = Chat([{"role": "user", "content": "x"}])
    assert load_chat_template(folder).render(chat).startswith("<|im_start|>user\nx")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_chat_template(folder).render(chat) == "list"
    (folder / "chat_template.json").write_text('{"chat_template": "json"}')
    assert load_chat_template(folder).render(chat) == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert load_chat_template(folder).render(chat) == "jinja"


def test_no_template(tmp_path):
    assert load_chat_template(tmp_path) is None
    with pytest.raises(InputError, match="a tokenizer with a chat template"):
        PromptEncoder(Tokenizer(TOKENIZER), None).encode([{"role": "user", "content": "x"}])
    with pytest.raises(InputError, match="a tokenizer to read it with"):
        PromptEncoder(None, None).encode("text")
    with pytest.raises(InputError, match="text, token ids or chat messages"):
        PromptEncoder(None, None).encode([1.5])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("chat_template.jinja", "{% if %}", "a Jinja template"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "other", "template": "x"}]}', "named default"),
        ("tokenizer_config.json", "[]", "a JSON object"),
        ("chat_template.json", "{", "invalid JSON"),
    ],
)
def test_files_that_are_refused(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=said):
        load_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("{{ raise_exception('no ' + messages[0].role) }}", {}, "no user"),
        ("{{ 1 + 'a' }}", {}, "TypeError"),
        ("{{ x }}", {"messages": []}, r"\['messages'\]"),
        ("{{ messages.append(1) }}", {}, "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", {}, "SecurityError"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", {}, "SecurityError"),
    ],
)
def test_chats_that_are_refused(source, options, said):
    """By the template, or by the sandbox it runs in."""
    with pytest.raises(InputError, match=said):
        ChatTemplate(source, {}).render(Chat([{"role": "user", "content": "x"}], options=options))
