"""What a stage of training gives and costs besides the exam: gain from examples, dialogue, loss on pretraining text.

In: the models of a run, its exam, and items-<model>.jsonl of `evaluate_models`. Out: more rows in results.csv.

`gain_from_examples` of a task is the share that is right with a few other questions and their answers before the
question, less the share that is right without them, of the same questions (Brown et al. 2020, section 1). Tasks whose
gold answer is a manner (a refusal, not knowing) are left out. The table of the report is made of these rows and the
exam's (`report/stages.py`).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from talaria.eval.evaluate import Candidate, answer_items, provenance_of, summarise
from talaria.eval.graders import is_right
from talaria.eval.items import Item, Message, choose_items, read_items, spread, task_version
from talaria.eval.prompts import prompt_ids
from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import mean_stderr
from talaria.eval.validation import held_out_loss, validation_rows
from talaria.files import read_rows
from talaria.infer.engine import Engine
from talaria.report.results import ResultRow, read_results, write_results
from talaria.tokens.shards import Shards

_WITH_GOLD_ANSWER = ("contains", "exact", "last_number")


def evaluate_stages(
    settings: EvalSettings,
    models: Sequence[Candidate],
    exam: Path,
    dialogues: Sequence[dict[str, Any]],
    shards: Path | None,
    folder: Path,
    *,
    load_engine: Callable[[Path], Engine],
    seed: int | None = None,
) -> None:
    """Add to `folder`/results.csv each model's gain from examples by task, its right answers to `dialogues` (items of
    two turns), and its loss on the held-out text below `shards`."""
    by_task = choose_items(read_items(exam), settings.tasks, settings.limit_per_task)
    talks = choose_items([Item.model_validate(item) for item in dialogues], None, None) if dialogues else {}
    rows = read_results(folder / "results.csv")
    for candidate in models:
        engine = load_engine(candidate.path)
        provenance = provenance_of(engine, candidate.path, seed)
        answered_alone = read_rows(folder / f"items-{candidate.name}.jsonl")
        alone = {result["id"]: bool(result["right"]) for result in answered_alone}
        for task, items in by_task.items():
            gains = _gains(engine, items, alone, settings, candidate)
            if gains:
                rows.append(
                    ResultRow(
                        model=candidate.name,
                        **asdict(provenance),
                        task=task,
                        task_version=task_version(items),
                        strategy=candidate.strategy,
                        shots=settings.examples,
                        metric="gain_from_examples",
                        score=statistics.fmean(gains),
                        stderr=mean_stderr(gains),
                        n=len(gains),
                    )
                )
        if talks:
            by_likelihood = settings.model_copy(update={"likelihood_per_task": 0})
            answered = answer_items(engine, talks, by_likelihood, candidate.strategy, candidate.name)
            rows += summarise(candidate.name, talks, answered, candidate.strategy, provenance)
        if shards is not None and (held_out := Shards(shards, "validation")).n_tokens >= 2:
            told = validation_rows(candidate.name, *held_out_loss(engine, held_out, settings), provenance=provenance)
            rows += [row for row in told if row.metric == "loss"]  # of one tokenizer: the others say the same
    write_results(rows, folder / "results.csv")


def with_examples(item: Item, others: Sequence[Item], count: int) -> Item:
    """The item with `count` of the others before it, drawn by its id: of its own relation first, none with its answer,
    so that nothing can be copied."""
    fitting = [other for other in others if other.answer != item.answer and other.lang == item.lang]
    draw = random.Random(item.id)
    drawn = draw.sample(fitting, len(fitting))
    drawn.sort(key=lambda other: other.relation != item.relation)
    shown = [
        message
        for other in drawn[:count]
        for message in (*other.messages, Message(role="assistant", content=other.answer))
    ]
    return item.model_copy(update={"messages": [*shown, *item.messages]})


def _gains(
    engine: Engine, items: Sequence[Item], alone: dict[str, bool], settings: EvalSettings, candidate: Candidate
) -> list[float]:
    """For each item asked, whether it is right after examples less whether it is without. As many examples as fit."""
    if not settings.examples or items[0].grader not in _WITH_GOLD_ANSWER:
        return []
    asked = [item for item in spread(items, settings.examples_per_task) if item.id in alone]
    prompts = []
    for item in asked:
        room = engine.context - settings.max_tokens
        for count in range(settings.examples, -1, -1):
            ids = prompt_ids(engine.tokenizer, with_examples(item, items, count), candidate.strategy)
            if len(ids) <= room:
                break
        prompts.append(ids)
    stop = ("\n",) if candidate.strategy == "plain" else ()
    answers = engine.generate(prompts, max_tokens=settings.max_tokens, temperature=0.0, stop=stop)
    # Judged as the question alone: what stands in an example is no excuse for naming it.
    right = [is_right(item, answer.text.strip()) for item, answer in zip(asked, answers, strict=True)]
    return [float(after) - float(alone[item.id]) for item, after in zip(asked, right, strict=True)]
