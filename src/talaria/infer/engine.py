"""The one engine: prompts in, text with token ids and log-probabilities out; for rollouts, evaluation and serving.

    engine = Engine(model, tokenizer)
    [completion] = engine.generate(["The sea is"], max_tokens=20, temperature=0)
    for chunk in engine.stream_chat([{"role": "user", "content": "Who are you?"}]): print(chunk.text, end="")

Underneath every answer is a request, and one step moves all of them on: schedule -> run -> postprocess. A server
submits requests and steps by itself:

    request_id = engine.submit(engine.chat_prompt(messages), Sampling(max_tokens=20), seed=7)
    while engine.busy:
        for request_id, chunk in engine.step(): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch

from talaria.errors import UsageError, UserError
from talaria.infer.contract import (
    Chunk,
    Completion,
    FinishReason,
    LogLikelihood,
    Message,
    MoreSampling,
    Sampling,
    as_stops,
    row_seed,
)
from talaria.infer.decoding import default_cache_bytes, memory_for, run
from talaria.infer.drafts import Drafts
from talaria.infer.grammar import Grammars
from talaria.infer.likelihood import score_pairs
from talaria.infer.memory import PREFILL_CHUNK
from talaria.infer.prefix_store import n_blocks_for
from talaria.infer.prompts import Prompt, check_room, encode_pair, encode_prompt
from talaria.infer.sampling import Penalties, choose_tokens, draw_uniforms, top_log_probs
from talaria.infer.scheduler import Request, Scheduler
from talaria.infer.text_stream import TextStream
from talaria.model.compiled import CompiledTransformer, Scores, torch_rests
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer


class Engine:
    """Runs one model, of torch or compiled. Not for two threads at once; a server steps it from a single one.

    max_batch_size bounds the rows that run together, cache_bytes the memory of keys and values (1 GiB; on a GPU a
    quarter of what is free, if that is more), prefill_chunk the tokens of a step while somebody waits for a next token.
    With prefix_cache the keys and values of earlier requests serve later ones that begin alike, as long as the weights
    stay as they are. With drafts a compiled model that answers few reads several tokens a step where a text repeats
    itself (`drafts.Drafts`); answers are the same.
    """

    def __init__(
        self,
        model: Transformer | CompiledTransformer,
        tokenizer: Tokenizer,
        *,
        max_batch_size: int = 64,
        cache_bytes: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        prefix_cache: bool = True,
        drafts: bool = True,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self._device = model.device
        if cache_bytes is None:
            cache_bytes = default_cache_bytes(model.device)
        memory = memory_for(model, cache_bytes, max_batch_size, prefix_cache)
        self._scheduler = Scheduler(memory, max_batch_size, prefill_chunk)
        self._drafts = drafts and isinstance(model, CompiledTransformer) and model.few_are_as_one
        self._requests: dict[int, Request] = {}
        self._grammars = Grammars(tokenizer, self._device)
        self._outbox: list[tuple[int, Chunk | UserError]] = []
        self._next_id = 0
        self._weights = self._weight_versions()

    @property
    def context(self) -> int:
        """Most positions of prompt and answer together."""
        return self.model.shape.context

    @property
    def trunk(self) -> Transformer:
        """The model where it is of torch. Raises UsageError where it is compiled: its weights cannot be had back."""
        if isinstance(self.model, CompiledTransformer):
            raise UsageError("the model is compiled; load it with compiled=False for its weights")
        return self.model

    @property
    def busy(self) -> bool:
        """Whether anything is queued or running, or a chunk waits for `step` to give it out."""
        return bool(self._requests) or bool(self._outbox)

    @property
    def n_blocks_in_use(self) -> int:
        """Blocks of `memory.block` positions that running requests hold; 0 when nothing runs."""
        return self._scheduler.memory.n_blocks - self._scheduler.n_free_blocks

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, seed: int | None) -> int:
        """Queue a prompt; returns the number under which `step` gives its chunks.

        The same seed gives the same answer in any company, as far as kernels round alike (docs/serving.md); None draws
        one. Raises UserError for a prompt that is empty, that leaves no room in the context, or that with max_tokens
        needs more than all memory.
        """
        return self._submit(self._request(prompt_ids, "the prompt", sampling, seed))

    def cancel(self, request_id: int) -> None:
        """Drop a request and free its blocks at once; it gives no more chunks. Nothing happens if it has ended."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._scheduler.leave([request])
        self._outbox = [(id, chunk) for id, chunk in self._outbox if id != request_id]

    def check(self, sampling: Sampling) -> None:
        """Build the grammar asked for, from any thread, lest a step wait; UserError where it cannot be held to."""
        self._grammars.begin(sampling)

    def step(self) -> list[tuple[int, Chunk | UserError]]:
        """One step of everything that runs; returns the chunks of submitted requests, the last with a finish_reason.

        A UserError in place of a chunk ends a request whose grammar cannot go on. After an error (logits that are not
        finite) every request is gone.
        """
        self._advance()
        chunks, self._outbox = self._outbox, []
        return chunks

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] | None = None,
        n: int = 1,
        **more: Unpack[MoreSampling],
    ) -> list[Completion]:
        """Continue every prompt; answers come in the order of the prompts, the n answers of one side by side.

        A str is encoded without a chat template, behind the tokenizer's prompt prefix (its bos token, where the model
        was trained so); a sequence of ids is used as it is. One seed gives prompt i the seed `row_seed(seed, i)`, a
        sequence each its own; answer j of a prompt has `row_seed(its seed, j)`. A seed fixes a text whatever runs
        beside it. `json_schema` or `regex` hold the text to it (see `Sampling`). Raises UserError for an empty prompt,
        one that leaves no room in the context, and a schema or regex that is wrong, not supported or too costly.
        """
        if isinstance(prompts, str):
            raise UsageError("prompts: one string; pass a list of prompts, e.g. generate([prompt])")
        if n < 1:
            raise UsageError(f"n={n}: must be at least 1")
        sampling = Sampling(max_tokens, temperature, top_p, top_k, as_stops(stop), **more)
        requests = []
        for index, own_seed in enumerate(_seeds(seed, len(prompts))):
            for answer in range(n):
                answer_seed = None if own_seed is None else row_seed(own_seed, answer)
                requests.append(self._request(prompts[index], f"prompt {index}", sampling, answer_seed, whole=True))
        # Prompts of similar length together pad little; the longest first, so that memory peaks at the start.
        for request in sorted(requests, key=lambda r: -r.n_prompt):
            self._submit(request)
        try:
            for request in requests:
                self._wait(request)
        finally:
            self._drop(requests)
        return [_completion(request) for request in requests]

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        **more: Unpack[MoreSampling],
    ) -> Iterator[Chunk]:
        """Continue one prompt, token by token: the same answer as `generate`, in whole characters as they come."""
        sampling = Sampling(max_tokens, temperature, top_p, top_k, as_stops(stop), **more)
        [own_seed] = _seeds(seed, 1)
        return self._stream(self._request(prompt, "prompt 0", sampling, own_seed))

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a conversation (ends with a user turn) in the model's own chat format; options as in `generate`."""
        return self.generate([self.chat_prompt(messages)], **sampling)[0]

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        """Answer a conversation, token by token; options as in `stream`."""
        return self.stream(self.chat_prompt(messages), **sampling)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The ids that `chat` continues; with `generate` they answer many conversations in batches."""
        return encode_chat(self.tokenizer, messages, add_generation_prompt=True, tools=tools).ids

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[LogLikelihood]:
        """Score each (context, continuation) with one forward pass, in batches of similar length.

        Context and continuation are encoded apart, so the border between them is a border of tokens: begin the
        continuation with its space. A str context comes behind the prompt prefix, as in `generate`; a context of no
        tokens becomes the bos token, or else the eos token.
        """
        encoded = [encode_pair(self.tokenizer, self.model.shape, pair, index) for index, pair in enumerate(pairs)]
        return score_pairs(self.model, encoded, self.max_batch_size)

    def _advance(self) -> None:
        """Schedule, run, postprocess."""
        scheduler = self._scheduler
        try:
            with torch_rests(self.model):
                plan = scheduler.plan()
                requests, logits_BV, scores = run(self.model, scheduler.memory, plan)
                for request in plan.prefill:
                    if request.is_read:
                        scheduler.remember(request)
                scheduler.settle()
                if requests:
                    self._choose(requests, logits_BV, scores)
        except BaseException:
            # Rows and requests may no longer agree: begin anew.
            scheduler.drop_all()
            self._requests.clear()
            raise

    @torch.inference_mode()
    def _choose(self, requests: list[Request], logits_BV: torch.Tensor, scores: Scores | None) -> None:
        """Give each request its next token, and everybody what is certain of the text; rows that end leave."""
        allowed: list[torch.Tensor | None] = []
        if any(request.grammar is not None for request in requests):
            allowed = [self._allowed(request) for request in requests]
            stay = [row for row, request in enumerate(requests) if request.error is None]
            if len(stay) < len(requests):
                self._end([request for request in requests if request.error is not None])
                requests, allowed = [requests[row] for row in stay], [allowed[row] for row in stay]
                logits_BV, scores = logits_BV[stay], None
        if not requests:
            return
        uniforms_B = None
        if any(request.uniforms for request in requests):
            rows = zip(requests, _places(requests), strict=True)
            drawn = [request.uniforms[place] if request.uniforms else 0.0 for request, place in rows]
            uniforms_B = torch.tensor(drawn, dtype=torch.float32, device=self._device)
        ways, penalties = [request.sampling for request in requests], [request.penalties for request in requests]
        n_choices = self.tokenizer.vocab_size
        tokens_B, log_probs_B = choose_tokens(logits_BV, ways, uniforms_B, n_choices, penalties, allowed, scores)
        ended, came_true = [], False
        for row, (request, token, log_prob) in enumerate(
            zip(requests, tokens_B.tolist(), log_probs_B.tolist(), strict=True)
        ):
            if row > 0 and requests[row - 1] is request:
                # Logits behind a guess: of use if it is the token that was chosen before it.
                came_true, request.guessed = came_true and request.guessed[0] == request.ids[-1], request.guessed[1:]
                if not came_true:
                    continue
                request.length += 1
            request.ids.append(token)
            request.log_probs.append(log_prob)
            if n_top := request.sampling.top_logprobs:
                request.top_log_probs.append(top_log_probs(logits_BV[row], n_top, n_choices))
            if request.penalties is not None:
                request.penalties.count(token)
            if request.grammar is not None:
                request.grammar.accept(token)
            came_true = not self._postprocess(request, token)
            if not came_true:
                ended.append(request)
        self._end(ended)

    def _allowed(self, request: Request) -> torch.Tensor | None:
        """The ids that may come next, None for all; where nothing can, the request gets its error."""
        try:
            return None if request.grammar is None else request.grammar.allowed()
        except UserError as error:
            request.error = error
            if request.inbox is None:
                self._outbox.append((request.id, error))
            return None

    def _end(self, requests: list[Request]) -> None:
        for request in requests:
            self._scheduler.remember(request)
            del self._requests[request.id]
        if requests:
            self._scheduler.leave(requests)

    def _postprocess(self, request: Request, token: int) -> bool:
        """Hand out what the new token made certain; returns whether the answer has ended."""
        is_stop = token in self.tokenizer.stop_ids
        if request.is_silent and not is_stop and request.n_generated < request.max_tokens:
            return False
        piece = ""
        if not request.whole or request.sampling.stop:
            piece = request.text.push(b"" if is_stop else self.tokenizer.token_bytes(token))
        reason: FinishReason | None = None
        is_complete = request.grammar is not None and request.grammar.is_complete
        if is_stop or is_complete or request.text.stopped:
            reason = "stop"
        elif request.n_generated == request.max_tokens:
            reason = "length"
        if not request.whole:
            if reason is not None:
                piece += request.text.finish()
            self._hand_out(request, Chunk(piece, [token], request.log_probs[-1:], reason, request.top_log_probs[-1:]))
            return reason is not None
        request.pieces.append(piece)
        if reason is None:
            return False
        answer = request.ids[request.n_prompt :]
        if not request.sampling.stop:
            # Nobody waits for a piece of it, and all at once is much faster.
            spoken = answer[:-1] if is_stop else answer
            request.pieces = [self.tokenizer.decode_bytes(spoken).decode("utf-8", errors="replace")]
        text = "".join(request.pieces) + request.text.finish()
        self._hand_out(request, Chunk(text, answer, request.log_probs, reason, request.top_log_probs))
        return True

    def _hand_out(self, request: Request, chunk: Chunk) -> None:
        if request.inbox is None:
            self._outbox.append((request.id, chunk))
        else:
            request.inbox.append(chunk)

    def _wait(self, request: Request) -> deque[Chunk]:
        """Step until the request has a chunk; returns its inbox."""
        assert request.inbox is not None
        while not request.inbox:
            if request.error is not None:
                raise request.error
            if request.id not in self._requests:
                raise UserError("the answer was lost when another one under way at the same time failed; ask again")
            self._advance()
        return request.inbox

    def _stream(self, request: Request) -> Iterator[Chunk]:
        request.inbox = deque()
        self._submit(request)
        try:
            reason = None
            while reason is None:
                chunk = self._wait(request).popleft()
                reason = chunk.finish_reason
                yield chunk
        finally:
            self._drop([request])

    def _request(self, prompt: Prompt, name: str, sampling: Sampling, seed: int | None, whole: bool = False) -> Request:
        ids = encode_prompt(self.tokenizer, self.model.shape, prompt, name)
        room = check_room(self.model.shape, ids, name)
        if any(token >= self.tokenizer.vocab_size for token in sampling.logit_bias):
            raise UserError(f"logit_bias: token ids must lie in 0..{self.tokenizer.vocab_size - 1}")
        max_tokens = min(sampling.max_tokens, room)
        uniforms = draw_uniforms(seed, max_tokens if sampling.temperature > 0 else 0).float().tolist()
        text = TextStream(sampling.stop)
        request = Request(self._next_id, ids, len(ids), max_tokens, sampling, uniforms, text)
        self._next_id += 1
        memory = self._scheduler.memory
        need = n_blocks_for(request.n_positions, memory.block)
        if need > memory.n_blocks:
            raise UserError(
                f"{name} of {len(ids)} tokens with max_tokens={max_tokens} needs {need * memory.block} positions in "
                f"memory and there are {memory.n_blocks * memory.block}; lower max_tokens, shorten the prompt or raise "
                "cache_bytes"
            )
        if sampling.changes_logits:
            request.penalties = Penalties(sampling, ids, self.tokenizer.vocab_size, self._device)
        request.grammar = self._grammars.begin(sampling)
        if self._drafts and request.penalties is None and request.grammar is None:
            request.drafts = Drafts()
        if whole:
            request.whole, request.inbox = True, deque()
        return request

    def _submit(self, request: Request) -> int:
        if not self._requests and (versions := self._weight_versions()) != self._weights:
            self._weights = versions
            self._scheduler.drop_all()  # what the old weights computed
        self._requests[request.id] = request
        self._scheduler.waiting.append(request)
        return request.id

    def _drop(self, requests: Sequence[Request]) -> None:
        """Those of the requests that have not ended."""
        running = [request for request in requests if self._requests.pop(request.id, None) is not None]
        if running:
            self._scheduler.leave(running)

    def _weight_versions(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever an optimizer steps or weights are loaded; compiled weights, but for live ones, stay."""
        if isinstance(model := self.model, CompiledTransformer):
            tensors = model.live_weights
        else:
            tensors = (*model.parameters(), *model.buffers())
        return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


def _places(requests: Sequence[Request]) -> list[int]:
    """Which token of its answer each row would be; those behind guesses follow their request's own row."""
    places: list[int] = []
    for row, request in enumerate(requests):
        is_guess = row > 0 and requests[row - 1] is request
        places.append(places[-1] + 1 if is_guess else request.n_generated)
    return places


def _completion(request: Request) -> Completion:
    assert request.inbox
    [chunk] = request.inbox
    reason = chunk.finish_reason
    assert reason is not None
    return Completion(chunk.text, chunk.token_ids, chunk.log_probs, reason, request.n_prompt, chunk.top_log_probs)


def _seeds(seed: int | Sequence[int] | None, n_prompts: int) -> Sequence[int | None]:
    """One seed for each prompt."""
    if seed is None:
        return [None] * n_prompts
    if isinstance(seed, int):
        return [row_seed(seed, index) for index in range(n_prompts)]
    if len(seed) != n_prompts:
        raise UsageError(f"seed: {len(seed)} seeds for {n_prompts} prompts; give one each, or one for all")
    return list(seed)
