"""An item and an answer in, right or wrong out. The rules are those of `talaria.world.judge`, for every exam."""

from __future__ import annotations

from talaria.eval.items import Item
from talaria.world.judge import check


def is_right(item: Item, answer: str) -> bool:
    """Whether `answer` answers `item`, by the item's grader."""
    return check(item.model_dump(mode="json"), answer)
