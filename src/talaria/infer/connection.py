"""JSON over HTTP to an endpoint that may be busy: requests in, parsed answers out, tried again where that may help."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from talaria.errors import UsageError, UserError

try:
    import httpx
except ImportError:
    raise UserError("a remote engine needs httpx; install it with: pip install 'talaria-lm[serve]'") from None

_LONGEST_DELAY_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0


class RefusedError(UserError):
    """The endpoint understood the request and will not do it (a 4xx status other than 401, 403 and 429)."""


@dataclass
class Meter:
    """What an engine has used so far: requests answered, tokens as the endpoint counts them, time spent waiting."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    cache_hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to the named counts; threads may."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


class Connection:
    """Posts JSON below `url`. Raises UserError that names the address, never the key."""

    def __init__(
        self,
        url: str,
        key: str | None,
        max_retries: int,
        timeout_seconds: float,
        first_delay_seconds: float,
        meter: Meter,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"url {url!r}: {error}; write it as http://host:port/v1") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"url {url!r}: write it as http://host:port/v1")
        self.url = url.rstrip("/") + ("/v1" if parsed.path in ("", "/") else "")
        self.max_retries = max_retries
        self.first_delay_seconds = first_delay_seconds
        self.meter = meter
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(headers=headers, timeout=timeout_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send `body` and return the answer's JSON."""
        begun = time.monotonic()
        with self._respond(path, body, streaming=False) as response:
            try:
                answer = response.json()
            except ValueError:
                raise UserError(
                    f"{self.url}{path}: the answer is not JSON; is this an OpenAI-compatible URL?"
                ) from None
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise UserError(f"{self.url}{path}: the answer holds no choices; is this an OpenAI-compatible URL?")
        self._count(answer, time.monotonic() - begun)
        return answer

    def post_stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send `body` and yield the server-sent events. Only the beginning is tried again, never a half-told answer."""
        begun = time.monotonic()
        last: dict[str, Any] = {}
        with self._respond(path, body, streaming=True) as response:
            try:
                for line in response.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        break
                    event = json.loads(data)
                    if "error" in event:
                        raise UserError(f"{self.url}{path}: {_error_message(event)}")
                    last = event if event.get("usage") else last
                    yield event
            except httpx.TransportError as error:
                raise UserError(f"{self.url}{path}: the stream broke off ({error}); try again") from None
            except json.JSONDecodeError:
                raise UserError(f"{self.url}{path}: an event is not JSON; is this an OpenAI-compatible URL?") from None
        self._count(last, time.monotonic() - begun)

    @contextmanager
    def _respond(self, path: str, body: dict[str, Any], streaming: bool) -> Iterator[httpx.Response]:
        """A successful response, its body read unless `streaming`; the context closes it."""
        address = self.url + path
        for attempt in range(self.max_retries + 1):
            retry_after: float | None = None
            response: httpx.Response | None = None
            try:
                response = self._client.send(self._client.build_request("POST", address, json=body), stream=True)
                if not (streaming and response.is_success):
                    response.read()
            except httpx.TransportError as error:
                if response is not None:
                    response.close()
                problem = f"no answer ({type(error).__name__}: {error})"
            else:
                if response.is_success:
                    try:
                        yield response
                    finally:
                        response.close()
                    return
                problem = f"status {response.status_code}: {_error_message(_json_or_none(response))}"
                if response.status_code in (401, 403):
                    raise UserError(f"{address}: {problem}; check the key")
                if response.status_code < 500 and response.status_code not in (408, 429):
                    raise RefusedError(f"{address}: {problem}")
                retry_after = _retry_after_seconds(response.headers.get("retry-after"))
            if attempt == self.max_retries:
                raise UserError(f"{address}: {problem}; gave up after {attempt + 1} attempts")
            if retry_after is not None and retry_after > _LONGEST_RETRY_AFTER_SECONDS:
                raise UserError(f"{address}: {problem}; asks to come back in {retry_after:.0f} seconds, so try then")
            delay = min(self.first_delay_seconds * 2**attempt, _LONGEST_DELAY_SECONDS) * random.uniform(0.5, 1.0)
            time.sleep(delay if retry_after is None else retry_after)
            self.meter.add(retries=1)

    def _count(self, answer: dict[str, Any], seconds: float) -> None:
        usage = answer.get("usage") or {}
        self.meter.add(
            requests=1,
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            seconds=seconds,
        )


def _retry_after_seconds(header: str | None) -> float | None:
    """Seconds until Retry-After, which is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        if header.strip().isdigit():
            return float(header)
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _json_or_none(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _error_message(body: Any) -> str:
    """One line of what the endpoint said."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300] if message else "no explanation"
