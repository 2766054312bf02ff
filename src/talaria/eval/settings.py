"""Settings of an evaluation. No torch."""

from __future__ import annotations

from pydantic import Field

from talaria.config import Settings


class EvalSettings(Settings):
    """What is asked, how much of it, and how answers are scored."""

    tasks: list[str] | None = None
    """Tasks to run, by name; None runs every task of the exam."""
    limit_per_task: int | None = Field(default=None, ge=1)
    """At most this many items a task, spread evenly over it; None asks them all."""
    untrained_per_task: int | None = Field(default=50, ge=1)
    """The untrained model, which never ends an answer and so costs most, is asked at most this many."""
    max_tokens: int = Field(default=96, ge=1)
    """An answer is cut here."""
    batch_size: int = Field(default=256, ge=1)
    """Answers that grow side by side."""
    likelihood_per_task: int | None = Field(default=50, ge=0)
    """At most this many items a task are also scored by likelihood (gold answer, choices); None: all, 0: none."""
    max_choices: int = Field(default=8, ge=2)
    """The gold answer is ranked among at most this many choices; of a longer list, a fixed draw stands for it."""
    validation_tokens: int = Field(default=1_000_000, ge=1)
    """At most about this many tokens of held-out text are scored."""
    examples: int = Field(default=3, ge=0)
    """Questions with answers before a question, whose gain is measured; 0 measures none."""
    examples_per_task: int = Field(default=40, ge=1)
    """Questions a task that are asked with examples."""
    dialogues: int = Field(default=100, ge=0)
    """Questions of two turns a language, in the world."""
    preference_items: int = Field(default=300, ge=0)
    """Questions to which the answers of policies are compared with the fine-tuned model's; 0 compares none."""
    best_of: int = Field(default=16, ge=0)
    """Beside the policies, the best of so many answers of the fine-tuned model by the reward model; 0 leaves it out."""
