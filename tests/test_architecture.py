"""The import order of the rooms, read from the source: a room imports only rooms to its left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "talaria"
ROOMS = ["corpus", "tokens", "model", "infer", "feedback", "train", "reason", "eval", "serve"]
SHARED = {"config", "errors", "files", "run", "report", "world"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "base", "manager"}
FILES = sorted(PACKAGE.rglob("*.py"))


def allowed(place: str) -> set[str]:
    """What a file in `place` (a room or a top-level module) may import from the package."""
    if place in ROOMS:
        return SHARED | set(ROOMS[: ROOMS.index(place) + 1])
    return {
        "config": {"errors"},
        "errors": set(),
        "files": {"errors"},
        "run": {"config", "errors", "files"},
        "verify": {"files", "run"},
        "recipe": {"config", "errors", "world", *ROOMS},
        "preflight": SHARED | set(ROOMS) | {"recipe"},
        "report": {"config", "errors", "files", "run", "report"},
        "world": {"config", "errors", "files", "run", "world"},
        "scaling": {"config", "errors", "files", "report", "scaling", "model"},
        "knowledge": SHARED | set(ROOMS[: ROOMS.index("train") + 1]) | {"knowledge"},
        "alignment": SHARED | set(ROOMS) | {"recipe"},
        "pipeline": SHARED | set(ROOMS) | {"alignment", "preflight", "recipe", "scaling", "knowledge"},
        "planning": SHARED | set(ROOMS) | {"scaling"},
        "ladder": SHARED | set(ROOMS) | {"pipeline", "preflight", "recipe", "scaling"},
        "study": SHARED | set(ROOMS) | {"scaling", "study"},
        "commands": SHARED
        | set(ROOMS)
        | {"commands", "recipe", "verify", "ladder", "planning", "scaling", "knowledge", "study"},
        "cli": {"commands", "errors", "pipeline"},
        "__main__": {"cli"},
        "__init__": {"infer"},
    }[place]


def imported_places(source: str) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("talaria.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_left(file: Path) -> None:
    place = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported_places(file.read_text()) <= allowed(place)


def test_the_recipe_reads_only_the_settings_of_rooms() -> None:
    tree = ast.parse((PACKAGE / "recipe.py").read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    of_rooms = [name for name in modules if name.split(".")[1:2] and name.split(".")[1] in {*ROOMS, "world"}]
    assert len(of_rooms) > 5
    assert {name.split(".", 2)[2] for name in of_rooms} == {"settings"}


def test_the_rule_would_catch_an_import_to_the_right() -> None:
    assert not imported_places("from talaria.train import step") <= allowed("model")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_becomes_a_dumping_ground(file: Path) -> None:
    assert file.stem not in FORBIDDEN_NAMES
    assert len(file.read_text().splitlines()) <= 600


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "settings.py"], ids=str)
def test_settings_are_free_of_torch(file: Path) -> None:
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    modules = {
        (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert "torch" not in names | modules
