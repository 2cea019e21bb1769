"""Text that grows token by token is the text of all tokens at once, and stop strings cut it at the same place."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3moe_engine.detokenizer import Detokenizer
from qwen3moe_engine.request import Request
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.tokenizer import BYTE_OF_CHARACTER, Tokenizer
from qwen3moe_plugins.errors import InputError

TOKENIZER = Tokenizer(Path(__file__).resolve().parents[1] / "data" / "qwen3moe-tiny")
EOS = 2047


class Pieces:
    """A vocabulary whose tokens are the pieces of one text."""

    def __init__(self, text: bytes, cuts: list[int]):
        ends = sorted({cut for cut in cuts if cut < len(text)} | {len(text)})
        self.pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def run(text: bytes, cuts: list[int], stop: tuple[str, ...]) -> tuple[Detokenizer, list[str]]:
    """Stops early as an engine does. Also what a stream would have sent, step by step."""
    vocabulary = Pieces(text, cuts)
    detokenizer, sent = Detokenizer(vocabulary, stop), []
    for token_id in range(len(vocabulary.pieces)):
        detokenizer.append(token_id)
        sent.append(detokenizer.take())
        if detokenizer.stopped:
            return detokenizer, sent
    detokenizer.finish()
    return detokenizer, [*sent, detokenizer.take(finished=True)]


def cut_by_definition(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The shortest beginning that ends with a stop string, without the longest such string."""
    for end in range(len(text) + 1):
        at_end = [item for item in stop if text[:end].endswith(item)]
        if at_end:
            return text[: end - max(map(len, at_end))], True
    return text, False


CUTS = st.lists(st.integers(1, 40), max_size=12)
STOPS = st.lists(st.text("ab é🦀", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(deadline=None)
@given(st.text("ab é🦀", max_size=24), STOPS, CUTS)
@example("xé ab", ("é ab", " "), [])  # one string in another, in one token: the first that is whole
@example("xé ab", ("é ab", " ab"), [])  # two that end together: the longest
def test_any_splitting_into_tokens_finds_the_same_cut(text, stop, cuts):
    detokenizer, sent = run(text.encode(), cuts, stop)
    assert (detokenizer.text, detokenizer.stopped) == cut_by_definition(text, stop)
    assert "".join(sent) == detokenizer.text, "a stream took something back, or held it for ever"


@settings(deadline=None)
@given(st.binary(max_size=24), CUTS)
def test_bytes_that_are_no_text(text, cuts):
    assert run(text, cuts, ())[0].text == text.decode(errors="replace")


@settings(deadline=None)
@given(st.lists(st.integers(0, 2047) | st.integers(160, 260), max_size=40))
def test_token_by_token_is_what_the_tokenizer_decodes(token_ids):
    detokenizer = Detokenizer(TOKENIZER)
    for token_id in token_ids:
        detokenizer.append(token_id)
    detokenizer.finish()
    assert detokenizer.text == TOKENIZER.decode(token_ids)


def test_a_character_comes_when_it_is_whole():
    detokenizer = Detokenizer(Pieces("é🦀!".encode(), [1, 2, 3, 4, 6]))
    taken = []
    for token_id in range(6):
        detokenizer.append(token_id)
        taken.append(detokenizer.take())
    assert taken == ["", "é", "", "", "🦀", "!"]


def test_a_stream_holds_back_what_a_stop_string_may_take():
    detokenizer, sent = run(b"one END two EN three ENDING", list(range(1, 30)), ("ENDI",))
    assert detokenizer.stopped and detokenizer.text == "one END two EN three "
    assert sent[4:8] == ["", "", "", "END "]


def test_a_stop_string_before_the_minimum_of_tokens_stays():
    detokenizer = Detokenizer(Pieces(b"ab c ab", list(range(1, 7))), ("ab",))
    for token_id in range(7):
        detokenizer.append(token_id, may_stop=token_id >= 2)
        assert detokenizer.stopped == (token_id == 6)
    assert detokenizer.text == "ab c "


def test_tokens_that_are_special_or_unused_have_no_text():
    assert TOKENIZER.token_bytes(EOS) == TOKENIZER.token_bytes(10**6) == b""
    assert TOKENIZER.token_bytes(TOKENIZER.encode(" the")[0]) == b" the"


def test_bytes_are_written_as_the_tokenizers_library_does():
    assert set(BYTE_OF_CHARACTER) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    text = "".join(map(chr, range(1, 0x300))) + "ࠀ한🦀\U000f0000"
    assert b"".join(map(TOKENIZER.token_bytes, TOKENIZER.encode(text))) == text.encode()


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="expected byte-level BPE"):
        Tokenizer(tmp_path)


def finished(text: str, ending: tuple[int, ...] = (), **params) -> Request:
    """A request that got the tokens of a text, then `ending`, until it was finished."""
    params = SamplingParams(**params)
    request = Request(0, (1,), params, detokenizer=Detokenizer(TOKENIZER, params.stop))
    for token_id in (*TOKENIZER.encode(text), *ending):
        if request.finish_reason is None:
            request.append(token_id, (EOS,))
    return request


def outcome(request: Request) -> tuple[str | None, str | None]:
    completion = request.completion()
    return completion.text, completion.finish_reason


def test_what_ends_a_request():
    full_stop = TOKENIZER.encode(".")[0]
    text = "It was the best of times. It was"
    num_tokens = len(TOKENIZER.encode(text))
    assert outcome(finished(text, (EOS, 5))) == (text, "stop")
    assert outcome(finished(text, (EOS,), ignore_eos=True, max_new_tokens=num_tokens + 1)) == (text, "length")
    assert outcome(finished(text, stop=("t of t",))) == ("It was the bes", "stop")
    assert outcome(finished(text, stop_token_ids=(full_stop,))) == ("It was the best of times", "stop")
    assert outcome(finished(text, stop=("was",), max_new_tokens=num_tokens, min_new_tokens=num_tokens - 1)) == (
        text[:-3], "stop"), "the second, and rather than `length`"  # fmt: skip
    assert outcome(finished(text, stop=("was",), max_new_tokens=num_tokens, min_new_tokens=num_tokens)) == (
        text, "length"), "it would end with the last token that may not end it"  # fmt: skip
    half = TOKENIZER.encode("é")[:1] if len(TOKENIZER.encode("é")) > 1 else None
    assert half is None or outcome(finished("", tuple(half), max_new_tokens=1)) == ("�", "length")
