"""What a training dial is worth: validation loss of the demo's pretraining at equal tokens, one line a variant.

    python bench/learning.py --tokens 819200 --seeds 0 1 \
        "pretrain.optimizer.name=adamw pretrain.optimizer.learning_rate=3e-3" "pretrain.batch_tokens=4096"

Each variant is a string of overrides of recipes/laptop.toml; the recipe itself comes first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from talaria.run import read_metrics

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=819_200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("variants", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for variant in ["", *options.variants]:
            losses, rates = [], []
            for seed in options.seeds:
                command = [sys.executable, "-m", "talaria", "pretrain", str(ROOT / "recipes" / "laptop.toml")]
                command += [f"run.folder={folder}", f"run.seed={seed}", f"pretrain.tokens={options.tokens}"]
                subprocess.run(command + variant.split(), check=True, capture_output=True)
                rows = read_metrics(Path(folder) / "laptop" / "pretrain" / "metrics.jsonl")
                losses.append([row["validation_loss"] for row in rows if "validation_loss" in row][-1])
                rates.append(statistics.median(row["tokens_per_second"] for row in rows if "tokens_per_second" in row))
            told = " ".join(f"{loss:.4f}" for loss in losses)
            print(f"{variant or 'the recipe':80}  loss {told}  {statistics.median(rates):,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
