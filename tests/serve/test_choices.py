"""What a request may ask for beside its text: several answers, ways of sampling, log-probabilities, its own prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve.tiny_server import BODIES, CHAT, TEXT, events_of

MESSAGES = BODIES[CHAT]["messages"]


def content_of(choice: dict[str, Any]) -> str:
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_n_answers_are_the_engines_own_whole_and_streamed(server, engine, path):
    prompts = [engine.chat_prompt(MESSAGES)] if path == CHAT else ["hello", "你好"]
    asked = {"n": 3} if path == CHAT else {"n": 3, "prompt": prompts}
    expected = engine.generate(prompts, max_tokens=12, seed=3, n=3)
    assert len({e.text for e in expected}) == len(expected)
    body = server.post(path, **asked).json()
    assert [(c["index"], content_of(c), c["finish_reason"]) for c in body["choices"]] == [
        (i, e.text, e.finish_reason) for i, e in enumerate(expected)
    ]
    # A prompt is counted once, however many answers it gets.
    assert body["usage"]["prompt_tokens"] == sum(e.prompt_tokens for e in expected[::3])
    assert body["usage"]["completion_tokens"] == sum(len(e.token_ids) for e in expected)
    texts = [""] * len(expected)
    for event in events_of(server.post(path, stream=True, **asked).text):
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"] if path == TEXT else choice["delta"].get("content", "")
    assert texts == [e.text for e in expected]


@pytest.mark.parametrize(
    "option",
    [{"min_p": 0.3}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0}, {"logit_bias": {"104": 100, "5": -1.5}}],
)
def test_ways_of_sampling_reach_the_engine(server, engine, option):
    own = {
        name: {int(k): v for k, v in value.items()} if name == "logit_bias" else value for name, value in option.items()
    }
    [plain, changed] = [engine.generate(["hello"] * 4, max_tokens=30, seed=3, **more) for more in ({}, own)]
    assert [c.text for c in plain] != [c.text for c in changed]
    got = server.post(TEXT, prompt=["hello"] * 4, max_tokens=30, **option).json()
    assert [choice["text"] for choice in got["choices"]] == [c.text for c in changed]


def test_log_probs_of_a_chat_are_the_engines_and_spell_the_answer(server, engine):
    tokenizer = engine.tokenizer
    prompt = engine.chat_prompt(MESSAGES)
    [expected] = engine.generate([prompt], max_tokens=12, seed=3, top_logprobs=3)
    [choice] = server.post(CHAT, logprobs=True, top_logprobs=3).json()["choices"]
    told = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in told] == pytest.approx(expected.log_probs, abs=1e-5)
    assert b"".join(bytes(entry["bytes"]) for entry in told).decode(errors="replace") == expected.text
    for entry, top in zip(told, expected.top_log_probs, strict=True):
        assert [bytes(other["bytes"]) for other in entry["top_logprobs"]] == [tokenizer.token_bytes(t) for t, _ in top]
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx([v for _, v in top], abs=1e-5)
    spelled = {token: entry["token"] for token, entry in zip(expected.token_ids, told, strict=True)}
    assert len(set(spelled.values())) == len(spelled), "two tokens told by one name"
    assert any(name.startswith("bytes:\\x") for name in spelled.values()), "the test needs a piece of a character"
    events = events_of(server.post(CHAT, logprobs=True, top_logprobs=3, stream=True).text)
    streamed = [entry for e in events for entry in (e["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in told]
    assert [entry["logprob"] for entry in streamed] == pytest.approx(expected.log_probs, abs=1e-4)
    without = server.post(CHAT, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in without)


@torch.no_grad()
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_tells_the_prompt_with_the_models_own_log_probs(server, engine, stream, as_ids):
    tokenizer, text = engine.tokenizer, "hello 你好, wo"
    ids = tokenizer.prompt_prefix_ids + tokenizer.encode(text)
    [answer] = engine.generate([text], max_tokens=12, seed=3)
    response = server.post(TEXT, prompt=ids if as_ids else text, echo=True, logprobs=2, stream=stream)
    if stream:
        choices = [event["choices"][0] for event in events_of(response.text)]
        told = {name: [item for c in choices for item in c["logprobs"][name]] for name in choices[0]["logprobs"]}
        whole = "".join(choice["text"] for choice in choices)
    else:
        body = response.json()
        assert body["usage"]["completion_tokens"] == len(answer.token_ids)
        [choice] = body["choices"]
        whole, told = choice["text"], choice["logprobs"]
    assert whole == text + answer.text
    every = ids + answer.token_ids
    expected = engine.model(torch.tensor([every]))[0].log_softmax(-1)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    at_once = [float(expected[place, token]) for place, token in enumerate(every[1:])]
    assert told["token_logprobs"][1:] == pytest.approx(at_once, abs=1e-4)
    best = expected[:-1].topk(2).values
    for top, values in zip(told["top_logprobs"][1:], best.tolist(), strict=True):
        assert sorted(top.values(), reverse=True) == pytest.approx(values, abs=1e-4)
    edges = [*told["text_offset"], len(whole)]
    for token, start, end in zip(told["tokens"], edges[:-1], edges[1:], strict=True):
        assert token.startswith(("bytes:", "<|")) or token == whole[start:end]
    plain = server.post(TEXT, prompt=ids if as_ids else text, echo=True, n=2).json()["choices"]
    assert [choice["logprobs"] for choice in plain] == [None, None]
    assert plain[0]["text"] == whole and plain[1]["text"].startswith(text)
