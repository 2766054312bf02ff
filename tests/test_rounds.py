"""Rounds: killed they end as undisturbed ones, byte for byte; people's choices are waited for and never lost."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from forked import forked
from tiny_alignment import WORDS, tiny_policy, tiny_tokenizer, write_comparisons, write_prompts

from talaria.errors import UserError
from talaria.feedback.store import FeedbackStore
from talaria.files import read_json, sha256
from talaria.infer.load import find_model
from talaria.model.checkpoint import save_model
from talaria.pipeline import run_recipe
from talaria.report.page import write_report
from talaria.run import read_metrics
from talaria.verify import verify

KILLED = ("reward", "comparisons-2", "ppo-2")
SHARED = """
[run]
name = "tiny"
folder = "{folder}"

[sft]
base = "{base}"
limit = 8
epochs = 1
optimizer = {{ learning_rate = 1e-5 }}
{conversations}

[reward]
checkpoint_every_seconds = 1e-9
{feedback}

[ppo]
steps = 3
rollouts = 4
max_tokens = 8
optimizer = {{ learning_rate = 1e-3 }}
checkpoint_every_seconds = 1e-9
{prompts}

[rounds]
number = 2
"""
WORLD = """
prompts = 30
items = 20

[world]
entities = 60
mess_share = 0.0

[comparisons]
prompts = 40
policy_prompts = 20
answers = 3
max_tokens = 32
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    save_model(tiny_policy(tokenizer, context=256), tokenizer, folder)
    return folder


def in_the_world(folder: Path, base: Path) -> Path:
    folder.mkdir()
    path = folder / "tiny.toml"
    nothing = {"conversations": "", "feedback": "", "prompts": ""}
    path.write_text(SHARED.format(folder=folder, base=base, **nothing) + WORLD)
    return path


def run_rounds(recipe: Path) -> None:
    import torch

    torch.set_num_threads(1)
    run_recipe(recipe, [], until="rounds")


def content(run: Path) -> dict[str, Any]:
    """All that rounds leave behind, without clock times: files by hash, databases by their rows."""
    found: dict[str, Any] = {}
    for stage in sorted(path.parent for path in run.glob("*/done.json")):
        for file in sorted(path for path in stage.rglob("*") if path.is_file()):
            name = str(file.relative_to(run))
            if file.name in ("manifest.json", "done.json"):
                continue
            if file.name == "metrics.jsonl":
                found[name] = [{k: v for k, v in row.items() if not _is_clock(k)} for row in read_metrics(file)]
            elif file.name == "state.json":  # the process's own random state is in it, which nothing draws from
                found[name] = read_json(file)["sha256"]
            elif file.suffix == ".db":
                with sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True) as database:
                    found[name] = [
                        database.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()
                        for table, columns in (
                            ("prompts", "messages, source"),
                            ("answers", "prompt_id, text, model, seed"),
                            ("comparisons", "prompt_id, ranking, annotator, criterion"),
                        )
                    ]
            else:
                found[name] = sha256(file)
    return found


def _is_clock(name: str) -> bool:
    return name in ("time", "mfu") or "second" in name


def test_killed_at_random_instants_two_rounds_end_as_undisturbed_ones(base: Path, tmp_path: Path) -> None:
    undisturbed, killed = in_the_world(tmp_path / "undisturbed", base), in_the_world(tmp_path / "killed", base)
    context = forked()

    def start(recipe: Path) -> BaseProcess:
        process = context.Process(target=run_rounds, args=(recipe,))
        process.start()
        return process

    def finish(recipe: Path) -> None:
        process = start(recipe)
        process.join(300)
        assert process.exitcode == 0

    finish(undisturbed)
    draw = random.Random(1)
    killed_in: set[str] = set()
    for stage in KILLED:
        process = start(killed)
        while process.is_alive() and not (tmp_path / "killed" / "tiny" / f"{stage}.partial").exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        process.join()
        killed_in |= {path.name for path in (tmp_path / "killed" / "tiny").glob("*.partial")}
    assert killed_in, "no kill met a stage under way"
    finish(killed)

    runs = [recipe.parent / "tiny" for recipe in (undisturbed, killed)]
    assert content(runs[0]) == content(runs[1])
    assert {"ppo-2/model/model.safetensors", "round-2/round.json", "comparisons-2/feedback.db"} <= content(
        runs[0]
    ).keys()
    assert verify(runs[1]) == []
    told = read_json(runs[0] / "round-2" / "round.json")
    first = read_json(runs[0] / "round-1" / "round.json")
    assert told["new_comparisons"] > 0
    assert told["comparisons_so_far"] == told["new_comparisons"] + first["new_comparisons"]
    assert [one["against"] for one in told["comparisons"]] == ["sft", "ppo"]
    assert [one["against"] for one in first["comparisons"]] == ["sft"]
    pairs = read_json(runs[0] / "reward-2" / "training.json")["pairs"]
    assert pairs > read_json(runs[0] / "reward" / "training.json")["pairs"], "the second has the first one's pairs too"
    assert read_metrics(runs[0] / "ppo" / "metrics.jsonl")[0]["kl"] == 0
    assert read_metrics(runs[0] / "ppo-2" / "metrics.jsonl")[0]["kl"] != 0, "it goes on where the first round ended"
    models = {row[2] for row in content(runs[0])["comparisons-2/feedback.db"][1]}
    assert models == {"ppo"}, "the newest policy answers"
    assert find_model(runs[0]) == runs[0] / "ppo-2" / "model"
    page = write_report(runs[0]).read_text()
    assert "<h3>Rounds</h3>" in page and f"{told['new_comparisons']:,}</td>" in page


def judge_more(store_path: Path, model: str, count: int) -> None:
    """Rankings by a person of answers of `model`."""
    draw = random.Random(f"{model}/{count}")
    store = FeedbackStore(store_path)
    for number in range(count):
        prompt = store.append_prompt([{"role": "user", "content": f"{model} {number} {draw.choice(WORDS)}"}])
        ids = [store.append_answer(prompt, text, model=model) for text in ("the gods", "a sea")]
        store.append_comparison(prompt, [[ids[0]], [ids[1]]], annotator="ann")
    store.close()


def test_without_a_world_a_round_waits_for_people_and_goes_on(base: Path, tmp_path: Path) -> None:
    store = tmp_path / "choices.db"
    conversations = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "sea"}, {"role": "assistant", "content": "land of gods"}]
    conversations.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        SHARED.format(
            folder=tmp_path,
            base=base,
            conversations=f'conversations = ["{conversations}"]',
            feedback=f'feedback = ["sqlite:///{store}"]',
            prompts=f'prompts = ["{write_prompts(tmp_path / "prompts.jsonl")}"]',
        )
        + "wanted = 10\nitems = 8\n"
    )
    run = tmp_path / "tiny"
    with pytest.raises(UserError, match=rf"0 rankings, this round needs 10; .*talaria annotate sft={run}/sft --store"):
        run_recipe(recipe, [], until="rounds")
    write_comparisons(store)
    with pytest.raises(UserError, match=rf"0 rankings with answers of ppo, .*annotate ppo={run}/ppo"):
        run_recipe(recipe, [], until="rounds")
    first = {path: path.read_bytes() for path in run.glob("*/done.json")}
    assert {path.parent.name for path in first} == {"sft", "comparisons", "reward", "ppo", "round-1"}

    judge_more(store, "sft", 12)  # of an older policy: trained on, but not what the round waits for
    judge_more(store, "ppo", 9)
    with pytest.raises(UserError, match="9 rankings with answers of ppo"):
        run_recipe(recipe, [], until="rounds")
    # Asking for less makes no finished round anew.
    run_recipe(recipe, ["rounds.wanted=9"], until="rounds")
    assert {path: path.read_bytes() for path in first} == first, "what people did since changes no finished round"
    told = read_json(run / "round-2" / "round.json")
    assert (told["new_comparisons"], told["comparisons_so_far"]) == (21, 61)
    assert told["comparisons"][0].get("by_the_judge") is None and told["comparisons"][0]["changed"]["answers"] == 8
    assert told["models"]["ppo-2"]["kl"] is not None
    judge_more(store, "ppo-2", 3)
    done = {path: path.read_bytes() for path in run.glob("*/done.json")}
    run_recipe(recipe, ["rounds.wanted=9"], until="rounds")
    assert {path: path.read_bytes() for path in run.glob("*/done.json")} == done
    assert verify(run) == []
    assert "step by step" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rounds]\n[sft]\nbase = 'x'\nconversations = ['y']", r"\[rounds\] needs a \[ppo\] table"),
        (
            "[world]\n[rounds]\n[sft]\nbase = 'x'\n[reward]\nfeedback = ['c.db']\n[ppo]\nprompts = ['p']",
            r"\[rounds\] in a \[world\] needs a \[comparisons\] table",
        ),
    ],
)
def test_rounds_without_what_they_repeat_are_refused(text: str, message: str, tmp_path: Path) -> None:
    from talaria.errors import UsageError
    from talaria.recipe import read_recipe

    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(tmp_path / "r.toml", [])


def test_dpo_reads_its_own_choices_where_rounds_freeze_those_of_the_reward_model(tmp_path: Path) -> None:
    """The bug: databases named for [dpo], and another one read without a word."""
    path = tmp_path / "r.toml"
    path.write_text(
        "[sft]\nbase = 'x'\nconversations = ['y']\n[reward]\nfeedback = ['a.db']\n[ppo]\nprompts = ['p']\n[rounds]\n"
        "[dpo]\nfeedback = ['b.db']\n"
    )
    assert "feedback b.db" in stages_of(path=path)["dpo"].inputs
    shared = stages_of("dpo.feedback=[a.db]", path=path)["dpo"]
    assert "comparisons" in shared.parents and "feedback a.db" not in shared.inputs


def test_a_round_that_waits_shows_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from talaria.feedback import snapshot

    monkeypatch.setattr(snapshot, "_choices", lambda store: [])
    with pytest.raises(UserError) as caught:
        snapshot.freeze_choices(["postgresql://me:secret@host/db?sslpassword=hidden"], None, 3, "go on", tmp_path)
    assert (
        "me:***@host" in str(caught.value) and "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    )


def test_a_world_too_small_for_a_later_round_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from talaria.errors import UsageError
    from talaria.preflight import check_sources
    from talaria.recipe import read_recipe

    def practice_items(world: Any, count: int, seed: int) -> list[dict[str, Any]]:
        if count > 3600:
            raise ValueError(f"has only 3600 of {count}")
        return []

    monkeypatch.setattr("talaria.feedback.comparisons.practice_items", practice_items)
    origin = Path("recipes/laptop.toml")
    recipe = read_recipe(origin, [f"run.folder={tmp_path}", "rounds.prompts=1601"])
    with pytest.raises(UsageError, match="has only 3600 of 3601; ask for fewer prompts, or a larger world"):
        check_sources(recipe, origin, "rounds")


DEMO = Path("recipes/laptop.toml")


def stages_of(*overrides: str, path: Path = DEMO) -> dict[str, Any]:
    from talaria.alignment import alignment_stages
    from talaria.recipe import read_recipe

    plain = ["ppo.also_without_ptx=false", "ppo.ptx_coefficient=0"] if path == DEMO else []
    recipe = read_recipe(path, [*plain, *overrides])
    return {stage.name: stage for stage in alignment_stages(recipe, Path("runs/aligned"))}


def test_more_rounds_leave_the_finished_ones_as_they_are() -> None:
    two, three = stages_of("rounds.number=2"), stages_of("rounds.number=3")
    assert list(two) == [
        "comparisons", "reward", "ppo", "round-1", "comparisons-2", "reward-2", "ppo-2", "round-2",
    ]  # fmt: skip
    assert list(three) == [*two, "comparisons-3", "reward-3", "ppo-3", "round-3"]
    assert all((two[name].settings, two[name].inputs) == (three[name].settings, three[name].inputs) for name in two)
    plain = stages_of()
    assert all((two[name].settings, two[name].inputs) == (plain[name].settings, plain[name].inputs) for name in plain)
    seeds = [three[name].settings.seed for name in ("comparisons", "comparisons-2", "comparisons-3")]
    assert len(set(seeds)) == 3, "other questions and other errors in each round"
    assert sorted(path.parent.name for path in three["reward-3"].inputs.values()) == [
        "comparisons", "comparisons-2", "comparisons-3", "sft",
    ]  # fmt: skip
    assert three["ppo-3"].inputs["start"] == Path("runs/aligned/ppo-2/model")
    assert three["ppo-3"].inputs["base"] == Path("runs/aligned/sft/model")


def test_the_twin_without_pretraining_text_is_the_same_policy_but_for_that() -> None:
    twins = stages_of("ppo.ptx_coefficient=2", "ppo.also_without_ptx=true")
    alone = stages_of("ppo.ptx_coefficient=2")
    assert list(twins) == [*alone, "ppo-without-ptx"]
    assert twins["ppo"].settings == alone["ppo"].settings, "asking for the twin does not train the policy again"
    own, twin = twins["ppo"], twins["ppo-without-ptx"]
    assert twin.settings.ppo == own.settings.ppo.model_copy(update={"ptx_coefficient": 0.0})
    assert own.inputs.keys() - twin.inputs.keys() == {"replay"}
    assert "ppo-without-ptx" not in stages_of("ppo.also_without_ptx=true"), "there is nothing to leave out"
