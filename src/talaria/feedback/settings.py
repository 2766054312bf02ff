"""What a recipe's [conversations] and [comparisons] tables may hold. No torch."""

from __future__ import annotations

from pydantic import Field

from talaria.config import Settings


class ConversationSettings(Settings):
    """Conversations made from the corpus: a passage's opening is asked to be continued, the rest is the answer."""

    continuations: int = Field(default=2000, gt=1)
    opening_characters: int = Field(default=80, gt=0)
    answer_characters: int = Field(default=240, gt=0)
    seed: int = 0


class ComparisonSettings(Settings):
    """Answers of the fine-tuned model to prompts of the world, compared by labelers who err as people do."""

    prompts: int = Field(default=1500, gt=0)
    """Prompts whose answers are compared."""
    policy_prompts: int = Field(default=3000, gt=0)
    """Further prompts, for the policy to learn on; none of them is compared."""
    answers: int = Field(default=4, ge=2, le=9)
    """Answers drawn for a prompt; those that are alike count as one."""
    temperature: float = Field(default=1.5, gt=0)
    """Of the answers compared. A fine-tuned model that is nearly always right gives nothing to prefer at 1."""
    max_tokens: int = Field(default=64, gt=0)
    labelers: int = Field(default=8, gt=0)
    second_opinions: float = Field(default=0.2, ge=0, le=1)
    """Share of the prompts that a second labeler compares too, from which their agreement is measured."""
    batch_size: int = Field(default=128, gt=0)
    """Answers that the engine writes side by side."""
