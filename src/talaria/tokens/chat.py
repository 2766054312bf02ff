"""Conversations in, token ids and a loss mask out. The only place where a conversation becomes tokens.

The tokenizer's chat template (jinja, as in Hugging Face folders) is rendered with a mark in the place of every content,
so that what people wrote is never read as a control token, and an answer always begins at a token boundary: the ids of
a prompt are a prefix of the ids of the same conversation with its answer.

    chat = encode_chat(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from talaria.errors import UserError
from talaria.tokens.tokenizer import Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
# What jinja passes on from a template that meets a shape it did not expect, beside its own errors.
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class ChatTokens:
    """`loss_mask[i]` is true where `ids[i]` belongs to an answer or is the token that ends it."""

    ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class _Segment:
    """A stretch of the rendered conversation: template text, or the content of one message."""

    text: str
    role: str | None  # None: template text


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> ChatTokens:
    """Ids of a conversation as its model's template writes it, and which of them count in the loss.

    The ids are those of transformers' apply_chat_template on ordinary conversations; they differ where a content
    spells a control token (ordinary text here) and where an answer's first characters would merge with the template's
    last ones (kept apart here, as they are when a model answers). Raises UserError for a malformed conversation and
    for a template that does more to a content than trim it.

    A prompt may have `tools` (OpenAI's shape), assistant turns with `tool_calls`, whose arguments are tables, and turns
    of the role "tool"; UserError where the template knows no tools.
    """
    check_messages(messages, with_tools=add_generation_prompt)
    if tokenizer.chat_template is None:
        raise UserError("this tokenizer has no chat template; use a model tuned for chat, or a plain prompt")
    if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        check_tools(tokenizer)
        tools = _guarded(tokenizer, list(tools))
        messages = [_guarded(tokenizer, message) | {"content": message["content"]} for message in messages]
    segments = _cut_rendering(tokenizer, messages, add_generation_prompt, tools)
    prompt_ends = _prompt_ends(tokenizer, messages, segments, tools)
    return _encode_pieces(tokenizer, _pieces(tokenizer, segments, prompt_ends))


def check_messages(messages: Sequence[Message], place: str = "messages", with_tools: bool = False) -> None:
    """Raise UserError, naming the place, unless `messages` is a conversation; turns of tools only where asked for."""
    roles = (*ROLES, "tool") if with_tools else ROLES
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f'{place}: a conversation is a non-empty list of {{"role": ..., "content": ...}}')
    for index, message in enumerate(messages):
        where = f"{place}[{index}]"
        if not isinstance(message, Mapping):
            raise UserError(f'{where}: is {type(message).__name__}; write {{"role": ..., "content": ...}}')
        if message.get("role") not in roles:
            raise UserError(f"{where}: role {message.get('role')!r} is unknown; use {', '.join(roles)}")
        if message.get("tool_calls") and not with_tools:
            raise UserError(f"{where}: tool_calls cannot be trained on; leave the conversation out")
        if not isinstance(message.get("content"), str):
            raise UserError(f"{where}: content is {type(message.get('content')).__name__}; write a string")


def check_tools(tokenizer: Tokenizer) -> None:
    """Raise UserError unless the chat template writes the tools that it is given."""
    tool = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
    question = [{"role": "user", "content": ""}]
    if tokenizer.chat_template is None or "probe_tool" not in render(tokenizer, question, True, [tool]):
        raise UserError("this model's chat template has no place for tools; leave them out, or use another model")


def _guarded(tokenizer: Tokenizer, value: Any) -> Any:
    """`value` with the names of control tokens, and our own marks, spelled so that no template text holds them."""
    if isinstance(value, str):
        plain = re.sub("[\ue000-\ue003]", "\ufffd", value)
        return tokenizer.control_pattern.sub(lambda found: f"\ue002{tokenizer.special_ids[found[0]]}\ue003", plain)
    if isinstance(value, Mapping):
        return {_guarded(tokenizer, key): _guarded(tokenizer, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(tokenizer, item) for item in value]
    return value


def _unguarded(tokenizer: Tokenizer, text: str) -> str:
    """`text` as it was written, for encoding as ordinary text."""
    if "\ue002" not in text:
        return text
    names = {str(id): name for name, id in tokenizer.special_ids.items()}
    return re.sub("\ue002([0-9]+)\ue003", lambda found: names.get(found[1], found[0]), text)


def _cut_rendering(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]]
) -> list[_Segment]:
    """The rendered conversation, cut where contents begin and end."""
    real = render(tokenizer, messages, add_generation_prompt, tools)
    marked = [
        # A turn of calls may have no content, and templates ask whether it has.
        {**message, "content": f"\ue000{index}\ue001" if message["content"] or not message.get("tool_calls") else ""}
        for index, message in enumerate(messages)
    ]
    parts = re.split("\ue000([0-9]+)\ue001", render(tokenizer, marked, add_generation_prompt, tools))
    contents = [message["content"] for message in messages]
    for candidate in (contents, [content.strip() for content in contents]):
        segments = [_Segment(parts[0], None)]
        for number, template_text in zip(parts[1::2], parts[2::2], strict=True):
            segments.append(_Segment(candidate[int(number)], messages[int(number)]["role"]))
            segments.append(_Segment(template_text, None))
        if "".join(segment.text for segment in segments) == real:
            return segments
    raise UserError(
        "the chat template changes a message's content beyond trimming it, so the content's place in the rendered "
        "text is unknown; use a template that copies contents"
    )


def _prompt_ends(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    segments: Sequence[_Segment],
    tools: Sequence[Mapping[str, Any]],
) -> set[int]:
    """Places in the rendered text where a token must end: where each prompt ended that waited for an answer."""
    whole = "".join(segment.text for segment in segments)
    ends: set[int] = set()
    for index in range(1, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], True, tools)
        if whole.startswith(prompt):
            ends.add(len(prompt))
        elif index == len(messages) - 1:
            raise UserError(
                "the chat template writes the prompt differently once an answer follows, so no answer can be trained "
                "or scored after it; use another template"
            )
    return ends


def _pieces(tokenizer: Tokenizer, segments: Sequence[_Segment], prompt_ends: set[int]) -> Iterator[tuple[str, str]]:
    """(kind, text) in order. Kinds: "answer", "control" (a token's name), "text", and "end" where a token must end."""
    place = 0
    for segment in segments:
        if segment.role == "assistant":
            yield "answer", segment.text
            place += len(segment.text)
            continue
        parts = [segment.text] if segment.role else tokenizer.control_pattern.split(segment.text)
        for index, part in enumerate(parts):
            cuts = sorted(end - place for end in prompt_ends if place < end <= place + len(part))
            place += len(part)
            if index % 2:
                yield "control", part
                continue
            for start, stop in zip([0, *cuts], [*cuts, len(part)], strict=True):
                yield "text", part[start:stop] if segment.role else _unguarded(tokenizer, part[start:stop])
                if stop in cuts:
                    yield "end", ""


def _encode_pieces(tokenizer: Tokenizer, pieces: Iterable[tuple[str, str]]) -> ChatTokens:
    """Encode text between control tokens in one run, as it would be without marks, and every answer on its own."""
    ids: list[int] = []
    mask: list[bool] = []
    run = ""  # text that waits to be encoded
    trim = False  # the control token before the run takes the white space after it
    answered = False  # an answer has ended, and its end-of-turn token may follow

    def append(new: list[int], counts: bool) -> None:
        ids.extend(new)
        mask.extend([counts] * len(new))

    for kind, text in [*pieces, ("end", "")]:
        if kind == "text":
            run += text
            continue
        control = tokenizer.special_tokens[text] if kind == "control" else None
        if control is not None and control.lstrip:
            run = run.rstrip()
        run = run.lstrip() if trim else run
        if run:
            append(tokenizer.encode(run), counts=False)
            answered = answered and run.isspace()
            run = ""
        trim = control is not None and control.rstrip
        if kind == "answer":
            append(tokenizer.encode(text), counts=True)
            answered = True
        elif control is not None:
            id = tokenizer.special_ids[text]
            append([id], counts=answered and id in tokenizer.stop_ids)
            answered = False
    return ChatTokens(ids, mask)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The conversation as the template writes it. Raises UserError where the template refuses it."""
    assert tokenizer.chat_template is not None
    try:
        return _compile(tokenizer.chat_template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) or None,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
        )
    except _TEMPLATE_ERRORS as error:
        raise UserError(f"the chat template refuses the conversation: {error}") from None


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    """The template in the sandbox and with the globals that transformers gives it."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid jinja (line {error.lineno}): {error.message}") from None
