"""What a recipe's [conversations] and [comparisons] tables may hold. No torch."""

from __future__ import annotations

from pydantic import Field

from talaria.config import Settings

DATABASE = "feedback.db"
"""The choices of a stage, in its folder."""


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


class RoundSettings(Settings):
    """The loop of comparisons, reward model and policy, round after round. The first round is the recipe's own."""

    number: int = Field(default=3, ge=1)
    prompts: int | None = Field(default=None, gt=0)
    """Prompts compared in each later round; absent, as many as [comparisons] has. Of the world only."""
    wanted: int = Field(default=200, gt=0)
    """Without a world: rankings with an answer of the newest policy that people must have made for a round to begin."""
    items: int = Field(default=300, gt=0)
    """Questions that each round's policy is measured on."""


class QueueSettings(Settings):
    """Who is given which item, and how often."""

    annotators_per_item: int = Field(default=1, gt=0)
    assignment_seconds: float = Field(default=3600.0, gt=0)
    """After that an item that was given and not judged may go to somebody else too."""
    hidden_share: float = Field(default=0.05, ge=0, lt=1)
    """Of what one annotator gets, how much has a known answer, as far as there are such items. They come at random."""
    pass_share: float = Field(default=0.75, ge=0, le=1)
    """Share of the qualification items that must be ranked as they are known to be."""


class CollectSettings(Settings):
    """How the models answer prompts that people then compare."""

    answers: int = Field(default=2, ge=2, le=9)
    """To each prompt, and to each of an annotator's own messages."""
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=256, gt=0)
    seed: int = 0


class PromptSettings(Settings):
    """What becomes of prompts before people see them."""

    mask_personal_data: bool = True
    prefix_characters: int = Field(default=100, gt=0)
    """Prompts that share so many first characters are one; case and spacing do not count."""
    per_user: int = Field(default=200, gt=0)
    validation_share: float = Field(default=0.05, ge=0, lt=0.5)
    """Of users; of prompts where nobody knows the user."""
    test_share: float = Field(default=0.05, ge=0, lt=0.5)
    seed: int = 0


class SelfInstructSettings(Settings):
    """How new tasks are made from seed tasks (Wang et al. 2023)."""

    instructions: int = Field(default=100, gt=0)
    """New instructions to make."""
    seed_examples: int = Field(default=6, gt=0)
    """Seed tasks shown for each request, beside `own_examples` that were made before (section 2.2)."""
    own_examples: int = Field(default=2, ge=0)
    n_parallel: int = Field(default=8, gt=0)
    rouge: float = Field(default=0.7, gt=0, le=1)
    """An instruction this close (ROUGE-L) to one that is there already is dropped (section 2.2)."""
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Of new instructions; classification and instances are drawn greedily."""
    max_tokens: int = Field(default=1024, gt=0)
    max_requests: int | None = Field(default=None, gt=0)
    prompt_price: float = Field(default=0.0, ge=0)
    """Of a million tokens, in any currency."""
    completion_price: float = Field(default=0.0, ge=0)
    seed: int = 0
