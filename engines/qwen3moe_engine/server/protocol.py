"""What completions and chats have in common: the fields that choose tokens, and usage.

Owns: OpenAI's and vLLM's names of SamplingParams' fields. Ranges are SamplingParams' own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen3moe_engine.sampling_params import BIAS, INT32_MAX, MAX_LOGPROBS, RANGES, TOKEN_ID, Range, SamplingParams
from qwen3moe_engine.server.errors import ApiError

FinishReason = Literal["stop", "length"]


def _within(range_: Range, about: str = "") -> Any:
    return Field(ge=range_.low, le=range_.high, description=about or None)


def _ranged(name: str, about: str = "") -> Any:
    return _within(RANGES[name], about)


TokenId = Annotated[int, _within(TOKEN_ID)]


class Strict(BaseModel):
    """No unknown fields, no conversions: a number in quotes is a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="Ends the stream with an event that counts its tokens.")


class SamplingFields(Strict):
    """None is the default: that of OpenAI's API, or off."""

    model: str = Field(description="As GET /v1/models names it.")
    n: (
        Annotated[int, Field(ge=1, le=128, description="Choices for each prompt; choice i draws by seed + i.")] | None
    ) = None
    max_tokens: Annotated[int, _ranged("max_new_tokens")] | None = None
    temperature: Annotated[float, _ranged("temperature", "0 takes the most likely token; default 1.")] | None = None
    top_p: Annotated[float, _ranged("top_p")] | None = None
    presence_penalty: Annotated[float, _ranged("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _ranged("frequency_penalty")] | None = None
    seed: Annotated[int, _ranged("seed")] | None = None
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, _within(BIAS)]],
            Field(max_length=1024, description="Added to logits, by token id."),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Not used.")
    top_k: Annotated[int, _ranged("top_k", "Not in OpenAI's API; 0 is off.")] | None = None
    min_p: Annotated[float, _ranged("min_p", "Not in OpenAI's API.")] | None = None
    repetition_penalty: Annotated[float, _ranged("repetition_penalty", "Not in OpenAI's API.")] | None = None
    min_tokens: Annotated[int, _ranged("min_new_tokens", "Not in OpenAI's API: no end before.")] | None = None
    ignore_eos: bool | None = Field(None, description="Not in OpenAI's API: on behind the end of the sequence.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(
        None, description="Not in OpenAI's API."
    )
    priority: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)] | None = Field(
        None, description="Not in OpenAI's API: the higher is served first."
    )

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """In a stream."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_params(self, max_new_tokens: int, logprobs: int | None) -> SamplingParams:
        """Raises ApiError for fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            message = "stream_options: got it without stream, expected it with stream: true; leave it out"
            raise ApiError(400, message, param="stream_options")
        if (self.min_tokens or 0) > max_new_tokens:
            message = f"min_tokens: got {self.min_tokens}, expected at most max_tokens, {max_new_tokens}; lower it"
            raise ApiError(400, message, param="min_tokens")
        same = ("top_p", "presence_penalty", "frequency_penalty", "seed", "top_k", "min_p", "repetition_penalty")
        given: dict[str, Any] = {name: getattr(self, name) for name in same if getattr(self, name) is not None}
        return SamplingParams(
            max_new_tokens,
            ignore_eos=bool(self.ignore_eos),
            min_new_tokens=self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            logprobs=logprobs,
            **given,
        )


def of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """The choices of a prompt differ by their seeds; one that was not given is drawn for each."""
    return params if params.seed is None else replace(params, seed=(params.seed + index) % 2**64)


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Of the prompts, those that the prefix cache held.")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
