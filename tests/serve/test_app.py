"""The routes: OpenAI's shapes, the engine's own answers, refusals by name, several models."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
import torch

from serve.tiny_server import BODIES, CHAT, EMBED, TEXT, Server, events_of, tiny_engine
from talaria.infer.contract import row_seed

MESSAGES = BODIES[CHAT]["messages"]


# ------------------------------------------------------------------------------------------ shapes


def test_an_answer_is_the_engines_own(server, engine):
    body = server.post(CHAT).json()
    expected = engine.chat(MESSAGES, max_tokens=12, seed=3)
    assert body["object"] == "chat.completion" and body["model"] == "tiny" and body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": expected.text, "refusal": None},
        "logprobs": None,
        "finish_reason": expected.finish_reason,
    }
    assert body["usage"] == {
        "prompt_tokens": expected.prompt_tokens,
        "completion_tokens": len(expected.token_ids),
        "total_tokens": expected.prompt_tokens + len(expected.token_ids),
    }


def test_a_stream_tells_the_same_answer(server):
    response = server.post(CHAT, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = events_of(response.text)
    whole = server.post(CHAT).json()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        == whole["choices"][0]["message"]["content"]
    )
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"][0]["finish_reason"]] == [
        whole["choices"][0]["finish_reason"]
    ]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events)
    assert {(e["id"], e["object"]) for e in events} == {(last["id"], "chat.completion.chunk")}
    assert not any("usage" in event for event in events_of(server.post(CHAT, stream=True).text))


@pytest.mark.parametrize("stop", [None, "e", ["o", "世"]])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_completions_continue_every_prompt_as_the_engine_does(server, engine, stop, temperature):
    prompts = ["hello", "你好世", "w"]
    options = {"temperature": temperature, "max_tokens": 10, "seed": 5}
    expected = engine.generate(prompts, stop=stop or (), **options)
    asked = options | {"prompt": prompts, "stop": stop}
    whole = server.post(TEXT, **asked).json()
    assert whole["object"] == "text_completion"
    assert [(c["index"], c["text"], c["finish_reason"]) for c in whole["choices"]] == [
        (i, e.text, e.finish_reason) for i, e in enumerate(expected)
    ]
    assert whole["usage"]["prompt_tokens"] == sum(e.prompt_tokens for e in expected)
    texts, reasons = ["", "", ""], [None, None, None]
    for event in events_of(server.post(TEXT, stream=True, **asked).text):
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [e.text for e in expected] and reasons == [e.finish_reason for e in expected]


def test_prompts_are_text_or_ids_one_or_many(server, engine):
    ids = engine.tokenizer.prompt_prefix_ids + engine.tokenizer.encode("hello")
    texts = [
        [choice["text"] for choice in server.post(TEXT, prompt=prompt).json()["choices"]]
        for prompt in ("hello", ids, ["hello"], [ids])
    ]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len(server.post(TEXT, prompt=[ids, "w"], seed=None).json()["choices"]) == 2
    assert row_seed(3, 0) == 3, "or one prompt alone would differ from the engine's own"


def test_embeddings_are_mean_pooled_and_of_norm_one(server, engine):
    texts = ["hello 你好", "world"]
    body = server.post(EMBED, input=texts).json()
    assert body["object"] == "list" and [row["index"] for row in body["data"]] == [0, 1]
    for text, row in zip(texts, body["data"], strict=True):
        ids = torch.tensor([engine.tokenizer.prompt_prefix_ids + engine.tokenizer.encode(text)])
        mean_D = engine.model.hidden(ids)[0].mean(dim=0)
        torch.testing.assert_close(torch.tensor(row["embedding"]), (mean_D / mean_D.norm()).detach())
    packed = server.post(EMBED, input=texts, encoding_format="base64").json()
    for plain, row in zip(body["data"], packed["data"], strict=True):
        data = base64.b64decode(row["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(plain["embedding"], abs=1e-7)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


def test_two_models_answer_by_their_names(served, engine):
    other = tiny_engine(seed=1)
    server = served({"tiny": engine, "org/other": other})
    listed = server.call("GET", "/v1/models").json()
    assert listed["object"] == "list" and [m["id"] for m in listed["data"]] == ["tiny", "org/other"]
    assert server.call("GET", "/v1/models/org/other").json() == listed["data"][1]
    for name, model in (("tiny", engine), ("org/other", other)):
        body = server.post(CHAT, model=name).json()
        assert body["model"] == name
        assert body["choices"][0]["message"]["content"] == model.chat(MESSAGES, max_tokens=12, seed=3).text
    assert server.post(CHAT).json()["choices"] != server.post(CHAT, model="org/other").json()["choices"]


def test_metrics_count_tokens_and_requests_in_prometheus_text(server):
    counts = server.post(CHAT).json()["usage"]
    server.post(CHAT, model="gpt-9")
    server.call("GET", "/nowhere%0A")
    response = server.call("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    rows = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert rows['talaria_completion_tokens_total{model="tiny"}'] == str(counts["completion_tokens"])
    assert rows['talaria_prompt_tokens_total{model="tiny"}'] == str(counts["prompt_tokens"])
    assert rows[f'talaria_requests_total{{route="{CHAT}",status="200"}}'] == "1"
    assert rows[f'talaria_requests_total{{route="{CHAT}",status="404"}}'] == "1"
    assert rows['talaria_requests_total{route="other",status="404"}'] == "1", "a path must not become a label"
    assert rows['talaria_first_token_seconds_bucket{model="tiny",le="+Inf"}'] == "1"
    assert rows['talaria_answers_running{model="tiny"}'] == rows['talaria_answers_waiting{model="tiny"}'] == "0"
    typed = {line.split()[2] for line in response.text.splitlines() if line.startswith("# TYPE")}
    assert {
        name.partition("{")[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in rows
    } <= typed


# ---------------------------------------------------------------------------------------- refusals


def refusal(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("path", list(BODIES))
def test_a_missing_key_is_told_in_openais_shape(server, path):
    response = Server(server.app, None).post(path)
    assert refusal(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_health_and_the_page_need_no_key_and_tell_nothing(server):
    """test_closed.py crawls the rest."""
    stranger = Server(server.app, None)
    assert stranger.call("GET", "/health").json() == {"status": "ok"}
    for path in ("/", "/page/page.js"):
        assert stranger.call("GET", path).status_code == 200


def test_what_is_not_there_is_told_in_openais_shape(server):
    assert refusal(server.call("GET", "/docs"), 404)["type"] == "invalid_request_error"
    assert refusal(server.call("GET", CHAT), 405)
    assert refusal(server.call("POST", CHAT, content=b"{broken"))
    for path in BODIES:
        error = refusal(server.post(path, model="gpt-9"), 404)
        assert error["code"] == "model_not_found" and "ask for 'tiny'" in error["message"]
    assert refusal(server.call("GET", "/v1/models/gpt-9"), 404)["param"] == "model"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "long " * 200}]}, "context is 64"),
        (CHAT, {"tools": []}, "tools"),
        (CHAT, {"functions": []}, "functions: not supported"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"top_logprobs": 2}, "logprobs = true"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"temperature": "hot"}, "temperature"),
        (CHAT, {"temperature": -1}, "temperature"),
        (CHAT, {"temperature": True}, "temperature"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 5000}, "max_tokens: 5000"),
        (CHAT, {"top_k": 10**30}, "top_k"),
        (CHAT, {"n": 0}, "n: "),
        (CHAT, {"n": 33}, "n: 33 answers"),
        (CHAT, {"min_p": 1.5}, "min_p"),
        (CHAT, {"frequency_penalty": 2.1}, "frequency_penalty"),
        (CHAT, {"presence_penalty": -3}, "presence_penalty"),
        (CHAT, {"logit_bias": {"5": 101}}, "logit_bias"),
        (CHAT, {"logit_bias": {"hello": 1}}, "logit_bias: "),
        (CHAT, {"logit_bias": {"99999": 1}}, "logit_bias: token ids"),
        (CHAT, {"stop": [""]}, "stop"),
        (CHAT, {"stop": ["x"] * 17}, "stop"),
        (CHAT, {"\ud800": 1}, "not supported"),
        (TEXT, {"echo": "yes"}, "echo"),
        (TEXT, {"echo": True, "prompt": [10**9]}, "token ids must lie"),
        (TEXT, {"echo": True, "prompt": "long " * 200}, "fit the context"),
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"n": 17, "prompt": ["a", "b"]}, "n: 17 answers to 2 prompts"),
        (TEXT, {"best_of": 2}, "best_of"),
        (TEXT, {"suffix": "x"}, "suffix"),
        (TEXT, {"messages": []}, "messages: not supported"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [[]]}, "prompt"),
        (TEXT, {"prompt": {"a": 1}}, "prompt"),
        (TEXT, {"prompt": [1, "a"]}, "prompt"),
        (TEXT, {"prompt": ["\udc00"]}, "prompt"),
        (TEXT, {"prompt": [10**9]}, "token ids must lie"),
        (TEXT, {"prompt": [-1]}, "token ids must lie"),
        (EMBED, {"input": [True]}, "input"),
        (EMBED, {"input": [10**9]}, "token ids must lie"),
        (EMBED, {"input": "long " * 200}, "context of 64"),
        (EMBED, {"dimensions": 4}, "dimensions: not supported"),
        (EMBED, {"encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_what_is_not_supported_or_wrong_is_refused_by_its_name(server, path, change, named, stream):
    body = BODIES[path] | change | ({} if path == EMBED else {"stream": stream})
    error = refusal(server.call("POST", path, content=json.dumps(body), headers={"content-type": "application/json"}))
    assert named in error["message"] and error["type"] == "invalid_request_error"


def test_what_changes_nothing_is_accepted(server):
    expected = server.post(CHAT).json()["choices"]
    neutral = {"user": "u", "metadata": {"a": "b"}, "store": True, "n": 1, "logprobs": False, "presence_penalty": 0}
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "你好"}]}]
    assert server.post(CHAT, **neutral, messages=parts, stop=None).json()["choices"] == expected
    assert server.post(CHAT, max_tokens=None, max_completion_tokens=12).json()["choices"] == expected
    assert server.post(TEXT, n=1, best_of=1, echo=False, logprobs=None, suffix=None).status_code == 200
