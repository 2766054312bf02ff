"""A recipe with every stage of alignment: each runs once, all verify, and the policy is the run's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_alignment import tiny_policy, tiny_tokenizer

from talaria.errors import UsageError, UserError
from talaria.feedback.store import FeedbackStore
from talaria.infer.load import find_model
from talaria.model.checkpoint import save_model
from talaria.pipeline import _feedback, _prompts, _settle, run_recipe
from talaria.preflight import check_sources
from talaria.recipe import read_recipe
from talaria.report.results import read_results
from talaria.run import sha256
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


def test_what_a_server_wrote_lately_is_in_the_hash_of_its_database(tmp_path: Path) -> None:
    """The bug: new rows stood beside the file, which alone is hashed, and the stage was current."""
    database = tmp_path / "feedback.db"
    store = FeedbackStore(database)
    store.append_prompt([{"role": "user", "content": "sea"}])
    _settle(database)
    before = sha256(database)
    store.append_prompt([{"role": "user", "content": "land"}])
    assert sha256(database) == before, "the server still has it beside the file"
    _settle(database)
    assert sha256(database) != before
    store.close()


def test_a_reward_model_that_nothing_would_teach_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves a head of chance"):
        read_recipe(Path("recipes/aligned.toml"), ["reward.reads_likelihood=false"])


def test_ones_own_prompts_and_comparisons_take_the_place_of_the_worlds(tmp_path: Path) -> None:
    recipe = read_recipe(Path("recipes/aligned.toml"), [])
    assert _prompts([], recipe, tmp_path)[0] == [tmp_path / "comparisons" / "policy_prompts.jsonl"]
    assert _prompts(["mine.jsonl"], recipe, tmp_path)[0] == [Path("mine.jsonl")]
    databases, inputs, parents = _feedback([f"sqlite:///{tmp_path}/mine.db"], recipe, tmp_path)
    assert databases == [f"{tmp_path}/mine.db"] and list(inputs.values()) == [tmp_path / "mine.db"] and parents == []


def test_a_file_that_a_late_stage_would_miss_is_missed_before_the_first(tmp_path: Path) -> None:
    origin = Path("recipes/aligned.toml")
    for table in ("ppo.prompts", "reward.feedback"):
        recipe = read_recipe(origin, [f"{table}=[{tmp_path}/none]"])
        with pytest.raises(UserError, match=rf"\[{table.partition('.')[0]}\] reads .*none, which is missing"):
            check_sources(recipe, origin, None)
