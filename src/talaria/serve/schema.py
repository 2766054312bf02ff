"""Bodies of the OpenAI-compatible routes: what a request may ask for, and how an error is told.

A field that would change the answer and is not supported is refused by its name, never ignored; it is accepted where it
asks for what happens anyway (`suffix = null`). `user`, `metadata` and `store` change nothing and are accepted.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from talaria.errors import UserError
from talaria.infer.contract import MoreSampling, Sampling, as_stops
from talaria.serve.settings import ServeSettings

Prompt = str | list[int]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, body: Any) -> Any:
        """Stops at the first; a body of nothing but unknown fields would else make an error of each."""
        if isinstance(body, dict):
            for name in body.keys() - {field.alias or name for name, field in cls.model_fields.items()}:
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


def _shallow(table: dict[str, Any]) -> dict[str, Any]:
    """What a client nests deeper than any schema is would end a recursion with an error."""
    level: list[Any] = [table]
    for _ in range(_DEEPEST):
        parts = [part for part in level if isinstance(part, dict | list)]
        if not parts:
            return table
        level = [item for part in parts for item in (part.values() if isinstance(part, dict) else part)]
    raise ValueError(f"is nested more than {_DEEPEST} levels deep")


def _arguments(text: str) -> str:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError("must be a JSON object, written as a string")
    _shallow(arguments)
    return text


_DEEPEST = 100
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
JsonTable = Annotated[dict[str, Any], AfterValidator(_shallow)]


class CalledFunction(_Body):
    """A function that an answer called."""

    name: Name
    arguments: Annotated[str, AfterValidator(_arguments)]


class CalledTool(_Body):
    """A call in an earlier answer."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: arguments are a table."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


class ChatMessage(_Body):
    """One turn of a conversation; an answer that called tools may have no text."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=256, fail_fast=True)] | None = None
    refusal: None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "content: is missing", {"field": "content"})
        for field, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if (getattr(self, field) is not None) > (self.role == role):
                told = {"field": field, "role": role}
                raise PydanticCustomError("unsupported", "{field}: belongs to the role {role}", told)
        return self

    def plain(self) -> dict[str, Any]:
        """Role and text, and what belongs to a call."""
        text = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
        message: dict[str, Any] = {"role": self.role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ToolFunction(_Body):
    """What may be called. `strict` holds anyway where a call is forced, and never where it is free."""

    name: Name
    description: Text | None = None
    parameters: JsonTable | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: ToolFunction

    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"type": self.type, "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class NamedFunction(_Body):
    """A function by its name."""

    name: Name


class NamedTool(_Body):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(_Body):
    """A JSON schema; `name` and `description` change nothing, and an answer is held to it with or without `strict`."""

    name: Name
    description: Text | None = None
    schema_: JsonTable = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            told = {"field": "json_schema"}
            raise PydanticCustomError("unsupported", "{field}: belongs to the type json_schema, which needs it", told)
        return self


class StructuredOutputs(_Body):
    """vLLM's way to ask for JSON, or for a text that a regex matches."""

    json_: JsonTable | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Annotated[Text, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        if (self.json_ is not None) + bool(self.json_object) + (self.regex is not None) != 1:
            told = {"field": "structured_outputs"}
            raise PydanticCustomError("unsupported", "{field}: give one of json, json_object and regex", told)
        return self


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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _held_to_one(self) -> _Sampled:
        if self.structured_outputs is not None and self.response_format is not None:
            told = {"field": "structured_outputs"}
            raise PydanticCustomError("unsupported", "{field}: leave it out beside response_format", told)
        return self

    def held_to(self) -> MoreSampling:
        """The schema or regex that an answer is to fit."""
        asked, outputs = self.response_format, self.structured_outputs
        if asked is not None and asked.json_schema is not None:
            return {"json_schema": asked.json_schema.schema_}
        if outputs is not None and outputs.json_ is not None:
            return {"json_schema": outputs.json_}
        if outputs is not None and outputs.regex is not None:
            return {"regex": outputs.regex}
        if outputs is not None or (asked is not None and asked.type == "json_object"):
            return {"json_schema": {"type": "object"}}
        return {}

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
        held_to = self.held_to()
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
            json_schema=held_to.get("json_schema"),
            regex=held_to.get("regex"),
        )


class ChatRequest(_Sampled):
    """POST /v1/chat/completions."""

    # The template is rendered once for every answer in the conversation, so the number of turns is bounded.
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256, fail_fast=True)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: NTop | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _top_of_log_probs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            told = {"field": "top_logprobs"}
            raise PydanticCustomError("unsupported", "{field}: asks for logprobs = true beside it", told)
        if self.tools is None and self.tool_choice not in (None, "none"):
            raise PydanticCustomError("unsupported", "{field}: asks for tools beside it", {"field": "tool_choice"})
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
