"""Every limit, seen from the client that runs into it; and what the server tells nobody."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from serve.tiny_server import BODIES, CHAT, EMBED, TEXT, Server, Slow, drive
from talaria.errors import UsageError
from talaria.serve.keys import make_key
from talaria.serve.limits import RateLimit
from talaria.serve.server import check_address
from talaria.serve.settings import ServeSettings


def refused(response: Any, status: int, code: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    return error


def test_a_key_over_its_rate_waits_and_other_keys_do_not(served, keys):
    server = served(requests_per_minute=2)
    other = make_key(keys, "other")
    assert [server.post(CHAT).status_code for _ in range(2)] == [200, 200]
    response = server.post(EMBED)
    assert "2 requests a minute" in refused(response, 429, "rate_limit_exceeded")["message"]
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert server.call("GET", "/v1/models").status_code == 200, "looking is free"
    assert server.call("POST", CHAT, other, json=BODIES[CHAT]).status_code == 200


def test_a_rate_refills_evenly_and_never_beyond_a_minutes_worth():
    now = [0.0]
    rate = RateLimit(6, clock=lambda: now[0])
    assert [rate.take("a") for _ in range(7)] == [0] * 6 + [pytest.approx(10)]
    now[0] = 9.9
    assert rate.take("a") == pytest.approx(0.1)
    now[0] = 10.1
    assert rate.take("a") == 0 and rate.take("a") > 0
    now[0] = 10_000
    assert [rate.take("a") == 0 for _ in range(7)] == [True] * 6 + [False]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(served, announced):
    server = served(body_bytes=1000)
    body = json.dumps(BODIES[CHAT] | {"user": "x" * 1000}).encode()

    async def parts():
        yield body[:500]
        yield body[500:]

    headers = {"content-type": "application/json"}
    response = server.call("POST", CHAT, content=body if announced else parts(), headers=headers)
    assert "1,000 bytes" in refused(response, 413, "request_too_large")["message"]
    fits = json.dumps(BODIES[CHAT] | {"user": "x" * 100}).encode()
    assert server.call("POST", CHAT, content=fits, headers=headers).status_code == 200


def test_a_body_that_does_not_arrive_is_not_waited_for(served):
    server = served(stalled_seconds=0.1)
    sent: list[dict[str, Any]] = []

    async def never() -> None:
        await asyncio.sleep(3600)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    server.run(drive(server.app, b"", server.key, never, send))
    assert sent[0]["status"] == 408 and server.app.state.gate.active == 0


def test_tokens_and_inputs_have_limits(served, engine):
    server = served(prompt_tokens=12, max_tokens=6, inputs=2)
    assert "takes 12" in refused(server.post(TEXT, prompt="qzx " * 10, max_tokens=1), 400)["message"]
    assert "takes 12" in refused(server.post(EMBED, input="qzx " * 10), 400)["message"]
    assert "ask for 6" in refused(server.post(TEXT, max_tokens=7), 400)["message"]
    assert "at most 2" in refused(server.post(TEXT, prompt=["a", "b", "c"], max_tokens=1), 400)["message"]
    assert "at most 2" in refused(server.post(EMBED, input=["a", "b", "c"]), 400)["message"]
    whole = server.post(TEXT, prompt="a", max_tokens=None).json()
    assert whole["usage"]["completion_tokens"] == len(engine.generate(["a"], max_tokens=6, seed=3)[0].token_ids) <= 6


def test_an_answer_that_takes_too_long_is_ended(served, engine):
    slow = Slow(engine, 0.05)
    server = served({"tiny": slow}, request_seconds=0.3)
    assert "fewer tokens" in refused(server.post(CHAT, max_tokens=40), 504, "timeout")["message"]
    events = server.post(CHAT, max_tokens=40, stream=True).text.strip().split("\n\n")
    assert len(events) > 2 and json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    n_steps = slow.n_steps
    assert server.post(CHAT, max_tokens=1).status_code == 200
    assert slow.n_steps <= n_steps + 2, "the ended answers went on"


def test_a_full_queue_answers_429_and_takes_all_prompts_or_none(served, engine):
    server = served({"tiny": Slow(engine, 0.02)}, running=1, waiting=2)

    async def crowd() -> None:
        async with server.client() as client:
            many = [client.post(CHAT, json=BODIES[CHAT]) for _ in range(8)]
            responses = await asyncio.gather(*many)
            statuses = sorted(response.status_code for response in responses)
            assert statuses == [200] * 3 + [429] * 5
            for response in responses:
                if response.status_code == 429:
                    assert refused(response, 429, "overloaded")
                    assert int(response.headers["retry-after"]) >= 1
            four = await client.post(TEXT, json=BODIES[TEXT] | {"prompt": ["a", "b", "c", "d"]})
            refused(four, 429, "overloaded")
            three = await client.post(TEXT, json=BODIES[TEXT] | {"prompt": ["a", "b", "c"]})
            assert three.status_code == 200, "the refused four left their places taken"

    server.run(crowd())


def test_a_stopping_server_takes_no_new_work_and_says_so(server):
    server.app.state.gate.stopping = True
    for path in BODIES:
        response = server.post(path)
        refused(response, 503, "overloaded")
        assert "retry-after" in response.headers
    assert server.call("GET", "/health").status_code == 503
    assert server.call("GET", "/metrics").status_code == 200


def test_without_keys_only_this_machines_programs_are_answered(served):
    server = served(open=True)
    assert server.post(CHAT).status_code == 200
    for headers in (
        {"host": "rebound.example:8000"},
        {"host": "127.0.0.1.example"},
        {"origin": "http://elsewhere.example"},
        {"origin": "http://localhost:3000", "host": "localhost:8000"},
        {"origin": "null"},
    ):
        refused(server.call("POST", CHAT, json=BODIES[CHAT], headers=headers), 403)
        refused(server.call("GET", "/v1/models", headers=headers), 403)
    own = {"origin": "http://localhost:8000", "host": "localhost:8000"}
    assert server.call("POST", CHAT, json=BODIES[CHAT], headers=own).status_code == 200
    assert server.call("GET", "/v1/models", headers={"host": "[::1]:8000"}).status_code == 200


def test_an_address_of_the_network_is_warned_of_and_refused_without_keys():
    for host in ("127.0.0.1", "localhost", "::1"):
        assert check_address(ServeSettings(host=host), with_keys=False) is None
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        assert "other machines can reach" in (check_address(ServeSettings(host=host), with_keys=True) or "")
        with pytest.raises(UsageError, match="drop one of the two"):
            check_address(ServeSettings(host=host), with_keys=False)


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_only_when_asked_for_and_keys_never(served, caplog, engine, log_prompts):
    server = served(log_prompts=log_prompts)
    caplog.set_level(logging.DEBUG)
    secret = "ww ld"
    answer = server.post(CHAT, messages=[{"role": "user", "content": secret}]).json()["choices"][0]["message"][
        "content"
    ]
    server.post(CHAT, messages=[{"role": "user", "content": secret}], stream=True)
    server.post(TEXT, prompt=secret)
    server.post(EMBED, input=secret)
    server.post(CHAT, messages=[{"role": "user", "content": secret}], top_k=0)
    lines = [record.getMessage() for record in caplog.records if record.name == "talaria.serve"]
    assert len(lines) == 4, lines
    assert [secret in line for line in lines] == [log_prompts] * 4
    assert [repr(answer) in line for line in lines[:2]] == [log_prompts] * 2
    assert not any(server.key in line or secret in line for line in caplog.text.splitlines() if not log_prompts)
    assert all("key='client-0'" in line for line in lines)
    assert isinstance(server, Server)
