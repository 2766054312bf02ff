"""Engines behind OpenAI's routes: HTTP requests with a key in, answers out, whole or streamed.

    app = create_app({"laptop": engine}, Keyring(Path("talaria-keys.json")))

POST /v1/chat/completions, /v1/completions and /v1/embeddings compute, POST /v1/feedback keeps a thumb, GET /v1/models
and /metrics tell. All of them want `Authorization: Bearer KEY`. GET /health, which tells nothing but that the server is
there, and the files of the chat page are open.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from talaria.errors import UserError

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException
except ImportError:
    raise UserError("serving needs FastAPI; install it with: pip install 'talaria-lm[serve]'") from None

from talaria.feedback.store import FeedbackStore
from talaria.infer.contract import Chunk, Sampling, row_seed
from talaria.infer.engine import Engine
from talaria.serve.keys import Keyring
from talaria.serve.limits import Gate, Guard, Refusal
from talaria.serve.log_probs import Echo
from talaria.serve.metrics import CONTENT_TYPE, Metrics
from talaria.serve.prompt_log import log_prompt
from talaria.serve.replies import CHAT, TEXT, Reply, Shape, while_connected
from talaria.serve.schema import ChatRequest, CompletionRequest, EmbeddingRequest, Prompt
from talaria.serve.settings import ServeSettings
from talaria.serve.thumbs import add_feedback
from talaria.serve.tool_calls import ToolPlan, plan_tools
from talaria.serve.web import add_page
from talaria.serve.worker import Answer, EngineFailed, Overloaded, Stopped, Worker

logger = logging.getLogger("talaria.serve")
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """One model that is asked for by its name."""

    name: str
    engine: Engine
    worker: Worker
    created: int

    def entry(self) -> dict[str, Any]:
        """As /v1/models tells it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "talaria"}


def create_app(
    engines: Mapping[str, Engine],
    keyring: Keyring | None,
    settings: ServeSettings | None = None,
    store: FeedbackStore | None = None,
) -> FastAPI:
    """The application; `app.state.gate` is its gate. `keyring` None answers everybody on this machine without a key,
    `store` None keeps no feedback."""
    if not engines:
        raise UserError("serving needs at least one model")
    settings = settings or ServeSettings()
    gate = Gate(keyring, settings, Metrics())
    models = {
        name: Served(name, engine, Worker(engine, settings.running, settings.waiting), int(time.time()))
        for name, engine in engines.items()
    }
    for model in models.values():
        _watch(model, gate.metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for model in models.values():
            await asyncio.to_thread(model.worker.stop)

    app = FastAPI(title="Talaria", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.gate = gate
    app.add_middleware(Guard, gate=gate)
    answer_errors_as_openai(app)
    add_page(app)
    add_feedback(app, store, models)

    def asked_for(name: str) -> Served:
        if name not in models:
            names = ", ".join(map(repr, models))
            raise Refusal(
                404, f"model {name!r} is not served here; ask for {names}", code="model_not_found", param="model"
            )
        return models[name]

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "stopping" if gate.stopping else "ok"}, 503 if gate.stopping else 200)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(gate.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model.entry() for model in models.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return asked_for(name).entry()

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        model = asked_for(body.model)
        messages, plan = [message.plain() for message in body.messages], plan_tools(model.engine, body)
        if settings.prompt_log is not None:
            user = None if keyring is None else request.scope["talaria.key"]  # without keys all would be one person
            await asyncio.to_thread(log_prompt, settings.prompt_log, messages, user)

        def encode() -> list[list[int]]:
            engine = model.engine
            return [engine.chat_prompt(messages) if plan is None else plan.prompt(engine, messages)]

        return await answer(request, model, CHAT, body, encode, messages, False, plan)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        model = asked_for(body.model)
        _check_count("prompt", body.prompt, settings)
        echo = bool(body.echo)
        return await answer(request, model, TEXT, body, lambda: encoded(model, body.prompt), body.prompt, echo)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> JSONResponse:
        model = asked_for(body.model)
        _check_count("input", body.input, settings)
        deadline = asyncio.get_running_loop().time() + settings.request_seconds
        texts = await _within(deadline, lambda: encoded(model, body.input))
        _check_prompts(texts, model, settings)
        vectors = model.worker.embed(texts)
        try:
            found = await while_connected(request.receive, _collect(vectors), deadline)
        finally:
            await vectors.aclose()
        n_tokens = sum(map(len, texts))
        gate.metrics.add("talaria_prompt_tokens_total", n_tokens, model=model.name)
        _log(request, model, settings, body.input, [], n_tokens, 0)
        told = _as_base64 if body.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": told(vector)} for index, vector in enumerate(found)
        ]
        counts = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": counts})

    async def answer(
        request: Request,
        model: Served,
        shape: Shape,
        body: ChatRequest | CompletionRequest,
        encode: Callable[[], list[list[int]]],
        prompt: Any,
        echo: bool,
        plan: ToolPlan | None = None,
    ) -> Response:
        begun, deadline = time.monotonic(), asyncio.get_running_loop().time() + settings.request_seconds
        n_top = body.asked_log_probs()
        sampling = body.sampling(settings, n_top)
        if plan is not None:
            sampling = plan.sampling(sampling)
        prompts = await _within(deadline, encode)
        await _within(deadline, lambda: model.engine.check(sampling))
        _check_prompts(prompts, model, settings)
        n = body.n or 1
        if n * len(prompts) > settings.inputs:
            raise Refusal(
                400, f"n: {n} answers to {len(prompts)} prompts; ask for {settings.inputs} at most", param="n"
            )
        echoes = await _echoes(request, model, prompts, prompt, n_top, deadline) if echo else []
        log_probs = [] if n_top is None else [shape.log_probs(model.engine.tokenizer) for _ in range(n * len(prompts))]
        answers = await _submitted(model.worker, prompts, sampling, body.seed, n)
        n_prompt_tokens = sum(map(len, prompts))

        def told(texts: list[str], n_tokens: int, first_token_at: float | None) -> None:
            gate.metrics.add("talaria_prompt_tokens_total", n_prompt_tokens, model=model.name)
            gate.metrics.add("talaria_completion_tokens_total", n_tokens, model=model.name)
            if first_token_at is not None:
                gate.metrics.observe("talaria_first_token_seconds", first_token_at - begun, model=model.name)
            _log(request, model, settings, prompt, texts, n_prompt_tokens, n_tokens)

        each = [prompt_echo for prompt_echo in echoes for _ in range(n)]
        readers = [] if plan is None else [plan.reader() for _ in answers]
        reply = Reply(shape, request, model.name, answers, n_prompt_tokens, deadline, told, each, log_probs, readers)
        return await (reply.stream(body.with_usage) if body.stream else reply.whole())

    return app


def encoded(model: Served, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Ids of every prompt; a text comes behind the tokenizer's prompt prefix, as in `Engine.generate`."""
    tokenizer = model.engine.tokenizer
    return [
        tokenizer.prompt_prefix_ids + tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


async def _submitted(
    worker: Worker, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int | None, n: int
) -> list[Answer[Chunk]]:
    """All prompts or none, the n answers of one side by side; each draws with the seed that `Engine.generate` gives."""
    answers: list[Answer[Chunk]] = []
    try:
        for index, prompt in enumerate(prompts):
            for answer in range(n):
                own = None if seed is None else row_seed(row_seed(seed, index), answer)
                answers.append(worker.submit(prompt, sampling, own))
    except (Overloaded, Stopped):
        for submitted in answers:
            await submitted.aclose()
        raise
    return answers


async def _echoes(
    request: Request,
    model: Served,
    prompts: Sequence[list[int]],
    asked: Sequence[Prompt],
    n_top: int | None,
    deadline: float,
) -> list[Echo]:
    """What the answers to each prompt begin with; `n_top` None leaves log-probabilities out."""
    tokenizer = model.engine.tokenizer
    for index, ids in enumerate(prompts):
        if not ids or not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size or len(ids) > model.engine.context:
            raise Refusal(
                400, f"prompt {index}: token ids must lie in 0..{tokenizer.vocab_size - 1} and fit the context"
            )
    texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in asked]
    if n_top is None:
        return [Echo(text, ids, [], []) for text, ids in zip(texts, prompts, strict=True)]
    scores = model.worker.score(prompts, n_top)
    try:
        found = await while_connected(request.receive, _collect(scores), deadline)
    finally:
        await scores.aclose()
    return [
        Echo(text, ids, [None, *log_probs], [[], *tops] if n_top else [])
        for text, ids, (log_probs, tops) in zip(texts, prompts, found, strict=True)
    ]


async def _within(deadline: float, work: Callable[[], T]) -> T:
    """Run what takes a while and is not the engine's - long texts take long to encode - beside the event loop."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise Refusal(504, "the prompt took longer to encode than this server allows; shorten it") from None


def _watch(model: Served, metrics: Metrics) -> None:
    metrics.watch("talaria_answers_running", lambda: model.worker.n_running, model=model.name)
    metrics.watch("talaria_answers_waiting", lambda: model.worker.n_waiting, model=model.name)
    metrics.watch("talaria_cache_blocks", lambda: model.engine.n_blocks_in_use, model=model.name)


async def _collect(answer: Answer[T]) -> list[T]:
    return [piece async for piece in answer]


def _check_count(place: str, prompts: Sequence[Prompt], settings: ServeSettings) -> None:
    if len(prompts) > settings.inputs:
        raise Refusal(400, f"{place}: {len(prompts)} in one request; send at most {settings.inputs}", param=place)


def _check_prompts(prompts: Sequence[Sequence[int]], model: Served, settings: ServeSettings) -> None:
    longest, limit = max(map(len, prompts)), settings.prompt_tokens
    if limit is not None and longest > limit:
        raise Refusal(400, f"the prompt is {longest} tokens long; this server takes {limit}, shorten it")


def _as_base64(vector: list[float]) -> str:
    """32-bit floats, little-endian: what the openai client asks for and unpacks."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _log(
    request: Request, model: Served, settings: ServeSettings, prompt: Any, texts: Any, n_prompt: int, n_tokens: int
) -> None:
    """One line a request; what was said only where the settings ask for it."""
    words = f" prompt={prompt!r} answer={texts!r}" if settings.log_prompts else ""
    key, path = request.scope["talaria.key"], request.scope["path"]
    logger.info("%s key=%r model=%r prompt_tokens=%d tokens=%d%s", path, key, model.name, n_prompt, n_tokens, words)


def answer_errors_as_openai(app: FastAPI) -> None:
    """Every error becomes OpenAI's error body, with a status that fits."""

    @app.exception_handler(Refusal)
    async def refused(_request: Request, refusal: Refusal) -> JSONResponse:
        return refusal.response()

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return Refusal(error.status_code, str(error.detail)).response()

    @app.exception_handler(RequestValidationError)
    async def bad_body(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        return Refusal(400, message, param=first.get("ctx", {}).get("field", place or None)).response()

    @app.exception_handler(UserError)
    async def user_error(_request: Request, error: UserError) -> JSONResponse:
        return Refusal(400, str(error)).response()

    @app.exception_handler(Overloaded)
    async def overloaded(_request: Request, error: Overloaded) -> JSONResponse:
        return Refusal(429, str(error), retry_after=error.retry_after, code="overloaded").response()

    @app.exception_handler(Stopped)
    async def stopped(_request: Request, error: Stopped) -> JSONResponse:
        return Refusal(503, str(error), retry_after=5).response()

    @app.exception_handler(EngineFailed)
    @app.exception_handler(Exception)
    async def server_error(_request: Request, _error: Exception) -> JSONResponse:
        return Refusal(500, "the server failed; its log says why").response()
