"""Servers in this process, each with a key file of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from serve.tiny_server import Server, tiny_engine
from talaria.feedback.store import FeedbackStore
from talaria.infer.engine import Engine
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key
from talaria.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key file; `client` uses the key named first."""
    return tmp_path / "keys.json"


@pytest.fixture
def served(engine: Engine, keys: Path) -> Iterator[Callable[..., Server]]:
    """Make a server: `served(requests_per_minute=2)`; with `engines` its models, with `open=True` without keys."""
    made: list[FastAPI] = []

    def make(
        engines: dict[str, Engine] | None = None,
        open: bool = False,
        store: FeedbackStore | None = None,
        **settings: Any,
    ) -> Server:
        key = None if open else make_key(keys, f"client-{len(made)}")
        app = create_app(engines or {"tiny": engine}, None if open else Keyring(keys), ServeSettings(**settings), store)
        made.append(app)
        return Server(app, key)

    yield make

    async def stop(app: FastAPI) -> None:
        async with app.router.lifespan_context(app):
            pass

    for app in made:
        asyncio.run(stop(app))


@pytest.fixture
def server(served: Callable[..., Server]) -> Server:
    return served()
