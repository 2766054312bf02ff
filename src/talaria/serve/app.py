"""An engine behind OpenAI's chat route: HTTP requests with a key in, answers out, whole or streamed.

    app = create_app(engine, "laptop", load_key_hashes(Path("keys.json")))
    serve(engine, "laptop", key_hashes)               # http://127.0.0.1:8000/v1, until Ctrl-C

GET /health is open; GET /v1/models and POST /v1/chat/completions want `Authorization: Bearer KEY`. One answer is made
at a time; a client that goes away ends its answer at the next token.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Annotated, Any

from talaria.errors import UserError

try:
    from fastapi import Depends, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
except ImportError:
    raise UserError("serving needs FastAPI; install it with: pip install 'talaria-lm[serve]'") from None

from talaria.infer.contract import Chunk
from talaria.infer.engine import Engine
from talaria.serve.keys import is_known
from talaria.serve.schema import ChatRequest, error_body, usage
from talaria.serve.settings import ServeSettings

_bearer = HTTPBearer(auto_error=False)


def create_app(
    engine: Engine, model_name: str, key_hashes: Sequence[str], settings: ServeSettings | None = None
) -> FastAPI:
    """The application. `key_hashes` are SHA-256 hashes as `talaria.serve.keys` makes them; at least one."""
    if not key_hashes:
        raise UserError("serving needs at least one key; make one first")
    settings = settings or ServeSettings()
    created = int(time.time())
    turn = asyncio.Lock()  # the engine runs one request at a time
    app = FastAPI(title="Talaria", docs_url=None, redoc_url=None, openapi_url=None)
    _answer_errors_as_openai(app)

    def require_key(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if credentials is None or not is_known(credentials.credentials, key_hashes):
            raise HTTPException(401, "missing or wrong API key: send the header Authorization: Bearer KEY")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": model_name}

    @app.get("/v1/models", dependencies=[Depends(require_key)])
    async def models() -> dict[str, Any]:
        entry = {"id": model_name, "object": "model", "created": created, "owned_by": "talaria"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions", dependencies=[Depends(require_key)], response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        if body.model != model_name:
            raise HTTPException(404, f"model {body.model!r} is not served here; ask for {model_name!r}")
        messages = [message.plain() for message in body.messages]
        # The prompt is checked here, before the first byte of a stream promises success.
        prompt = await run_in_threadpool(engine.chat_prompt, messages)
        chunks = engine.stream(prompt, **body.sampling(settings.max_tokens))
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(_one_at_a_time(chunks, turn), head, len(prompt), with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        text, n_tokens, reason = "", 0, None
        answer = _one_at_a_time(chunks, turn)
        try:
            async for chunk in answer:
                text, n_tokens, reason = text + chunk.text, n_tokens + len(chunk.token_ids), chunk.finish_reason
                if await request.is_disconnected():
                    break
        finally:
            await answer.aclose()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        counts = usage(len(prompt), n_tokens)
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": counts})

    return app


def serve(engine: Engine, model_name: str, key_hashes: Sequence[str], settings: ServeSettings | None = None) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    settings = settings or ServeSettings()
    app = create_app(engine, model_name, key_hashes, settings)
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="info")


async def _one_at_a_time(chunks: Iterator[Chunk], turn: asyncio.Lock) -> AsyncGenerator[Chunk, None]:
    """Run the engine's steps in a worker thread, holding the turn from the first to the last."""
    async with turn:
        while (chunk := await run_in_threadpool(next, chunks, None)) is not None:
            yield chunk


async def _events(
    chunks: AsyncGenerator[Chunk, None], head: dict[str, Any], prompt_tokens: int, with_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events in OpenAI's shape; the last says [DONE]."""

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        body = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def choice(delta: dict[str, str], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": reason}]

    n_tokens = 0
    try:
        yield event(choice({"role": "assistant", "content": ""}))
        async for chunk in chunks:
            n_tokens += len(chunk.token_ids)
            if chunk.text or chunk.finish_reason:
                yield event(choice({"content": chunk.text} if chunk.text else {}, chunk.finish_reason))
        if with_usage:
            yield event([], usage=usage(prompt_tokens, n_tokens))
        yield "data: [DONE]\n\n"
    finally:
        await chunks.aclose()  # a client that went away must not keep the turn


def _answer_errors_as_openai(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        codes = {401: "invalid_api_key", 404: "not_found"}
        headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else None
        body = error_body(str(error.detail), "invalid_request_error", codes.get(error.status_code))
        return JSONResponse(body, error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def bad_body(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return JSONResponse(error_body(message, "invalid_request_error", None, place or None), 400)

    @app.exception_handler(UserError)
    async def user_error(_request: Request, error: UserError) -> JSONResponse:
        return JSONResponse(error_body(str(error), "invalid_request_error"), 400)

    @app.exception_handler(Exception)
    async def server_error(_request: Request, _error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server failed; its log says why", "server_error"), 500)
