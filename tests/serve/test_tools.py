"""Tools over HTTP: what a model writes as a call arrives as OpenAI's tool_calls, forced or free, whole or streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from random_weights import random_model
from tool_template import TEMPLATES, tool_tokenizer

from serve.tiny_server import CHAT, events_of
from talaria.infer.contract import Chunk, Sampling
from talaria.infer.engine import Engine
from talaria.infer.text_stream import TextStream
from talaria.model.shape import ModelShape
from talaria.tokens.tool_format import tool_format

PARAMETERS = {
    "type": "object",
    "$defs": {"Number": {"type": "integer", "minimum": 0, "maximum": 99}},
    "properties": {"a": {"$ref": "#/$defs/Number"}, "word": {"enum": ["你好", "😀"]}},
    "required": ["a", "word"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]


def tool_engine(template: str) -> Engine:
    tokenizer = tool_tokenizer(TEMPLATES[template])
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=1024)
    return Engine(random_model(shape), tokenizer)


class Scripted:
    """An engine that answers every prompt with the same tokens, whatever it is asked."""

    def __init__(self, engine: Engine, answer: str, reason: str = "stop") -> None:
        self.engine, self.reason = engine, reason
        self.ids: list[int] = []
        for index, part in enumerate(engine.tokenizer.control_pattern.split(answer)):
            self.ids += [engine.tokenizer.special_ids[part]] if index % 2 else engine.tokenizer.encode(part)
        self.prompts: list[list[int]] = []
        self.running: dict[int, tuple[TextStream, list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def submit(self, prompt_ids: Any, sampling: Sampling, seed: int | None) -> int:
        self.prompts.append(list(prompt_ids))
        self.running[len(self.prompts)] = (TextStream(sampling.stop), list(self.ids))
        return len(self.prompts)

    def cancel(self, request_id: int) -> None:
        self.running.pop(request_id, None)

    def step(self) -> list[tuple[int, Chunk]]:
        chunks = []
        for id, (text, left) in list(self.running.items()):
            token = left.pop(0)
            piece = text.push(self.engine.tokenizer.token_bytes(token)) + ("" if left else text.finish())
            chunks.append((id, Chunk(piece, [token], [0.0], None if left else self.reason)))
        return chunks


@pytest.fixture(params=list(TEMPLATES))
def tooled(request) -> Engine:
    return tool_engine(request.param)


def choice_of(response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def streamed(server, **changes: Any) -> tuple[str, list[dict], list[dict], str | None]:
    """Text, calls, deltas and the reason of a stream."""
    response = server.post(CHAT, stream=True, **changes)
    assert response.status_code == 200, response.text
    pieces = [event["choices"][0] for event in events_of(response.text)]
    deltas = [piece["delta"] for piece in pieces]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    return "".join(delta.get("content") or "" for delta in deltas), calls, deltas, pieces[-1]["finish_reason"]


def functions(calls: list[dict]) -> list[tuple[str, Any]]:
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_required_call_fits_its_schema(served, tooled: Engine, seed: int) -> None:
    server = served({"tiny": tooled})
    asked = {"tools": TOOLS, "max_tokens": 200, "seed": seed, "temperature": 2}
    response = server.post(CHAT, tool_choice="required", **asked)
    choice = choice_of(response)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    [(name, arguments)] = functions(choice["message"]["tool_calls"])
    # The prompt ends with what begins a call, so that the model goes on from where it would have.
    plain = [{**tool, "function": {k: v for k, v in tool["function"].items() if k != "strict"}} for tool in TOOLS]
    asked_ids = tooled.chat_prompt([{"role": "user", "content": "hello 你好"}], plain)
    begin = tool_format(tooled.tokenizer).begin_ids
    assert response.json()["usage"]["prompt_tokens"] == len(asked_ids) + len(begin)
    if name == "add":
        assert arguments.keys() == {"a", "word"} and 0 <= arguments["a"] <= 99 and arguments["word"] in ("你好", "😀")
    else:
        assert (name, arguments) == ("now", {})
    text, calls, _, reason = streamed(server, tool_choice="required", **asked)
    assert (text, reason, functions(calls)) == ("", "tool_calls", [(name, arguments)])
    for wanted in ("add", "now"):
        named = {"type": "function", "function": {"name": wanted}}
        [(name, _)] = functions(choice_of(server.post(CHAT, tool_choice=named, **asked))["message"]["tool_calls"])
        assert name == wanted


def test_several_answers_call_each_for_itself(served, tooled: Engine) -> None:
    server = served({"tiny": tooled})
    response = server.post(CHAT, tools=TOOLS, tool_choice="required", n=3, max_tokens=200, logprobs=True)
    choices = response.json()["choices"]
    found = [functions(choice["message"]["tool_calls"]) for choice in choices]
    assert [len(calls) for calls in found] == [1, 1, 1]
    assert all(choice["logprobs"]["content"] for choice in choices)


def test_a_forced_call_that_is_cut_is_text(served, tooled: Engine) -> None:
    choice = choice_of(served({"tiny": tooled}).post(CHAT, tools=TOOLS, tool_choice="required", max_tokens=2))
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{") and "tool_calls" not in choice["message"]


CALL = {
    "marked": '<|call|>\n{"name": "NAME", "arguments": ARGUMENTS}\n<|done|>',
    "written": '[call]\n{"name": "NAME", "arguments": ARGUMENTS}\n[done]',
    "bare": '{"name": "NAME", "parameters": ARGUMENTS}',
    "chatml": '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
}


def end_of(template: str) -> str:
    return "<|im_end|>" if template == "chatml" else "<|end|>"


def spoken(template: str, *calls: tuple[str, str]) -> str:
    return "".join(CALL[template].replace("NAME", name).replace("ARGUMENTS", text) for name, text in calls)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_a_free_answer_may_call(served, template: str) -> None:
    given = '{"a": 1, "word": "你好 😀 }{"}'
    engine = tool_engine(template)
    server = served({"tiny": Scripted(engine, spoken(template, ("add", given), ("now", "{}")) + end_of(template))})
    expected = [("add", json.loads(given)), ("now", {})]
    choice = choice_of(server.post(CHAT, tools=TOOLS))
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert functions(choice["message"]["tool_calls"]) == expected
    text, calls, deltas, reason = streamed(server, tools=TOOLS)
    assert (text.strip(), reason, functions(calls)) == ("", "tool_calls", expected)
    assert [call["index"] for call in calls] == [0, 1]
    assert deltas[0] == {"role": "assistant", "content": ""}
    one = choice_of(server.post(CHAT, tools=TOOLS, parallel_tool_calls=False))
    assert functions(one["message"]["tool_calls"]) == expected[:1]


@pytest.mark.parametrize("template", ["marked", "written", "chatml"])
def test_text_before_a_call_is_streamed_as_it_comes(served, template: str) -> None:
    answer = "Let me 你好 add [ca <|" + spoken(template, ("add", '{"a": 1}')) + end_of(template)
    server = served({"tiny": Scripted(tool_engine(template), answer)})
    choice = choice_of(server.post(CHAT, tools=TOOLS))
    assert choice["message"]["content"] == "Let me 你好 add [ca <|"
    text, calls, deltas, reason = streamed(server, tools=TOOLS)
    assert (text, reason, functions(calls)) == ("Let me 你好 add [ca <|", "tool_calls", [("add", {"a": 1})])
    assert len([delta for delta in deltas if delta.get("content")]) > 5


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_what_is_no_call_stays_text(served, template: str) -> None:
    """A plain answer, a broken call, one of a function that nobody offered, and one that was cut."""
    engine, good = tool_engine(template), spoken(template, ("add", "{}"))
    for answer, reason in (
        ("hello world, 你好", "stop"),
        ("{ hello", "stop"),
        (good[:-14], "length"),
        (good.replace("{}", "[1]"), "stop"),
        (good.replace("add", "rm"), "stop"),
    ):
        server = served({"tiny": Scripted(engine, answer, reason)})
        choice = choice_of(server.post(CHAT, tools=TOOLS))
        text, calls, _, told = streamed(server, tools=TOOLS)
        assert choice["message"]["content"] == text == answer
        assert "tool_calls" not in choice["message"] and not calls
        assert choice["finish_reason"] == told == reason


def test_no_choice_and_no_tools_read_nothing(served) -> None:
    answer = spoken("written", ("add", "{}"))
    scripted = Scripted(tool_engine("written"), answer)
    server = served({"tiny": scripted})
    for asked in ({"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "none"}, {}):
        choice = choice_of(server.post(CHAT, **asked))
        assert choice["message"]["content"] == answer and choice["finish_reason"] == "stop"
    # and neither tells the model of tools
    assert scripted.prompts[0] == scripted.prompts[1] == scripted.prompts[2]


def test_calls_and_results_go_through_the_template(served, tooled: Engine) -> None:
    scripted = Scripted(tooled, "ok")
    server = served({"tiny": scripted})
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "word": "好"}'}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
    ]
    choice_of(server.post(CHAT, tools=TOOLS, messages=messages))
    text = tooled.tokenizer.decode(scripted.prompts[0])
    assert '"description": "Adds."' in text and '{"a": 1, "word": "好"}' in text and "Result: 42" in text
    assert "strict" not in text


def bad(**changes: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"} | changes}
    return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"tool_choice": "required"}, "asks for tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, "no tool is named 'rm'"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "calls no tool"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "foo"}}}]}
            | {"tool_choice": "required"},
            "Invalid type: foo",
        ),
        (bad(arguments="[1]"), "must be a JSON object"),
        (bad(arguments="{"), "must be a JSON object"),
        (bad(arguments='{"a":' * 200 + "1" + "}" * 200), "levels deep"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "belongs to the role tool"),
        ({"messages": [{"role": "user"}]}, "content"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_tools_is_a_bad_request(served, asked: dict, named: str) -> None:
    response = served({"tiny": tool_engine("marked")}).post(CHAT, **asked)
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]["message"]


def test_a_model_without_tools_says_so(server) -> None:
    call = bad()["messages"]
    for asked in ({"tools": TOOLS}, {"messages": call}, {"messages": [*call, {"role": "tool", "content": "1"}]}):
        response = server.post(CHAT, **asked)
        assert response.status_code == 400 and "no place for tools" in response.json()["error"]["message"]
    assert server.post(CHAT, tools=TOOLS, tool_choice="none").status_code == 200
