"""A run folder in, what its finished stages left behind out; a missing piece is None or empty, never an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from talaria.config import load_table
from talaria.errors import UserError
from talaria.files import MANIFEST, read_json, read_rows, sha256
from talaria.report.results import WIN_SHARES, ResultRow, read_results
from talaria.run import read_metrics

T = TypeVar("T")
TUNED = ("comparisons", "reward", "dpo", "grpo", "ppo")
STAGES = ("world", "corpus", "tokenizer", "conversations", "pretrain", "sft", *TUNED, "eval")
TRAINING = ("pretrain", "sft")
POLICIES = ("dpo", "grpo", "ppo")
_TITLES = {"pretrain": "Pretraining", "sft": "Fine-tuning", "reward": "Reward model", "comparisons": "Comparisons"}
NULL_MODELS = ("chance", "majority")


@dataclass(frozen=True)
class RunData:
    """Everything the report and the comparison read of one run; dictionaries are keyed by stage or model name."""

    folder: Path
    manifests: dict[str, dict[str, Any]]
    manifest_hashes: dict[str, str]
    settings: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, Any]]]
    training: dict[str, dict[str, Any]]
    corpus: dict[str, Any] | None
    results: list[ResultRow]
    items: dict[str, list[dict[str, Any]]]
    continuations: dict[str, list[dict[str, Any]]]
    ladder: dict[str, Any] | None
    """What the rungs of a ladder predicted of pretraining."""
    comparisons: dict[str, dict[str, Any]]
    """What the simulated labelers of each round came to."""
    quality: dict[str, dict[str, Any]]
    """What each reward model is worth."""
    rounds: list[dict[str, Any]]
    preferences: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def models(self) -> list[str]:
        """Evaluated models, null baselines aside, in the order of results.csv: the last is the run's product."""
        rows = (row.model for row in self.results if row.metric not in WIN_SHARES)  # of which best-of-n is no model
        return [name for name in dict.fromkeys(rows) if name not in NULL_MODELS]

    @property
    def trained(self) -> list[str]:
        """Stages whose training made the run's product, in order."""
        return [name for name in self.training if name in TRAINING or is_policy(name) or name.startswith("reward")]

    def seconds(self, *stages: str) -> float | None:
        """Wall time of the given stages together, None where no manifest tells."""
        known = [self.manifests[stage]["seconds"] for stage in stages if "seconds" in self.manifests.get(stage, {})]
        return sum(known) if known else None


def read_run(folder: Path) -> RunData:
    """Read `folder`. Raises UserError where it is not a folder, or where a file in it is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run; give the folder of a run, e.g. runs/laptop")
    corpus, results = folder / "corpus" / "corpus.json", folder / "eval" / "results.csv"
    preferences = folder / "eval" / "preferences.json"
    rounds = _each(folder, "round.json", read_json)
    return RunData(
        folder=folder,
        manifests=_each(folder, MANIFEST, read_json),
        manifest_hashes=_each(folder, MANIFEST, sha256),
        settings=_each(folder, "config.toml", load_table),
        metrics=_each(folder, "metrics.jsonl", read_metrics),
        training=_each(folder, "training.json", read_json),
        corpus=read_json(corpus) if corpus.is_file() else None,
        results=read_results(results) if results.is_file() else [],
        items=_each_model(folder, "items-"),
        continuations=_each_model(folder, "continuations-"),
        ladder=read_json(ladder) if (ladder := folder / "ladder.json").is_file() else None,
        comparisons=_each(folder, "comparisons.json", read_json),
        quality=_each(folder, "reward.json", read_json),
        rounds=sorted(rounds.values(), key=lambda told: int(told["round"])),
        preferences=read_json(preferences) if preferences.is_file() else None,
    )


def is_policy(stage: str) -> bool:
    """Whether a stage makes a policy: one of `POLICIES`, of a later round or a twin too."""
    return stage.split("-")[0] in POLICIES


def title_of(stage: str, data: RunData) -> str:
    """A stage or its model, as the page names it."""
    kind, _, more = stage.partition("-")
    title = _TITLES.get(kind, kind.upper() if kind in POLICIES else stage)
    if kind == "ppo" and data.settings.get(stage, {}).get("ppo", {}).get("ptx_coefficient"):
        title += "-ptx"
    return f"{title}, round {more}" if more.isdigit() and title != stage else title


def _each(folder: Path, name: str, read: Callable[[Path], T]) -> dict[str, T]:
    """Stage -> what `read` makes of its file `name`, for the stages that have one."""
    return {stage: read(path) for stage in _stages(folder) if (path := folder / stage / name).is_file()}


def _stages(folder: Path) -> list[str]:
    """Known stages in order, the evaluation last, before it any other folder that holds a manifest: round by round."""
    found = {path.parent.name for path in folder.glob(f"*/{MANIFEST}")} - {*STAGES, "report"}
    others = sorted((name for name in found if not name.endswith((".partial", ".old"))), key=_place)
    return [*STAGES[:-1], *others, STAGES[-1]]


def _place(stage: str) -> tuple[int, int, str]:
    kind, _, number = stage.rpartition("-")
    return int(number) if number.isdigit() else 0, STAGES.index(kind) if kind in STAGES else len(STAGES), stage


def _each_model(folder: Path, prefix: str) -> dict[str, list[dict[str, Any]]]:
    """Evaluated model -> the rows of its file."""
    return {path.stem.removeprefix(prefix): read_rows(path) for path in sorted(folder.glob(f"eval/{prefix}*.jsonl"))}
