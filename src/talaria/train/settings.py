"""What the tables of a recipe's training stages may hold, and the plan derived from them. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from talaria.config import Settings
from talaria.model.shape import ModelShape


class OptimizerSettings(Settings):
    """AdamW, or Muon for the hidden matrices with AdamW for embeddings, head and vectors."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate; absent, it is derived from the compute of the run."""
    muon_learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate of the matrices under Muon, scaled to AdamW's RMS; absent, the same as `learning_rate`."""
    newton_schulz_steps: int = Field(default=5, ge=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    schedule: Literal["cosine", "warmup-stable-decay"] = "cosine"
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the rate rises linearly."""
    decay_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps over which warmup-stable-decay falls to `final_rate`."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Rate at the last step, as a share of the peak."""


class LoraSettings(Settings):
    """Train a difference of low rank to the matrices of the blocks and nothing else; merged at the end."""

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    """The difference is multiplied by alpha / rank."""


class PretrainSettings(Settings):
    """Next-token training on packed documents."""

    tokens: int | None = Field(default=None, gt=0)
    """Training tokens; absent, `tokens_per_parameter` times the model's parameters, or `epochs` over the data."""
    tokens_per_parameter: float = Field(default=20.0, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    context: int | None = Field(default=None, gt=0)
    """Tokens a training row; absent, the model's context."""
    batch_tokens: int | None = Field(default=None, gt=0)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    document_attention: bool = True
    """Positions and attention start anew at each document, so packing does not change a document's loss."""
    optimizer: OptimizerSettings = OptimizerSettings()
    data_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training text, drawn once for all seeds, that the run sees at all: a small run of a ladder repeats
    its text as often as the large one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; "auto" is bfloat16 on a machine that multiplies it faster. Weights are fp32 always."""
    compile: bool = False
    noise_scale_every_steps: int | None = Field(default=20, gt=0)
    validate_every_steps: int | None = Field(default=None, gt=0)
    validation_tokens: int = Field(default=65_536, gt=0)
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class SftSettings(Settings):
    """Supervised fine-tuning on conversations: only the assistant's tokens count in the loss."""

    base: str | None = None
    """Model to start from: a Hugging Face folder or .gguf file; absent, this run's pretrained model,
    whose control tokens then begin as the words that stand for them."""
    conversations: list[str] = Field(default_factory=list)
    """Files of conversations; empty, the world's."""
    limit: int | None = Field(default=None, gt=0)
    validation_share: float = Field(default=0.02, gt=0, lt=1)
    epochs: float = Field(default=2.0, ge=0)
    """0 takes `base` as it is, where it is fine-tuned already."""
    context: int | None = Field(default=None, gt=0)
    batch_tokens: int | None = Field(default=None, gt=0)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each batch's rows taken from the pretraining text, against forgetting."""
    lora: LoraSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=None, weight_decay=0.0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products; "auto" is bfloat16 on a machine that multiplies it faster. Weights are fp32 always."""
    compile: bool = False
    validate_every_steps: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, gt=0)
    """Stop after this many validations without a better loss; the best checkpoint is kept either way."""
    keep_validated: bool = False
    """Keep the model of every validation, as validated/step-000123/, to choose among them by something else."""
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class RewardSettings(Settings):
    """A reward model from comparisons: all pairs of one prompt's answers in one batch element."""

    feedback: list[str] = Field(default_factory=list)
    """Databases of comparisons, as paths or URLs; empty, those of [comparisons]."""
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the prompts, with all their comparisons, that are held out."""
    context: int | None = Field(default=None, gt=0)
    """Most tokens of a prompt with an answer; absent, the model's context. Longer answers are left out, with their
    pairs."""
    reads_likelihood: bool = False
    """Whether the score is also made of how likely the model itself finds the answer and of its length; the whole head
    is then fitted to the comparisons before anything else is trained."""
    epochs: int = Field(default=1, ge=0)
    batch_prompts: int = Field(default=32, gt=0)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    lora: LoraSettings | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the matrix products, in training and in what is measured of it. Weights are fp32 always."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-4, weight_decay=0.0)
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class PpoSettings(Settings):
    """Proximal policy optimisation against the reward model, held near the fine-tuned model by a KL penalty."""

    prompts: list[str] = Field(default_factory=list)
    """Files of prompts, rows with `messages` that end with a user turn; empty, those of [comparisons]."""
    steps: int = Field(default=60, gt=0)
    """Iterations: rollouts, then `epochs` over them."""
    rollouts: int = Field(default=64, gt=0)
    max_tokens: int = Field(default=64, gt=0)
    truncated_reward: float = -1.0
    """Of an answer cut at `max_tokens`: it has not ended, and the reward model knows whole answers only."""
    epochs: int = Field(default=4, ge=1)
    minibatches: int = Field(default=2, ge=1)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    kl_coefficient: float = Field(default=0.05, ge=0)
    """Of the penalty on log policy - log reference at every token; the first one where it adapts."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats an answer that the coefficient is steered to; absent, the coefficient is fixed."""
    kl_horizon: float = Field(default=1000.0, gt=0)
    """Answers over which an adaptive coefficient moves by as much as the error."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float | None = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=1.0, gt=0)
    ptx_coefficient: float = Field(default=0.0, ge=0)
    """PPO-ptx: weight of the mean next-token loss on pretraining text, beside the mean loss a token of the answers."""
    ptx_rows: int = Field(default=8, gt=0)
    """Rows of pretraining text beside every minibatch."""
    also_without_ptx: bool = False
    """Make the policy a second time without pretraining text, as stage ppo-without-ptx: what ptx saves."""
    lora: LoraSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=1e-4, weight_decay=0.0, schedule="warmup-stable-decay", warmup_share=0.05, final_rate=0.1
    )
    value_learning_rate: float | None = Field(default=None, gt=0)
    """Absent, the policy's."""
    value_warmup: int = Field(default=4, ge=1)
    """Steps' worth of answers to which the value network's head is fitted before the first update."""
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class DpoSettings(Settings):
    """Direct preference optimisation: the policy learns from comparisons themselves, without a reward model."""

    feedback: list[str] = Field(default_factory=list)
    """Databases of comparisons, as paths or URLs; empty, those of [comparisons]."""
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    context: int | None = Field(default=None, gt=0)
    """Most tokens of a prompt with an answer; absent, the model's context."""
    epochs: int = Field(default=1, ge=1)
    batch_prompts: int = Field(default=32, gt=0)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    beta: float = Field(default=0.1, gt=0)
    lora: LoraSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4, weight_decay=0.0)
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class GrpoSettings(Settings):
    """Group-relative policy optimisation: answers to one prompt are judged against each other."""

    prompts: list[str] = Field(default_factory=list)
    """Files of prompts; empty, those of [comparisons]."""
    reward: Literal["verifier", "model"] = "verifier"
    """Who scores: the grader that stands with each prompt (right is 1, wrong 0), or the reward model."""
    steps: int = Field(default=60, gt=0)
    rollouts: int = Field(default=16, gt=0)
    """Prompts a step."""
    group: int = Field(default=4, ge=2)
    """Answers a prompt."""
    max_tokens: int = Field(default=64, gt=0)
    truncated_reward: float = -1.0
    epochs: int = Field(default=1, ge=1)
    micro_batch_tokens: int = Field(default=16_384, gt=0)
    kl_coefficient: float = Field(default=0.04, ge=0)
    clip: float = Field(default=0.2, gt=0)
    lora: LoraSettings | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the matrix products when answers are read and learned from. Weights, and the products of sampling, are
    fp32."""
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=1e-4, weight_decay=0.0, schedule="warmup-stable-decay", warmup_share=0.05, final_rate=0.1
    )
    checkpoint_every_seconds: float = Field(default=60.0, gt=0)


class Stretch(Settings):
    """A part of a run, as shares of its steps from 0 to 1, and where its mean training loss is expected."""

    begin: float = Field(ge=0, lt=1)
    end: float = Field(gt=0, le=1)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class PlanSettings(Settings):
    """What was predicted of a pretraining run, by `talaria plan` or by a ladder's rungs. It changes nothing of the run;
    the trainer tells how the run compares."""

    hours: float | None = Field(default=None, gt=0)
    """Of the training steps."""
    hourly_cost: float | None = Field(default=None, gt=0)
    """Of all devices together."""
    loss: tuple[float, float] | None = None
    """The interval of the final held-out loss, in nats a token."""
    band: list[Stretch] = Field(default_factory=list)
    """Of the training loss, in the order of the run; stretches do not overlap."""


class TrainingPlan(Settings):
    """The numbers a pretraining run will use, every dial resolved."""

    context: int
    rows: int
    """Rows of `context` tokens in the global batch."""
    micro_rows: int
    steps: int
    learning_rate: float

    @property
    def batch_tokens(self) -> int:
        return self.rows * self.context

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


def plan_pretraining(settings: PretrainSettings, shape: ModelShape, data_tokens: int) -> TrainingPlan:
    """Resolve the dials. Batch and rate follow the compute C of the run where the recipe is silent: DeepSeek LLM
    (Bi et al. 2024), section 3.1: batch 0.2920 C^0.3271 tokens, rate 0.3118 C^-0.1250; tokens follow Chinchilla's
    20 a parameter. The batch is capped so that a run has at least 200 steps."""
    context = min(settings.context or shape.context, shape.context)
    if settings.tokens is not None:
        tokens = settings.tokens
    elif settings.epochs is not None:
        tokens = int(settings.epochs * settings.data_share * data_tokens)
    else:
        tokens = int(settings.tokens_per_parameter * shape.n_params())
    compute = float(shape.flops_per_token(context)) * tokens
    batch_tokens = settings.batch_tokens or min(0.2920 * compute**0.3271, tokens / 200)
    rows = max(1, round(batch_tokens / context))
    return TrainingPlan(
        context=context,
        rows=rows,
        micro_rows=max(1, min(rows, settings.micro_batch_tokens // context)),
        steps=max(1, round(tokens / (rows * context))),
        learning_rate=settings.optimizer.learning_rate or 0.3118 * compute**-0.1250,
    )
