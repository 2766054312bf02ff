"""How a model writes a call of a tool, read from its own chat template; a call's text in, name and arguments out.

    format = tool_format(tokenizer)                # UserError where the template knows no tools
    calls, rest = format.read(text, {"weather"})

Templates differ in the marks around a call and in the names inside it, but all that are read here write a JSON object
with the function's name and its arguments. So one call with known words is rendered, and the words are looked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from talaria.errors import UserError
from talaria.tokens.chat import check_tools, render
from talaria.tokens.tokenizer import Tokenizer

_NAME, _ARGUMENTS = "probe_function", {"probe_argument": "probe_value"}


@dataclass(frozen=True)
class ToolCall:
    """A function's name and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """A call is `begin`, a JSON object {name_key: ..., arguments_key: {...}}, `end`; `begin_ids` are begin's tokens."""

    begin: str
    end: str
    name_key: str
    arguments_key: str
    begin_ids: tuple[int, ...]

    def schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON schema of a call of one of the tools. A tool without parameters takes no arguments."""
        calls = []
        for index, tool in enumerate(tools):
            function = tool["function"]
            parameters = function.get("parameters") or {"type": "object", "additionalProperties": False}
            # An $id of its own, so that "#/$defs/..." in it means its own root.
            parts = {
                self.name_key: {"const": function["name"]},
                self.arguments_key: {"$id": f"tool:{index}"} | parameters,
            }
            calls.append({"type": "object", "properties": parts, "required": [*parts], "additionalProperties": False})
        return calls[0] if len(calls) == 1 else {"anyOf": calls}

    def read(self, text: str, names: Collection[str]) -> tuple[list[ToolCall], str]:
        """The calls of these functions that `text` begins with, and what stands behind the last one."""
        calls: list[ToolCall] = []
        begin, end = self.begin.strip(), self.end.strip()
        rest = text
        while True:
            candidate = rest.lstrip().removeprefix(begin).lstrip()
            if calls:  # a list of calls between one pair of marks
                candidate = candidate.removeprefix(",").lstrip()
            try:
                found, stop = json.JSONDecoder().raw_decode(candidate)
                call = self._call(found, names)
            except (ValueError, RecursionError):
                return calls, rest
            if call is None:
                return calls, rest
            calls.append(call)
            rest = candidate[stop:].lstrip()
            rest = rest.removeprefix(end).lstrip() if end else rest

    def _call(self, found: Any, names: Collection[str]) -> ToolCall | None:
        if not isinstance(found, dict):
            return None
        name, arguments = found.get(self.name_key), found.get(self.arguments_key, {})
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            return None
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))


@lru_cache(maxsize=16)
def tool_format(tokenizer: Tokenizer) -> ToolFormat:
    """The format of this tokenizer's chat template. Raises UserError where it knows no tools, or writes calls otherwise
    than as JSON objects."""
    check_tools(tokenizer)
    question = {"role": "user", "content": "probe"}
    call = {"id": "probecall", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    plain = render(tokenizer, [question, {"role": "assistant", "content": "\ue000"}], False)
    with_call = render(tokenizer, [question, {"role": "assistant", "content": "", "tool_calls": [call]}], False)
    parted = next(place for place, (one, other) in enumerate(zip(plain, with_call, strict=False)) if one != other)
    written = with_call[parted:]
    for start in (place for place, character in enumerate(written) if character == "{"):
        try:
            found, length = json.JSONDecoder().raw_decode(written[start:])
        except ValueError:
            continue
        keys = {json.dumps(value): key for key, value in found.items()}
        if json.dumps(_NAME) in keys and json.dumps(_ARGUMENTS) in keys:
            begin, end = written[:start], written[start + length :]
            ids = [
                id
                for index, part in enumerate(tokenizer.control_pattern.split(begin))
                for id in ([tokenizer.special_ids[part]] if index % 2 else tokenizer.encode(part) if part else [])
            ]
            name_key, arguments_key = keys[json.dumps(_NAME)], keys[json.dumps(_ARGUMENTS)]
            return ToolFormat(begin, _before_the_end(tokenizer, end), name_key, arguments_key, tuple(ids))
    raise UserError("the chat template does not write a call of a tool as a JSON object with its name and arguments")


def _before_the_end(tokenizer: Tokenizer, text: str) -> str:
    """`text` up to the token that ends the answer."""
    place = 0
    for index, part in enumerate(tokenizer.control_pattern.split(text)):
        if index % 2 and tokenizer.special_ids[part] in tokenizer.stop_ids:
            break
        place += len(part)
    return text[:place]
