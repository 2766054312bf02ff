"""The one place that touches an engine while it serves: prompts in, answers out as they come, from one thread.

    worker = Worker(engine, max_running=64, max_waiting=64)
    answer = worker.submit(prompt_ids, Sampling(max_tokens=20), seed=7)
    async for chunk in answer: ...            # or await answer.aclose(), which ends it and frees its memory

A thread owns the engine and steps it: each step gives every running answer one token, whoever joined or left since the
last one. Texts to embed or to score take turns with the steps. The thread hands the pieces to the loop that asked and
never waits for a reader: an answer's queue holds at most its own max_tokens pieces, so one that is not read costs that
much memory and no time of the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.nn import functional as F

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Sampling
from talaria.infer.engine import Engine
from talaria.infer.likelihood import PromptLogProbs, prompt_log_probs

logger = logging.getLogger("talaria.serve")
T = TypeVar("T")


class Overloaded(Exception):
    """Every place in the queue is taken; about `retry_after` seconds from now one may be free."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopped(Exception):
    """The worker takes no more work, or ended an answer because it was told to stop."""


class EngineFailed(Exception):
    """The engine raised what is no mistake of the user; the log has it."""


@dataclass(frozen=True)
class Prompt:
    """What the engine is to continue."""

    ids: Sequence[int]
    sampling: Sampling
    seed: int | None


class Answer(Generic[T]):
    """The pieces of one answer as they come. Raises UserError, EngineFailed or Stopped in place of a piece."""

    def __init__(self, worker: Worker, work: Prompt | Iterator[T]) -> None:
        self.work = work
        self.cancelled = False
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._ended = False
        # The worker's thread alone touches these.
        self.begun: float | None = None
        self.request_id: int | None = None
        self.done = False

    def __aiter__(self) -> Answer[T]:
        return self

    async def __anext__(self) -> T:
        piece = None if self._ended else await self._pieces.get()
        if piece is None or isinstance(piece, Exception):
            self._ended = True
            raise StopAsyncIteration if piece is None else piece
        return piece

    async def aclose(self) -> None:
        """End the answer if it has not ended; its place is free after the token under way."""
        self._ended = True
        self._worker.cancel(self)

    def put(self, piece: T | Exception | None) -> None:
        """Hand over a piece, or what ends the answer; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop has closed, so nobody is there to read
            self.cancelled = True


class Worker:
    """Runs the requests of one engine: at most max_running at a time, max_waiting more in line."""

    def __init__(self, engine: Engine, max_running: int = 64, max_waiting: int = 64) -> None:
        self.engine = engine
        self.max_running = max_running
        self.max_waiting = max_waiting
        self._waiting: deque[Answer[Any]] = deque()
        self._running: list[Answer[Any]] = []
        self._asked: dict[int, Answer[Chunk]] = {}  # by the engine's numbers
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._answer_seconds = 1.0  # a running mean

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int | None) -> Answer[Chunk]:
        """Ask for an answer, as `Engine.submit` does. Call on an event loop.

        Raises Overloaded and Stopped at once; what the engine finds wrong comes in place of the first piece.
        """
        return self._enqueue(Answer(self, Prompt(prompt_ids, sampling, seed)))

    def embed(self, texts: Sequence[Sequence[int]]) -> Answer[list[float]]:
        """Ask for one vector (D numbers, norm 1) for each list of token ids, in order. Raises as `submit`."""
        return self._enqueue(Answer(self, (embedding(self.engine, ids) for ids in texts)))

    def score(self, prompts: Sequence[Sequence[int]], n_top: int) -> Answer[PromptLogProbs]:
        """Ask how probable each prompt's own tokens are, prompt by prompt. Raises as `submit`."""
        engine, n_choices = self.engine, self.engine.tokenizer.vocab_size
        return self._enqueue(Answer(self, (prompt_log_probs(engine.model, ids, n_top, n_choices) for ids in prompts)))

    def cancel(self, answer: Answer[Any]) -> None:
        """End an answer; one that waits leaves the line at once, one that runs leaves before the next step."""
        with self._changed:
            answer.cancelled = True
            if answer in self._waiting:
                self._waiting.remove(answer)

    def stop(self, seconds: float = 0.0) -> None:
        """Take no more work, let what runs or waits finish for at most `seconds`, then end the rest. Blocks."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(seconds)
        with self._changed:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
            for answer in left:
                answer.cancelled = True
                answer.put(Stopped("the server stopped before the answer ended"))
        self._thread.join()

    def _enqueue(self, answer: Answer[T]) -> Answer[T]:
        with self._changed:
            if self._stopping:
                raise Stopped("the server is stopping; try again later")
            if self.n_running + self.n_waiting >= self.max_running + self.max_waiting:
                raise Overloaded(max(1, min(60, math.ceil(self._answer_seconds))))
            self._waiting.append(answer)
            if self._thread is None:
                # A daemon, so that a process that fails elsewhere is not held up by it.
                self._thread = threading.Thread(target=self._run, name="talaria-engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return answer

    def _run(self) -> None:
        while turn := self._next_turn():
            for answer in turn:
                if answer.cancelled:
                    self._end(answer)
                elif answer.begun is None:
                    self._begin(answer)
            if self._asked:
                self._step()
            for answer in turn:
                if not answer.done and not isinstance(answer.work, Prompt):
                    self._make_one(answer, answer.work)

    def _next_turn(self) -> list[Answer[Any]]:
        """Those that run, with as many from the line as have a place; waits for some, empty when none will come."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._stopping:
                    return []
                self._changed.wait()
            while self._waiting and len(self._running) < self.max_running:
                self._running.append(self._waiting.popleft())
            return list(self._running)

    def _begin(self, answer: Answer[Any]) -> None:
        answer.begun = time.monotonic()
        if isinstance(work := answer.work, Prompt):
            request_id = self._attempt([answer], lambda: self.engine.submit(work.ids, work.sampling, work.seed))
            if request_id is not None:
                answer.request_id = request_id
                self._asked[request_id] = answer

    def _step(self) -> None:
        # An engine that fails has lost every request, and goes on with new ones.
        for request_id, chunk in self._attempt(list(self._asked.values()), self.engine.step) or []:
            answer = self._asked[request_id]
            if isinstance(chunk, UserError):
                self._end(answer, chunk)
                continue
            answer.put(chunk)
            if chunk.finish_reason is not None:
                self._end(answer)

    def _make_one(self, answer: Answer[T], work: Iterator[T]) -> None:
        piece = self._attempt([answer], lambda: next(work, None))
        if piece is not None:
            answer.put(piece)
        elif not answer.done:
            self._end(answer)

    def _attempt(self, answers: Sequence[Answer[Any]], work: Callable[[], T]) -> T | None:
        """What `work` returns; None where it fails, which ends these answers alone and not the thread of all."""
        told: Exception
        try:
            return work()
        except UserError as error:
            told = error
        except Exception:
            logger.exception("the engine failed")
            told = EngineFailed("the server failed; its log says why")
        for answer in answers:
            self._end(answer, told)
        return None

    def _end(self, answer: Answer[Any], error: Exception | None = None) -> None:
        """The answer's last piece is out, or never comes: free what it holds."""
        if answer.request_id is not None:
            self.engine.cancel(answer.request_id)
            del self._asked[answer.request_id]
        if answer.begun is not None:
            self._answer_seconds += 0.1 * (time.monotonic() - answer.begun - self._answer_seconds)
        answer.done = True
        with self._changed:  # before the reader learns of it, so that its next request finds the place free
            self._running.remove(answer)
        answer.put(error)


@torch.inference_mode()
def embedding(engine: Engine, ids: Sequence[int]) -> list[float]:
    """Mean of the final hidden states (after the last norm) over a text's tokens, scaled to norm 1: D numbers."""
    vocab_size = engine.model.shape.vocab_size
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        raise UserError(f"input: token ids must lie in 0..{vocab_size - 1}, and there must be at least one")
    hidden_TD = engine.model.hidden(torch.tensor([list(ids)], device=engine.model.device))[0].float()
    vector: list[float] = F.normalize(hidden_TD.mean(dim=0), dim=0).tolist()
    return vector
