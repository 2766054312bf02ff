"""Recipes whose tables are right by themselves and cannot work together are refused before any stage runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from talaria.errors import UsageError
from talaria.recipe import read_recipe

OWN_TEXT = """
[corpus]
paths = ["texts"]

[tokenizer]

[model]
depth = 2

[pretrain]

[conversations]

[sft]

[eval]
"""
FOREIGN = """
[sft]
base = "model"
conversations = ["mine.jsonl"]
"""


@pytest.mark.parametrize(
    ("table", "overrides", "told"),
    [
        (OWN_TEXT, ["corpus=none"], "[tokenizer] needs a [corpus]"),
        (OWN_TEXT, ["tokenizer=none"], "[pretrain] needs a [tokenizer]"),
        (OWN_TEXT, ["corpus.paths=[]"], "corpus.paths is empty"),
        (OWN_TEXT, ["tokenizer.special_tokens=false"], 'needs tokenizer.kind = "character"'),
        (OWN_TEXT, ["tokenizer.kind=character", "tokenizer.special_tokens=false"], "[sft] needs a chat format"),
        (OWN_TEXT, ["model.d_model=100", "model.n_heads=3"], "d_model=100 does not divide into n_heads=3"),
        (OWN_TEXT, ["model.n_heads=4", "model.n_kv_heads=3"], "not a multiple of n_kv_heads=3"),
        (OWN_TEXT, ["model.d_head=7"], "d_head=7 is odd"),
        (OWN_TEXT, ["pretrain=none"], "[sft] has neither"),
        (OWN_TEXT, ["pretrain=none", "sft=none"], "[eval] has no model to score"),
        (OWN_TEXT, ["conversations=none"], "[sft] has no conversations"),
        (OWN_TEXT, ["sft=none", "reward.feedback=[f.db]"], "[reward] begins with the fine-tuned model"),
        (OWN_TEXT, ["comparisons.prompts=9"], "[comparisons] has labelers of the world alone"),
        (OWN_TEXT, ["reward.epochs=1"], "[reward] has no comparisons"),
        (OWN_TEXT, ["dpo.epochs=1"], "[dpo] has no comparisons"),
        (OWN_TEXT, ["ppo.prompts=[p.jsonl]"], "[ppo] needs a [reward] table"),
        (OWN_TEXT, ["reward.feedback=[f.db]", "ppo.steps=1"], "[ppo] has no prompts"),
        (
            OWN_TEXT,
            ["reward.feedback=[f.db]", "ppo.prompts=[p]", "ppo.rollouts=2", "ppo.minibatches=3"],
            "more than ppo.r",
        ),
        (OWN_TEXT, ["grpo.reward=model", "grpo.prompts=[p.jsonl]"], 'grpo.reward = "model" needs a [reward]'),
        (
            OWN_TEXT,
            [
                "eval=none",
                "sft.base=model",
                "reward.feedback=[f.db]",
                "ppo.prompts=[p]",
                "ppo.ptx_coefficient=1.0",
            ],
            "that this run's tokenizer encoded",
        ),
        (OWN_TEXT, ["reward.feedback=[f.db]", "reward.optimizer.name=muon"], "this stage knows adamw only"),
        (OWN_TEXT, ["sft.lora.rank=4", "sft.optimizer.name=muon"], "sft.lora is trained by adamw"),
        (OWN_TEXT, ["sft.replay_share=0.5", "sft.batch_tokens=256"], "set sft.batch_tokens to 512 or more"),
        (OWN_TEXT, ["sft.base=model"], "sft.base has its own tokenizer"),
        (OWN_TEXT, ["sft.base=model", "pretrain=none"], "sft.base has its own tokenizer"),
        (OWN_TEXT, ["eval.tasks=[facts_en]"], "no [world] to set one"),
        (OWN_TEXT, ["world.entities=60", "eval.tasks=[]"], "eval.tasks is empty"),
        (FOREIGN, ["sft.conversations=[]"], "[sft] has no conversations"),
        (FOREIGN, ["sft.replay_share=0.1"], "sft.replay_share has no pretraining text"),
        (FOREIGN, ["eval.max_tokens=8"], "[eval] has no [world]"),
    ],
)
def test_tables_that_cannot_work_together_are_refused(
    tmp_path: Path, table: str, overrides: list[str], told: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(table)
    assert read_recipe(path, []).sft is not None, "without the override it is right"
    with pytest.raises(UsageError) as caught:
        read_recipe(path, overrides)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and told in message and "\n" not in message


@pytest.mark.parametrize(
    ("table", "overrides"),
    [
        (OWN_TEXT, ["sft.base=model", "world.entities=60"]),
        (OWN_TEXT, ["sft.base=model", "eval=none"]),
        (OWN_TEXT, ["sft.replay_share=0.5", "sft.batch_tokens=512"]),
        (OWN_TEXT, ["sft.replay_share=0.5"]),
        (OWN_TEXT, ["tokenizer.kind=character"]),
        (FOREIGN, ["world.entities=60", "eval.tasks=[facts_en]"]),
    ],
)
def test_tables_that_can_work_together_are_not_refused(tmp_path: Path, table: str, overrides: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(table)
    assert read_recipe(path, overrides)
