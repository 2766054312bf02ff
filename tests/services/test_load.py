"""bench/load.py for seconds: every stream gets its own answer, blocks come back, and its judgement is right."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.services
BENCH = Path(__file__).parent.parent.parent / "bench" / "load.py"


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("load", BENCH)
    assert spec is not None and spec.loader is not None
    sys.modules["load"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_under_load_no_answer_is_mixed_up_and_no_block_is_lost(tmp_path: Path) -> None:
    given = ["--minutes", "0.05", "--streams", "8", "--prompts", "8", "--vanish", "0.4", "--json", "load.json"]
    done = subprocess.run(
        [sys.executable, BENCH, *given], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "load.json").read_text())
    assert result["finished"] >= 3 and result["vanished"] >= 1
    assert (result["wrong"], result["mixed"], result["lost"]) == (0, 0, 0)
    assert set(result["at_the_end"]) == {"talaria_answers_running", "talaria_answers_waiting", "talaria_cache_blocks"}
    assert set(result["at_the_end"].values()) == {0}


def answer(load: ModuleType, text: str, leads: list[float]) -> object:
    """An expected answer of one token a character."""
    return load.Expected([], len(text), text, list(range(1, len(text) + 1)), leads)


def test_an_answer_is_judged_right_wrong_mixed_or_parted_at_a_near_tie(load: ModuleType) -> None:
    first, second = "the ferry left at noon", "a lamp stood by the door"
    ties = [1.0] * 10 + [5e-5] + [1.0] * 30
    expected = [answer(load, first, ties[: len(first)]), answer(load, second, [1.0] * len(second))]
    for text, kind in [
        (first, None),
        (second, "mixed"),
        (first[:6] + second[6:], "mixed"),
        (first[:-1], "wrong"),
        (first + "!", "wrong"),
        ("", "wrong"),
        (first[:9] + "x" + first[10:], "wrong"),
        (first[:10] + "-" + first[11:], "near_ties"),
        (first[:10], "near_ties"),
    ]:
        tally = load.Tally()
        tally.judge(text, 0, expected)
        found = [name for name in ("wrong", "mixed", "near_ties") if getattr(tally, name)]
        assert found == ([] if kind is None else [kind]), text
        assert tally.finished == 1


def test_memory_that_grows_is_told_from_memory_that_wavers(load: ModuleType) -> None:
    def fitted(mib_per_minute: float) -> bool:
        samples = [(float(s), 400 + s / 60 * mib_per_minute + (5 if s % 2 else 0)) for s in range(600)]
        return bool(load.growth([(0.0, 100.0), *samples], warm_up=150)["grows"])

    assert fitted(2.0) and not fitted(0.0) and not fitted(-2.0)
