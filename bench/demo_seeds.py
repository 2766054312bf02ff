"""The demo over several seeds: accuracy of every task and model, mean and 95 % interval (Student t) over seeds.

    python bench/demo_seeds.py --seeds 0 1 2 --folder runs/seeds

A seed decides the world, the weights and the data order. Finished runs are kept, so the script can be interrupted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from talaria.eval.statistics import mean_interval
from talaria.report.results import read_results

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/seeds"))
    parser.add_argument("overrides", nargs="*", help="recipe overrides, key=value")
    options = parser.parse_args()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in options.seeds:
        name = f"laptop-{seed}"
        command = [sys.executable, "-m", "talaria", "run", str(ROOT / "recipes" / "laptop.toml")]
        command += [f"run.folder={options.folder}", f"run.name={name}", f"run.seed={seed}", f"world.seed={seed}"]
        subprocess.run(command + options.overrides, check=True)
        for row in read_results(options.folder / name / "eval" / "results.csv"):
            if row.metric == "accuracy":
                scores[row.task, row.model].append(row.score)
    models = list(dict.fromkeys(model for _, model in scores))
    print("| task | " + " | ".join(models) + " |")
    print("|---" * (len(models) + 1) + "|")
    for task in dict.fromkeys(task for task, _ in scores):
        print(f"| {task} | " + " | ".join(_told(scores.get((task, model))) for model in models) + " |")


def _told(values: list[float] | None) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    mean, low, high = mean_interval(values)
    return f"{mean:.3f} ({max(low, 0):.3f} to {min(high, 1):.3f})"


if __name__ == "__main__":
    main()
