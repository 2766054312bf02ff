"""How often `talaria emergence` calls a smooth curve sudden, and how often it finds a true break; and the Pythia
models' tasks.

    python bench/emergence.py --simulations 400
    python bench/emergence.py --pythia DATA/pythia_evals/pythia_evals_main_tidy.csv.gz --folder pictures

Smooth: single-step success is a logistic in the log of scale, answers need n = 1 to 10 steps that must all be right.
Break: single-step success 0.5 before and 0.9 after one doubling. 8 scales, each twice the last, 200 items. Each
simulated task has exact match, and besides it one smooth metric: the share of right steps, or the mean log-likelihood
of the answer with its standard error, or without.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from talaria.report.results import wilson_interval
from talaria.scaling.emergence import Score, Verdict, judge

SCALES = 1e7 * 2.0 ** np.arange(8)
ITEMS = 200
SMOOTH_METRICS = (
    "none",
    "step_accuracy",
    "log_likelihood",
    "log_likelihood without stderr",
    "exact match as if smooth",
)


def smooth_steps(generator: np.random.Generator) -> np.ndarray:
    """A logistic with its middle anywhere in the scales and a rate of 0.3 to 1.2 for each doubling."""
    rate, middle = generator.uniform(0.3, 1.2), generator.uniform(-1, 8)
    return 1 / (1 + np.exp(-rate * (np.arange(8) - middle)))


def broken_steps(generator: np.random.Generator) -> np.ndarray:
    """0.5 up to one of the inner scales, 0.9 from the next."""
    return np.where(np.arange(8) < generator.integers(2, 7), 0.5, 0.9)


def simulate(p: np.ndarray, n_steps: int, smooth_metric: str, generator: np.random.Generator) -> list[Score]:
    """Scores of one task: `p` is the success of a single step at each scale."""
    rows = []
    for scale, share in zip(SCALES, p, strict=True):
        steps = generator.random((ITEMS, n_steps)) < share
        rows.append(Score(scale, "task", "exact_match", float(steps.all(axis=1).mean()), None, ITEMS))
        if smooth_metric == "step_accuracy":
            rows.append(Score(scale, "task", "step_accuracy", float(steps.mean()), None, ITEMS))
        elif smooth_metric.startswith("log"):
            # The model's probability of a right step differs from item to item: a logit-normal around p.
            logits = math.log(share / (1 - share)) + 0.7 * generator.standard_normal((ITEMS, n_steps))
            of_items = -np.logaddexp(0, -logits).sum(axis=1)
            stderr = float(of_items.std(ddof=1) / math.sqrt(ITEMS))
            known = stderr if smooth_metric == "log_likelihood" else None
            rows.append(Score(scale, "task", "log_likelihood", float(of_items.mean()), known, ITEMS))
    return rows


def simulations(n: int) -> None:
    """Print kinds by smooth metric, for smooth curves and for true breaks."""
    print(f"{n} simulations a row, seeds 0 to {n - 1}, 8 scales, {ITEMS} items; 95 % Wilson intervals")
    for name, draw in (("smooth", smooth_steps), ("break", broken_steps)):
        for metric in SMOOTH_METRICS:
            kinds: Counter[str] = Counter()
            for seed in range(n):
                generator = np.random.default_rng([seed, SMOOTH_METRICS.index(metric), name == "break"])
                n_steps = 1 + seed % 10
                declared = ["exact_match"] if metric.startswith("exact") else []
                kinds[judge(simulate(draw(generator), n_steps, metric, generator), declared, seed)[0].kind] += 1
            low, high = wilson_interval(kinds["sudden"], n)
            told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            print(
                f"{name}, {metric}: sudden {100 * kinds['sudden'] / n:.1f} % ({100 * low:.1f} to {100 * high:.1f}); "
                f"{told}",
                flush=True,
            )


# ---------------------------------------------------------------------------------------------- pythia

SIZES = {
    "70m": 70e6,
    "160m": 160e6,
    "410m": 410e6,
    "1b": 1.0e9,
    "1.4b": 1.4e9,
    "2.8b": 2.8e9,
    "6.9b": 6.9e9,
    "12b": 12e9,
}
NAMED = re.compile(r"pythia-(70m|160m|410m|1b|1\.4b|2\.8b|6\.9b|12b)(-deduped|-bf16)?$")
ITEMS_OF = {"lambada_openai": 5153, "piqa": 1838, "winogrande": 1267, "wsc": 104, "sciq": 1000, "logiqa": 651}
ITEMS_OF |= {"arc_easy": 2376, "arc_challenge": 1172}
"""Of the harness's test sets; BLiMP's tasks have 1,000 each; elsewhere a share's n follows from its standard error."""


def pythia_rows(path: Path) -> list[tuple[float, int, str, str, float, float | None, bool]]:
    """(params, step, task, metric, value, stderr, deduped) of the zero-shot v1 models."""
    text = io.StringIO(gzip.decompress(path.read_bytes()).decode())
    values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in csv.DictReader(text):
        if row["set"] == "pythia-v1" and row["shots"] == "zero-shot" and NAMED.match(row["model"]):
            values[row["model"], row["step"], row["task"]][row["metric"]] = float(row["value"])
    rows = []
    for (model, step, task), metrics in values.items():
        found = NAMED.match(model)
        assert found is not None
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                stderr = metrics.get(f"{metric}_stderr")
                rows.append((SIZES[found[1]], int(float(step)), task, metric, value, stderr, found[2] == "-deduped"))
    return rows


def as_score(at: float, task: str, metric: str, value: float, stderr: float | None) -> Score:
    """Shares get the items behind them: known ones, or those that the standard error implies."""
    n = ITEMS_OF.get(task)
    if task.startswith("blimp"):
        n = 1000
    if n is None and stderr and 0 < value < 1 and not metric.startswith("likelihood"):
        n = round(value * (1 - value) / stderr**2)
    return Score(at, task, metric, value, stderr, n if metric in ("acc", "acc_norm", "pct_stereotype") else None)


def pythia(path: Path, folder: Path | None) -> None:
    """Tables of tasks by kind: over size at the last step, and over training for each size."""
    rows = pythia_rows(path)
    for deduped in (False, True):
        word = "deduped" if deduped else "the Pile"
        ours = [row for row in rows if row[6] == deduped]
        last = [as_score(p, t, m, v, e) for p, step, t, m, v, e, _ in ours if step == 143000]
        print_table(f"over size, last step, {word}", judge(last))
        if folder is not None:
            draw(last, "params", folder / f"pythia_size_{'deduped' if deduped else 'pile'}.png")
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for size, params in SIZES.items():
            trained = [as_score(step, t, m, v, e) for p, step, t, m, v, e, _ in ours if p == params and step > 0]
            verdicts = judge(trained) if trained else []
            counts[size].update(verdict.kind for verdict in verdicts)
            for verdict in verdicts:
                if verdict.kind in ("sudden", "U-shaped"):
                    print(f"  over training, {size} {word}: {verdict.task}: {verdict.kind}: {verdict.reason}")
        for size, kinds in counts.items():
            print(f"over training, {size} {word}: " + ", ".join(f"{k} {c}" for k, c in kinds.most_common()))


def print_table(title: str, verdicts: list[Verdict]) -> None:
    """Kinds with their tasks, and every task that is neither steady nor flat with its reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.kind].append(verdict.task)
    print(title)
    for kind, tasks in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"  {kind} {len(tasks)}: {', '.join(tasks)}")
    for verdict in verdicts:
        if verdict.kind not in ("steady", "flat") or any(one.curve.kind == "sudden" for one in verdict.metrics):
            print(f"    {verdict.task}: {verdict.kind} ({verdict.probability:.2f}): {verdict.reason}")


def draw(scores: list[Score], scale: str, path: Path) -> None:
    from talaria.scaling.emergence_report import pictures

    pictures(judge(scores), scale, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--pythia", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.pythia:
        pythia(options.pythia, options.folder)
    else:
        simulations(options.simulations)


if __name__ == "__main__":
    main()
