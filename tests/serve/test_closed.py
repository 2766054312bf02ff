"""A crawl of every route without a key: nothing computes, nothing is kept, nothing is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve.tiny_server import BODIES, CHAT, EMBED, TEXT, ask, tiny_engine
from talaria.feedback.store import FeedbackStore
from talaria.serve import worker
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key
from talaria.serve.limits import Gate
from talaria.serve.settings import ServeSettings

FEEDBACK, MODELS, METRICS, HEALTH, PAGE = "/v1/feedback", "/v1/models", "/metrics", "/health", "/page/page.js"
THUMB = {"rating": 1, "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "answer": "hello"}
RIGHT = BODIES | {FEEDBACK: THUMB}
CLOSED = {CHAT, TEXT, EMBED, FEEDBACK, MODELS, "/v1/models/tiny", METRICS}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# A crawl's ways to say that it has no key.
NO_KEYS: dict[str, str | None] = {
    "none": None,
    "empty": "Bearer ",
    "wrong": "Bearer tal-wrong",
    "not ascii": "Bearer é",
    "basic": "Basic dGFsOnRhbA==",
}


def asked_ways(path: str) -> list[str]:
    """A path, and what a sloppy router might take for it."""
    return [path, f"{path}/", f"/{path}", path.upper(), f"/page/..{path}", f"/page/%2e%2e{path}", f"{path}?key=x"]


def paths_of(app: FastAPI) -> set[str]:
    """Every route of the application, its parameter filled in. A kind of route that the guard may not know fails."""
    assert all(isinstance(route, APIRoute) for route in app.routes), "is this kind of route guarded?"
    return {
        route.path.replace("{name:path}", "tiny" if route.path.startswith("/v1/") else "page.js")
        for route in app.routes
        if isinstance(route, APIRoute)
    }


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was called of all that computes, keeps or reads for a client."""
    called: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            called.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    for name in ("submit", "embed", "score"):
        watch(worker.Worker, name)
    watch(worker, "embedding")
    for name in ("chat_prompt", "submit", "step"):
        watch(tiny_engine().__class__, name)
    watch(tiny_engine().model.__class__, "hidden")
    for name in ("append_prompt", "append_answer", "append_rating"):
        watch(FeedbackStore, name)
    return called


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    keys = tmp_path / "keys.json"
    make_key(keys, "somebody")
    store = FeedbackStore(tmp_path / "feedback.db")
    return create_app({"tiny": tiny_engine()}, Keyring(keys), ServeSettings(requests_per_minute=10**6), store)


def crawl(app: FastAPI, authorization: str | None) -> list[str]:
    """Ask everything in every way; returns what was answered that should not have been."""
    told, paths = [], paths_of(app)
    assert CLOSED | {"/", HEALTH, PAGE} <= paths | {"/v1/models/tiny"}, "the crawl misses a route"

    async def ask_all() -> None:
        headers = [(b"content-type", b"application/json")]
        if authorization is not None:
            headers.append((b"authorization", authorization.encode()))
        for path in sorted(paths | CLOSED | {"/docs", "/openapi.json", "/nowhere"}):
            for way in asked_ways(path):
                for method in METHODS:
                    status, text = await ask(app, method, way, headers, json.dumps(RIGHT.get(path)).encode())
                    if not is_closed(method, path, way, status, text):
                        told.append(f"{method} {way}: {status}")

    asyncio.run(ask_all())
    return told


def is_closed(method: str, path: str, way: str, status: int, text: str) -> bool:
    if "tiny" in text:
        return False
    if way.partition("?")[0] in ("/", HEALTH, PAGE) and method == "GET":
        return status == 200
    # What begins as the page's files do needs no key, and there is nothing but those files.
    return status == 401 or (status in (404, 405) and (way.startswith(("/page/", "//")) or path in ("/", HEALTH)))


@pytest.mark.parametrize("authorization", NO_KEYS.values(), ids=NO_KEYS)
def test_without_a_key_no_route_computes_keeps_or_tells(app, at_work, authorization):
    assert crawl(app, authorization) == []
    assert at_work == []


@pytest.mark.parametrize("path", sorted(CLOSED))
def test_the_crawl_finds_a_route_that_was_left_open(app, at_work, monkeypatch, path):
    """The guard taken from each route in turn."""
    admit = Gate.admit
    monkeypatch.setattr(Gate, "admit", lambda self, scope: "me" if scope["path"] == path else admit(self, scope))
    assert any(f" {path}: " in told for told in crawl(app, None))
    if path in RIGHT:
        assert at_work


def test_with_a_key_the_same_crawl_computes(app, at_work, tmp_path):
    """Or the crawl would ask nothing that could compute."""
    key = make_key(tmp_path / "keys.json", "me")
    assert len(crawl(app, f"Bearer {key}")) > len(CLOSED)
    assert {"submit", "embed", "embedding", "chat_prompt", "step", "hidden", "append_rating"} <= set(at_work)
