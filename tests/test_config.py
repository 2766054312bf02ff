"""Recipes: what is wrong is named, with the nearest right thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from talaria.config import apply_overrides, load_table, resolve, to_toml
from talaria.errors import UsageError
from talaria.pipeline import Recipe, read_recipe

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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.token=5", ["'pretrain.token'", "did you mean 'pretrain.tokens'"]),
        ("pretrain.optimizer.learning_rat=1", ["did you mean 'pretrain.optimizer.learning_rate'"]),
        ("pretrian.tokens=5", ["'pretrian'", "did you mean 'pretrain'"]),
        ("pretrain.tokens=many", ["'pretrain.tokens'", "integer", "'many'"]),
        ("pretrain.tokens=-1", ["'pretrain.tokens'", "greater than 0"]),
        ("model.depth", ["table.key=value"]),
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


def test_a_missing_recipe_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="talaria init"):
        load_table(tmp_path / "none.toml")


def test_a_stage_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[pretrain]\n")
    with pytest.raises(UsageError, match=r"\[pretrain\] needs a \[tokenizer\]"):
        read_recipe(path, [])


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
        assert read_recipe(path, overrides).run.name == path.stem, needs_a_file
