"""The comparisons stage: what is stored is what labelers chose, and nobody compared the policy's prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_alignment import tiny_policy, tiny_tokenizer

from talaria.feedback.comparisons import collect_comparisons
from talaria.feedback.settings import ComparisonSettings
from talaria.feedback.store import FeedbackStore
from talaria.infer.engine import Engine
from talaria.world.labelers import PREFERENCE_VERSION, judge
from talaria.world.settings import WorldSettings

WORLD = WorldSettings(entities=60)
SETTINGS = ComparisonSettings(prompts=60, policy_prompts=40, answers=3, max_tokens=32, labelers=3, second_opinions=0.5)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons")
    (folder / "feedback.db").write_text("of a try that was killed")
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_policy(tokenizer, context=256), tokenizer)
    collect_comparisons(SETTINGS, WORLD, engine, "sft", 3, folder)
    return folder


def items(path: Path) -> dict[str, dict]:
    return {row["messages"][0]["content"]: row for row in map(json.loads, path.read_text().splitlines())}


def test_labelers_agree_with_the_judge_in_about_the_stated_share(stage: Path) -> None:
    compared = items(stage / "items.jsonl")
    comparisons = FeedbackStore(stage / "feedback.db").read_comparisons()
    decided = agreed = 0
    for comparison in comparisons:
        texts = [answer.text for group in comparison.ranking for answer in group]
        assert len(texts) == 2 and len(set(texts)) == 2
        choice = judge(compared[comparison.messages[0]["content"]], *texts)
        if choice:
            decided, agreed = decided + 1, agreed + (choice == 1 and len(comparison.ranking) == 2)
    assert decided > 30
    summary = json.loads((stage / "comparisons.json").read_text())
    assert (summary["choices"], summary["choices_of_the_judge"]) == (decided, agreed)
    assert abs(agreed / decided - 0.836) < 4 * (0.836 * 0.164 / decided) ** 0.5
    assert {comparison.criterion for comparison in comparisons} <= {"helpful", "harmless"}


def test_the_policys_prompts_were_never_compared(stage: Path) -> None:
    compared, for_policy = items(stage / "items.jsonl"), items(stage / "policy_prompts.jsonl")
    assert len(compared) == 60 and len(for_policy) == 40 and not set(compared) & set(for_policy)
    summary = json.loads((stage / "comparisons.json").read_text())
    assert (
        summary["prompts"] == 60 and summary["answers"] == 180 and summary["preference_version"] == PREFERENCE_VERSION
    )
