"""What a recipe's [model] table may hold. `resolve_shape` turns it into a `ModelShape` once the vocabulary is known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, ValidationError

from talaria.config import Settings
from talaria.errors import UsageError
from talaria.model.shape import Llama3RopeScaling, ModelShape, shape_from_depth


class ModelSettings(Settings):
    """`depth` sets the whole shape; any other field of `ModelShape` that is given wins over the derived value."""

    depth: PositiveInt = 4
    n_layers: PositiveInt | None = None
    d_model: PositiveInt | None = None
    n_heads: PositiveInt | None = None
    n_kv_heads: PositiveInt | None = None
    d_head: PositiveInt | None = None
    d_ff: PositiveInt | None = None
    context: PositiveInt = 256
    norm: Literal["rmsnorm", "layernorm"] | None = None
    positions: Literal["rope", "learned"] | None = None
    feed_forward: Literal["swiglu", "gelu"] | None = None
    bias: bool | None = None
    tie_embeddings: bool | None = None
    norm_eps: float | None = Field(default=None, gt=0)
    rope_theta: float | None = Field(default=None, gt=0)
    rope_scaling: Llama3RopeScaling | None = None
    qk_norm: bool | None = None
    """Norms on queries and keys; absent, with rotary positions only."""
    token_shift: bool | None = None
    ngram_embeddings: int | None = Field(default=None, ge=0, le=8)


def resolve_shape(settings: ModelSettings, vocab_size: int) -> ModelShape:
    """The shape of a [model] table for a vocabulary of `vocab_size`. Raises UsageError where numbers do not fit."""
    explicit = settings.model_dump(exclude={"depth", "context"}, exclude_none=True)
    try:
        return shape_from_depth(settings.depth, vocab_size, settings.context, **explicit)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"[model] {place + ': ' if place else ''}{message}") from None
