"""A tiny engine behind the application, in this process: no socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import httpx
from fastapi import FastAPI
from random_weights import random_model

from talaria.errors import UserError
from talaria.infer.contract import Chunk
from talaria.infer.engine import Engine
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "hello 你好"}], "max_tokens": 12, "seed": 3},
    TEXT: {"model": "tiny", "prompt": "hello 你", "max_tokens": 12, "seed": 3},
    EMBED: {"model": "tiny", "input": "hello 你好"},
}


def tiny_engine(seed: int = 0, context: int = 64) -> Engine:
    tokenizer = Tokenizer.train(["hello world, 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, context=context)
    return Engine(random_model(shape, seed), tokenizer)


class Server:
    """An application and a key; each call runs in an event loop of its own."""

    def __init__(self, app: FastAPI, key: str | None) -> None:
        self.app, self.key = app, key

    def client(self, key: str | None = None, **options: Any) -> httpx.AsyncClient:
        key = self.key if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app=self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers, **options)

    def call(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client(key) as client:
                return await client.request(method, path, **options)

        return asyncio.run(asyncio.wait_for(send(), 30))

    def post(self, path: str, **changes: Any) -> httpx.Response:
        return self.call("POST", path, json=BODIES[path] | changes)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(work, 30))


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream that ended well."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class Slow:
    """An engine that takes `seconds` for a step and counts those that made a token."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.engine, self.seconds, self.n_steps = engine, seconds, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self) -> list[tuple[int, Chunk | UserError]]:
        time.sleep(self.seconds)
        chunks = self.engine.step()
        self.n_steps += bool(chunks)
        return chunks


async def drive(
    app: FastAPI, body: bytes, key: str | None, receive: Any, send: Any, path: str = CHAT, method: str = "POST"
) -> None:
    """Call the application as a server does, with a client's ends of the connection in hand."""
    headers = [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    first = [{"type": "http.request", "body": body, "more_body": False}] if body else []

    async def receive_body() -> Any:
        return first.pop() if first else await receive()

    await app(_scope(method, path, headers), receive_body, send)


async def ask(
    app: FastAPI, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
) -> tuple[int, str]:
    """Status and body of a response to bytes that no client library has put right: any path, any headers."""
    sent: list[dict[str, Any]] = []
    arriving = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return arriving.pop() if arriving else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(_scope(method, path, [*headers]), receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode(errors="replace")


def _scope(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(errors="replace"),
        "query_string": query.encode(errors="replace"),
        "headers": headers,
    }
