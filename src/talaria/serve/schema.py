"""Bodies of the OpenAI-compatible routes: what a request may ask for, and how an error is told.

A field that would change the answer and is not supported is refused by its name, never ignored; it is accepted where it
asks for what happens anyway (`suffix = null`). `user`, `metadata` and `store` change nothing and are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from talaria.errors import UserError
from talaria.infer.contract import Sampling, as_stops
from talaria.serve.settings import ServeSettings

Prompt = str | list[int]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, body: Any) -> Any:
        """Stops at the first; a body of nothing but unknown fields would else make an error of each."""
        if isinstance(body, dict):
            for name in body.keys() - cls.model_fields.keys():
                told = {"field": _printable(name)}
                raise PydanticCustomError("unsupported", "{field}: not supported by this server; leave it out", told)
        return body


def _printable(text: str) -> str:
    """JSON may spell half of a surrogate pair, which no UTF-8 text can hold."""
    return text.encode("utf-8", "replace").decode()


def _whole(text: str) -> str:
    if not text.isascii() and _printable(text) != text:
        raise ValueError("holds half of a surrogate pair, which is no character")
    return text


def _prompts(value: Any) -> list[Prompt]:
    """By hand, for one error in place of one for each kind that a union tries on each of a million items."""
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        value = [value]
    prompts = value if isinstance(value, list) else [value]
    for prompt in prompts:
        if isinstance(prompt, str):
            _whole(prompt)
        elif not (isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt)):
            raise ValueError("must be a string, a list of token ids, or a list of these")
    if not prompts:
        raise ValueError("must not be empty")
    return prompts


Text = Annotated[str, AfterValidator(_whole)]
# A stop string is looked for after every token, so many or long ones would cost everybody time.
StopString = Annotated[Text, Field(max_length=200)]
Stops = StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)]
Prompts = Annotated[Any, AfterValidator(_prompts)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
NTop = Annotated[int, Field(ge=0, le=20)]


def _by_id(biases: dict[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in biases):
        raise ValueError("its keys must be token ids, written as strings")
    return {int(token): bias for token, bias in biases.items()}


Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024), AfterValidator(_by_id)]


class TextPart(_Body):
    """One part of a content list; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=256, fail_fast=True)]

    def plain(self) -> dict[str, str]:
        """Role and text."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class StreamOptions(_Body):
    """What a stream tells beside the text."""

    include_usage: bool = False


class _Harmless(_Body):
    model: str
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None


class _Sampled(_Harmless):
    """What chat and completion requests share."""

    max_tokens: PositiveInt | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: Stops | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: PositiveInt | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def asked_max_tokens(self) -> int | None:
        return self.max_tokens

    def sampling(self, limits: ServeSettings, n_top: int | None) -> Sampling:
        """How the engine is to choose tokens, with `n_top` of the likeliest told (None: no log-probabilities).

        Raises UserError where max_tokens is beyond the limit.
        """
        max_tokens = self.asked_max_tokens() or min(limits.default_max_tokens, limits.max_tokens)
        if max_tokens > limits.max_tokens:
            raise UserError(f"max_tokens: {max_tokens} is more than this server gives; ask for {limits.max_tokens}")
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            stop=as_stops(self.stop or ()),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=cast(dict[int, float], self.logit_bias or {}),
            top_logprobs=n_top or 0,
        )


class ChatRequest(_Sampled):
    """POST /v1/chat/completions."""

    # The template is rendered once for every answer in the conversation, so the number of turns is bounded.
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256, fail_fast=True)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: NTop | None = None

    @model_validator(mode="after")
    def _top_of_log_probs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            told = {"field": "top_logprobs"}
            raise PydanticCustomError("unsupported", "{field}: asks for logprobs = true beside it", told)
        return self

    def asked_max_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def asked_log_probs(self) -> int | None:
        """How many of the likeliest tokens each place is to tell; None where no log-probabilities are asked for."""
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionRequest(_Sampled):
    """POST /v1/completions."""

    prompt: Prompts
    echo: bool | None = None
    best_of: Literal[1] | None = None
    logprobs: NTop | None = None
    suffix: None = None

    def asked_log_probs(self) -> int | None:
        """As for a chat."""
        return self.logprobs


class EmbeddingRequest(_Harmless):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts as OpenAI writes them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {"error": {"message": _printable(message), "type": kind, "param": param, "code": code}}
