"""Recipes: what is wrong is named, with the nearest right thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from talaria.config import apply_overrides, load_table, resolve, to_toml
from talaria.errors import UsageError
from talaria.recipe import Recipe, read_recipe

RECIPE = """
[world]
entities = 60

[corpus]

[tokenizer]

[model]
depth = 2

[pretrain]
optimizer = { learning_rate = 1e-3 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_overrides_win_over_the_recipe_and_the_recipe_over_defaults(recipe: Path) -> None:
    resolved = read_recipe(recipe, ["model.depth=3", "pretrain.optimizer.beta2=0.9"])
    assert resolved.model.depth == 3
    assert resolved.pretrain is not None
    assert resolved.pretrain.optimizer.learning_rate == 1e-3
    assert resolved.pretrain.optimizer.beta2 == 0.9
    assert resolved.run.name == "small"


def test_a_table_given_in_part_keeps_what_its_field_says_of_the_rest(recipe: Path) -> None:
    """The bug: one rate from the command line, and fine-tuning had pretraining's weight decay as well."""
    given = ["sft.optimizer.learning_rate=5e-5", "ppo.optimizer.learning_rate=5e-5", "reward={}", "comparisons={}"]
    resolved = read_recipe(recipe, given)
    assert resolved.sft is not None and resolved.ppo is not None
    assert resolved.sft.optimizer.weight_decay == resolved.ppo.optimizer.weight_decay == 0.0
    assert (resolved.ppo.optimizer.schedule, resolved.ppo.optimizer.learning_rate) == ("warmup-stable-decay", 5e-5)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.token=5", ["'pretrain.token'", "did you mean 'pretrain.tokens'"]),
        ("pretrain.optimizer.learning_rat=1", ["did you mean 'pretrain.optimizer.learning_rate'"]),
        ("pretrian.tokens=5", ["'pretrian'", "did you mean 'pretrain'"]),
        ("pretrain.tokens=many", ["'pretrain.tokens'", "integer", "'many'"]),
        ("pretrain.tokens=-1", ["'pretrain.tokens'", "greater than 0"]),
        ("model.depth", ["table.key=value", "pretrain.tokens=1000000"]),
        ("run.seed=-1", ["'run.seed'", "greater than or equal to 0"]),
        ("pretrain.epochs=inf", ["'pretrain.epochs'", "finite"]),
        ("pretrain.optimizer.weight_decay=nan", ["'pretrain.optimizer.weight_decay'", "finite"]),
        ("pretrain.tokens_per_parameter=none", ["'pretrain.tokens_per_parameter'", "number", "'none'"]),
        ("run.name=a/b", ["'run.name'", "run.folder"]),
        ("run.name=a\\b", ["'run.name'", "run.folder"]),
        ("run.name=..", ["'run.name'", "run.folder"]),
        ("run.name=", ["'run.name'", "run.folder"]),
        ('run.name="a\\tb"', ["'run.name'", "run.folder"]),
        ("run.name=true", ["'run.name'", "string"]),
        ("model.depth.x=1", ["'depth' is a value"]),
    ],
)
def test_a_wrong_key_or_type_names_the_key_and_the_nearest_known_one(
    recipe: Path, override: str, told: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"[run\nname=1", "not valid TOML"), (b"\xff\xfe", "not UTF-8 at byte 0")],
)
def test_a_damaged_recipe_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=told):
        load_table(path)


@pytest.mark.parametrize("name", ["2024", "2024-10-01", "v1.2", "mine"])
def test_a_run_may_be_named_like_a_number(recipe: Path, name: str) -> None:
    assert read_recipe(recipe, [f"run.name={name}"]).run.name == name


def test_a_path_inside_a_file_is_no_recipe(recipe: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_table(recipe / "x")


def test_a_missing_recipe_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="talaria init"):
        load_table(tmp_path / "none.toml")


def test_a_stage_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[pretrain]\n")
    with pytest.raises(UsageError, match=r"\[pretrain\] needs a \[tokenizer\]"):
        read_recipe(path, [])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[corpus]\npaths=['x']\n[tokenizer]\nkind='character'\nspecial_tokens=false\n[pretrain]\n"
         "[sft]\nconversations=['y']\n", "special_tokens"),
        ("[sft]\nbase='x'\nconversations=['y']\n[eval]\n", r"\[eval\] has no \[world\]"),
        ("[sft]\nbase='x'\nconversations=['y']\nreplay_share=0.2\n", "replay_share"),
        ("[world]\n[eval]\n", "no model to score"),
    ],
)  # fmt: skip
def test_a_recipe_that_must_fail_is_refused_before_training(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=told):
        read_recipe(path, [])


def test_none_where_it_is_not_the_default_survives_writing(recipe: Path, tmp_path: Path) -> None:
    first = read_recipe(recipe, ["eval.untrained_per_task=none", "pretrain.noise_scale_every_steps=None"])
    assert first.eval is not None and first.eval.untrained_per_task is None
    again = tmp_path / "again.toml"
    again.write_text(to_toml(first), encoding="utf-8")
    assert again.read_text().count('"none"') == 2
    assert resolve(Recipe, load_table(again), "again") == first


def test_an_override_can_leave_a_stage_out(recipe: Path) -> None:
    assert read_recipe(recipe, ["pretrain=none"]).pretrain is None


def test_written_settings_read_back_as_the_same(recipe: Path, tmp_path: Path) -> None:
    first = read_recipe(recipe, ['corpus.paths=["a \\"quoted\\" name", "中文"]'])
    again = tmp_path / "again.toml"
    again.write_text(to_toml(first), encoding="utf-8")
    assert resolve(Recipe, load_table(again), "again") == first


def test_a_list_may_come_without_quotes_as_a_shell_leaves_it() -> None:
    assert apply_overrides({}, ["corpus.paths=[my folder/a.txt, b.txt]"]) == {
        "corpus": {"paths": ["my folder/a.txt", "b.txt"]}
    }


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        needs_a_file = path.stem in ("shakespeare", "smollm2")
        overrides = ["corpus.paths=[x]"] if path.stem == "shakespeare" else []
        overrides += ["sft.base=x", "sft.conversations=[y]"] if path.stem == "smollm2" else []
        overrides += ["sft.base=x"] if path.stem == "smollm2_aligned" else []
        assert read_recipe(path, overrides).run.name == path.stem, needs_a_file
