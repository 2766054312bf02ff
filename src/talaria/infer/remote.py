"""The engine's calls over any OpenAI-compatible URL: prompts in, answers out, with retries, a cache and a meter.

    engine = RemoteEngine("http://127.0.0.1:8000/v1", "laptop", key=key, cache="cache/")
    engine.chat([{"role": "user", "content": "Who are you?"}], temperature=0).text

An endpoint tells text, not tokens: `token_ids` and `log_probs` are empty here. `loglikelihood` needs an endpoint whose
/completions echoes the prompt's log-probabilities and raises Unsupported elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Unpack

from talaria.errors import UsageError, UserError
from talaria.files import atomic_write
from talaria.infer.connection import Connection, Meter, RefusedError
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

__all__ = ["Meter", "RemoteEngine", "Unsupported"]


class Unsupported(UserError):
    """The endpoint cannot do what was asked."""


class RemoteEngine:
    """`url` is the address that ends in /v1 (added where the address has no path); `key` is sent as a bearer token.

    Failed requests (429, 5xx, no connection) are tried again up to max_retries times, after Retry-After or a delay that
    doubles. With `cache`, a folder, answers that a temperature of 0 or a seed makes repeatable are asked for only once.
    `meter` counts. At most n_parallel requests run at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        cache: str | Path | None = None,
        max_retries: int = 5,
        timeout_seconds: float = 120.0,
        n_parallel: int = 8,
        first_delay_seconds: float = 0.5,
    ) -> None:
        self.model = model
        self.cache = None if cache is None else Path(cache)
        self.n_parallel = n_parallel
        self.meter = Meter()
        self._connection = Connection(url, key, max_retries, timeout_seconds, first_delay_seconds, self.meter)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

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
        n: int = 1,
        **more: Unpack[MoreSampling],
    ) -> list[Completion]:
        """Continue every prompt over /completions; arguments as in `Engine.generate`, `top_logprobs` alone refused."""
        if isinstance(prompts, str):
            raise UsageError("prompts: one string; pass a list of prompts, e.g. generate([prompt])")
        sampling = Sampling(max_tokens, temperature, top_p, top_k, as_stops(stop), **more)
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else row_seed(seed, index) for index in range(len(prompts))]
        elif len(seed) != len(prompts):
            raise UsageError(f"seed: {len(seed)} seeds for {len(prompts)} prompts; give one each, or one for all")
        else:
            seeds = list(seed)

        def complete(prompt: str | Sequence[int], seed: int | None) -> Completion:
            asked = prompt if isinstance(prompt, str) else list(prompt)
            answer = self._ask("/completions", {"prompt": asked, **self._options(sampling, seed)})
            return _completion(answer, lambda choice: choice["text"])

        each = [prompt for prompt in prompts for _ in range(n)]
        own_seeds = [None if seed is None else row_seed(seed, answer) for seed in seeds for answer in range(n)]
        with ThreadPoolExecutor(self.n_parallel) as pool:
            return list(pool.map(complete, each, own_seeds))

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a conversation over /chat/completions; options as in `generate`."""
        answer = self._ask("/chat/completions", self._chat_body(messages, sampling))
        return _completion(answer, lambda choice: choice["message"]["content"] or "")

    def stream(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Chunk]:
        """Continue one prompt, piece by piece; options as in `generate`. Streams are not cached."""
        options, seed = _split_seed(sampling)
        asked = prompt if isinstance(prompt, str) else list(prompt)
        body = {"prompt": asked, **self._options(options, seed)}
        return self._stream("/completions", body, lambda choice: choice.get("text"))

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        """Answer a conversation, piece by piece; options as in `generate`."""
        body = self._chat_body(messages, sampling)
        return self._stream("/chat/completions", body, lambda choice: choice["delta"].get("content"))

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        """Score each (context, continuation), both str, from echoed log-probabilities.

        n_tokens counts the endpoint's tokens of the continuation. Raises Unsupported where the endpoint does not echo
        them, where a token lies across the border of context and continuation, and for an empty context.
        """
        with ThreadPoolExecutor(self.n_parallel) as pool:
            return list(pool.map(self._score, pairs))

    # ------------------------------------------------------------------------------- inside

    def _options(self, sampling: Sampling, seed: int | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.top_logprobs:
            raise UsageError("top_logprobs: an endpoint tells text, not tokens; leave it out, or load the model here")
        # Sent only where they matter: not every endpoint knows them.
        penalty = sampling.repetition_penalty
        optional = {
            "top_k": sampling.top_k,
            "stop": list(sampling.stop) or None,
            "seed": seed,
            "min_p": sampling.min_p or None,
            "presence_penalty": sampling.presence_penalty or None,
            "frequency_penalty": sampling.frequency_penalty or None,
            "repetition_penalty": None if penalty == 1 else penalty,
            # An endpoint's -100 bars a token.
            "structured_outputs": _structured_outputs(sampling),
            "logit_bias": {str(token): max(bias, -100.0) for token, bias in sampling.logit_bias.items()} or None,
        }
        return options | {name: value for name, value in optional.items() if value is not None}

    def _chat_body(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
        options, seed = _split_seed(sampling)
        body = {"messages": [dict(message) for message in messages], **self._options(options, seed)}
        if options.json_schema is not None:
            # OpenAI's own name for it, which chat endpoints know better.
            schema = {"name": "answer", "schema": body.pop("structured_outputs")["json"], "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        repeatable = body["temperature"] == 0 or "seed" in body
        if self.cache is None or not repeatable:
            return self._connection.post(path, body)
        request = json.dumps([self._connection.url, path, body], sort_keys=True, ensure_ascii=False)
        file = self.cache / f"{hashlib.sha256(request.encode()).hexdigest()}.json"
        if file.is_file():
            try:
                answer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["answer"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{file}: not a cached answer; delete the file and run again") from None
            self.meter.add(cache_hits=1)
            return answer
        answer = self._connection.post(path, body)
        atomic_write(file, json.dumps({"request": json.loads(request), "answer": answer}, ensure_ascii=False))
        return answer

    def _stream(self, path: str, body: dict[str, Any], text_of: Any) -> Iterator[Chunk]:
        finish_reason: FinishReason | None = None
        for event in self._connection.post_stream(path, {**body, "stream": True}):
            for choice in event.get("choices", ()):
                finish_reason = _finish_reason(choice) or finish_reason
                if text := text_of(choice):
                    yield Chunk(text, [], [], None)
        if finish_reason is None:
            raise UserError(f"{self._connection.url}{path}: the stream ended before the answer did; try again")
        yield Chunk("", [], [], finish_reason)

    def _score(self, pair: tuple[str, str]) -> LogLikelihood:
        context, continuation = pair
        where = f"{self._connection.url}/completions"
        if not context or not continuation:
            raise Unsupported(f"{where}: context and continuation must not be empty: no log-probability is told then")
        whole = context + continuation
        body = {"model": self.model, "prompt": whole, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        try:
            answer = self._ask("/completions", body)
        except RefusedError as error:
            raise Unsupported(f"{where}: does not echo log-probabilities ({error}); use another endpoint") from None
        choice = answer["choices"][0]
        told = choice.get("logprobs") or {}
        if not choice["text"].startswith(whole) or not told.get("text_offset") or not told.get("token_logprobs"):
            raise Unsupported(f"{where}: does not echo the prompt's log-probabilities; use another endpoint")
        offsets, log_probs = told["text_offset"], told["token_logprobs"]
        scored = [i for i, offset in enumerate(offsets) if len(context) <= offset < len(whole)]
        if not scored or offsets[scored[0]] != len(context) or any(log_probs[i] is None for i in scored):
            raise Unsupported(
                f"{where}: a token lies across the border of context and continuation {continuation[:40]!r}; "
                "begin the continuation with its space"
            )
        best = told.get("top_logprobs") or []
        if len(best) < len(offsets) or not all(best[i] for i in scored):
            raise Unsupported(f"{where}: does not tell the most likely tokens (top_logprobs); use another endpoint")
        is_greedy = all(log_probs[i] >= max(best[i].values()) for i in scored)
        return LogLikelihood(float(sum(log_probs[i] for i in scored)), len(scored), is_greedy)


def _split_seed(sampling: Mapping[str, Any]) -> tuple[Sampling, int | None]:
    options = dict(sampling)
    seed = options.pop("seed", None)
    return Sampling(**options | {"stop": as_stops(options.get("stop", ()))}), seed


def _structured_outputs(sampling: Sampling) -> dict[str, Any] | None:
    """As vLLM names what holds an answer to a schema or a regex."""
    if sampling.regex is not None:
        return {"regex": sampling.regex}
    if sampling.json_schema is None:
        return None
    return {"json": sampling.json_schema}


def _completion(answer: Mapping[str, Any], text_of: Any) -> Completion:
    choice = answer["choices"][0]
    prompt_tokens = (answer.get("usage") or {}).get("prompt_tokens", 0)
    return Completion(text_of(choice), [], [], _finish_reason(choice) or "stop", prompt_tokens)


def _finish_reason(choice: Mapping[str, Any]) -> FinishReason | None:
    """Endpoints know more reasons than two (content_filter, tool_calls); all but "length" mean that the model ended."""
    reason = choice.get("finish_reason")
    return None if reason is None else "length" if reason == "length" else "stop"
