"""A recipe with every stage of alignment: each runs once, all verify, and the policy is the run's model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_alignment import tiny_policy, tiny_tokenizer

from talaria.alignment import _feedback, _prompts, _settle
from talaria.errors import UsageError, UserError
from talaria.feedback.store import FeedbackStore
from talaria.files import sha256
from talaria.infer.load import find_model
from talaria.model.checkpoint import save_model
from talaria.pipeline import run_recipe, stages
from talaria.preflight import check_sources
from talaria.recipe import read_recipe
from talaria.report.results import read_results
from talaria.run import Revision, is_current, run_stage
from talaria.verify import verify
from talaria.world.settings import WorldSettings

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
        read_recipe(Path("recipes/laptop.toml"), ["reward.reads_likelihood=false"])


def test_ones_own_prompts_and_comparisons_take_the_place_of_the_worlds(tmp_path: Path) -> None:
    recipe = read_recipe(Path("recipes/laptop.toml"), [])
    assert _prompts([], recipe, tmp_path)[0] == [tmp_path / "comparisons" / "policy_prompts.jsonl"]
    assert _prompts(["mine.jsonl"], recipe, tmp_path)[0] == [Path("mine.jsonl")]
    databases, inputs, parents = _feedback([f"sqlite:///{tmp_path}/mine.db"], recipe, tmp_path)
    assert databases == [f"{tmp_path}/mine.db"] and list(inputs.values()) == [tmp_path / "mine.db"] and parents == []


def test_a_file_that_a_late_stage_would_miss_is_missed_before_the_first(tmp_path: Path) -> None:
    origin = Path("recipes/laptop.toml")
    for table in ("ppo.prompts", "reward.feedback"):
        recipe = read_recipe(origin, [f"{table}=[{tmp_path}/none]"])
        with pytest.raises(UserError, match=rf"\[{table.partition('.')[0]}\] reads .*none, which is missing"):
            check_sources(recipe, origin, None)


def test_a_world_too_small_for_its_comparisons_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def practice_items(world: WorldSettings, count: int, seed: int) -> list[dict]:
        raise ValueError(f"a world of {world.entities} entities has only 5 of {count} different questions")

    monkeypatch.setattr("talaria.feedback.comparisons.practice_items", practice_items)
    origin = Path("recipes/laptop.toml")
    recipe = read_recipe(origin, [f"run.folder={tmp_path}", "world.entities=60"])
    with pytest.raises(UsageError, match=r"60 entities has only 5 of 3600 .* ask for fewer prompts, or a larger world"):
        check_sources(recipe, origin, None)
    check_sources(recipe, origin, "sft")


def test_an_answer_that_leaves_its_prompt_no_room_is_told_before_training(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"ppo.max_tokens is 256, which leaves a prompt no room"):
        read_recipe(Path("recipes/laptop.toml"), ["ppo.max_tokens=256"])
    for stage in ("ppo", "grpo"):
        short = read_recipe(recipe, [f"{stage}.max_tokens=250"])
        with pytest.raises(UsageError, match=f"lower {stage}.max_tokens"):
            check_sources(short, recipe, None)
    mine = recipe.parent / "mine.jsonl"
    mine.write_text(json.dumps({"messages": [{"role": "user", "content": "sea and land " * 120}]}))
    with pytest.raises(UserError, match=r"mine.jsonl: no prompt of at most 248 tokens"):
        check_sources(read_recipe(recipe, [f"ppo.prompts=[{mine}]"]), recipe, None)


def test_a_password_in_a_databases_url_is_in_no_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a database behind a URL is read again once there are other choices in it."""
    url = "postgresql://me:se:c/ret@server/choices"
    monkeypatch.setattr("talaria.alignment._choices_sha256", lambda given: f"choices in {len(given)}")
    monkeypatch.setattr("sys.argv", ["talaria", "reward", f"reward.feedback=[{url}]", "x?password=se:c/ret"])
    recipe = read_recipe(Path("recipes/laptop.toml"), [f"run.folder={tmp_path}", f"reward.feedback=[{url}]"])
    [stage] = [made for made in stages(recipe) if made.name == "reward"]
    read = []
    alone = replace(
        stage, inputs={k: v for k, v in stage.inputs.items() if "feedback" in k}, parents=(), work=read.append
    )
    at = tmp_path / "run"
    at.mkdir()
    assert run_stage(at, alone) and not run_stage(at, alone)
    written = "".join(path.read_text() for path in at.rglob("*") if path.is_file())
    assert "postgresql://me:***@server/choices" in written and "c/ret" not in written
    others = {name: Revision("others") for name in alone.inputs}
    assert not is_current(at, replace(alone, inputs=others))


def test_what_a_database_is_told_by_changes_with_its_choices_alone(tmp_path: Path) -> None:
    told = []
    for place in ("a.db", "b.db"):
        store = FeedbackStore(tmp_path / place)
        for n in range(2):
            prompt = store.append_prompt([{"role": "user", "content": f"sea {n}"}])
            ids = [store.append_answer(prompt, text, model="m") for text in ("one", "two")]
            store.append_comparison(prompt, [[ids[0]], [ids[1]]], annotator="ann")
        told.append(store.choices_sha256())
    store.append_prompt([{"role": "user", "content": "that nobody judged"}])
    assert told[0] == told[1] == store.choices_sha256()
    store.append_comparison(prompt, [[ids[1]], [ids[0]]], annotator="bob")
    assert store.choices_sha256() != told[0]


def test_a_fine_tuned_model_can_be_taken_as_it_is(recipe: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        f'[run]\nname = "own"\nfolder = "{tmp_path}"\n\n[sft]\nbase = "{recipe.parent / "base"}"\nepochs = 0\n'
    )
    run_recipe(own, [])
    assert sha256(tmp_path / "own" / "sft" / "model") == sha256(recipe.parent / "base")
    with pytest.raises(UsageError, match=r"sft\.epochs = 0 takes a fine-tuned model as it is; name it by sft.base"):
        read_recipe(Path("recipes/laptop.toml"), ["sft.epochs=0"])
