"""Answers of the engine as HTTP responses in OpenAI's shapes, whole or as server-sent events.

    reply = Reply(CHAT, request, model_name, answers, prompt_tokens, deadline, told)
    return await reply.stream(with_usage=True)            # or await reply.whole()

Whatever ends a response - its end, an error, a client that left or that reads nothing - also ends its answers.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from talaria.infer.contract import Chunk
from talaria.serve.limits import ClientGone, Refusal
from talaria.serve.schema import error_body, usage
from talaria.serve.worker import Answer, EngineFailed, Stopped

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """The names that differ between routes, and a choice of a whole answer and of a piece of it."""

    id_prefix: str
    whole_object: str
    piece_object: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None


CHAT = Shape(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
TEXT = Shape(
    "cmpl-", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}, None
)


@dataclass
class Reply:
    """One request's answers (one a prompt) on their way out.

    `deadline` is a time of the event loop's clock. `told(texts, n_tokens, first_token_at)` is called once, however it
    ends: the text of each answer so far, tokens generated in all, time.monotonic() at the first (None: there was none).
    """

    shape: Shape
    request: Request
    model: str
    answers: Sequence[Answer[Chunk]]
    prompt_tokens: int
    deadline: float
    told: Callable[[list[str], int, float | None], None]
    texts: list[str] = field(init=False)
    n_tokens: int = 0
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.texts = [""] * len(self.answers)
        self._head = {
            "id": f"{self.shape.id_prefix}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model,
        }

    async def whole(self) -> JSONResponse:
        """All answers in one response."""

        async def collect() -> list[str | None]:
            reasons: list[str | None] = [None] * len(self.answers)
            async for index, chunk in self._chunks():
                reasons[index] = chunk.finish_reason
            return reasons

        try:
            reasons = await while_connected(self.request.receive, collect(), self.deadline)
        finally:
            await self.close()
        choices = [
            {"index": index, **self.shape.whole(text), "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(zip(self.texts, reasons, strict=True))
        ]
        body = {**self._head, "object": self.shape.whole_object, "choices": choices}
        return JSONResponse({**body, "usage": usage(self.prompt_tokens, self.n_tokens)})

    async def stream(self, with_usage: bool) -> Response:
        """The answers piece by piece. Returns once the first piece is there, so that what goes wrong before it - a bad
        prompt, no place, no time - is a proper error and not half a stream."""
        events = self._events(with_usage)
        try:
            first = await while_connected(self.request.receive, anext(events), self.deadline)
        except BaseException:
            await self.close()
            raise
        return EventStream(first, events, self)

    async def close(self) -> None:
        """End what has not ended."""
        for answer in self.answers:
            await answer.aclose()
        self.told(self.texts, self.n_tokens, self.first_token_at)

    async def _chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Every answer's chunks, one answer after the other; they are made side by side all the same."""
        for index, answer in enumerate(self.answers):
            async for chunk in answer:
                self.first_token_at = self.first_token_at or time.monotonic()
                self.texts[index] += chunk.text
                self.n_tokens += len(chunk.token_ids)
                yield index, chunk

    async def _events(self, with_usage: bool) -> AsyncIterator[str]:
        def event(choices: list[dict[str, Any]], counts: dict[str, int] | None = None) -> str:
            body = {**self._head, "object": self.shape.piece_object, "choices": choices}
            return _event(body | {"usage": counts} if with_usage else body)

        def choice(index: int, content: dict[str, Any], reason: str | None) -> list[dict[str, Any]]:
            return [{"index": index, **content, "logprobs": None, "finish_reason": reason}]

        opened: set[int] = set()
        async for index, chunk in self._chunks():
            if index not in opened and self.shape.opening is not None:
                yield event(choice(index, self.shape.opening, None))
            opened.add(index)
            if chunk.text or chunk.finish_reason:
                yield event(choice(index, self.shape.piece(chunk.text), chunk.finish_reason))
        if with_usage:
            yield event([], usage(self.prompt_tokens, self.n_tokens))
        yield "data: [DONE]\n\n"


class EventStream(Response):
    """Server-sent events; an error after the first is told as an event, since the status has gone out."""

    def __init__(self, first: str, events: AsyncIterator[str], reply: Reply) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]  # of the empty body that Response was given
        self._first, self._events, self._reply = first, events, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await while_connected(receive, self._tell(send), self._reply.deadline)
            except (Refusal, EngineFailed, Stopped) as error:
                await _send(send, _event(error_body(str(error), "server_error", getattr(error, "code", None))))
            await _send(send, "", more=False)
        finally:
            await self._reply.close()

    async def _tell(self, send: Send) -> None:
        await _send(send, self._first)
        async for event in self._events:
            await _send(send, event)


async def _send(send: Send, text: str, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def while_connected(receive: Receive, work: Awaitable[T], deadline: float) -> T:
    """The result of `work`, which is cancelled when the client leaves (ClientGone) or time is up (Refusal)."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        wait = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait({working, leaving}, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientGone
        raise Refusal(504, "the answer took longer than this server allows; ask for fewer tokens")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
