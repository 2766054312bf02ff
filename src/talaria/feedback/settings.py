"""What a recipe's [conversations] table may hold. No torch."""

from __future__ import annotations

from pydantic import Field

from talaria.config import Settings


class ConversationSettings(Settings):
    """Conversations made from the corpus: a passage's opening is asked to be continued, the rest is the answer."""

    continuations: int = Field(default=2000, gt=1)
    opening_characters: int = Field(default=80, gt=0)
    answer_characters: int = Field(default=240, gt=0)
    seed: int = 0
