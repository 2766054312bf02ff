"""The one engine: prompts in, text with token ids and log-probabilities out; for rollouts, evaluation and serving.

    engine = Engine(model, tokenizer)
    [completion] = engine.generate(["The sea is"], max_tokens=20, temperature=0)
    for chunk in engine.stream_chat([{"role": "user", "content": "Who are you?"}]): print(chunk.text, end="")

Each call goes schedule -> run -> postprocess: group the requests, run batches token by token, make text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from talaria.errors import UsageError, UserError
from talaria.infer.contract import Chunk, Completion, FinishReason, LogLikelihood, Message, Sampling, as_stops, row_seed
from talaria.infer.decoding import Decoding
from talaria.infer.kv_cache import KVCache
from talaria.infer.sampling import token_log_probs
from talaria.infer.scheduler import Request, schedule
from talaria.infer.text_stream import TextStream
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer

# Likelihoods: positions run through the trunk at once, and logits held at once.
_POSITIONS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 1 << 25


class Engine:
    """Runs one model. Not for two threads at once; a server puts a lock around it.

    max_batch_size bounds the rows that run together, cache_bytes the memory of their keys and values.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, max_batch_size: int = 64, cache_bytes: int = 1 << 30
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        shape, weight = model.shape, next(model.parameters())
        per_position = KVCache.bytes_per_position(shape.n_layers, shape.n_kv_heads, shape.d_head, weight.dtype)
        self._max_positions = cache_bytes // per_position
        self._device = weight.device
        self._stop_ids = torch.tensor(sorted(tokenizer.stop_ids), dtype=torch.int64, device=weight.device)

    @property
    def context(self) -> int:
        """Most positions of prompt and answer together."""
        return self.model.shape.context

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue every prompt; answers come in the order of the prompts.

        A str is encoded without a chat template, behind the tokenizer's prompt prefix (its bos token, where the model
        was trained so); a sequence of ids is used as it is. One seed gives prompt i the seed `row_seed(seed, i)`; a
        sequence gives each prompt its own. A seed fixes a prompt's text whatever runs beside it. Raises UserError for
        an empty prompt and for one that leaves no room in the context.
        """
        sampling = Sampling(max_tokens, temperature, top_p, top_k, as_stops(stop))
        requests = self._requests(prompts, sampling, seed)
        completions: dict[int, Completion] = {}
        for batch in schedule(requests, self.max_batch_size, self._max_positions):
            for request, completion in zip(batch, self._run(batch, sampling), strict=True):
                completions[request.index] = completion
        return [completions[i] for i in range(len(requests))]

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[Chunk]:
        """Continue one prompt, token by token: the same answer as `generate`, in whole characters as they come."""
        sampling = Sampling(max_tokens, temperature, top_p, top_k, as_stops(stop))
        [request] = self._requests([prompt], sampling, seed)
        return self._stream(request, sampling)

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a conversation (ends with a user turn) in the model's own chat format; options as in `generate`."""
        return self.generate([self.chat_prompt(messages)], **sampling)[0]

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        """Answer a conversation, token by token; options as in `stream`."""
        return self.stream(self.chat_prompt(messages), **sampling)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that `chat` continues; with `generate` they answer many conversations in batches."""
        return encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids

    @torch.inference_mode()
    def loglikelihood(self, pairs: Sequence[tuple[str | Sequence[int], str | Sequence[int]]]) -> list[LogLikelihood]:
        """Score each (context, continuation) with one forward pass, in batches of similar length.

        Context and continuation are encoded apart, so the border between them is a border of tokens: begin the
        continuation with its space. A str context comes behind the prompt prefix, as in `generate`; a context of no
        tokens becomes the bos token, or else the eos token.
        """
        encoded = [self._encode_pair(pair, index) for index, pair in enumerate(pairs)]
        scores: dict[int, LogLikelihood] = {}
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]) - len(encoded[i][1]))
        while order:
            longest = len(encoded[order[0]][0]) + len(encoded[order[0]][1])
            n_rows = max(1, min(self.max_batch_size, _POSITIONS_AT_ONCE // longest))
            batch, order = order[:n_rows], order[n_rows:]
            scores.update(zip(batch, self._score([encoded[i] for i in batch]), strict=True))
        return [scores[i] for i in range(len(encoded))]

    def _run(self, batch: list[Request], sampling: Sampling) -> list[Completion]:
        """Run one batch to its end. Only stop strings need Python work for each row and token."""
        limits_B = torch.tensor([request.max_tokens for request in batch], device=self._device)
        tokens_BT = torch.zeros(len(batch), int(limits_B.max()), dtype=torch.int64, device=self._device)
        log_probs_BT = torch.zeros_like(tokens_BT, dtype=torch.float32)
        lengths_B = torch.zeros_like(limits_B)
        hit_stop_B = torch.zeros_like(limits_B, dtype=torch.bool)
        texts = [TextStream(sampling.stop) for _ in batch] if sampling.stop else None
        pieces: list[list[str]] = [[] for _ in batch]
        decoding = Decoding(self.model, batch, sampling, self.tokenizer.vocab_size)
        while True:
            step = decoding.step()
            rows_B, column = step.rows_B, decoding.n_steps - 1
            tokens_BT[rows_B, column] = step.tokens_B
            log_probs_BT[rows_B, column] = step.log_probs_B
            lengths_B[rows_B] = decoding.n_steps
            stopped_B = self._is_stop(step.tokens_B)
            if texts is not None:
                for place, (row, token) in enumerate(zip(rows_B.tolist(), step.tokens_B.tolist(), strict=True)):
                    pieces[row].append(texts[row].push(self._token_bytes(token)))
                    if texts[row].stopped:
                        stopped_B[place] = True
            hit_stop_B[rows_B] = stopped_B
            alive_B = ~stopped_B & (limits_B[rows_B] > decoding.n_steps)
            if not bool(alive_B.any()):
                break
            decoding.proceed(step.tokens_B, alive_B)
        completions = []
        columns = (tokens_BT.tolist(), log_probs_BT.tolist(), lengths_B.tolist(), hit_stop_B.tolist())
        for row, (tokens, log_probs, length, hit_stop) in enumerate(zip(*columns, strict=True)):
            ids = tokens[:length]
            text = "".join(pieces[row]) + texts[row].finish() if texts is not None else self._text(ids)
            reason: FinishReason = "stop" if hit_stop else "length"
            completions.append(Completion(text, ids, log_probs[:length], reason, len(batch[row].prompt_ids)))
        return completions

    def _stream(self, request: Request, sampling: Sampling) -> Iterator[Chunk]:
        text = TextStream(sampling.stop)
        decoding = Decoding(self.model, [request], sampling, self.tokenizer.vocab_size)
        while True:
            step = decoding.step()
            token = int(step.tokens_B[0])
            piece = text.push(self._token_bytes(token))
            stopped = text.stopped or bool(self._is_stop(step.tokens_B)[0])
            reason: FinishReason | None = "stop" if stopped else None
            if reason is None and decoding.n_steps == request.max_tokens:
                reason = "length"
            if reason is not None:
                piece += text.finish()
            yield Chunk(piece, [token], [float(step.log_probs_B[0])], reason)
            if reason is not None:
                return
            decoding.proceed(step.tokens_B, torch.ones_like(step.tokens_B, dtype=torch.bool))

    def _requests(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling,
        seed: int | Sequence[int] | None,
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise UsageError("prompts: one string; pass a list of prompts, e.g. generate([prompt])")
        seeds: Sequence[int | None]
        if seed is None:
            seeds = [None] * len(prompts)
        elif isinstance(seed, int):
            seeds = [row_seed(seed, index) for index in range(len(prompts))]
        elif len(seed) != len(prompts):
            raise UsageError(f"seed: {len(seed)} seeds for {len(prompts)} prompts; give one each, or one for all")
        else:
            seeds = list(seed)
        requests = []
        for index, prompt in enumerate(prompts):
            ids = self._encode(prompt, f"prompt {index}")
            if not ids:
                raise UserError(f"prompt {index} is empty and the tokenizer puts no token before it; write something")
            room = self.context - len(ids)
            if room < 1:
                raise UserError(
                    f"prompt {index} is {len(ids)} tokens long and the model's context is {self.context}; "
                    f"shorten it to at most {self.context - 1} tokens, to leave room for an answer"
                )
            requests.append(Request(index, ids, min(sampling.max_tokens, room), seeds[index]))
        return requests

    def _encode(self, text: str | Sequence[int], name: str) -> list[int]:
        if isinstance(text, str):
            return self.tokenizer.prompt_prefix_ids + self.tokenizer.encode(text)
        return self._checked(list(text), name)

    def _checked(self, ids: list[int], name: str) -> list[int]:
        vocab_size = self.model.shape.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise UserError(
                f"{name}: token ids must lie in 0..{vocab_size - 1}; encode it with this engine's tokenizer"
            )
        return ids

    def _encode_pair(
        self, pair: tuple[str | Sequence[int], str | Sequence[int]], index: int
    ) -> tuple[list[int], list[int]]:
        context, continuation = pair
        context_ids = self._encode(context, f"context {index}")
        if not context_ids:
            first = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
            if first is None:
                raise UserError(f"context {index} is empty and the tokenizer has no bos or eos token to stand for it")
            context_ids = [first]
        if isinstance(continuation, str):
            continuation_ids = self.tokenizer.encode(continuation)
        else:
            continuation_ids = self._checked(list(continuation), f"continuation {index}")
        if not continuation_ids:
            raise UserError(f"continuation {index} is empty; give at least one token to score")
        # The last token is only predicted, never read, so context + 1 tokens fit.
        if len(context_ids) + len(continuation_ids) > self.context + 1:
            raise UserError(
                f"pair {index} is {len(context_ids)} + {len(continuation_ids)} tokens long and the model's context is "
                f"{self.context}; shorten its context"
            )
        return context_ids, continuation_ids

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[LogLikelihood]:
        inputs = [(context + continuation)[:-1] for context, continuation in pairs]
        longest = max(len(ids) for ids in inputs)
        tokens_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs], device=self._device)
        hidden_BTD = self.model.hidden(tokens_BT)
        row_N: list[int] = []
        position_N: list[int] = []
        target_N: list[int] = []
        for row, (context, continuation) in enumerate(pairs):
            row_N += [row] * len(continuation)
            position_N += range(len(context) - 1, len(context) - 1 + len(continuation))
            target_N += continuation
        hidden_ND = hidden_BTD[row_N, position_N]
        targets_N = torch.tensor(target_N, device=self._device)
        n_at_once = max(1, _LOGITS_AT_ONCE // self.model.shape.vocab_size)
        log_probs, greedy = [], []
        for part_ND, part_N in zip(torch.split(hidden_ND, n_at_once), torch.split(targets_N, n_at_once), strict=True):
            logits_NV = self.model.head(part_ND).float()
            log_probs.append(token_log_probs(logits_NV, part_N))
            greedy.append(logits_NV.argmax(dim=-1) == part_N)
        lengths = [len(continuation) for _, continuation in pairs]
        return [
            LogLikelihood(float(log_probs_T.double().sum()), len(log_probs_T), bool(greedy_T.all()))
            for log_probs_T, greedy_T in zip(
                torch.split(torch.cat(log_probs), lengths), torch.split(torch.cat(greedy), lengths), strict=True
            )
        ]

    def _is_stop(self, tokens_B: Tensor) -> Tensor:
        return (tokens_B[:, None] == self._stop_ids).any(dim=-1)

    def _token_bytes(self, token: int) -> bytes:
        return b"" if token in self.tokenizer.stop_ids else self.tokenizer.token_bytes(token)

    def _text(self, ids: list[int]) -> str:
        if ids and ids[-1] in self.tokenizer.stop_ids:
            ids = ids[:-1]
        return self.tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")
