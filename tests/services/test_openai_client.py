"""The official openai client, unchanged, against a real server: each understands what the other sends."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import uvicorn
from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field
from random_weights import random_model
from tool_template import tool_tokenizer

from talaria.infer.engine import Engine
from talaria.model.shape import ModelShape
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key

pytestmark = pytest.mark.services
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello 你好"}]
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "seed": 5}


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = tool_tokenizer()
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=2048)
    return Engine(random_model(shape), tokenizer)


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = make_key(keys, "openai")
    config = uvicorn.Config(create_app({"tiny": engine}, Keyring(keys)), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join(20)


def test_a_chat(client: OpenAI, engine: Engine) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, temperature=0.7, stop=["zz"], **ASKED)
    here = engine.chat(MESSAGES, max_tokens=24, seed=5, temperature=0.7, stop=["zz"])
    assert answer.choices[0].message.content == here.text
    assert answer.choices[0].finish_reason == here.finish_reason
    assert answer.usage is not None and answer.usage.prompt_tokens == here.prompt_tokens
    assert answer.usage.completion_tokens == len(here.token_ids)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer._request_id
    # What came back can be sent again.
    again: Any = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert client.chat.completions.create(messages=again, **ASKED).choices[0].message.role == "assistant"


def test_a_stream_with_usage(client: OpenAI, engine: Engine) -> None:
    whole = engine.chat(MESSAGES, max_tokens=24, seed=5)
    chunks = list(
        client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **ASKED)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.finish_reason
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == len(whole.token_ids)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_answers_with_log_probs(client: OpenAI, engine: Engine) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, n=2, logprobs=True, top_logprobs=3, **ASKED)
    here = engine.generate([engine.chat_prompt(MESSAGES)], max_tokens=24, seed=5, n=2, top_logprobs=3)
    assert [choice.message.content for choice in answer.choices] == [completion.text for completion in here]
    for choice, completion in zip(answer.choices, here, strict=True):
        assert choice.logprobs is not None and choice.logprobs.content is not None
        told = [token.logprob for token in choice.logprobs.content]
        assert told == pytest.approx(completion.log_probs, abs=1e-4)
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def test_completions(client: OpenAI, engine: Engine) -> None:
    prompts = ["hello", "你好 w"]
    answer = client.completions.create(prompt=prompts, logprobs=2, echo=True, **ASKED)
    here = engine.generate(prompts, max_tokens=24, seed=5)
    assert [choice.text for choice in answer.choices] == [p + c.text for p, c in zip(prompts, here, strict=True)]
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.token_logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    chunks = client.completions.create(prompt="hello", stream=True, **ASKED)
    assert "".join(chunk.choices[0].text for chunk in chunks) == here[0].text


def test_embeddings_and_models(client: OpenAI) -> None:
    numbers = client.embeddings.create(model="tiny", input=["hello", "你好"], encoding_format="float")
    packed = client.embeddings.create(model="tiny", input=["hello", "你好"])  # base64, which the client unpacks
    for one, other in zip(numbers.data, packed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6) and len(one.embedding) == 16
        assert math.isclose(sum(number**2 for number in one.embedding), 1, rel_tol=1e-5)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "talaria"


class Person(BaseModel):
    """As people write it for the client's `parse`."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=5)
    age: int = Field(ge=0, le=150)
    mood: Literal["好", "😀"]


def test_response_formats(client: OpenAI, engine: Engine) -> None:
    asked = ASKED | {"max_tokens": 300}
    parsed = client.chat.completions.parse(messages=MESSAGES, response_format=Person, **asked)
    person = parsed.choices[0].message.parsed
    assert isinstance(person, Person) and parsed.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(messages=MESSAGES, response_format=Person, **asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == person
    extra = {"structured_outputs": {"regex": "(yes|no) 😀"}}
    answer = client.chat.completions.create(messages=MESSAGES, extra_body=extra, **asked)
    assert answer.choices[0].message.content in ("yes 😀", "no 😀")
    assert client.completions.create(prompt="x", extra_body=extra, **asked).choices[0].text in ("yes 😀", "no 😀")
    push = {str(id): 100 for id in engine.tokenizer.encode("{}")}  # a random model would find no end
    anything = client.chat.completions.create(
        messages=MESSAGES, response_format={"type": "json_object"}, logit_bias=push, **asked
    ).choices[0]
    assert anything.finish_reason == "stop" and isinstance(json.loads(anything.message.content or ""), dict)


class Add(BaseModel):
    """Adds two numbers."""

    model_config = ConfigDict(extra="forbid")
    a: int = Field(ge=0, le=99)
    b: Literal["你好", "😀"]


def test_a_tool_is_called_and_its_result_goes_back(client: OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(Add, name="add")]
    asked = ASKED | {"max_tokens": 200, "tools": tools, "messages": MESSAGES}
    choice = client.chat.completions.create(tool_choice="required", **asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    added = Add.model_validate_json(call.function.arguments)
    named: Any = {"type": "function", "function": {"name": "add"}}
    with client.chat.completions.stream(tool_choice=named, **asked) as stream:
        streamed: Any = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    [streamed_call] = streamed.message.tool_calls
    assert streamed_call.function.parsed_arguments == added
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    messages: Any = [*MESSAGES, choice.message, result]
    after = client.chat.completions.create(**asked | {"messages": messages})
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_errors_are_the_clients_classes(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="wrong").models.list()
    assert unknown.value.status_code == 401 and unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=MESSAGES, **ASKED | {"model": "gpt-9"})
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    bad_format: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}
    for wrong in ({"temperature": -1}, {"response_format": bad_format}, {"extra_body": {"best": 1}}, {"n": 99}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(messages=MESSAGES, **ASKED | wrong)
        assert refused.value.type == "invalid_request_error" and refused.value.request_id
    with pytest.raises(openai.BadRequestError):
        list(client.chat.completions.create(messages=MESSAGES, stream=True, response_format=bad_format, **ASKED))
