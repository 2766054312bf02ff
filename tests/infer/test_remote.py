"""The remote engine against a scripted server on this machine, and against our own server."""

from __future__ import annotations

import json
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from talaria.errors import UsageError, UserError
from talaria.infer.remote import RemoteEngine, Unsupported


def completion(text: str = "hi", **choice) -> dict:
    choice = {
        "index": 0,
        "text": text,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    } | choice
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


class Stub:
    """Answers requests from a script: each entry is (status, headers, body); a callable makes one from the request."""

    def __init__(self) -> None:
        self.script: list = []
        self.requests: list[tuple[str, dict, dict]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append((self.path, dict(self.headers), body))
                step = stub.script.pop(0) if len(stub.script) > 1 else stub.script[0]
                status, headers, answer = step(body) if callable(step) else step
                if status == 0:  # drop the connection
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def stub():
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def remote(stub: Stub, **options) -> RemoteEngine:
    return RemoteEngine(stub.url, "m", key="secret", **{"first_delay_seconds": 0.01, **options})


OK = (200, {}, completion())
SSE = {"Content-Type": "text/event-stream"}


def events(*bodies) -> bytes:
    lines = [body if isinstance(body, str) else json.dumps(body, ensure_ascii=False) for body in bodies]
    return b": comment\n\n" + "".join(f"data: {line}\n\n" for line in lines).encode()


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "0"}, {}), (500, {}, b"oops"), (503, {}, {}), (0, {}, {})])
def test_a_busy_or_broken_endpoint_is_asked_again(stub, failure):
    stub.script = [failure, failure, OK]
    engine = remote(stub)
    assert engine.generate(["hello"])[0].text == "hi"
    assert (engine.meter.requests, engine.meter.retries) == (1, 2)
    assert (engine.meter.prompt_tokens, engine.meter.completion_tokens) == (5, 2)
    assert engine.meter.seconds > 0


def test_retry_after_is_obeyed_as_seconds_and_as_a_date(stub):
    def in_two_seconds(_body):
        return 429, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}, {}

    for refusal, least in (((429, {"Retry-After": "1"}, {}), 1.0), (in_two_seconds, 0.5)):
        stub.script = [refusal, OK]
        begun = time.monotonic()
        remote(stub).chat([{"role": "user", "content": "x"}])
        assert time.monotonic() - begun >= least
    stub.script = [(429, {"Retry-After": "100000"}, {})]
    with pytest.raises(UserError, match="come back in 100000 seconds"):
        remote(stub).generate(["x"])


def test_giving_up_names_the_address_and_never_the_key(stub):
    stub.script = [(500, {}, {"error": {"message": "disk\nfull"}})]
    with pytest.raises(UserError, match=r"/v1/completions: status 500: disk full; gave up after 3 attempts") as raised:
        remote(stub, max_retries=2).generate(["x"])
    assert "secret" not in str(raised.value)
    assert len(stub.requests) == 3
    stub.script = [(401, {}, {"error": {"message": "no"}})]
    with pytest.raises(UserError, match="check the key"):
        remote(stub).generate(["x"])
    assert len(stub.requests) == 4
    stub.script = [(200, {}, b"<html>")]
    with pytest.raises(UserError, match="not JSON"):
        remote(stub).generate(["x"])
    with pytest.raises(UserError, match="gave up after 1 attempts"):
        RemoteEngine("http://127.0.0.1:9/v1", "m", max_retries=0).generate(["x"])
    with pytest.raises(UsageError, match="write it as http"):
        RemoteEngine("localhost:8000", "m")


def test_requests_say_what_was_asked(stub):
    stub.script = [OK]
    engine = remote(stub)
    engine.generate(["a", [1, 2]], max_tokens=7, temperature=0.5, top_p=0.9, stop="\n", seed=4)
    (path, headers, first), (_, _, second) = sorted(stub.requests, key=lambda request: request[2]["prompt"] != "a")
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    wanted = {"model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"]}
    assert first == {"prompt": "a", "seed": 4, **wanted}
    assert second["prompt"] == [1, 2]
    assert second["seed"] != 4
    engine.chat([{"role": "user", "content": "你好"}], temperature=0)
    path, _, body = stub.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "你好"}]
    assert "seed" not in body


def test_answers_keep_the_order_of_their_prompts(stub):
    def late(body):
        time.sleep(0.05 if body["prompt"] == "0" else 0)
        return 200, {}, completion(body["prompt"])

    stub.script = [late]
    assert [c.text for c in remote(stub).generate([str(i) for i in range(12)])] == [str(i) for i in range(12)]


def test_only_repeatable_answers_are_cached(stub, tmp_path):
    stub.script = [OK]
    engine = remote(stub, cache=tmp_path / "cache")
    for options, asked in (({"temperature": 0}, 1), ({"seed": 1}, 1), ({"seed": 2}, 1), ({}, 2)):
        before = len(stub.requests)
        assert engine.generate(["x"], **options) == engine.generate(["x"], **options)
        assert len(stub.requests) - before == asked
    assert engine.meter.cache_hits == 3
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3
    assert all("secret" not in file.read_text() for file in files)
    RemoteEngine(stub.url, "other", cache=tmp_path / "cache").generate(["x"], temperature=0)
    assert stub.requests[-1][2]["model"] == "other"
    for file in files:
        file.write_text("{")
    with pytest.raises(UserError, match="delete the file"):
        engine.generate(["x"], temperature=0)


def test_streams_come_in_pieces_and_a_broken_one_is_an_error(stub):
    def delta(text, reason=None):
        return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}

    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    stub.script = [
        (429, {"Retry-After": "0"}, {}),
        (200, SSE, events(delta("你"), delta("好🙂"), delta(None, "length"), usage, "[DONE]")),
    ]
    engine = remote(stub)
    chunks = list(engine.stream_chat([{"role": "user", "content": "x"}]))
    assert [chunk.text for chunk in chunks] == ["你", "好🙂", ""]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length"]
    assert (engine.meter.completion_tokens, engine.meter.retries) == (4, 1)
    stub.script = [(200, SSE, events({"choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]}, "[DONE]"))]
    assert "".join(chunk.text for chunk in engine.stream("x")) == "ab"
    stub.script = [(200, SSE, events(delta("half")))]
    with pytest.raises(UserError, match="ended before the answer did"):
        list(engine.stream_chat([{"role": "user", "content": "x"}]))
    stub.script = [(200, {**SSE, "Content-Length": "9999"}, events(delta("half")))]
    with pytest.raises(UserError, match="broke off"):
        list(engine.stream_chat([{"role": "user", "content": "x"}]))
    stub.script = [(200, SSE, events({"error": {"message": "out of memory"}}))]
    with pytest.raises(UserError, match="out of memory"):
        list(engine.stream_chat([{"role": "user", "content": "x"}]))


def echo(body: dict, pieces: list[str], log_probs: list, top: list[float] | None = None) -> tuple:
    offsets = [sum(len(p) for p in pieces[:i]) for i in range(len(pieces))]
    told = {"tokens": pieces, "text_offset": offsets, "token_logprobs": log_probs}
    told["top_logprobs"] = [
        None if x is None else {"best": b} for x, b in zip(log_probs, top or log_probs, strict=True)
    ]
    return 200, {}, completion("".join(pieces), logprobs=told)


def test_loglikelihood_adds_the_continuations_tokens_alone(stub):
    stub.script = [lambda body: echo(body, ["The", " sky", " is", " blue", "!"], [None, -1.0, -2.0, -0.5, -9.0])]
    [score] = remote(stub).loglikelihood([("The sky", " is blue")])
    assert (score.log_prob, score.n_tokens, score.is_greedy) == (-2.5, 2, True)
    assert stub.requests[-1][2]["echo"] is True
    stub.script = [lambda body: echo(body, ["a", " b", "."], [None, -1.0, -2.0], [None, -0.9, -2.0])]
    assert not remote(stub).loglikelihood([("a", " b")])[0].is_greedy


def test_endpoints_that_cannot_score_are_refused_not_guessed(stub):
    pair = [("The sky", " is")]
    for step in (
        (200, {}, completion(" blue")),  # no echo
        (200, {}, completion("The sky is", logprobs=None)),
        (400, {}, {"error": {"message": "echo is not supported"}}),
        (404, {}, {}),
        lambda body: echo(body, ["The", " sky is", "."], [None, -1.0, -1.0]),  # a token across the border
    ):
        stub.script = [step]
        with pytest.raises(Unsupported):
            remote(stub).loglikelihood(pair)
    with pytest.raises(Unsupported, match="must not be empty"):
        remote(stub).loglikelihood([("", "x")])
    stub.script = [(500, {}, {})]
    with pytest.raises(UserError, match="gave up") as raised:
        remote(stub, max_retries=1).loglikelihood(pair)
    assert not isinstance(raised.value, Unsupported)
