"""POST /v1/feedback: a thumb on an answer in, rows of the feedback store out.

    {"rating": 1, "model": "laptop", "messages": [...], "answer": "...", "seed": 7, "sampling": {...}}
    {"rating": -1, "answer_id": 3}                        # the same person's second thought

Both are answered with {"answer_id": 3}. The name of the key is the annotator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Annotated

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from talaria.feedback.store import FeedbackStore
from talaria.serve.limits import Refusal
from talaria.serve.schema import ChatMessage, Text

SOURCE = "web chat"


class Sampled(BaseModel):
    """How the answer was drawn; what is left out was the server's default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


class Thumb(BaseModel):
    """The body: a rating, and the answer it is about or the id that an earlier thumb gave that answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rating: Annotated[int, Field(ge=-1, le=1)]
    answer_id: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256, fail_fast=True)] | None = None
    answer: Text | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    sampling: Sampled = Sampled()

    @model_validator(mode="after")
    def _about_one_answer(self) -> Thumb:
        told = [self.model, self.messages, self.answer]
        if (self.answer_id is None and None in told) or (self.answer_id is not None and told != [None] * 3):
            raise ValueError("give either answer_id, or model, messages and answer")
        return self


def add_feedback(app: FastAPI, store: FeedbackStore | None, models: Container[str]) -> None:
    """Add the route. `store` None answers 404; a model that is not in `models` cannot be rated."""

    @app.post("/v1/feedback")
    async def feedback(body: Thumb, request: Request) -> dict[str, int]:
        if store is None:
            raise Refusal(404, "this server keeps no feedback; start it with --set feedback=FILE", code="no_feedback")
        if body.model is not None and body.model not in models:
            raise Refusal(404, f"model {body.model!r} is not served here", code="model_not_found", param="model")
        return {"answer_id": await asyncio.to_thread(_append, store, body, request.scope["talaria.key"])}


def _append(store: FeedbackStore, body: Thumb, annotator: str) -> int:
    """A thumb with its prompt and answer is there whole or not at all."""
    answer_id = body.answer_id
    with store.together():
        if answer_id is None:
            assert body.messages is not None and body.answer is not None and body.model is not None
            prompt_id = store.append_prompt([message.plain() for message in body.messages], source=SOURCE)
            sampling = body.sampling.model_dump(exclude_none=True)
            answer_id = store.append_answer(prompt_id, body.answer, model=body.model, seed=body.seed, sampling=sampling)
        store.append_rating(answer_id, body.rating, annotator=annotator)
    return answer_id
