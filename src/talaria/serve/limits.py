"""What a request must pass before a route sees it: key, rate, size and time; and what a client may not do to others.

    app.add_middleware(Guard, gate=Gate(keyring, settings, metrics))

Every path asks for a key unless it stands in OPEN or is a file of the chat page, so that a new route is closed until
somebody opens it.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from talaria.serve.keys import Keyring
from talaria.serve.metrics import Metrics
from talaria.serve.schema import error_body
from talaria.serve.settings import ServeSettings
from talaria.serve.web import PAGE

OPEN = frozenset({"/", "/health"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    408: "request_timeout",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "overloaded",
    504: "timeout",
}


class Refusal(Exception):
    """A request that gets an error in OpenAI's shape. `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code or _CODES.get(status)
        self.param = param

    def response(self) -> JSONResponse:
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(error_body(str(self), kind, self.code, self.param), self.status, headers)


class RateLimit:
    """A token bucket a name: `per_minute` requests at once after a quiet minute, then evenly that many a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # name: requests left, at which time

    def take(self, name: str) -> float:
        """Count a request; returns 0, or the seconds until one will be let through."""
        now = self._clock()
        left, then = self._left.get(name, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        if left < 1:
            return (1 - left) * 60 / self.per_minute
        self._left[name] = (left - 1, now)
        return 0.0


@dataclass
class Gate:
    """What the guard knows and the server's stop needs. `keyring` None lets everybody in."""

    keyring: Keyring | None
    settings: ServeSettings
    metrics: Metrics
    stopping: bool = False
    active: int = 0
    rate: RateLimit = field(init=False)

    def __post_init__(self) -> None:
        self.rate = RateLimit(self.settings.requests_per_minute)

    def admit(self, scope: Scope) -> str:
        """The name of the key that lets this request in; raises Refusal."""
        headers, computes = Headers(scope=scope), scope["method"] not in ("GET", "HEAD")
        name = self._key_name(headers)
        if not computes:
            return name
        if self.stopping:
            raise Refusal(503, "the server is stopping; try again later", retry_after=5)
        if wait := self.rate.take(name):
            raise Refusal(
                429,
                f"more than {self.settings.requests_per_minute} requests a minute; wait {math.ceil(wait)} s",
                retry_after=math.ceil(wait),
            )
        return name

    def _key_name(self, headers: Headers) -> str:
        if self.keyring is None:
            _refuse_other_sites(headers)
            return "anybody"
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        name = self.keyring.name_of(secret.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise Refusal(401, "missing, wrong or revoked API key: send the header Authorization: Bearer KEY")
        return name


def _refuse_other_sites(headers: Headers) -> None:
    """Without keys, a page of any site in this machine's browser could use the model: by a form, or by a host name that
    its owner points at 127.0.0.1. Both show in the headers, which a page cannot set."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        local = urlsplit(f"//{host}").hostname in _LOCAL_NAMES
        own = local and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # a bracket that does not close
        own = False
    if not own:
        raise Refusal(403, "without keys only this machine's own programs are answered, no other site's page")


class ClientGone(Exception):
    """The client left, or takes nothing of its answer: nobody reads a response."""


class Guard:
    """Middleware: refuses what `gate` does not admit, reads the body within its limits, and times each send."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, settings = time.monotonic(), 500, self.gate.settings
        request_id = uuid.uuid4().hex

        async def timed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            try:
                async with asyncio.timeout(settings.stalled_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        self.gate.active += 1
        try:
            if scope["path"] not in OPEN and not scope["path"].startswith(PAGE):
                scope["talaria.key"] = self.gate.admit(scope)
            body = await _read_body(Headers(scope=scope), receive, settings)
            await self.app(scope, _replay(body, receive), timed_send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, timed_send)
        except ClientGone:
            status = 499  # its answers are cancelled by now; the server closes the connection of an unended response
        finally:
            self.gate.active -= 1
            route = getattr(scope.get("route"), "path", "other")  # never the path itself: clients choose it
            self.gate.metrics.add("talaria_requests_total", route=route, status=str(status))
            self.gate.metrics.observe("talaria_request_seconds", time.monotonic() - begun, route=route)


async def _read_body(headers: Headers, receive: Receive, settings: ServeSettings) -> bytes:
    """The whole body. Raises Refusal where it is too large or too slow, ClientGone where it breaks off."""
    too_large = Refusal(413, f"the body is larger than {settings.body_bytes:,} bytes; send less")
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > settings.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.stalled_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > settings.body_bytes:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408, f"the body took longer than {settings.stalled_seconds:g} s to arrive") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body in one message, then whatever comes: that the client leaves."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
