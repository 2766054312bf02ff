"""Models and an exam in, results.csv and items-<model>.jsonl out.

Three things are measured a task: `accuracy` of the generated answer; `choice_accuracy`, whether the gold answer is the
likeliest of an item's choices; `answer_log_prob`, the mean log-probability per token of the gold answer (nats), which
moves long before exact answers do. Run it with `talaria eval RUN`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import track

from talaria.errors import UserError
from talaria.eval.baselines import chance_rows, majority_rows
from talaria.eval.graders import is_right
from talaria.eval.items import Item, choose_items, ranked_choices, read_items, spread, task_version
from talaria.eval.prompts import Strategy, likelihood_pair, prompt_ids
from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import binomial_stderr, mean_stderr
from talaria.files import atomic_write
from talaria.report.results import ResultRow, write_results

_ASKED_AT_ONCE = 2048
"""Prompts given to the engine at a time: many, since it lets the next one in as soon as an answer ends."""


class Completion(Protocol):
    """What the evaluation reads of a generated answer."""

    @property
    def text(self) -> str: ...


class LogLikelihood(Protocol):
    """Summed log-probability of a continuation, in nats, and its length in tokens."""

    @property
    def log_prob(self) -> float: ...

    @property
    def n_tokens(self) -> int: ...


class Engine(Protocol):
    """The part of `talaria.infer.engine.Engine` that the evaluation calls."""

    @property
    def tokenizer(self) -> Any: ...

    def generate(
        self, prompts: Sequence[Any], *, max_tokens: int, temperature: float, stop: Sequence[str]
    ) -> Sequence[Completion]: ...

    def loglikelihood(self, pairs: Sequence[tuple[Any, Any]]) -> Sequence[LogLikelihood]: ...


class Candidate(NamedTuple):
    """A model to evaluate. `strategy` is how it is asked: `chat` in its own template, `plain` as a line of a page.
    `limit_per_task` asks it fewer items than the settings say."""

    name: str
    path: Path
    strategy: Strategy = "chat"
    limit_per_task: int | None = None


@dataclass(frozen=True)
class Provenance:
    """What a model is and what it cost: the leading columns of results.csv, None where unknown."""

    params: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seed: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class ItemResult:
    """One answered item; `log_prob` is per token of the gold answer, `choice` the likeliest choice, None unscored."""

    id: str
    task: str
    prompt: str
    answer: str
    gold: str
    right: bool
    log_prob: float | None
    choice: str | None


def evaluate(
    engine: Engine,
    items: Sequence[Item],
    settings: EvalSettings,
    model_name: str,
    *,
    strategy: Strategy = "chat",
    provenance: Provenance | None = None,
) -> list[ResultRow]:
    """Ask `items` and return a row for each task and metric."""
    by_task = choose_items(items, settings.tasks, settings.limit_per_task)
    answered = answer_items(engine, by_task, settings, strategy)
    return summarise(model_name, by_task, answered, strategy, provenance or Provenance())


def answer_items(
    engine: Engine, by_task: dict[str, list[Item]], settings: EvalSettings, strategy: Strategy, title: str = ""
) -> list[ItemResult]:
    """Ask every item greedily, judge the answers, and score the bounded part by likelihood; exam order."""
    chosen = [item for items in by_task.values() for item in items]
    answers = _generate(engine, chosen, settings, strategy, title)
    scored = [item for items in by_task.values() for item in spread(items, settings.likelihood_per_task)]
    likelihoods = _likelihoods(engine, scored, settings, strategy)
    results = []
    for item, answer in zip(chosen, answers, strict=True):
        by_text = likelihoods.get(item.id, {})
        choices = {text: by_text[text][0] for text in ranked_choices(item, settings.max_choices) if text in by_text}
        log_prob, n_tokens = by_text.get(item.answer, (math.nan, 1))
        results.append(
            ItemResult(
                id=item.id,
                task=item.task,
                prompt=item.question,
                answer=answer,
                gold=item.answer,
                right=is_right(item, answer),
                log_prob=log_prob / n_tokens if by_text else None,
                choice=max(choices, key=choices.__getitem__) if len(choices) > 1 else None,
            )
        )
    return results


def summarise(
    model_name: str,
    by_task: dict[str, list[Item]],
    results: Sequence[ItemResult],
    strategy: Strategy,
    provenance: Provenance,
) -> list[ResultRow]:
    """Item results to rows, one a task and metric."""
    rows = []
    for task, items in by_task.items():
        of_task = [result for result in results if result.task == task]
        right = sum(result.right for result in of_task)
        found = [("accuracy", right / len(of_task), binomial_stderr(right, len(of_task)), len(of_task))]
        if ranked := [result.choice == result.gold for result in of_task if result.choice is not None]:
            n = len(ranked)
            found.append(("choice_accuracy", sum(ranked) / n, binomial_stderr(sum(ranked), n), n))
        if log_probs := [result.log_prob for result in of_task if result.log_prob is not None]:
            n = len(log_probs)
            # One value has no spread to speak of; nan would poison the readers, so its error stays unknown.
            found.append(("answer_log_prob", statistics.fmean(log_probs), mean_stderr(log_probs), n))  # type: ignore[arg-type]
        rows += [
            ResultRow(
                model=model_name,
                **asdict(provenance),
                task=task,
                task_version=task_version(items),
                strategy=strategy,
                shots=0,
                metric=metric,
                score=score,
                stderr=stderr,
                n=n,
            )
            for metric, score, stderr, n in found
        ]
    return rows


def evaluate_models(
    settings: EvalSettings,
    models: Sequence[Candidate | tuple[str, Path]],
    exam: Path,
    folder: Path,
    *,
    load_engine: Callable[[Path], Engine],
    seed: int | None = None,
) -> None:
    """Evaluate each model on `exam` and write `folder`/results.csv, null baselines first, and items-<model>.jsonl."""
    candidates = [Candidate(*model) for model in models]
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1 or name in ("chance", "majority")]:
        raise UserError(f"eval: model name {twice[0]!r} is taken; give every model its own")
    by_task = choose_items(read_items(exam), settings.tasks, settings.limit_per_task)
    rows = chance_rows(by_task, settings.max_choices) + majority_rows(by_task)
    for candidate in candidates:
        engine = load_engine(candidate.path)
        asked = {task: spread(items, candidate.limit_per_task) for task, items in by_task.items()}
        results = answer_items(engine, asked, settings, candidate.strategy, candidate.name)
        provenance = provenance_of(engine, candidate.path, seed)
        rows += summarise(candidate.name, asked, results, candidate.strategy, provenance)
        write_item_results(results, folder / f"items-{candidate.name}.jsonl")
    write_results(rows, folder / "results.csv")


def write_item_results(results: Iterable[ItemResult], path: Path) -> None:
    """Write item results as JSONL."""
    atomic_write(path, "".join(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results))


def _generate(
    engine: Engine, items: Sequence[Item], settings: EvalSettings, strategy: Strategy, title: str
) -> list[str]:
    prompts = [prompt_ids(engine.tokenizer, item, strategy) for item in items]
    answers: list[str] = []
    starts = range(0, len(prompts), _ASKED_AT_ONCE)
    for start in track(
        starts,
        description=f"evaluate {title}".strip(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        completions = engine.generate(
            prompts[start : start + _ASKED_AT_ONCE],
            max_tokens=settings.max_tokens,
            temperature=0.0,
            stop=("\n",) if strategy == "plain" else (),
        )
        answers += [completion.text.strip() for completion in completions]
    return answers


def _likelihoods(
    engine: Engine, items: Sequence[Item], settings: EvalSettings, strategy: Strategy
) -> dict[str, dict[str, tuple[float, int]]]:
    """Item id -> text -> (log-probability, tokens), for the gold answer and, where they are few, the choices."""
    asked: list[tuple[str, str]] = []
    pairs: list[tuple[list[int], list[int]]] = []
    for item in items:
        for text in dict.fromkeys([item.answer, *ranked_choices(item, settings.max_choices)]):
            asked.append((item.id, text))
            pairs.append(likelihood_pair(engine.tokenizer, item, text, strategy))
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for (item_id, text), score in zip(asked, engine.loglikelihood(pairs), strict=True):
        found.setdefault(item_id, {})[text] = (score.log_prob, score.n_tokens)
    return found


def provenance_of(engine: Engine, path: Path, seed: int | None) -> Provenance:
    """Cost of a model from the training.json beside its folder, its size from its weights; None where neither tells."""
    record: dict[str, Any] = {}
    if (training := path.parent / "training.json").is_file():
        record = json.loads(training.read_text(encoding="utf-8"))
    model = getattr(engine, "model", None)
    params = sum(weight.numel() for weight in model.parameters()) if model is not None else record.get("params")
    tokens, flops = (record.get(f"{key}_total", record.get(key)) for key in ("tokens", "flops"))
    return Provenance(params, tokens, flops, seed, record.get("steps"))
