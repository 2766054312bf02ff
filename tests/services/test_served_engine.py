"""A remote engine that talks to our own server says what the engine itself says."""

from __future__ import annotations

import threading
import time

import pytest
import uvicorn
from random_weights import random_model

from talaria.errors import UserError
from talaria.infer.engine import Engine
from talaria.infer.remote import RemoteEngine, Unsupported
from talaria.model.shape import ModelShape
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.services
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello 你好"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer.train(["hello world, 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=96)
    return Engine(random_model(shape), tokenizer)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(keys) -> str:
    return make_key(keys, "remote")


@pytest.fixture(scope="module")
def url(engine, keys, key):
    app = create_app({"tiny": engine}, Keyring(keys))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def test_remote_and_local_answers_are_the_same(engine, url, key):
    remote = RemoteEngine(url, "tiny", key=key)
    for options in ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 11}, {"seed": 2, "stop": ["e"]}):
        local = engine.chat(MESSAGES, max_tokens=20, **options)
        far = remote.chat(MESSAGES, max_tokens=20, **options)
        assert (far.text, far.finish_reason, far.prompt_tokens) == (
            local.text,
            local.finish_reason,
            local.prompt_tokens,
        )
        chunks = list(remote.stream_chat(MESSAGES, max_tokens=20, **options))
        assert "".join(chunk.text for chunk in chunks) == local.text
        assert chunks[-1].finish_reason == local.finish_reason
    assert remote.meter.requests == 6


def test_remote_and_local_completions_are_the_same(engine, url, key):
    remote = RemoteEngine(url, "tiny", key=key)
    prompts = ["hello", "你好 w", engine.tokenizer.encode("world")]
    for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 11}, {"seed": 2, "stop": ["e"]}):
        local = engine.generate(prompts, max_tokens=20, **options)
        far = remote.generate(prompts, max_tokens=20, **options)
        assert [(f.text, f.finish_reason, f.prompt_tokens) for f in far] == [
            (c.text, c.finish_reason, c.prompt_tokens) for c in local
        ]
        assert "".join(chunk.text for chunk in remote.stream(prompts[0], max_tokens=20, **options)) == local[0].text


def test_many_clients_at_once_all_get_their_own_answer(engine, url, key):
    questions = [[{"role": "user", "content": f"hello {i}"}] for i in range(12)]
    expected = [engine.chat(question, max_tokens=8, seed=i).text for i, question in enumerate(questions)]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = RemoteEngine(url, "tiny", key=key).chat(questions[i], max_tokens=8, seed=i).text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [answers[i] for i in range(12)] == expected


def test_a_wrong_key_and_a_missing_route_are_told_apart(url, key):
    with pytest.raises(UserError, match="check the key"):
        RemoteEngine(url, "tiny", key="wrong").chat(MESSAGES)
    with pytest.raises(Unsupported):
        RemoteEngine(url, "tiny", key=key).loglikelihood([("", "b")])


def test_remote_and_local_log_likelihoods_are_the_same(engine, url, key):
    pairs = [("hello", " world"), ("你好", " world"), ("hello world", ", hello")]
    [greedy] = engine.generate(["hello world"], max_tokens=1, temperature=0)
    pairs.append(("hello world", greedy.text))
    local = engine.loglikelihood(pairs)
    far = RemoteEngine(url, "tiny", key=key).loglikelihood(pairs)
    assert [(f.n_tokens, f.is_greedy) for f in far] == [(c.n_tokens, c.is_greedy) for c in local]
    assert [f.log_prob for f in far] == pytest.approx([c.log_prob for c in local], abs=1e-4)
    assert {c.is_greedy for c in local} == {True, False}


def test_remote_ways_of_sampling_are_the_engines(engine, url, key):
    remote = RemoteEngine(url, "tiny", key=key)
    for options in ({"min_p": 0.2}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"logit_bias": {40: 5.0}}):
        local = engine.generate(["hello", "你好"], max_tokens=20, seed=4, n=2, **options)
        far = remote.generate(["hello", "你好"], max_tokens=20, seed=4, n=2, **options)
        assert [f.text for f in far] == [c.text for c in local]


def test_remote_and_local_answers_keep_to_the_same_format(engine, url, key):
    remote = RemoteEngine(url, "tiny", key=key)
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["好", "😀"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for options in ({"json_schema": schema}, {"regex": "(你好|no) [0-9]{3}"}):
        local = engine.generate(["hello"], max_tokens=40, seed=4, **options)[0]
        assert local.finish_reason == "stop"
        assert remote.generate(["hello"], max_tokens=40, seed=4, **options)[0].text == local.text
        assert (
            remote.chat(MESSAGES, max_tokens=40, seed=4, **options).text
            == engine.chat(MESSAGES, max_tokens=40, seed=4, **options).text
        )
    with pytest.raises(UserError, match="unclosed group"):
        remote.chat(MESSAGES, regex="(")
