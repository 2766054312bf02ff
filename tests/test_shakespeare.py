"""recipes/shakespeare.toml measures what its benchmark asks for: all characters of the last tenth, in windows of 64."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from command_line import talaria

from talaria.model.checkpoint import load_model
from talaria.model.settings import resolve_shape
from talaria.recipe import read_recipe
from talaria.run import read_metrics

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare.toml"


def test_the_loss_is_the_mean_over_the_whole_last_tenth(tmp_path: Path) -> None:
    """The bugs: text that a cleaning step touched, a tail that is sampled or cut, a context that reaches too far."""
    draw = random.Random(0)
    words = ["First", "Citizen:", "\n", "\n\n", "before", "we", "proceed,", "hear", "me", "Speak!", "  twice", "&c."]
    text = "".join(f"{draw.choice(words)} " for _ in range(6000))
    (tmp_path / "book.txt").write_text(text)
    given = [f"corpus.paths=[{tmp_path / 'book.txt'}]", f"run.folder={tmp_path}", "pretrain.tokens=8192"]
    assert talaria("run", RECIPE, *given) == 0
    stage = tmp_path / "shakespeare" / "pretrain"
    model, tokenizer = load_model(stage / "model")
    assert tokenizer.vocab_size == len(set(text))
    ids = torch.tensor(tokenizer.encode(text[int(0.9 * len(text)) :]))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 64):
            window = ids[start : start + 65]
            total += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    told = [row["validation_loss"] for row in read_metrics(stage / "metrics.jsonl") if "validation_loss" in row]
    assert told[-1] == pytest.approx(total / (len(ids) - 1), rel=1e-4)


def test_the_model_is_within_its_bound_of_parameters() -> None:
    recipe = read_recipe(RECIPE, ["corpus.paths=[x]"])
    assert recipe.model.context == 64
    assert resolve_shape(recipe.model, vocab_size=65).n_params() <= 850_000
