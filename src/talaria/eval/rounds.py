"""What a round of alignment came to: its models, reward model and databases in, round.json out.

New comparisons, the reward model's accuracy, KL to the fine-tuned model, wins against it and against the round before,
and the answers that changed. Without a judge (prompts without graders) there are no wins: people tell those, on the
annotation page with two models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talaria.eval.preferences import Preferences, draw_items
from talaria.eval.settings import EvalSettings
from talaria.feedback.snapshot import count_choices
from talaria.files import atomic_write, read_json, to_json
from talaria.model.checkpoint import load_shape
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.rollouts import read_prompts


def measure_round(
    settings: EvalSettings,
    number: int,
    models: Mapping[str, Path],
    reward: Path,
    databases: Sequence[Sequence[str]],
    exam: Path | None,
    prompt_files: Sequence[Path],
    seed: int,
    folder: Path,
) -> None:
    """Write `folder`/round.json. `models`: the fine-tuned one, the round before's if that is another, the newest last;
    `reward`: the reward stage; `databases`: those of each round so far."""
    names = list(models)
    newest = names[-1]
    if exam is not None:
        items = draw_items(exam, settings.preference_items, seed)
    else:
        items = _held_prompts(prompt_files, models[newest], settings, seed)
    told = Preferences(settings, items, reward / "reward_model", seed)
    for name, path in models.items():
        told.answer(name, path)
    for other in names[:-1]:
        told.compare(newest, other)
    so_far = [sum(map(count_choices, of_round)) for of_round in databases]
    quality = read_json(reward / "reward.json")
    record: dict[str, Any] = {
        "round": number,
        "policy": newest,
        "comparisons_so_far": so_far[-1],
        "new_comparisons": so_far[-1] - (so_far[-2] if number > 1 else 0),
        "reward_accuracy": quality["together"],
        "calibration_error": quality["calibration"]["error"],
    }
    if exam is None:
        record["items_held_out"] = sum(item.get("split") == "validation" for item in items)
    atomic_write(folder / "round.json", to_json(record | told.to_json()))


def _held_prompts(files: Sequence[Path], model: Path, settings: EvalSettings, seed: int) -> list[dict[str, Any]]:
    """Some prompts, the same ones in every round: those that training leaves out, and where they are too few, of the
    policy's own."""
    room, draw = load_shape(model).context - settings.max_tokens, random.Random(seed)
    items = read_prompts(files, Tokenizer.load(model), room, ("train", "validation"))
    items = draw.sample(items, len(items))
    return sorted(items, key=lambda item: item.get("split") != "validation")[: settings.preference_items]
