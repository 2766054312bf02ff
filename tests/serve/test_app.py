"""The server: keys, OpenAI's shapes, errors, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import stat

import httpx
import pytest
from random_weights import random_model

from talaria.errors import UserError
from talaria.infer.engine import Engine
from talaria.model.shape import ModelShape
from talaria.serve.app import create_app
from talaria.serve.keys import hash_key, is_known, load_key_hashes, make_key
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

KEY = "tal-test"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello 你好"}], "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer.train(["hello world, 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=64)
    return Engine(random_model(shape), tokenizer)


def call(engine: Engine, method: str, path: str, key: str | None = KEY, **options) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(engine, "tiny", [hash_key("other"), hash_key(KEY)]))
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def chat(engine: Engine, key: str | None = KEY, **changes) -> httpx.Response:
    return call(engine, "POST", "/v1/chat/completions", key, json=BODY | changes)


def test_an_answer_is_the_engines_own(engine):
    response = chat(engine)
    expected = engine.chat(BODY["messages"], max_tokens=12, seed=3)
    [choice] = response.json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == expected.finish_reason
    assert response.json()["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": len(expected.token_ids),
        "total_tokens": expected.prompt_tokens + len(expected.token_ids),
    }


def test_a_stream_tells_the_same_answer(engine):
    response = chat(engine, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    whole = chat(engine).json()
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-1]["usage"] == whole["usage"]
    assert len({event["id"] for event in events}) == 1


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY.upper()])
def test_no_answer_without_a_key(engine, key):
    for response in (chat(engine, key), call(engine, "GET", "/v1/models", key)):
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert call(engine, "GET", "/health", key).json() == {"status": "ok", "model": "tiny"}


def test_nothing_but_health_is_open(engine):
    for path in ("/docs", "/openapi.json", "/redoc", "/nowhere"):
        response = call(engine, "GET", path, None)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert call(engine, "GET", "/v1/models").json()["data"][0]["id"] == "tiny"
    with pytest.raises(UserError, match="at least one key"):
        create_app(engine, "tiny", [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"stop": [""]}, "stop"),
        ({"messages": [{"role": "user", "content": "long " * 200}]}, "context is 64"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_bodies_are_named_in_openais_shape(engine, change, named, stream):
    response = chat(engine, stream=stream, **change)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_broken_json_and_other_models(engine):
    assert call(engine, "POST", "/v1/chat/completions", content=b"{broken").status_code == 400
    response = chat(engine, model="gpt-9")
    assert response.status_code == 404
    assert "ask for 'tiny'" in response.json()["error"]["message"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "你好"}]}]
    assert chat(engine, messages=parts).json()["choices"] == chat(engine).json()["choices"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_answer_and_frees_the_engine(engine, stream):
    """The application is driven by hand: the client leaves after the request, the engine must stop early."""
    app = create_app(engine, "tiny", [hash_key(KEY)])
    steps = []
    whole_stream = engine.stream

    def counted(*args, **options):
        for chunk in whole_stream(*args, **options):
            steps.append(chunk)
            yield chunk

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")],
    }

    async def leave_early() -> None:
        sent = [{"type": "http.request", "body": json.dumps(BODY | {"stream": stream, "max_tokens": 40}).encode()}]

        async def receive():
            return sent.pop(0) if sent else {"type": "http.disconnect"}

        async def send(_message):
            await asyncio.sleep(0)

        await asyncio.wait_for(app(scope, receive, send), 20)

    async def then_another() -> httpx.Response:
        await leave_early()
        n_steps = len(steps)
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            response = await asyncio.wait_for(client.post("/v1/chat/completions", json=BODY), 20)
        assert n_steps <= 3
        return response

    full = len(engine.chat(BODY["messages"], max_tokens=40, seed=3).token_ids)
    assert full > 10
    engine.stream = counted
    try:
        assert asyncio.run(then_another()).status_code == 200
    finally:
        del engine.stream


def test_keys_are_shown_once_and_kept_hashed(tmp_path):
    path = tmp_path / "private" / "keys.json"
    first, second = make_key(path, "first"), make_key(path, "second")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    assert second not in path.read_text()
    hashes = load_key_hashes(path)
    assert is_known(first, hashes)
    assert is_known(second, hashes)
    assert not is_known(first + " ", hashes)
    assert not is_known(hashes[0], hashes)
    assert [p.name for p in path.parent.iterdir()] == ["keys.json"]
    with pytest.raises(UserError, match="'first' exists"):
        make_key(path, "first")
    path.write_text('{"keys": [{"name": "x", "sha256": "zz"}]}')
    with pytest.raises(UserError, match="not a key file"):
        load_key_hashes(path)
    with pytest.raises(UserError, match="no such key file"):
        load_key_hashes(tmp_path / "absent.json")
