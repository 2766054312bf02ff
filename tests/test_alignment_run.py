"""A recipe with every stage of alignment: each runs once, all verify, and the policy is the run's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_alignment import tiny_policy, tiny_tokenizer

from talaria.infer.load import find_model
from talaria.model.checkpoint import save_model
from talaria.pipeline import run_recipe
from talaria.report.results import read_results
from talaria.verify import verify

RECIPE = """
[run]
name = "tiny"
folder = "{folder}"

[world]
entities = 60
mess_share = 0.0

[sft]
base = "{base}"
limit = 8
epochs = 1
optimizer = {{ learning_rate = 1e-5 }}

[comparisons]
prompts = 40
policy_prompts = 20
answers = 3
max_tokens = 32

[reward]

[dpo]

[grpo]
steps = 1
rollouts = 2
max_tokens = 8

[ppo]
steps = 1
rollouts = 4
max_tokens = 8

[eval]
max_tokens = 4
limit_per_task = 2
likelihood_per_task = 0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    tokenizer = tiny_tokenizer()
    save_model(tiny_policy(tokenizer, context=256), tokenizer, folder / "base")
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(folder=folder, base=folder / "base"))
    run_recipe(path, [])
    return path


def test_every_stage_runs_once_and_the_policy_is_the_runs_model(recipe: Path) -> None:
    run = recipe.parent / "tiny"
    done = {path: path.read_bytes() for path in run.glob("*/done.json")}
    assert {path.parent.name for path in done} == {
        "world",
        "sft",
        "comparisons",
        "reward",
        "dpo",
        "grpo",
        "ppo",
        "eval",
    }
    run_recipe(recipe, [])
    assert {path: path.read_bytes() for path in run.glob("*/done.json")} == done
    assert verify(run) == []  # reading the database leaves it as it was
    assert find_model(run) == run / "ppo" / "model"


def test_each_policy_is_evaluated_and_charted(recipe: Path) -> None:
    run = recipe.parent / "tiny"
    assert {"sft", "dpo", "grpo", "ppo"} <= {row.model for row in read_results(run / "eval" / "results.csv")}
    assert "KL to the fine-tuned model" in (run / "report" / "report.html").read_text()
    summary = json.loads((run / "comparisons" / "comparisons.json").read_text())
    assert summary["prompts"] == 40 and summary["prompts_compared"] > 10
