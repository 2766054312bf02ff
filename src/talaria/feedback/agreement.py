"""How far annotators agree, with each other and with annotators held out, with intervals; comparisons in, figures out.

    report = measure_agreement(store.read_comparisons(), held_out={"eve"})
    report.among.share, report.among.low, report.among.high

What two people agree on is a pair of answers that both ranked: one better, the other better, or tied. Ouyang et al.
2022 (InstructGPT, section 3.4) report such shares: 72.6 +- 1.5 % among labelers, 77.3 +- 1.3 % among held-out ones.
Pairs of one prompt are not independent, so intervals are a bootstrap over prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from talaria.feedback.store import Comparison

Pair = tuple[int, int]
Question = tuple[str | None, Pair]  # a criterion, and the answers that were compared by it


@dataclass(frozen=True)
class Agreement:
    """A share with its 95 % interval; None where nobody judged the same pair.

    `share` counts ties as a choice of their own; `strict_share` leaves out pairs in which either person saw a tie.
    `alpha` is Krippendorff's (nominal), every pair of judgements weighing the same: 1 is perfect, 0 what chance gives.
    `n` counts pairs of judgements.
    """

    n: int
    n_prompts: int
    share: float | None
    low: float | None
    high: float | None
    strict_share: float | None
    strict_low: float | None
    strict_high: float | None
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None


@dataclass(frozen=True)
class AgreementReport:
    """`among` the annotators who are not held out, `held_out` among those who are, `between` one of each."""

    among: Agreement
    held_out: Agreement
    between: Agreement
    by_annotator: dict[str, Agreement]
    """Each with all others."""


def pair_labels(ranking: Sequence[Sequence[int]]) -> dict[Pair, int]:
    """For each pair (a, b) of answer ids with a < b: 1 where a ranks higher, -1 where b does, 0 where they are tied."""
    places = {answer: place for place, group in enumerate(ranking) for answer in group}
    return {(a, b): (places[b] > places[a]) - (places[b] < places[a]) for a, b in combinations(sorted(places), 2)}


def follows(ranking: Sequence[Sequence[int]], known: Sequence[Sequence[int]]) -> bool:
    """Whether `ranking` has every pair that `known` orders in that order; what `known` ties may come as it likes. No
    ranking, as a skip has none, is never right."""
    told = pair_labels(ranking)
    return bool(told) and all(told.get(pair) == label for pair, label in pair_labels(known).items() if label)


def measure_agreement(
    comparisons: Sequence[Comparison], held_out: Collection[str] = (), resamples: int = 2000, seed: int = 0
) -> AgreementReport:
    """Agreement over all pairs of answers that two people ranked by the same criterion. `comparisons`: those that
    stand, ranked.

    A person who ranked the same pair by the same criterion twice counts once, by the later row.
    """
    judged: dict[int, dict[Question, dict[str, int]]] = defaultdict(
        lambda: defaultdict(dict)
    )  # prompt -> criterion, pair -> who: label
    for choice in comparisons:
        ranking = [[answer.id for answer in group] for group in choice.ranking]
        for pair, label in pair_labels(ranking).items():
            judged[choice.prompt_id][choice.criterion, pair][choice.annotator] = label
    annotators = sorted({choice.annotator for choice in comparisons})

    def measured(counts: Callable[[str, str], bool]) -> Agreement:
        return _agreement([_votes(pairs.values(), counts) for pairs in judged.values()], resamples, seed)

    return AgreementReport(
        among=measured(lambda a, b: a not in held_out and b not in held_out),
        held_out=measured(lambda a, b: a in held_out and b in held_out),
        between=measured(lambda a, b: (a in held_out) != (b in held_out)),
        by_annotator={name: measured(lambda a, b, name=name: name in (a, b)) for name in annotators},  # type: ignore[misc]
    )


def _votes(pairs: Iterable[dict[str, int]], counts: Callable[[str, str], bool]) -> np.ndarray:
    """Of one prompt, how often two people said (i, j), each pair of answers weighing as its pairs of people do.

    A matrix of 3 x 3 labels, symmetric: who is first and which answer has the lower number mean nothing, so that each
    pair of judgements enters as (i, j), (j, i) and both of these turned round, with a weight of a quarter each.
    """
    table: Counter[tuple[int, int]] = Counter()
    for said in pairs:
        for (first, i), (second, j) in combinations(sorted(said.items()), 2):
            if counts(first, second):
                for turned in ((i, j), (j, i), (-i, -j), (-j, -i)):
                    table[turned] += 1
    votes = np.zeros((3, 3))
    for (i, j), times in table.items():
        votes[i + 1, j + 1] = times / 4
    return votes


def _agreement(tables: list[np.ndarray], resamples: int, seed: int) -> Agreement:
    used = np.array([table for table in tables if table.sum() > 0]).reshape(-1, 3, 3)
    if not len(used):
        return Agreement(0, 0, *[None] * 9)
    generator = np.random.default_rng(seed)
    boots = np.array([used[generator.integers(0, len(used), len(used))].sum(axis=0) for _ in range(resamples)])
    figures: list[float | None] = []
    for figure in (_share, _strict_share, _alpha):
        value = figure(used.sum(axis=0))
        values = [v for v in map(figure, boots) if v is not None]
        low, high = np.quantile(values, [0.025, 0.975]) if values else (None, None)
        figures += [value, None if low is None else float(low), None if high is None else float(high)]
    return Agreement(round(used.sum()), len(used), *figures)


def _share(votes: np.ndarray) -> float | None:
    return float(np.trace(votes) / votes.sum()) if votes.sum() else None


def _strict_share(votes: np.ndarray) -> float | None:
    return _share(votes[::2, ::2])


def _alpha(votes: np.ndarray) -> float | None:
    """1 - observed / expected disagreement, over the coincidence matrix of the pairs of judgements (Krippendorff 2004,
    section 11.3). None where everybody always said the same thing: then there is nothing to disagree on."""
    coincidences = 2 * votes  # each pair of judgements is two entries of the matrix
    n, totals = coincidences.sum(), coincidences.sum(axis=0)
    expected = (n * n - (totals**2).sum()) / (n - 1)
    observed = n - np.trace(coincidences)
    return None if expected == 0 else float(1 - observed / expected)
