"""The one place that touches an engine while it serves: prompts in, answers out as they come, from one thread.

    worker = Worker(engine, max_running=8, max_waiting=64)
    answer = worker.submit(prompt_ids, {"max_tokens": 20, "temperature": 0.0})
    async for chunk in answer: ...            # or await answer.aclose(), which ends it and frees its place

A thread owns the engine. It gives every running answer one token in turn, so a long answer does not keep a short one
waiting, and hands the pieces to the event loop that asked. It never waits for a reader: an answer's queue holds at most
its own max_tokens pieces, so one that is not read costs that much memory and no time of the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.nn import functional as F

from talaria.errors import UserError
from talaria.infer.contract import Chunk
from talaria.infer.engine import Engine

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


class Answer(Generic[T]):
    """The pieces of one answer as they come. Raises UserError, EngineFailed or Stopped in place of a piece."""

    def __init__(self, worker: Worker, start: Callable[[], Iterator[T]]) -> None:
        self._worker = worker
        self._start = start
        self._steps: Iterator[T] | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._ended = False
        self.cancelled = False
        self.begun: float | None = None

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

    # The rest runs on the worker's thread.

    def advance(self) -> bool:
        """Make the next piece; False when there is none left."""
        if self.cancelled:
            self.close()
            return False
        try:
            if self._steps is None:
                self.begun = time.monotonic()
                self._steps = self._start()
            piece = next(self._steps, None)
        except UserError as error:
            self.put(error)
            return False
        except Exception:  # whatever it is, this request alone must end, not the thread of all
            logger.exception("the engine failed")
            self.put(EngineFailed("the server failed; its log says why"))
            return False
        self.put(piece)
        return piece is not None

    def close(self) -> None:
        """Let go of the engine's memory."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
        self._steps = None

    def put(self, piece: T | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop has closed, so nobody is there to read
            self.cancelled = True


class Worker:
    """Runs the requests of one engine: at most max_running at a time, max_waiting more in line."""

    def __init__(self, engine: Engine, max_running: int = 8, max_waiting: int = 64) -> None:
        self.engine = engine
        self.max_running = max_running
        self.max_waiting = max_waiting
        self._waiting: deque[Answer[Any]] = deque()
        self._running: list[Answer[Any]] = []
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

    def submit(self, prompt_ids: Sequence[int], options: Mapping[str, Any]) -> Answer[Chunk]:
        """Ask for an answer; `options` are those of `Engine.stream`. Call on an event loop.

        Raises Overloaded and Stopped at once; what the engine finds wrong comes in place of the first piece.
        """
        return self._enqueue(lambda: self.engine.stream(prompt_ids, **options))

    def embed(self, texts: Sequence[Sequence[int]]) -> Answer[list[float]]:
        """Ask for one vector (D numbers, norm 1) for each list of token ids, in order. Raises as `submit`."""
        return self._enqueue(lambda: (embedding(self.engine, ids) for ids in texts))

    def cancel(self, answer: Answer[Any]) -> None:
        """End an answer; one that waits leaves the line at once."""
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

    def _enqueue(self, start: Callable[[], Iterator[T]]) -> Answer[T]:
        answer = Answer(self, start)
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
        while True:
            with self._changed:
                while not self._waiting and not self._running:
                    if self._stopping:
                        return
                    self._changed.wait()
                while self._waiting and len(self._running) < self.max_running:
                    self._running.append(self._waiting.popleft())
                turn = list(self._running)
            done = [answer for answer in turn if not answer.advance()]
            with self._changed:
                for answer in done:
                    self._running.remove(answer)
                    if answer.begun is not None:
                        seconds = time.monotonic() - answer.begun
                        self._answer_seconds += 0.1 * (seconds - self._answer_seconds)


@torch.inference_mode()
def embedding(engine: Engine, ids: Sequence[int]) -> list[float]:
    """Mean of the final hidden states (after the last norm) over a text's tokens, scaled to norm 1: D numbers."""
    vocab_size = engine.model.shape.vocab_size
    if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
        raise UserError(f"input: token ids must lie in 0..{vocab_size - 1}, and there must be at least one")
    device = next(engine.model.parameters()).device
    hidden_TD = engine.model.hidden(torch.tensor([list(ids)], device=device))[0].float()
    vector: list[float] = F.normalize(hidden_TD.mean(dim=0), dim=0).tolist()
    return vector
