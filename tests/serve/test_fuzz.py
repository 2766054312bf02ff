"""No request makes the server fail: bodies from its own OpenAPI schema, broken in every way, odd headers and paths.

An answer is 200 or an error in OpenAI's shape with a status below 500, and the server answers rightly afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.tiny_server import BODIES, ask, tiny_engine
from talaria.feedback.store import FeedbackStore
from talaria.serve.app import create_app
from talaria.serve.keys import Keyring, make_key
from talaria.serve.settings import ServeSettings

FEEDBACK = "/v1/feedback"
THUMB = {"rating": 1, "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "answer": "hello"}
RIGHT = BODIES | {FEEDBACK: THUMB}
# The same requests each time: a failure is the change's, and the run has a bounded length.
FUZZ = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**25, 10**4299, 1e308, -0.0, float("nan"), float("inf")]),
)
# Surrogates too: JSON can spell them, UTF-8 cannot.
WORDS = st.text(st.characters(), max_size=20) | st.sampled_from(["tiny", "\ud800", "\x00", "a" * 300, "user", "text"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(WORDS, inside, max_size=4),
    max_leaves=8,
)


class Fuzzed:
    """A server in this process that counts what it answered."""

    def __init__(self, folder: Path) -> None:
        keys = folder / "keys.json"
        self.key = make_key(keys, "fuzz")
        self.app = create_app(
            {"tiny": tiny_engine()},
            Keyring(keys),
            ServeSettings(requests_per_minute=10**6),
            FeedbackStore(folder / "feedback.db"),
        )
        self.runner = asyncio.Runner()
        self.statuses: Counter[int] = Counter()

    def ask(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
        """Status of the response, which must be no failure of the server."""
        own = [(b"authorization", f"Bearer {self.key}".encode()), (b"content-type", b"application/json")]
        given = {name.lower() for name, _ in headers}
        asked = [*[(name, value) for name, value in own if name not in given], *headers]
        status, text = self.runner.run(asyncio.wait_for(ask(self.app, method, path, asked, body), 30))
        assert status < 500, text
        if status >= 400 and text:
            error = json.loads(text)["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"]
        self.statuses[status] += 1
        return status

    def schemas(self) -> dict[str, Any]:
        """For each path that takes a body its schema, references filled in."""
        spec = get_openapi(title="t", version="1", routes=self.app.routes)
        return {
            path: resolved(item["post"]["requestBody"]["content"]["application/json"]["schema"], spec)
            for path, item in spec["paths"].items()
            if "post" in item
        }


def resolved(schema: Any, spec: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return resolved(spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]], spec)
        return {name: resolved(part, spec) for name, part in schema.items()}
    return [resolved(part, spec) for part in schema] if isinstance(schema, list) else schema


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a schema allows, so that most fields pass and the deeper checks are reached."""
    if "anyOf" in schema:
        return st.one_of([values_of(part) for part in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    least, most = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("exclusiveMinimum", -1) + 1 if least is None else least, most or 64)
        case "number":
            return st.floats(least or 0.01, most or 1)
        case "string":
            plain = st.text(st.characters(codec="utf-8"), max_size=min(20, schema.get("maxLength", 20)))
            return plain | st.sampled_from(["\ud800", "a\udc00", "\x00", "🙂"])
        case "array":
            return st.lists(values_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        case "object" if "properties" in schema:
            required = schema.get("required", [])
            parts = {name: values_of(part) for name, part in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: part for name, part in parts.items() if name in required},
                optional={name: part for name, part in parts.items() if name not in required},
            )
        case "object":
            more = schema["additionalProperties"]
            inside = values_of(more if isinstance(more, dict) else {})
            return st.dictionaries(st.sampled_from(["1", "40", "x"]), inside, max_size=3)
        case _:
            return ANYTHING | st.sampled_from(["hello", "\ud800", ["a", "b"], [1, 2], [[1], "a"]])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    server = Fuzzed(tmp_path_factory.mktemp("fuzz"))
    yield server
    for path, body in RIGHT.items():
        assert server.ask("POST", path, [], json.dumps(body).encode()) == 200, "the server no longer answers"

    async def stop() -> None:
        async with server.app.router.lifespan_context(server.app):
            pass

    server.runner.run(stop())
    server.runner.close()


def test_every_route_that_takes_a_body_is_fuzzed(fuzzed: Fuzzed) -> None:
    assert set(fuzzed.schemas()) == set(RIGHT)


@pytest.mark.parametrize("path", RIGHT)
def test_no_body_makes_the_server_fail(fuzzed: Fuzzed, path: str) -> None:
    """What the schema allows, laid over a right body, with up to three fields made into anything."""
    schema = fuzzed.schemas()[path]
    optional = {name: values_of(part) for name, part in schema["properties"].items() if name != "model"}
    known = sorted(schema["properties"])
    before = fuzzed.statuses.copy()

    @settings(FUZZ, max_examples=80)
    @given(st.data())
    def bombard(data: st.DataObject) -> None:
        body: Any = RIGHT[path] | data.draw(st.fixed_dictionaries({}, optional=optional))
        if "max_tokens" in body and isinstance(body["max_tokens"], int):
            body["max_tokens"] = min(body["max_tokens"], 6)
        for name in data.draw(st.lists(st.sampled_from([*known, "tools", "\ud800"]), max_size=3)):
            body[name] = data.draw(ANYTHING | values_of(schema["properties"].get(name, {})))
        body = data.draw(st.sampled_from([body] * 9 + [[body], None]))
        fuzzed.ask("POST", path, [], json.dumps(body).encode())

    bombard()
    counted = fuzzed.statuses - before
    assert counted[200] >= 5 and counted[400] >= 20, f"one-sided: {counted}"


BROKEN = [
    b"",
    b"{",
    b"{broken}",
    b"null",
    b"\xff\xfe{}",
    b'{"model": "\xff"}',
    b'{"model": "\xed\xa0\x80"}',
    b'{"model": "tiny", "model": 5}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 5000,
    b'{"max_tokens": ' + b"9" * 5000 + b"}",
    b"\x00" * 100,
    b"data=1&model=tiny",
]


@pytest.mark.parametrize("path", RIGHT)
def test_bytes_that_are_no_json_are_refused(fuzzed: Fuzzed, path: str) -> None:
    right = json.dumps(RIGHT[path]).encode()

    @settings(FUZZ, max_examples=60)
    @given(st.binary(max_size=60), st.integers(0, len(right)), st.integers(0, 3))
    def bombard(noise: bytes, place: int, gone: int) -> None:
        fuzzed.ask("POST", path, [], right[:place] + noise + right[place + gone :])

    for body in BROKEN:
        assert fuzzed.ask("POST", path, [], body) == 400, body[:40]
    bombard()


NAMES = [
    *(b"authorization", b"content-type", b"content-length", b"host", b"origin", b"accept", b"accept-encoding"),
    *(b"transfer-encoding", b"x-request-id", b"cookie", b"range", b"expect", b"x-forwarded-for", b"connection"),
]
VALUES = [
    *(b"", b"Bearer", b"Bearer \xff\xfe", b"Bearer " + b"x" * 70_000, b"-1", b"9" * 30, b"1e3", b"\xb2"),
    *(b"application/json; charset=\xff", b"multipart/form-data", b"text/plain", b"[::1", b"http://[", b"gzip"),
]
HEADERS = st.tuples(st.sampled_from(NAMES), st.binary(max_size=40) | st.sampled_from(VALUES))


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
def test_odd_headers_and_paths_are_refused_or_ignored(fuzzed: Fuzzed, keys: bool) -> None:
    """Every route of the application, also as a server without keys reads `host` and `origin`."""
    gate = fuzzed.app.state.gate
    keyring = gate.keyring
    paths = sorted(route.path for route in fuzzed.app.routes if isinstance(route, APIRoute))

    @settings(FUZZ, max_examples=120)
    @given(
        st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "BREW"]),
        st.sampled_from(paths) | WORDS.map(lambda word: f"/{word}") | WORDS.map(lambda word: f"/v1/models/{word}"),
        WORDS,
        st.lists(HEADERS, max_size=4),
        st.booleans(),
    )
    def bombard(method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], right: bool) -> None:
        body = json.dumps(RIGHT.get(path)).encode() if right else b"{}"
        path = path.encode(errors="replace").decode()  # a server's paths are text
        fuzzed.ask(method, f"{path}?{query}", [*headers, (b"host", b"127.0.0.1")], body)

    gate.keyring = keyring if keys else None
    try:
        for name, value in itertools.product(NAMES, VALUES):
            fuzzed.ask("POST", FEEDBACK, [(name, value), (b"host", b"127.0.0.1")], b"{}")
        bombard()
    finally:
        gate.keyring = keyring
