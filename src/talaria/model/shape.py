"""The size and the variant of a model as plain numbers: parameters, FLOPs, memory, the depth dial. No torch.

Enters: a few integers. Leaves: a frozen `ModelShape` and the arithmetic that planners, progress reports and the trunk
share. `shape_from_depth(6, vocab_size=8192)` is the usual way in; `talaria.model.transformer` builds it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from talaria.config import Settings

# Freed blocks that the allocator cannot hand out again; measured with glibc's, 10M parameters, 500 to 2,000 tokens.
ALLOCATOR_OVERHEAD = 1.15
BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


class Llama3RopeScaling(Settings):
    """LLaMA 3.1's stretching of the slow RoPE frequencies (Grattafiori et al. 2024; `rope_type: llama3`)."""

    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_context: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Llama3RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be larger than low_freq_factor")
        return self


class ModelShape(Settings):
    """One decoder-only transformer: LLaMA's variant, unless `norm`, `positions` and `feed_forward` make it GPT-2.

    Left out, `n_kv_heads` is `n_heads`, `d_head` is `d_model / n_heads`, and `d_ff` is 4 `d_model` for GELU or 8/3 of
    it, up to a multiple of 64, for SwiGLU (Shazeer 2020: three matrices cost what two did).
    """

    vocab_size: PositiveInt
    n_layers: PositiveInt
    d_model: PositiveInt
    n_heads: PositiveInt
    # Zero is never seen: what is left out is derived before it is checked.
    n_kv_heads: PositiveInt = 0
    d_head: PositiveInt = 0
    d_ff: PositiveInt = 0
    context: PositiveInt = 1024
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    positions: Literal["rope", "learned"] = "rope"
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    tie_embeddings: bool = True
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_scaling: Llama3RopeScaling | None = None
    qk_norm: bool = False
    """RMSNorm on every query and key head before RoPE (Henry et al. 2020, as in Qwen3); on in `shape_from_depth`."""
    token_shift: bool = False
    """Each sublayer sees a learned mix, channel by channel, of this position and the one before (Peng et al. 2023)."""
    ngram_embeddings: int = Field(default=0, ge=0, le=8)
    """How many earlier tokens add an embedding of their own, one table for each distance, to a position's input."""

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {key: value for key, value in data.items() if value is not None}
        d_model, n_heads = data.get("d_model"), data.get("n_heads")
        if isinstance(d_model, int) and isinstance(n_heads, int) and d_model > 0 and n_heads > 0:
            data.setdefault("n_kv_heads", n_heads)
            if "d_head" not in data:
                if d_model % n_heads:
                    raise ValueError(
                        f"d_model={d_model} does not divide into n_heads={n_heads}; change one of them or give d_head"
                    )
                data["d_head"] = d_model // n_heads
            data.setdefault("d_ff", default_d_ff(d_model, data.get("feed_forward", "swiglu")))
        return data

    @model_validator(mode="after")
    def _check(self) -> ModelShape:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "every key-value head serves the same number of query heads"
            )
        if self.positions == "rope" and self.d_head % 2:
            raise ValueError(f"d_head={self.d_head} is odd; RoPE turns pairs of channels, so it must be even")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError('rope_scaling needs positions="rope"')
        return self

    @property
    def d_attention(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.d_head

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of query, key and value in their fused projection."""
        return self.d_attention, self.n_kv_heads * self.d_head, self.n_kv_heads * self.d_head

    @property
    def d_qkv(self) -> int:
        """Width of the fused query, key and value projection."""
        return sum(self.qkv_rows)

    @property
    def up_rows(self) -> tuple[int, ...]:
        """Rows of gate and up in their fused projection; of up alone where there is no gate."""
        return (self.d_ff, self.d_ff) if self.feed_forward == "swiglu" else (self.d_ff,)

    def _norm_params(self) -> int:
        return self.d_model * (2 if self.norm == "layernorm" and self.bias else 1)

    def _matrix_params_per_layer(self) -> int:
        return self.d_model * (self.d_qkv + self.d_attention + sum(self.up_rows) + self.d_ff)

    def _lookup_params(self) -> int:
        """Tables that are read by index: they cost no multiplication."""
        rows = self.vocab_size * (1 + self.ngram_embeddings) + (self.context if self.positions == "learned" else 0)
        return rows * self.d_model

    def n_params(self) -> int:
        """Trainable parameters; a tied embedding is counted once."""
        vectors = 2 * self._norm_params()
        if self.bias:
            vectors += self.d_qkv + self.d_model + sum(self.up_rows) + self.d_model
        if self.qk_norm:
            vectors += 2 * self.d_head
        if self.token_shift:
            vectors += 2 * self.d_model
        unembedding = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        layers = self.n_layers * (self._matrix_params_per_layer() + vectors)
        return self._lookup_params() + layers + self._norm_params() + unembedding

    def n_params_non_embedding(self) -> int:
        """Parameters without any embedding, position or output table (N of Kaplan et al. 2020)."""
        unembedding = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        return self.n_params() - self._lookup_params() - unembedding

    def forward_flops_per_token(self, context: int | None = None) -> int:
        """Floating-point operations of one forward pass, per token, in windows of `context` tokens.

        2 for each weight of a matrix product (one multiplication, one addition; the output head counts, lookups do
        not) + 4 L H E T for scores and weighted values over the full T x T square, half of which causal kernels skip
        (Chowdhery et al. 2022, appendix B).
        """
        window = self.context if context is None else context
        weights = self.n_layers * self._matrix_params_per_layer() + self.vocab_size * self.d_model
        return 2 * weights + 4 * self.n_layers * self.d_attention * window

    def flops_per_token(self, context: int | None = None) -> int:
        """Training: forward and backward, 6 N + 12 L H E T per token (Chowdhery et al. 2022, appendix B)."""
        return 3 * self.forward_flops_per_token(context)

    def kv_cache_bytes(self, batch: int, context: int | None = None, dtype: str = "float32") -> int:
        """Bytes of keys and values for `batch` sequences of `context` tokens."""
        window = self.context if context is None else context
        return 2 * self.n_layers * self.n_kv_heads * self.d_head * batch * window * BYTES_PER_ELEMENT[dtype]

    def training_memory_bytes(
        self, batch: int, context: int | None = None, optimizer: str = "adamw", dtype: str = "float32"
    ) -> int:
        """Predicted peak bytes of one training step without recomputation: an estimate, the program itself excluded.

        Weights, gradients and optimizer state are fp32 (AdamW two moments; Muon one for the layers' matrices, AdamW
        for the rest; SGD none). Activations are what autograd keeps, in `dtype`; logits are held in fp32 four times
        (logits, log-probabilities and the gradient of each).
        """
        window = self.context if context is None else context
        n = self.n_params()
        moments = {"adamw": 2 * n, "muon": 2 * n - self.n_layers * self._matrix_params_per_layer(), "sgd": 0}
        if optimizer not in moments:
            raise ValueError(f"optimizer {optimizer!r} is unknown; known: {', '.join(moments)}")
        tokens = batch * window
        per_token = self.activation_bytes(tokens, dtype) + 4 * 4 * tokens * self.vocab_size
        return 4 * (2 * n + moments[optimizer]) + round(ALLOCATOR_OVERHEAD * per_token)

    def activation_bytes(self, tokens: int, dtype: str = "float32") -> int:
        """Predicted bytes that autograd keeps of `tokens` positions, logits excluded."""
        # Per token and layer: two residual sums and two normed inputs, qkv before and after RoPE, attention's output,
        # and the feed-forward's pre-activations, gate and product.
        feed_forward = (4 if self.feed_forward == "swiglu" else 2) * self.d_ff
        per_layer = 4 * self.d_model + 2 * self.d_qkv + self.d_attention + feed_forward
        if self.token_shift:
            per_layer += 4 * self.d_model
        return tokens * (self.n_layers * per_layer + 2 * self.d_model) * BYTES_PER_ELEMENT[dtype]


def default_d_ff(d_model: int, feed_forward: str) -> int:
    """4 d_model, or 8/3 d_model up to a multiple of 64 where a gate makes it three matrices."""
    return 4 * d_model if feed_forward == "gelu" else -(-8 * d_model // (3 * 64)) * 64


def shape_from_depth(depth: int, vocab_size: int, context: int = 1024, **explicit: Any) -> ModelShape:
    """One number sets the size: `depth` layers, width 64 x depth, heads of 64 channels (32 up to depth 4).

    Queries and keys are normed where positions are rotary, which lets the rate be higher (Wortsman et al. 2023).
    Any field of `ModelShape` in `explicit` wins over the derived value; what depends on it follows.
    """
    given = {key: value for key, value in explicit.items() if value is not None}
    d_model = given.get("d_model", 64 * depth)
    if "n_heads" not in given:
        d_head = given.get("d_head", 32 if depth <= 4 else 64)
        given["n_heads"] = max(1, d_model // d_head)
    defaults = {"vocab_size": vocab_size, "n_layers": depth, "d_model": d_model, "context": context}
    defaults["qk_norm"] = given.get("positions", "rope") == "rope"
    return ModelShape(**(defaults | given))
