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
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from talaria.errors import UserError
from talaria.infer.contract import Chunk
from talaria.serve.limits import ClientGone, Refusal
from talaria.serve.log_probs import ChatLogProbs, Echo, LogProbs, TextLogProbs
from talaria.serve.schema import error_body, usage
from talaria.serve.tool_calls import ToolReader
from talaria.serve.worker import Answer, EngineFailed, Stopped
from talaria.tokens.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """The names that differ between routes, a choice of a whole answer and of a piece of it, and its `logprobs`."""

    id_prefix: str
    whole_object: str
    piece_object: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    log_probs: Callable[[Tokenizer], LogProbs]


CHAT = Shape(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
    ChatLogProbs,
)
TEXT = Shape(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
    TextLogProbs,
)


@dataclass
class Reply:
    """One request's answers (n a prompt) on their way out.

    `echoes` are what each answer begins with, if anything; `log_probs` one writer an answer, where they are asked for,
    and `readers` one an answer that may call tools.
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
    echoes: Sequence[Echo]
    log_probs: Sequence[LogProbs]
    readers: Sequence[ToolReader] = ()
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

        reasons: list[str | None] = [None] * len(self.answers)
        log_probs: list[dict[str, Any] | None] = [None] * len(self.answers)

        async def collect() -> None:
            async for index, piece in self._pieces():
                reasons[index] = self._reason(index, piece)
                if self.log_probs:
                    log_probs[index] = _joined(log_probs[index], self.log_probs[index].of(piece))

        try:
            await while_connected(self.request.receive, collect(), self.deadline)
        finally:
            await self.close()
        choices = [
            {"index": i, **self.shape.whole(text), "logprobs": log_probs[i], "finish_reason": reasons[i]}
            for i, text in enumerate(self.texts)
        ]
        for choice, calls in zip(choices, (reader.calls for reader in self.readers), strict=False):
            if calls:
                message = choice["message"]
                choice["message"] = message | {"content": message["content"].strip() or None, "tool_calls": calls}
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

    async def _pieces(self) -> AsyncIterator[tuple[int, Chunk | Echo]]:
        """Every answer's pieces, one answer after the other; they are made side by side all the same."""
        for index, answer in enumerate(self.answers):
            echo = self.echoes[index] if self.echoes else None
            async for chunk in answer:
                if echo is not None:  # after the first chunk has come, for only then nothing is wrong with the prompt
                    self.texts[index] = echo.text
                    yield index, echo
                    echo = None
                self.first_token_at = self.first_token_at or time.monotonic()
                self.n_tokens += len(chunk.token_ids)
                if self.readers:
                    chunk = replace(chunk, text=self.readers[index].push(chunk))
                self.texts[index] += chunk.text
                yield index, chunk

    async def _events(self, with_usage: bool) -> AsyncIterator[str]:
        def event(choices: list[dict[str, Any]], counts: dict[str, int] | None = None) -> str:
            body = {**self._head, "object": self.shape.piece_object, "choices": choices}
            return _event(body | {"usage": counts} if with_usage else body)

        opened: set[int] = set()
        async for index, piece in self._pieces():
            if index not in opened and self.shape.opening is not None:
                yield event([{"index": index, **self.shape.opening, "logprobs": None, "finish_reason": None}])
            opened.add(index)
            log_probs = self.log_probs[index].of(piece) if self.log_probs else None
            reason = self._reason(index, piece)
            if piece.text or log_probs or reason:
                content = self.shape.piece(piece.text)
                if reason and self.readers and (calls := self.readers[index].calls):
                    content["delta"]["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
                yield event([{"index": index, **content, "logprobs": log_probs, "finish_reason": reason}])
        if with_usage:
            yield event([], usage(self.prompt_tokens, self.n_tokens))
        yield "data: [DONE]\n\n"

    def _reason(self, index: int, piece: Chunk | Echo) -> str | None:
        reason = piece.finish_reason if isinstance(piece, Chunk) else None
        return "tool_calls" if reason and self.readers and self.readers[index].calls else reason


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
            except (Refusal, EngineFailed, Stopped, UserError) as error:
                kind = "invalid_request_error" if isinstance(error, UserError) else "server_error"
                await _send(send, _event(error_body(str(error), kind, getattr(error, "code", None))))
            await _send(send, "", more=False)
        finally:
            await self._reply.close()

    async def _tell(self, send: Send) -> None:
        await _send(send, self._first)
        async for event in self._events:
            await _send(send, event)


def _joined(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """Lists one behind the other; what is None stays None."""
    if before is None:
        return after
    return {name: None if after[name] is None else before[name] + after[name] for name in after}


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
