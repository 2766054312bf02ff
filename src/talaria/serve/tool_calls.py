"""Calls of tools in OpenAI's shape: what a chat request asks for in; out, its prompt and what its answers call.

    plan = plan_tools(engine, body, messages)     # None where no tool may be called
    reader = plan.reader()                        # one an answer
    text = reader.push(chunk)                     # text that belongs to no call; `reader.calls` once the answer ended

A free answer may call tools in the format of the chat template; it is read at its end, so calls come whole. Where a
call is required the prompt ends with its beginning, and the answer is held to the JSON schema of a call.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Message, Sampling
from talaria.infer.engine import Engine
from talaria.infer.text_stream import TextStream
from talaria.serve.schema import ChatRequest, NamedTool
from talaria.tokens.tokenizer import Tokenizer
from talaria.tokens.tool_format import ToolFormat, tool_format


@dataclass(frozen=True)
class ToolPlan:
    """How answers may call `tools`; `forced` where each is one call and nothing else."""

    tokenizer: Tokenizer
    format: ToolFormat
    tools: Sequence[Mapping[str, Any]]
    forced: bool
    one_call: bool

    def prompt(self, engine: Engine, messages: Sequence[Message]) -> list[int]:
        """The ids that the answer goes on from."""
        return engine.chat_prompt(messages, self.tools) + (list(self.format.begin_ids) if self.forced else [])

    def sampling(self, sampling: Sampling) -> Sampling:
        """Held to a call where one is forced."""
        return replace(sampling, json_schema=self.format.schema(self.tools)) if self.forced else sampling

    def reader(self) -> ToolReader:
        """For one answer."""
        return ToolReader(self)


def plan_tools(engine: Engine, body: ChatRequest) -> ToolPlan | None:
    """What `tools` and `tool_choice` ask for. Raises UserError where the chat template knows no tools."""
    choice = body.tool_choice or "auto"
    if not body.tools or choice == "none":
        return None
    tools = [tool.plain() for tool in body.tools]
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not tools:
            raise UserError(f"tool_choice: no tool is named {choice.function.name!r}; name one of tools")
    forced = choice != "auto"
    if body.held_to():
        raise UserError("response_format: an answer in a format calls no tool; leave one out, or set tool_choice none")
    one_call = forced or body.parallel_tool_calls is False
    return ToolPlan(engine.tokenizer, tool_format(engine.tokenizer), tools, forced, one_call)


class ToolReader:
    """Tells an answer's text from its calls."""

    def __init__(self, plan: ToolPlan) -> None:
        self._plan = plan
        self.calls: list[dict[str, Any]] = []
        self._begin = plan.format.begin.strip()
        # Control tokens that mark a call add nothing to an answer's text, so their names are put back.
        marks = plan.tokenizer.control_pattern.findall(plan.format.begin + plan.format.end)
        self._marks = {plan.tokenizer.special_ids[mark]: mark for mark in marks}
        self._text = ""
        self._told = 0
        self._before = TextStream((self._begin,) if self._begin else ())

    def push(self, chunk: Chunk) -> str:
        """Text that is certain to belong to no call; all that is left of it once the answer ends."""
        new = "".join(self._marks.get(token, "") for token in chunk.token_ids) + chunk.text
        self._text += new
        if chunk.finish_reason is not None:
            return self._finish()
        if self._plan.forced or (not self._begin and self._may_be_a_call()):
            return ""
        if not self._begin:
            return self._tell(self._text[self._told :])
        return self._tell(self._before.push(new.encode()))

    def _may_be_a_call(self) -> bool:
        """Where nothing marks a call it is an answer that begins like one."""
        return self._told == 0 and self._text.lstrip()[:1] in ("", "{")

    def _finish(self) -> str:
        rest = self._text[self._told :]
        at = 0 if self._plan.forced or not self._begin else rest.find(self._begin)
        if at < 0 or (not self._begin and self._told):
            return self._tell(rest)
        names = {tool["function"]["name"] for tool in self._plan.tools}
        calls, behind = self._plan.format.read(rest[at:], names)
        for call in calls[:1] if self._plan.one_call else calls:
            function = {"name": call.name, "arguments": call.arguments}
            self.calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        return self._tell(rest[:at] + behind)

    def _tell(self, text: str) -> str:
        self._told += len(text)
        return text
