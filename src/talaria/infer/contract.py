"""What goes into an engine and what comes out, local or remote. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, TypedDict

import numpy as np

from talaria.errors import UsageError

FinishReason = Literal["stop", "length"]
Message = Mapping[str, Any]
TopLogProbs = list[tuple[int, float]]
"""The likeliest tokens of one place, best first, each with its log-probability."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 takes the most likely token; filters act after the temperature.

    top_k keeps the k most likely tokens; top_p keeps the fewest tokens whose probabilities sum to at least top_p
    (Holtzman et al. 2020, section 3.1); min_p keeps those at least min_p times as probable as the most likely one
    (Nguyen et al. 2024), which always stays. `stop` strings end a text.

    Before all this the logits change: a token that stands in prompt or answer has a positive logit divided and a
    negative one multiplied by repetition_penalty (Keskar et al. 2019, section 4.1); presence_penalty is taken off every
    token that the answer holds, frequency_penalty once for each time; logit_bias adds to single ids, -inf bars one.
    top_logprobs asks for that many of the likeliest tokens of each place.

    With json_schema or regex the text is held to it: after all this, tokens that cannot go on get no probability, and
    the answer ends once it is complete. {"type": "object"} is any JSON object. max_tokens and `stop` cut as ever.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens={self.max_tokens}: must be at least 1")
        if not 0.0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature={self.temperature}: must be 0 (greedy) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p={self.top_p}: must lie above 0 and be at most 1 (1 keeps every token)")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k={self.top_k}: must be at least 1; leave it out (None) to keep every token")
        if any(not text for text in self.stop):
            raise UsageError("stop: an empty string would end every text; leave it out")
        if not 0.0 <= self.min_p <= 1.0:
            raise UsageError(f"min_p={self.min_p}: must lie in 0..1 (0 keeps every token)")
        for name, penalty in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not isfinite(penalty):
                raise UsageError(f"{name}_penalty={penalty}: must be a finite number (0 changes nothing)")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise UsageError(f"repetition_penalty={self.repetition_penalty}: must be positive (1 changes nothing)")
        for token, bias in self.logit_bias.items():
            if token < 0 or not bias < float("inf"):
                raise UsageError(
                    f"logit_bias of {token} is {bias}: give token ids and finite numbers, or -inf to bar one"
                )
        if self.top_logprobs < 0:
            raise UsageError(f"top_logprobs={self.top_logprobs}: must be 0 or more")
        if self.json_schema is not None and self.regex is not None:
            raise UsageError("json_schema and regex: an answer is held to one of them; leave the other out")
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise UsageError(
                f"json_schema: is {type(self.json_schema).__name__}; give a dict, as json.loads returns it"
            )
        if self.regex is not None and (not isinstance(self.regex, str) or not self.regex):
            raise UsageError("regex: must be a string of at least one character; leave it out to allow everything")

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or biases act before a token is chosen."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias)


class MoreSampling(TypedDict, total=False):
    """Options of `Sampling` that are rarely given."""

    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: dict[int, float]
    top_logprobs: int
    json_schema: Mapping[str, Any]
    regex: str


def as_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several, as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


def row_seed(seed: int, index: int) -> int:
    """The seed of prompt `index` in a call with the one seed `seed`; prompt 0 keeps the seed itself.

    Mixed rather than added, so that prompt 1 under seed 5 does not repeat prompt 0 under seed 6.
    """
    if seed < 0:
        raise UsageError(f"seed={seed}: must be 0 or more")
    if index == 0:
        return seed
    # 63 bits: databases and remote endpoints take seeds as signed 64-bit numbers.
    return int(np.random.SeedSequence(entropy=seed, spawn_key=(index,)).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Completion:
    """One answer.

    token_ids are all tokens generated, the one that ended the answer included; log_probs are theirs (natural log of
    the raw model's probability, before temperature, penalties and filters), and so are top_log_probs, one list a token
    where `top_logprobs` asked for them; text leaves out special tokens and everything from a stop string on.
    """

    text: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    prompt_tokens: int
    top_log_probs: list[TopLogProbs] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; only the last has a finish_reason. Chunks joined are the completion."""

    text: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason | None
    top_log_probs: list[TopLogProbs] = field(default_factory=list)


@dataclass(frozen=True)
class LogLikelihood:
    """Natural log-probability of a continuation (sum over its n_tokens), and whether greedy decoding would give it."""

    log_prob: float
    n_tokens: int
    is_greedy: bool
