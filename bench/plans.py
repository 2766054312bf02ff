"""Plans kept: memory and time of `talaria plan --hours H`, held against the run that its recipe makes.

    python bench/plans.py --corpus tinyshakespeare.txt --hours 0.05 --runs 3
    python bench/plans.py --corpus tinyshakespeare.txt --hours 0.5 --runs 5      # 2.5 hours on a quiet machine

Each plan is made and trained by the command line, corpus and tokenizer in the same process as training. Eight times
along the run it is stopped for some seconds (SIGSTOP), and the same probe of the training step that the plan was made
with tells the machine's speed at that time. So time is told twice: as it was (steps alone, without validation and
checkpoints), and over the speed along the run, since no plan knows how busy the machine will be. The probes lie evenly
over the steps, so over the work, and time is work over speed: the mean speed is the harmonic one. Memory is the
largest resident set of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from talaria.model.settings import resolve_shape
from talaria.model.shape import ModelShape
from talaria.planning import measured_flops
from talaria.recipe import read_recipe, run_path
from talaria.run import read_metrics

PROBES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/plans"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = [keep(options, number) for number in range(options.runs)]
    print("| run | parameters | tokens | memory, predicted | measured | time, predicted | measured | over the speed |")
    print("|---|---|---|---|---|---|---|---|")
    for number, row in enumerate(rows):
        print(
            f"| {number} | {row['parameters']:,} | {row['tokens']:,} | {row['memory'] / 1e6:,.0f} MB | "
            f"{row['measured_memory'] / 1e6:,.0f} MB ({row['memory'] / row['measured_memory'] - 1:+.1%}) | "
            f"{row['seconds']:,.0f} s | {row['measured_seconds']:,.0f} s "
            f"({row['seconds'] / row['measured_seconds'] - 1:+.1%}) | {row['seconds'] / _by_speed(row) - 1:+.1%} |"
        )
    memory = [abs(row["memory"] / row["measured_memory"] - 1) for row in rows]
    speed = [abs(row["seconds"] / _by_speed(row) - 1) for row in rows]
    print(f"median of {len(rows)}: memory {statistics.median(memory):.1%} off, time {statistics.median(speed):.1%} off")


def keep(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Plan, train with probes along the way; kept in the folder, so that a finished run is not made again."""
    name = f"plan-{options.hours:g}-{number}"
    kept = options.folder / f"{name}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    recipe = options.folder.absolute() / f"{name}.toml"
    recipe.unlink(missing_ok=True)
    command = ["plan", "--hours", str(options.hours), "--corpus", str(options.corpus), "--output", str(recipe)]
    plan = json.loads(_talaria(*command, "--json"))
    folder = f"run.folder={options.folder.absolute()}"
    settings = read_recipe(recipe, [folder])
    at = run_path(settings)
    assert settings.tokenizer is not None
    shape = resolve_shape(settings.model, settings.tokenizer.vocab_size)
    flops, stopped, memory = train(recipe, folder, shape, plan["recipe"]["steps"], at)
    steps = [row for row in read_metrics(at / "pretrain" / "metrics.jsonl") if "tokens_per_second" in row]
    seconds = sum(plan["recipe"]["batch_tokens"] / row["tokens_per_second"] for row in steps) - stopped
    row = {
        "parameters": plan["recipe"]["parameters"],
        "tokens": plan["recipe"]["tokens"],
        "memory": plan["memory_bytes"],
        "measured_memory": memory,
        "seconds": 3600 * plan["hours"],
        "measured_seconds": seconds,
        "planned_flops": plan["flops_per_second"],
        "probed_flops": flops,
    }
    kept.write_text(json.dumps(row, indent=1))
    return row


def _by_speed(row: dict[str, Any]) -> float:
    """Seconds of the run, had the machine been as fast as when the plan was made."""
    return float(row["measured_seconds"] * statistics.harmonic_mean(row["probed_flops"]) / row["planned_flops"])


def train(recipe: Path, folder: str, shape: ModelShape, steps: int, at: Path) -> tuple[list[float], float, int]:
    """FLOP/s of each probe, seconds for which the run stood still, largest resident bytes."""
    process = subprocess.Popen([sys.executable, "-m", "talaria", "pretrain", str(recipe), folder])
    flops: list[float] = []
    stopped = 0.0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            if status:
                raise SystemExit(f"{recipe}: training ended with {status}")
            return flops or [measured_flops(shape)], stopped, usage.ru_maxrss * 1024
        if _step(at) >= (len(flops) + 0.5) * steps / PROBES and len(flops) < PROBES:
            os.kill(process.pid, signal.SIGSTOP)
            start = time.perf_counter()
            flops.append(measured_flops(shape))
            os.kill(process.pid, signal.SIGCONT)
            stopped += time.perf_counter() - start
        time.sleep(0.5)


def _step(at: Path) -> int:
    """The last step that the run has written."""
    path = at / "pretrain.partial" / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return int(rows[-1]["step"]) if rows else 0


def _talaria(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "talaria", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
