"""Answers in a format, over HTTP: JSON, a schema, a regex; and what is wrong with one is told before anything runs."""

from __future__ import annotations

import json
import re
import threading
from functools import lru_cache
from typing import Any

import pytest

from serve.tiny_server import BODIES, CHAT, TEXT, events_of, tiny_engine
from talaria.errors import UserError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "mood": {"enum": ["好", "😀"]}},
    "required": ["name", "mood"],
    "additionalProperties": False,
}
AS_CHAT = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def engine():
    return tiny_engine(context=256)


def text_of(response) -> str:
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("asked", [{"response_format": AS_CHAT}, {"structured_outputs": {"json": SCHEMA}}])
def test_a_schema_holds_and_the_text_is_the_engines(server, engine, path: str, asked: dict) -> None:
    text = text_of(server.post(path, max_tokens=120, **asked))
    told = json.loads(text)
    assert told.keys() == {"name", "mood"} and told["mood"] in ("好", "😀") and len(told["name"]) <= 4
    prompt = engine.chat_prompt([{"role": "user", "content": "hello 你好"}]) if path == CHAT else "hello 你"
    assert text == engine.generate([prompt], max_tokens=120, seed=3, json_schema=SCHEMA)[0].text
    streamed = events_of(server.post(path, max_tokens=120, stream=True, **asked).text)
    pieces = [event["choices"][0] for event in streamed]
    assert "".join(piece["text"] if path == TEXT else piece["delta"].get("content", "") for piece in pieces) == text
    assert pieces[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_regex_and_any_object(server, path: str) -> None:
    assert re.fullmatch(
        "(你好|no)[0-9]{3}", text_of(server.post(path, structured_outputs={"regex": "(你好|no)[0-9]{3}"}))
    )
    # What a random model writes into an object has no end; ids that begin one push it to stop.
    push = {str(i): 100.0 for i in tiny_engine().tokenizer.encode("{}")}
    for asked in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        assert isinstance(json.loads(text_of(server.post(path, max_tokens=100, logit_bias=push, **asked))), dict)
    plain = server.post(path, response_format={"type": "text"}).json()["choices"]
    assert plain == server.post(path).json()["choices"]


def test_a_cut_answer_says_length(server) -> None:
    [choice] = server.post(CHAT, max_tokens=3, response_format=AS_CHAT).json()["choices"]
    assert choice["finish_reason"] == "length"


def deep(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"structured_outputs": {"regex": "("}}, "regex: unclosed group"),
        ({"structured_outputs": {"regex": "a" * 100_001}}, "100001 characters"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": {"type": "foo"}}}, "Invalid type: foo"),
        ({"structured_outputs": {"json": {"type": "integer", "multipleOf": 1_000_003}}}, "multipleOf"),
        ({"structured_outputs": {"json": {"$ref": "#/\ud800"}}}, "json_schema"),
        ({"structured_outputs": {"json": deep(120)}}, "more than 100 levels"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "one of json"),
        ({"structured_outputs": {}}, "one of json"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice: not supported"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "beside response_format"),
        ({"response_format": {"type": "json_schema"}}, "needs it"),
        ({"response_format": {"type": "json_object", "json_schema": AS_CHAT["json_schema"]}}, "needs it"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}, "not"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_held_to_is_a_bad_request(
    server, engine, path: str, stream: bool, asked: dict, named: str
) -> None:
    body = json.dumps(BODIES[path] | {"stream": stream} | asked)  # which spells half of a surrogate pair
    response = server.call("POST", path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and named in error["message"]
    assert not engine.busy


def test_a_grammar_is_built_beside_the_engines_thread(server, engine, monkeypatch) -> None:
    """Building takes up to a second, in which no answer of anybody would get a token."""
    build, threads = engine._grammars._matcher.__wrapped__, []

    def recorded(name: str, text: str) -> Any:
        threads.append(threading.current_thread().name)
        return build(name, text)

    monkeypatch.setattr(engine._grammars, "_matcher", lru_cache(recorded))
    assert server.post(TEXT, structured_outputs={"regex": "[xyz]{7}"}).status_code == 200
    assert len(threads) == 1 and threads != ["talaria-engine"]


def test_an_answer_that_cannot_go_on_is_told_so_in_its_stream(server, engine, monkeypatch) -> None:
    """After the first piece the status has gone out, so the error is an event; the server goes on."""
    begin = engine._grammars.begin

    def begin_and_fail(sampling):
        grammar = begin(sampling)
        if grammar is not None:
            allowed, calls = grammar.allowed, []

            def fails_at_the_third():
                calls.append(1)
                if len(calls) == 3:
                    raise UserError("regex: too large; simplify it")
                return allowed()

            grammar.allowed = fails_at_the_third
        return grammar

    monkeypatch.setattr(engine._grammars, "begin", begin_and_fail)
    asked = {"structured_outputs": {"regex": "[0-9]{9}"}}
    last = server.post(TEXT, stream=True, **asked).text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "regex: too large; simplify it"
    assert server.post(TEXT, **asked).status_code == 400
    assert server.post(TEXT).status_code == 200
