"""Whose answers are preferred: policies against the model that they began as, and best-of-n beside them.

In: models, a reward model and questions. Out: preferences.json with wins, ties and losses by the world's judge, with
and without its rule of length, the share of wins among the decided with an interval over questions, KL, what the reward
model says, and answers before and after. Answers are sampled at temperature 1; those before and after are greedy.

    told = Preferences(settings, items, rewarder, seed)
    told.answer("sft", path); told.answer("ppo", other); told.compare("ppo", "sft")
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from math import inf, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import binomial_stderr, bootstrap_interval, wilson_interval
from talaria.files import atomic_write, read_rows, to_json
from talaria.infer.contract import Completion, row_seed
from talaria.infer.engine import Engine
from talaria.infer.load import load
from talaria.model.scalar import load_scalar_model
from talaria.model.transformer import Transformer
from talaria.report.results import WIN_SHARES, ResultRow, read_results, write_results
from talaria.train.answers import answer_log_probs, over_pieces, pad_answers
from talaria.train.cores import Cut
from talaria.train.rollouts import reward_of
from talaria.world.judge import check
from talaria.world.labelers import PREFERENCE_VERSION, is_good, judge

_CUT = Cut(rows=32)
_SAMPLES = 3


def evaluate_preferences(
    settings: EvalSettings,
    base: Path,
    policies: Mapping[str, Path],
    reward: Path | None,
    exam: Path,
    folder: Path,
    seed: int,
) -> None:
    """Compare each policy, and best-of-n where there is a reward model, with the model at `base`: `folder`/
    preferences.json, and two rows a comparison in results.csv."""
    items = draw_items(exam, settings.preference_items, seed)
    told = Preferences(settings, items, reward, seed)
    told.answer("sft", base)
    for name, path in policies.items():
        told.answer(name, path)
        told.compare(name, "sft")
    if reward is not None and settings.best_of:
        told.compare(told.answer_best_of(), "sft")
    atomic_write(folder / "preferences.json", to_json(told.to_json()))
    write_results([*read_results(folder / "results.csv"), *told.rows()], folder / "results.csv")


class Preferences:
    """Answers of several models to the same questions, and how they compare. Each model's draws have their own seed."""

    def __init__(self, settings: EvalSettings, items: list[dict[str, Any]], reward: Path | None, seed: int) -> None:
        self._settings, self._items, self._seed = settings, items, seed
        self._has_judge = all("grader" in item for item in items)
        self._rewarder = None if reward is None else load_scalar_model(reward)[0].requires_grad_(False)
        self._first: tuple[str, Engine] | None = None
        self._answers: dict[str, list[Completion]] = {}
        self._greedy: dict[str, list[str]] = {}
        self._models: dict[str, dict[str, Any]] = {}
        self._comparisons: list[dict[str, Any]] = []

    def answer(self, name: str, path: Path) -> None:
        """Have a model answer; the first one is what KL is measured to."""
        engine = load(path, compiled=False, max_batch_size=self._settings.batch_size, prefix_cache=False)
        self._first = self._first or (name, engine)
        first = self._first[1]  # the only one that is kept: each has its weights and its memory of keys and values
        answers = self._generate(engine, 1, row_seed(self._seed, len(self._answers) + 1), 1.0)
        self._greedy[name] = [answer.text for answer in self._generate(engine, 1, 0, 0.0)]
        self._describe(name, answers, self._scores(self._items, answers))
        if engine is not first:
            ratios = log_ratios(engine, first, self._items, answers)
            self._models[name] |= {"kl": statistics.fmean(ratios), "kl_interval": bootstrap_interval(ratios)}

    def answer_best_of(self) -> str:
        """The best of several answers of the first model by the reward model, as a model of its own; returns its
        name."""
        n = self._settings.best_of
        assert self._first is not None
        many = self._generate(self._first[1], n, row_seed(self._seed, 0), 1.0)
        scores = self._scores([item for item in self._items for _ in range(n)], many)
        assert scores is not None
        places = best_of(scores, n)
        best = f"best of {n}"
        self._describe(best, [many[place] for place in places], [scores[place] for place in places])
        self._models[best]["kl_at_most"] = best_of_n_kl(n)
        return best

    def compare(self, name: str, other: str) -> None:
        """Wins, ties and losses of a model against another, where there is a judge; greedy answers that differ."""
        own, others = ([answer.text for answer in self._answers[model]] for model in (name, other))
        told: dict[str, Any] = {"model": name, "against": other}
        if self._has_judge:
            told["by_the_judge"] = win_rate(self._items, own, others, by_length=True)
            told["length_controlled"] = win_rate(self._items, own, others, by_length=False)
        if name in self._greedy:
            told["changed"] = changed_answers(self._items, self._greedy[other], self._greedy[name], self._has_judge)
        self._comparisons.append(told)

    def to_json(self) -> dict[str, Any]:
        """Everything, as the JSON value of preferences.json."""
        return {
            "items": len(self._items),
            "seed": self._seed,
            "preference_version": PREFERENCE_VERSION if self._has_judge else None,
            "models": self._models,
            "comparisons": self._comparisons,
        }

    def rows(self) -> list[ResultRow]:
        """The share of wins among the decided, for results.csv; nothing where nothing was decided."""
        return [
            ResultRow(
                model=told["model"],
                params=None,
                tokens=None,
                flops=None,
                seed=self._seed,
                step=None,
                task=f"against {told['against']}",
                task_version=PREFERENCE_VERSION,
                strategy="chat",
                shots=0,
                metric=metric,
                score=rate["share"],
                stderr=binomial_stderr(rate["wins"], rate["wins"] + rate["losses"]),
                n=rate["wins"] + rate["losses"],
            )
            for told in self._comparisons
            for metric, key in zip(WIN_SHARES, ("by_the_judge", "length_controlled"), strict=True)
            if (rate := told.get(key)) is not None and rate["share"] is not None
        ]

    def _generate(self, engine: Engine, n: int, seed: int, temperature: float) -> list[Completion]:
        prompts = [engine.chat_prompt(item["messages"]) for item in self._items]
        return engine.generate(prompts, n=n, max_tokens=self._settings.max_tokens, temperature=temperature, seed=seed)

    def _describe(self, name: str, answers: list[Completion], scores: list[float] | None) -> None:
        self._answers[name] = answers
        pairs = list(zip(self._items, answers, strict=True))
        told: dict[str, Any] = {"characters": statistics.fmean(len(answer.text) for answer in answers)}
        told["cut"] = sum(answer.finish_reason != "stop" for answer in answers) / len(answers)
        if self._has_judge:
            told["right"] = sum(check(item, answer.text) for item, answer in pairs) / len(pairs)
            told["right_and_polite"] = sum(is_good(item, answer.text) for item, answer in pairs) / len(pairs)
        whole = [score for score in scores or () if score > -inf]
        told["reward_of_whole_answers"] = statistics.fmean(whole) if whole else None
        self._models[name] = told

    def _scores(self, items: Sequence[dict[str, Any]], answers: Sequence[Completion]) -> list[float] | None:
        if self._rewarder is None:
            return None
        assert self._first is not None
        engine = self._first[1]
        rewarder = self._rewarder.to(engine.trunk.device)
        pieces = [
            reward_of(rewarder, engine.tokenizer, items[i : i + 128], answers[i : i + 128], -inf, _CUT)
            for i in range(0, len(items), 128)
        ]
        return [float(score) for score in torch.cat(pieces)]


def win_rate(
    items: Sequence[dict[str, Any]], own: Sequence[str], other: Sequence[str], *, by_length: bool
) -> dict[str, Any]:
    """Wins, ties and losses of `own`; `share` is that of wins among the decided pairs, with its Wilson interval (None
    where nothing is decided); `net` is (wins - losses) / all with a bootstrap interval, in which ties count."""
    choices = [judge(item, a, b, by_length=by_length) for item, a, b in zip(items, own, other, strict=True)]
    wins, losses = choices.count(1), choices.count(-1)
    decided = wins + losses
    return {
        "wins": wins,
        "ties": choices.count(0),
        "losses": losses,
        "share": wins / decided if decided else None,
        "share_interval": wilson_interval(wins, decided) if decided else None,
        "net": (wins - losses) / len(choices),
        "net_interval": bootstrap_interval([float(choice) for choice in choices]),
    }


def changed_answers(
    items: Sequence[dict[str, Any]], before: Sequence[str], after: Sequence[str], has_judge: bool
) -> dict[str, Any]:
    """How many answers differ, how many of them became good or bad, and the first few of each kind."""
    samples: list[dict[str, Any]] = []
    for item, old, new in zip(items, before, after, strict=True):
        if old != new:
            sample = {"prompt": item["messages"][-1]["content"], "before": old, "after": new}
            if has_judge:
                sample |= {"good_before": is_good(item, old), "good_after": is_good(item, new)}
            samples.append(sample)
    kinds: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for sample in samples:
        kinds.setdefault((sample.get("good_before"), sample.get("good_after")), []).append(sample)
    return {
        "answers": len(items),
        "changed": len(samples),
        "mended": len(kinds.get((False, True), [])) if has_judge else None,
        "spoilt": len(kinds.get((True, False), [])) if has_judge else None,
        "samples": [sample for of_kind in kinds.values() for sample in of_kind[:_SAMPLES]],
    }


def log_ratios(
    policy: Engine, base: Engine, items: Sequence[dict[str, Any]], answers: Sequence[Completion]
) -> list[float]:
    """log policy - log base of each answer, in nats: their mean estimates the KL from the base where the policy gave
    the answers."""
    prompts = [policy.chat_prompt(item["messages"]) for item in items]
    rows = pad_answers(prompts, [answer.token_ids for answer in answers], policy.trunk.device)

    def log_probs(trunk: Transformer) -> Tensor:
        return over_pieces(lambda piece: answer_log_probs(trunk, piece)[0].double(), rows, _CUT)

    return [float(ratio) for ratio in (log_probs(policy.trunk) - log_probs(base.trunk)).sum(dim=1)]


def best_of(scores: Sequence[float], n: int) -> list[int]:
    """The place of the highest score in each run of n."""
    return [max(range(i, i + n), key=lambda place: scores[place]) for i in range(0, len(scores), n)]


def best_of_n_kl(n: int) -> float:
    """Nats that best-of-n lies from the model it samples, at most: log n - (n - 1)/n (Stiennon et al. 2020)."""
    return log(n) - (n - 1) / n


def draw_items(exam: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """About `count` questions of an exam, as many of every task, as far as it has them."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for item in read_rows(exam):
        by_task.setdefault(item["task"], []).append(item)
    draw = random.Random(seed)
    each = -(-count // len(by_task))
    return [item for _, rows in sorted(by_task.items()) for item in draw.sample(rows, min(each, len(rows)))]
