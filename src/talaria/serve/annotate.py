"""The annotation page's server: annotators with keys come in, their judgements go into the feedback store.

    app = create_annotation_app(queue, Keyring(path), {"sft": engine}, AnnotateSettings())

GET / and /page/NAME are the page. POST /annotate/next, /judge, /undo and /talk are its calls, with the annotator's key;
each is answered with the whole state: who, how far, what to judge now. Nothing that is sent names a model, an answer's
number in the store or whether an item has a known answer, and answers come in an order drawn for each annotator.
What was sent is in the store before it is answered, so that a server that dies loses what is being typed, at most.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from talaria.errors import UserError
from talaria.feedback.queue import AnnotationQueue, Assignment
from talaria.infer.contract import Sampling
from talaria.infer.engine import Engine
from talaria.serve.app import answer_errors_as_openai
from talaria.serve.keys import Keyring
from talaria.serve.limits import Gate, Guard, Refusal
from talaria.serve.metrics import Metrics
from talaria.serve.schema import Text
from talaria.serve.settings import AnnotateSettings, ServeSettings
from talaria.serve.web import add_page
from talaria.serve.worker import Worker

GUIDELINES = {"en": "guidelines.md", "zh": "guidelines.zh.md"}
_draw_seed = random.SystemRandom()

Place = Annotated[int, Field(ge=0, le=8)]


class Turn(BaseModel):
    """One turn of an annotator's own conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant"]
    content: Text


class Judgement(BaseModel):
    """What an annotator makes of an assignment; answers by their place on the page, from 0."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    assignment: Annotated[int, Field(ge=1, lt=2**31)]
    verdict: Literal["ranked", "skipped"] = "ranked"
    ranking: Annotated[list[list[Place]], Field(max_length=9)] = []
    scores: dict[Annotated[str, Field(pattern="^[0-8]$")], Annotated[int, Field(ge=1, le=7)]] = {}
    flags: dict[str, list[Place]] = {}
    comment: Text = ""
    seconds: Annotated[float, Field(ge=0)] | None = None


class Undo(BaseModel):
    """Which judgement is taken back, as `last` of a reply named it, so that a second try takes no other; None: the
    last."""

    model_config = ConfigDict(extra="forbid", strict=True)

    judgement: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class Talk(BaseModel):
    """A conversation that ends with the annotator's turn."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: Annotated[list[Turn], Field(min_length=1, max_length=256)]


class Which(BaseModel):
    """Whether the next thing is from the queue or of the annotator's own conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    talk: bool = False


def create_annotation_app(
    queue: AnnotationQueue,
    keyring: Keyring | None,
    engines: Mapping[str, Engine],
    settings: AnnotateSettings,
    limits: ServeSettings | None = None,
    guidelines: Mapping[str, Path] | None = None,
) -> FastAPI:
    """The application; `app.state.gate` is its gate. `keyring` None lets everybody on this machine in as one annotator.

    Without engines nobody can talk. `guidelines`: Markdown by language, read anew for each page; None is the default.
    """
    gate = Gate(keyring, limits or ServeSettings(), Metrics())
    workers = [(name, engine, Worker(engine)) for name, engine in engines.items()]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for _, _, worker in workers:
            await asyncio.to_thread(worker.stop)

    app = FastAPI(title="Talaria", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.gate = gate
    app.add_middleware(Guard, gate=gate)
    answer_errors_as_openai(app)
    add_page(app, "annotate.html")

    def state(annotator: str, given: Assignment | None) -> dict[str, Any]:
        progress = queue.progress(annotator)
        return {
            "annotator": annotator,
            "can_talk": bool(workers),
            "done": progress.done,
            "left": progress.left,
            "test": progress.test,
            "test_done": progress.test_done,
            "test_items": progress.test_items,
            "last": progress.last,
            "item": None if given is None else _shown(given),
        }

    def following(annotator: str, talk: bool) -> dict[str, Any]:
        return state(annotator, queue.open_talk(annotator) if talk else queue.next(annotator))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "stopping" if gate.stopping else "ok"}

    @app.get("/annotate/guidelines")
    async def read_guidelines() -> dict[str, str]:
        return await asyncio.to_thread(_read_guidelines, guidelines)

    @app.post("/annotate/next")
    async def next_item(body: Which, request: Request) -> dict[str, Any]:
        return await asyncio.to_thread(following, request.scope["talaria.key"], body.talk)

    @app.post("/annotate/judge")
    async def judge(body: Judgement, request: Request) -> dict[str, Any]:
        annotator = request.scope["talaria.key"]

        def keep() -> dict[str, Any]:
            queue.judge(
                annotator,
                body.assignment,
                ranking=body.ranking,
                verdict=body.verdict,
                scores={int(place): score for place, score in body.scores.items()},
                flags=body.flags,
                comment=body.comment.strip(),
                seconds=body.seconds,
            )
            return following(annotator, talk=False)

        return await asyncio.to_thread(keep)

    @app.post("/annotate/undo")
    async def undo(body: Undo, request: Request) -> dict[str, Any]:
        annotator = request.scope["talaria.key"]

        def take_back() -> dict[str, Any]:
            given = queue.undo(annotator, body.judgement)
            return following(annotator, talk=False) if given is None else state(annotator, given)

        return await asyncio.to_thread(take_back)

    @app.post("/annotate/talk")
    async def talk(body: Talk, request: Request) -> dict[str, Any]:
        if not workers:
            raise Refusal(404, "this page has no model to talk to; start it with a run: talaria annotate RUN")
        annotator, messages = request.scope["talaria.key"], [turn.model_dump() for turn in body.messages]
        if messages[-1]["role"] != "user":
            raise Refusal(400, "messages: the last turn must be the user's")
        if queue.progress(annotator).test in ("open", "failed"):
            raise Refusal(409, "the qualification test comes first")
        drawn = await _answers(workers, messages, settings)
        given = await asyncio.to_thread(queue.talk, annotator, messages, drawn)
        return await asyncio.to_thread(state, annotator, given)

    return app


async def _answers(
    workers: list[tuple[str, Engine, Worker]], messages: list[dict[str, Any]], settings: AnnotateSettings
) -> list[dict[str, Any]]:
    """Answers of all models side by side, each with a seed of its own, as `append_answer` takes them."""
    chosen = {"temperature": settings.collect.temperature, "max_tokens": settings.collect.max_tokens}
    sampling = Sampling(temperature=settings.collect.temperature, max_tokens=settings.collect.max_tokens)

    async def one(j: int) -> dict[str, Any]:
        name, engine, worker = workers[j % len(workers)]
        seed = _draw_seed.getrandbits(32)
        ids = await asyncio.to_thread(engine.chat_prompt, messages)
        text = "".join([chunk.text async for chunk in worker.submit(ids, sampling, seed)])
        return {"text": text, "model": name, "seed": seed, "sampling": chosen}

    return list(await asyncio.gather(*map(one, range(settings.collect.answers))))


def _shown(given: Assignment) -> dict[str, Any]:
    """What a page may know. A test says that it is one; an item with a hidden known answer does not."""
    return {
        "assignment": given.id,
        "messages": [{"role": turn["role"], "content": turn.get("content") or ""} for turn in given.messages],
        "answers": given.texts,
        "test": given.kind == "qualification",
        "talk": given.kind == "talk",
    }


def _read_guidelines(files: Mapping[str, Path] | None) -> dict[str, str]:
    found = {}
    for language, name in GUIDELINES.items():
        file = (files or {}).get(language) or resources.files("talaria.serve") / name
        try:
            found[language] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: the guidelines cannot be read ({error}); mend the file") from None
    return found
