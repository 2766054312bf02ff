"""Whose answers are preferred: a policy against the model that it began as, and best-of-n beside it.

In: answers of two models to the same items. Out: wins, ties and losses by the world's judge, with and without its rule
of length, and the share of wins among the decided with an interval over items.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from talaria.eval.statistics import bootstrap_interval, wilson_interval
from talaria.world.labelers import judge


def win_rate(
    items: Sequence[dict[str, Any]], own: Sequence[str], other: Sequence[str], *, by_length: bool
) -> dict[str, Any]:
    """Wins, ties and losses of `own`; `share` is that of wins among the decided pairs, with its Wilson interval (None
    where nothing is decided); `net` is (wins - losses) / all with a bootstrap interval, in which ties count."""
    choices = [judge(item, a, b, by_length=by_length) for item, a, b in zip(items, own, other, strict=True)]
    wins, losses = choices.count(1), choices.count(-1)
    decided = wins + losses
    return {
        "wins": wins,
        "ties": choices.count(0),
        "losses": losses,
        "share": wins / decided if decided else None,
        "share_interval": wilson_interval(wins, decided) if decided else None,
        "net": (wins - losses) / len(choices),
        "net_interval": bootstrap_interval([float(choice) for choice in choices]),
    }


def best_of(scores: Sequence[float], n: int) -> list[int]:
    """The place of the highest score in each run of n."""
    return [max(range(i, i + n), key=lambda place: scores[place]) for i in range(0, len(scores), n)]


def best_of_n_kl(n: int) -> float:
    """Nats that best-of-n lies from the model it samples, at most: log n - (n - 1)/n (Stiennon et al. 2020)."""
    return log(n) - (n - 1) / n
