"""What a text is worth at equal tokens: filtered against raw, told in many ways against told in one.

    python bench/texts.py --folder runs/texts --seeds 0 1 2
    python bench/texts.py --folder runs/texts --seeds 0 1 2 --tables

Four texts of a world of 60 entities, all about the same facts. `raw`: its pages with menus, near-copies, spam and
addresses of people, as a crawl has them (`mess_share = 1`); pages with questions of the exam are out in any case.
`filtered`: the same after the corpus room. `narrow`: clean pages, each fact in the phrasings of one telling, repeated;
`diverse`: the pages of eight tellings. One model and one number of tokens for all, so that a smaller text is read more
often. Each has a tokenizer of its own, hence nats a byte, on clean pages of a telling that no text has; and the exam's
questions of facts, asked as a line of a page. A seed decides world, weights and order. Killed, it goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from talaria.eval.evaluate import evaluate
from talaria.eval.items import Item
from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import mean_interval
from talaria.files import atomic_write, read_json, to_json
from talaria.infer.load import load
from talaria.pipeline import run_recipe
from talaria.tokens.shards import Shards
from talaria.world.exam import build_exam
from talaria.world.pages import build_pages
from talaria.world.people import build_world
from talaria.world.settings import WorldSettings

ENTITIES, TELLINGS, UNSEEN = 60, 8, 99
LONGEST = 250
"""Bytes of a held-out page, so that each fits the context in any tokenizer."""
AS_IT_IS = 'normalise = false\nboilerplate = false\nquality = false\ndeduplicate = false\npersonal_data = "keep"'
ARMS = ("raw", "filtered", "narrow", "diverse")
RECIPE = """\
[run]
folder = {folder}
name = {name}
seed = {seed}

{source}

[tokenizer]
vocab_size = 1536
max_token_bytes = 9

[model]
depth = 3
d_model = 96
n_heads = 4
context = 256

[pretrain]
tokens = {tokens}
batch_tokens = 2048
validation_tokens = 8192
optimizer = {{ name = "muon", learning_rate = 2e-2, newton_schulz_steps = 3, final_rate = 0.0 }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/texts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=3_000_000, help="of every run")
    parser.add_argument("--tables", action="store_true", help="print the table of what is there, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        for seed in options.seeds:
            for arm in ARMS:
                measure(options, arm, seed)
    print(table(options.folder, options.seeds))


def measure(options: argparse.Namespace, arm: str, seed: int) -> None:
    at = options.folder / f"{arm}-{seed}"
    if (at / "scores.json").exists():
        return
    path = options.folder / f"{arm}-{seed}.toml"
    dials = {"folder": json.dumps(str(options.folder)), "name": json.dumps(at.name), "seed": seed}
    atomic_write(path, RECIPE.format(**dials, source=source(options.folder, arm, seed), tokens=options.tokens))
    start = time.process_time()
    run_recipe(path, [], until="pretrain")
    text = Shards(at / "tokenizer" / "shards", "train", verify=False).n_tokens
    told = scores(at, seed) | {"text_tokens": text, "cpu_seconds": time.process_time() - start}
    atomic_write(at / "scores.json", to_json(told))
    print(f"{at.name}: {told}", flush=True)


def source(folder: Path, arm: str, seed: int) -> str:
    """The recipe's tables of where its text comes from."""
    if arm in ("raw", "filtered"):
        world = f"[world]\nentities = {ENTITIES}\nseed = {seed}\nmess_share = 1.0\n\n[corpus]\n"
        return world + (AS_IT_IS if arm == "raw" else "")
    settings = WorldSettings(seed=seed, entities=ENTITIES)
    world, texts = build_world(settings), []
    for telling in range(TELLINGS if arm == "diverse" else 1):
        texts += [page.text for page in build_pages(world, told_anew(settings, telling))]
    path = folder / f"{arm}-{seed}.jsonl"
    atomic_write(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return f"[corpus]\npaths = [{json.dumps(str(path.resolve()))}]\n{AS_IT_IS}"


def told_anew(settings: WorldSettings, telling: int) -> WorldSettings:
    """The same world's pages in other phrasings; its own where `telling` is 0."""
    return settings.model_copy(update={"seed": settings.seed + 1000 * telling})


def scores(at: Path, seed: int) -> dict[str, float]:
    """Nats a byte on a telling that no text has, and facts of the exam: share right, nats an answer token."""
    settings = WorldSettings(seed=seed, entities=ENTITIES)
    world, engine = build_world(settings), load(at / "pretrain", compiled=False)
    pages = [
        page.text for page in build_pages(world, told_anew(settings, UNSEEN)) if len(page.text.encode()) <= LONGEST
    ]
    held_out = engine.loglikelihood([("\n", text) for text in pages])
    asked = [Item.model_validate(row) for row in build_exam(world, settings) if row["task"].startswith("facts")]
    rows = evaluate(engine, asked, EvalSettings(max_tokens=24, likelihood_per_task=None), at.name, strategy="plain")
    by_metric: dict[str, list[float]] = {}
    for row in rows:
        by_metric.setdefault(row.metric, []).append(row.score)
    means = {metric: sum(values) / len(values) for metric, values in by_metric.items()}
    n_bytes = sum(len(text.encode()) for text in pages)
    return {"nats_a_byte": -sum(score.log_prob for score in held_out) / n_bytes} | means


def table(folder: Path, seeds: list[int]) -> str:
    lines = ["| text | its tokens | nats a byte, unseen telling | facts, right | choice | seeds, right |"]
    lines.append("|---|---|---|---|---|---|")
    for arm in ARMS:
        found: list[dict[str, Any]] = [
            read_json(path) for seed in seeds if (path := folder / f"{arm}-{seed}" / "scores.json").exists()
        ]
        if not found:
            continue
        cells = [interval([one[key] for one in found], scale) for key, scale in (("nats_a_byte", 1), ("accuracy", 100))]
        cells.append(interval([one.get("choice_accuracy", 0.0) for one in found], 100))
        tokens = sum(one["text_tokens"] for one in found) / len(found)
        each = ", ".join(f"{100 * one['accuracy']:.1f}" for one in found)
        lines.append(f"| {arm} | {tokens:,.0f} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def interval(values: list[float], scale: float) -> str:
    digits = 3 if scale == 1 else 1
    if len(values) < 2:
        return f"{scale * values[0]:.{digits}f}"
    mean, low, high = (scale * value for value in mean_interval(values))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
