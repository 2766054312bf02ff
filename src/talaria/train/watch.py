"""A run held against what was predicted of it: the mean loss of each stretch of it, inside or outside the band.

Enters: the `PlanSettings` of a recipe or a ladder, then every step's share of the run and its loss. Leaves: a sentence
when a stretch ends outside. A single step's loss is a batch's luck, so a stretch is judged by its mean.
"""

from __future__ import annotations

from typing import Any

from talaria.train.settings import PlanSettings


class Watch:
    """`memory` is JSON state that a checkpoint keeps, so that a resumed run judges whole stretches. A band that is new
    to it is taken up at `share` of the run: with the first stretch that is all to come."""

    def __init__(self, plan: PlanSettings, memory: dict[str, Any], share: float = 0.0) -> None:
        self._plan, self._memory = plan, memory
        ends = [[stretch.begin, stretch.end] for stretch in plan.band]
        if memory.get("ends") != ends:
            past = sum(begin < share for begin, _ in ends)
            memory.update(ends=ends, stretch=past, sum=0.0, count=0)

    def see(self, share: float, loss: float) -> tuple[float, float, float] | None:
        """Take in the loss of the step that ends at `share` of the run. At the end of a stretch, (mean loss, low,
        high) of it, else None."""
        memory, band = self._memory, self._plan.band
        if memory["stretch"] >= len(band) or share <= band[memory["stretch"]].begin:
            return None
        stretch = band[memory["stretch"]]
        memory["sum"] += loss
        memory["count"] += 1
        if share < stretch.end:
            return None
        mean = memory["sum"] / memory["count"]
        memory.update(stretch=memory["stretch"] + 1, sum=0.0, count=0)
        return mean, stretch.low, stretch.high
