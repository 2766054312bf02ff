"""A real server process on a real socket: killed, stopped, left by its clients, and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from random_weights import random_model

from talaria.feedback.store import FeedbackStore
from talaria.model.checkpoint import save_model
from talaria.model.shape import ModelShape
from talaria.serve.keys import make_key, revoke_key
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.services
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1}
LONG = BODY | {"max_tokens": 900, "stream": True, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy answer never ends by itself (with this seed), so that a long one is long."""
    return save_random(tmp_path_factory.mktemp("served"), n_layers=2, d_model=16)


def save_random(folder: Path, n_layers: int, d_model: int) -> Path:
    tokenizer = Tokenizer.train(["hello world, 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=n_layers, d_model=d_model, n_heads=2, context=8192)
    save_model(random_model(shape, seed=1), tokenizer, folder / "model")
    return folder


class Process:
    """`talaria serve` and a client with a key."""

    def __init__(self, folder: Path, keys: Path, key: str, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "talaria", "serve", f"tiny={folder / 'model'}", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--keys", str(keys), "--set", f"feedback={keys.with_name('feedback.db')}", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {},
        )
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)
        deadline = time.monotonic() + 120
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr
            time.sleep(0.05)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200
        except httpx.TransportError:
            return False

    def running(self) -> int:
        rows = self.client.get("/metrics").text.splitlines()
        return int(next(row.split()[-1] for row in rows if row.startswith("talaria_answers_running{")))

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def wait_for(self, running: int) -> None:
        deadline = time.monotonic() + 20
        while self.running() != running:
            assert time.monotonic() < deadline, f"{self.running()} answers run, not {running}"
            time.sleep(0.02)


@contextmanager
def serving(folder: Path, keys: Path, key: str, *arguments: str) -> Iterator[Process]:
    process = Process(folder, keys, key, *arguments)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


def text_of(lines: Iterator[str]) -> str:
    """The text of a stream that ended well."""
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data and data[-1] == "[DONE]", data[-2:]
    return "".join(choice["delta"].get("content", "") for d in data[:-1] for choice in json.loads(d)["choices"])


def test_killed_and_started_again_with_the_same_keys_and_feedback(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key, revoked = make_key(keys, "kept"), make_key(keys, "revoked")
    with serving(folder, keys, key) as server:
        answer = server.client.post(CHAT, json=BODY).json()["choices"]
        text = answer[0]["message"]["content"]
        thumb = {"rating": -1, "model": "tiny", "messages": BODY["messages"], "answer": text}
        kept = server.client.post("/v1/feedback", json=thumb).json()
        revoke_key(keys, "revoked")
        with server.client.stream("POST", CHAT, json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert server.process.wait(10) == -signal.SIGKILL
    with serving(folder, keys, key) as server:
        assert server.client.post(CHAT, json=BODY).json()["choices"] == answer
        wrong = server.client.post(CHAT, json=BODY, headers={"Authorization": f"Bearer {revoked}"})
        assert wrong.status_code == 401
        assert server.client.post("/v1/feedback", json={"rating": 1, **kept}).json() == kept
    ratings = FeedbackStore(tmp_path / "feedback.db").read_ratings()
    assert [(r.rating, r.annotator, r.answer.text) for r in ratings] == [(-1, "kept", text), (1, "kept", text)]


def test_killed_under_load_loses_no_key_and_no_thumb_that_was_answered(folder: Path, tmp_path: Path) -> None:
    """Four clients rate, four stream and keys are made, all without a pause, when the process is gone."""
    keys = tmp_path / "keys.json"
    made = [make_key(keys, "first")]
    kept: dict[int, str] = {}  # texts of rated answers by the ids that the server gave them
    many = "requests_per_minute=1000000"
    with serving(folder, keys, made[0], "--set", many) as server:
        gone = threading.Event()

        def rate(who: int) -> None:
            with suppress(httpx.TransportError):
                for number in range(10**6):
                    text = f"{who}: {number}"
                    thumb = {"rating": 1, "model": "tiny", "messages": BODY["messages"], "answer": text}
                    kept[server.client.post("/v1/feedback", json=thumb).json()["answer_id"]] = text

        def stream(_who: int) -> None:
            with suppress(httpx.TransportError):
                while not gone.is_set():
                    server.client.post(CHAT, json=LONG)

        def add_keys(_who: int) -> None:
            while not gone.is_set():
                made.append(make_key(keys, f"key {len(made)}"))

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4) for work in (rate, stream)]
        threads.append(threading.Thread(target=add_keys, args=(0,)))
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(kept) < 40 or len(made) < 5:
            assert time.monotonic() < deadline, f"{len(kept)} thumbs, {len(made)} keys"
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(10) == -signal.SIGKILL
        gone.set()
        for thread in threads:
            thread.join(30)
    with serving(folder, keys, made[0], "--set", many) as server:
        for key in made:
            assert server.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        again = server.client.post("/v1/feedback", json={"rating": -1, "answer_id": min(kept)})
        assert again.json() == {"answer_id": min(kept)}
    ratings = FeedbackStore(tmp_path / "feedback.db").read_ratings()
    found = {rating.answer.text for rating in ratings if rating.rating == 1}
    assert found >= set(kept.values())
    assert {rating.annotator for rating in ratings} == {"first"}


def test_sigterm_finishes_what_streams_and_refuses_the_rest(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = make_key(keys, "one")
    with serving(folder, keys, key) as server:
        whole = text_of(iter(server.client.post(CHAT, json=LONG).text.split("\n\n")))
        assert len(whole) > 100
        told: list[str] = []

        def read() -> None:
            with server.client.stream("POST", CHAT, json=LONG) as response:
                told.append(text_of(response.iter_lines()))

        reader = threading.Thread(target=read)
        reader.start()
        server.wait_for(running=1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = server.client.post(CHAT, json=BODY)
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"]
        reader.join(60)
        assert told == [whole], "the stream was cut"
        assert server.process.wait(30) == 0


def test_sigterm_waits_no_longer_than_it_is_told(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = make_key(keys, "one")
    with (
        serving(folder, keys, key, "--set", "stop_seconds=0.1") as server,
        server.client.stream("POST", CHAT, json=LONG | {"max_tokens": 4096}) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        assert "data: [DONE]" not in _until_the_end(lines), "the stop waited for the whole answer"
        assert server.process.wait(30) == 0


def _until_the_end(lines: Iterator[str]) -> list[str]:
    told = []
    with suppress(httpx.TransportError):
        for line in lines:
            told.append(line)
    return told


def test_a_vanished_client_frees_its_place(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = make_key(keys, "one")
    with serving(folder, keys, key, "--set", "running=2", "--set", "waiting=0") as server:
        for stream in (True, False):
            body = json.dumps(LONG | {"stream": stream}).encode()
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
            for connection in connections:
                connection.sendall(head.encode() + body)
            server.wait_for(running=2)
            full = server.client.post(CHAT, json=BODY)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            for connection in connections:
                connection.close()
            begun = time.monotonic()
            server.wait_for(running=0)
            assert time.monotonic() - begun < 2
            assert server.client.post(CHAT, json=BODY).status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel's part needs Linux")
def test_a_client_that_reads_nothing_loses_its_connection(tmp_path: Path) -> None:
    """Ten megabytes are asked for on one connection and none is read. They are few and long vectors, for what is on
    trial is the sending of answers and not the computing of them."""
    folder = save_random(tmp_path, n_layers=1, d_model=1024)
    keys = tmp_path / "keys.json"
    key = make_key(keys, "one")
    with serving(folder, keys, key, "--set", "stalled_seconds=1") as server:
        request = {"model": "tiny", "input": [[1]] * 32}
        size = len(server.client.post("/v1/embeddings", json=request).raise_for_status().content)
        body = json.dumps(request).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        before = server.open_files()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            for _ in range(1 + 10_000_000 // size):
                connection.sendall(head.encode() + body)
            deadline = time.monotonic() + 60
            while server.open_files() == before:
                assert time.monotonic() < deadline
            while server.open_files() > before:
                assert time.monotonic() < deadline, "the connection is still open"
                assert server.client.post(CHAT, json=BODY).status_code == 200
                time.sleep(0.2)


def test_no_keys_and_an_open_address_do_not_start(folder: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        command = [sys.executable, "-m", "talaria", "serve", str(folder / "model"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
        assert done.returncode in (1, 2) and done.stderr.count("\n") <= 2, done.stderr
        return done.stderr

    assert "drop one of the two" in refused("--no-keys", "--host", "0.0.0.0")
    assert "talaria keys add" in refused()
    assert "requests_per_minute" in refused("--set", "request_per_minute=5")
    assert "names two models" in refused(str(folder / "model"))
