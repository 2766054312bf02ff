"""Ladders held against the runs they predict: seeds by texts, each ladder before its run is made.

    python bench/ladders.py --text poems=poems.jsonl --seeds 0 1 2 3 4 --minutes 10       # until it is done
    python bench/ladders.py --text poems=poems.jsonl --table                              # so far
    python bench/ladders.py --text poems=poems.jsonl --width 64 --tokens 5800000   # five sizes of rungs
    python bench/ladders.py --notes 800 --new-worlds --vocabulary 1024 --width 96 --heads 12 --tokens 8000000
    python bench/ladders.py --told 115000 --vocabulary 1024 --width 96 --heads 12 --tokens 8000000
    python bench/ladders.py --symbols --depth 3 --width 96 --tokens 6800000
    python bench/ladders.py --planted 60       # no training: how often the interval holds planted laws

`--world 800` is the whole text of an embedded world of 800 entities. `--notes 800` are the English notes of a world of
60, told so many times in phrasings and an order drawn anew; with `--new-worlds` each time of another world, so that
there are no facts to learn by heart, only how they are told. `--told 115000` are so many documents of six facts each
about 12,000 entities, some of which are spoken of far more often than others, as in what people write. `--symbols` is
the text of the world of the study of curves (`world/symbols.py`), every document of it new, a token a character.

Every seed of every text is a recipe of its own with other initial weights and another order of the text; corpus and
tokenizer are made once for each text. The prediction is kept in `predicted.json` before the large run begins, and never
written again. A killed command goes on where it stopped; with --minutes it stops by itself after so much processor
time, which is also what costs are told in.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from talaria.files import atomic_write, read_json
from talaria.ladder import climb
from talaria.pipeline import run_recipe
from talaria.recipe import read_recipe, run_path
from talaria.scaling.ray import predict_along
from talaria.world.pages import build_pages
from talaria.world.people import build_world
from talaria.world.phrasing import state
from talaria.world.phrasings import PHRASINGS
from talaria.world.settings import WorldSettings
from talaria.world.symbols import build_symbols, documents

RECIPE = """\
[run]
folder = {folder}
name = {name}
seed = {seed}

{source}

[tokenizer]
{tokenizer}
validation_fraction = 0.02

[model]
depth = {depth}
d_model = {width}
n_heads = {heads}
context = 64

[pretrain]
tokens = {tokens}
batch_tokens = 2048
validation_tokens = 65536
optimizer = {{ name = "muon", learning_rate = {rate}, newton_schulz_steps = 3, final_rate = 0.0 }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--world", type=int, metavar="ENTITIES", help="the embedded world, of so many entities")
    parser.add_argument("--notes", type=int, metavar="TIMES", help="the English notes of a world, told so many times")
    parser.add_argument("--new-worlds", action="store_true", help="the notes are of another world each time")
    parser.add_argument("--told", type=int, metavar="DOCUMENTS", help="facts of many worlds, some told far more often")
    parser.add_argument("--symbols", action="store_true", help="the world of symbols")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=Path("runs/ladders"))
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--depth", type=int, default=2, help="of the large run")
    parser.add_argument("--width", type=int, default=48, help="of the large run")
    parser.add_argument("--heads", type=int, default=4, help="of the large run")
    parser.add_argument("--tokens", type=int, default=3_000_000, help="of the large run")
    parser.add_argument("--rate", type=float, default=1e-2, help="of the large run, for matrices and tables")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--planted", type=int, metavar="TIMES", help="simulate so many ladders a law, train nothing")
    options = parser.parse_args()
    if options.planted:
        print(planted(options.planted))
        return
    texts = {
        name: f"[corpus]\npaths = [{json.dumps(str(Path(file).resolve()))}]" for name, file in _pairs(options.text)
    }
    if options.world:
        texts[f"world-of-{options.world}"] = f"[world]\nentities = {options.world}\n\n[corpus]"
    if options.notes:
        name = "notes-of-new-worlds" if options.new_worlds else "notes-of-one-world"
        path = options.folder / f"{name}-{options.notes}.jsonl"
        texts[name] = _as_it_is(notes(path, options.notes, options.new_worlds))
    if options.told:
        texts["told"] = _as_it_is(told(options.folder / f"told-{options.told}.jsonl", options.told))
    if options.symbols:
        texts["symbols"] = _as_it_is(symbols(options.folder, 2 * options.tokens))
    if not options.table:
        for seed in options.seeds:
            for name, source in texts.items():
                measure(options, name, source, seed)
    print(table(options.folder, list(texts), options.seeds))


def notes(path: Path, times: int, new_worlds: bool) -> Path:
    """Pages of facts in no order, English, of one world told again or of many: a file of documents in any order."""
    if not path.exists():
        rows, world = [], build_world(WorldSettings(entities=60))
        for number in range(times):
            settings = WorldSettings(entities=60, seed=number)
            if new_worlds:
                world = build_world(settings)
            pages = build_pages(world, settings)
            rows += [{"text": page.text} for page in pages if page.path.startswith("en/notes/")]
        random.Random(0).shuffle(rows)
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(path: Path, documents: int) -> Path:
    """So many documents of six English facts, in two phrasings each, of the entities of three worlds; the r-th entity
    is spoken of as often as 1/r^2, each of its facts alike."""
    if not path.exists():
        generator = np.random.default_rng(0)
        subjects = []
        for number in range(3):
            world = build_world(WorldSettings(entities=4000, seed=number))
            subjects += [world.facts_about(entity) for entity in world.entities]
        generator.shuffle(subjects)
        weights = 1.0 / np.arange(1, len(subjects) + 1) ** 2
        sentences = []
        for subject in generator.choice(len(subjects), 6 * documents, p=weights / weights.sum()):
            fact = subjects[subject][generator.integers(len(subjects[subject]))]
            phrasing = PHRASINGS["en"][fact.relation]
            ways = (phrasing.answer, *phrasing.statements)[:2]
            sentences.append(state(ways[generator.integers(len(ways))], fact, "en"))
        texts = (" ".join(sentences[start : start + 6]) for start in range(0, len(sentences), 6))
        atomic_write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def symbols(folder: Path, characters: int) -> Path:
    """So many characters of the world of symbols, a thousand expressions and programs a document."""
    path = folder / f"symbols-{characters}.jsonl"
    if not path.exists():
        texts = documents(build_symbols(0), "whole", 0)
        rows, total = [], 0
        while total < characters:
            text = "".join(islice(texts, 1000)).strip()
            total += len(text)
            rows.append(json.dumps({"text": text}) + "\n")
        atomic_write(path, "".join(rows))
    return path


def measure(options: argparse.Namespace, text: str, source: str, seed: int) -> None:
    """Ladder, then run, of one seed, where there is time left."""
    path = options.folder / f"{text}-{seed}.toml"
    dials = {"folder": json.dumps(str(options.folder)), "seed": seed, "tokens": options.tokens, "rate": options.rate}
    dials |= {"source": source, "depth": options.depth, "width": options.width, "heads": options.heads}
    bpe = f"vocab_size = {options.vocabulary}\nmax_token_bytes = 9"
    dials["tokenizer"] = 'kind = "character"' if text == "symbols" else bpe
    wanted = RECIPE.format(name=json.dumps(path.stem), **dials)
    if not path.exists():
        atomic_write(path, wanted)
    elif path.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{path}: is of other options; choose another --folder")
    at, shared = run_path(read_recipe(path, [])), options.folder / text
    if not (shared / "tokenizer" / "done.json").exists():
        base = options.folder / f"{text}.toml"
        atomic_write(base, RECIPE.format(name=json.dumps(text), **dials))
        run_recipe(base, [], until="tokenizer")
    for stage in ("world", "corpus", "tokenizer"):
        if (shared / stage).exists() and not (at / stage).exists():
            shutil.copytree(shared / stage, at / f"{stage}.copy", dirs_exist_ok=True)
            (at / f"{stage}.copy").rename(at / stage)
    if not (at / "predicted.json").exists():
        if _spent(options):
            return
        start = time.process_time()
        prediction = climb(path, []).to_json()
        atomic_write(at / "predicted.json", json.dumps(prediction | {"cpu_seconds": time.process_time() - start}))
    if not (at / "reached.json").exists():
        if _spent(options):
            return
        start = time.process_time()
        run_recipe(path, [], until="pretrain")
        seconds = time.process_time() - start
        atomic_write(at / "reached.json", json.dumps({"loss": climb(path, []).reached, "cpu_seconds": seconds}))


def table(folder: Path, texts: list[str], seeds: list[int]) -> str:
    """Markdown: a row a seed, and how many fell inside."""
    lines = ["| text | seed | predicted (80 %) | half-width | times the largest rung | reached | error | |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for text in texts:
        found = {seed: row for seed in seeds if (row := _row(folder / f"{text}-{seed}")) is not None}
        for seed, row in found.items():
            loss = row["loss"]
            lines.append(
                f"| {text} | {seed} | {loss['value']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}) | "
                f"{100 * row['half_width']:.1f} % | {row['times_larger']:.1f} | {row['reached']:.3f} | "
                f"{100 * (loss['value'] / row['reached'] - 1):+.1f} % | {'inside' if row['inside'] else 'outside'} |"
            )
        if rows := list(found.values()):
            inside = sum(row["inside"] for row in rows)
            half = statistics.median(row["half_width"] for row in rows)
            cost = statistics.median(row["ladder_seconds"] / row["run_seconds"] for row in rows)
            lines.append(
                f"| {text} | all | | {100 * half:.1f} % (median) | | | | {inside} of {len(rows)} inside; a ladder "
                f"takes {cost:.2f} of its run's processor time |"
            )
    return "\n".join(lines)


POEMS, NOTES = (18_900, 16_900, 12_600, 10_800, 9_200, 55_584), (62_692, 55_568, 41_906, 36_094, 30_164, 221_696)
"""Sizes of the rungs, two seeds each, and of the run of the ladders above."""
LAWS = [  # floor, what a power law adds at the smallest rung, exponent, noise between seeds, early over final, sizes
    (0.0, 3.60, 0.056, 0.002, 1.25, POEMS),
    (2.0, 1.50, 0.13, 0.0025, 1.25, POEMS),
    (2.6, 1.20, 0.3, 0.0025, 1.25, POEMS),
    (1.4, 0.60, 0.5, 0.001, 2.0, POEMS),
    (0.7, 0.30, 0.4, 0.003, 2.0, NOTES),
    (1.45, 0.20, 0.6, 0.0005, 6.0, NOTES),
    (1.4965, 0.043, 1.2, 0.001, 6.0, NOTES),
]
"""Early over final: how much farther above the floor the smallest rung is early in its run."""
EARLY = (None, 0.6, 0.75, 1.0)
"""Exponents of the early losses over those of the final ones; None tells none."""


def planted(times: int) -> str:
    """Markdown: a row a law; a cell says how often the interval holds, its half-width and the error."""
    heads = "".join(f" early losses by {ratio} |" if ratio else " final losses alone |" for ratio in EARLY)
    lines = [
        f"| floor | rest | exponent | noise | the run's loss |{heads}",
        "|---|---|---|---|---|" + "---|" * len(EARLY),
    ]
    for floor, rest, gamma, noise, times_higher, (*rungs, target) in LAWS:
        sizes, cells = np.repeat(rungs, 2), []
        exact = floor + rest * (target / min(rungs)) ** -gamma
        for ratio in EARLY:
            generator, inside, halves, errors = np.random.default_rng(1), 0, [], []
            for seed in range(times):
                scatter = np.exp(noise * generator.standard_normal((2, 10)))
                losses = (floor + rest * (sizes / min(rungs)) ** -gamma) * scatter[0]
                early = None
                if ratio is not None:
                    early = list(
                        (floor + times_higher * rest * (sizes / min(rungs)) ** -(ratio * gamma)) * scatter[1] ** 2
                    )
                reached = exact * np.exp(noise * generator.standard_normal())
                found = predict_along(list(sizes), list(losses), target, seed=seed, early=early)
                inside += found.low <= reached <= found.high
                halves.append((found.high - found.low) / 2 / found.value)
                errors.append(found.value / reached - 1)
            half, error = 100 * statistics.median(halves), 100 * statistics.median(errors)
            cells.append(f" {100 * inside / times:.0f} %, {half:.1f} %, {error:+.1f} % |")
        lines.append(f"| {floor} | {rest} | {gamma} | {noise} | {exact:.3f} |" + "".join(cells))
    return "\n".join(lines)


def _row(at: Path) -> dict[str, Any] | None:
    if not (at / "reached.json").exists():
        return None
    row, reached = read_json(at / "predicted.json"), read_json(at / "reached.json")
    loss = row["loss"]
    return row | {
        "reached": reached["loss"],
        "inside": loss["low"] <= reached["loss"] <= loss["high"],
        "half_width": (loss["high"] - loss["low"]) / 2 / loss["value"],
        "ladder_seconds": row["cpu_seconds"],
        "run_seconds": reached["cpu_seconds"],
    }


def _as_it_is(path: Path) -> str:
    """[corpus] of a file that needs no cleaning: its documents are near-copies of each other by intention."""
    off = [f"{step} = false" for step in ("boilerplate", "quality", "deduplicate", "normalise")]
    return "\n".join(["[corpus]", f"paths = [{json.dumps(str(path.resolve()))}]", 'personal_data = "keep"', *off])


def _spent(options: argparse.Namespace) -> bool:
    return time.process_time() > 60 * options.minutes


def _pairs(given: list[str]) -> list[tuple[str, str]]:
    return [(name, file) for name, _, file in (pair.partition("=") for pair in given)]


if __name__ == "__main__":
    main()
