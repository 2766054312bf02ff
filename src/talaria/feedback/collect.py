"""Fills the annotation queue: prompts in, answers of the models and items to compare out.

    answer_prompts(queue, {"sft": engine}, read_prompts(Path("prompts.jsonl")), "prompts.jsonl", CollectSettings())
    add_known_items(queue, Path("known.jsonl"), "qualification")

Both may be called again, after a kill too: what is there already is left as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talaria.errors import UserError
from talaria.feedback.exchange import read_choices
from talaria.feedback.prompts import Prompt
from talaria.feedback.queue import AnnotationQueue, Kind
from talaria.feedback.schema import answers, items, prompts, sa
from talaria.feedback.settings import CollectSettings
from talaria.files import sha256
from talaria.infer.contract import row_seed
from talaria.infer.engine import Engine

_AT_ONCE = 16


def answer_prompts(
    queue: AnnotationQueue,
    engines: Mapping[str, Engine],
    asked: Sequence[Prompt],
    source: str,
    settings: CollectSettings,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, int]:
    """Have the models answer each prompt and put the answers up for comparison; counts what became of the prompts.

    Answer j is by model j modulo their number, with a seed of its own. Equal texts count once; a prompt whose answers
    are all equal gives nothing to compare, and one that leaves no room in a context is left out. `told` hears of the
    progress: prompts done, prompts in all.
    """
    names, counts = list(engines), Counter[str]()
    with queue.store.database.reading() as connection:
        rows = connection.execute(sa.select(prompts.c.messages).where(prompts.c.source == source)).scalars()
        known = {json.dumps(messages, sort_keys=True) for messages in rows}
    first: dict[str, tuple[int, Prompt]] = {}
    for index, prompt in enumerate(asked):
        key = json.dumps(prompt.messages, sort_keys=True)
        counts["answered before"] += key in known
        counts["asked twice in the file"] += key not in known and key in first
        first.setdefault(key, (index, prompt))
    new = [first[key] for key in first if key not in known]
    n_new = len(new)
    new = [(index, p) for index, p in new if all(len(e.chat_prompt(p.messages)) < e.context for e in engines.values())]
    counts["too long for a model's context"] = n_new - len(new)
    for begin in range(0, len(new), _AT_ONCE):
        part = new[begin : begin + _AT_ONCE]
        drawn: list[list[dict[str, Any]]] = [[] for _ in part]
        for j in range(settings.answers):
            name = names[j % len(names)]
            engine = engines[name]
            seeds = [row_seed(row_seed(settings.seed, index), j) for index, _ in part]
            sampling: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
            ids = [engine.chat_prompt(prompt.messages) for _, prompt in part]
            for place, completion in enumerate(engine.generate(ids, seed=seeds, **sampling)):
                if completion.text.strip() not in {answer["text"].strip() for answer in drawn[place]}:
                    drawn[place].append(
                        {"text": completion.text, "model": name, "seed": seeds[place], "sampling": sampling}
                    )
        for (_, prompt), texts in zip(part, drawn, strict=True):
            with queue.store.together():
                prompt_id = queue.store.append_prompt(
                    prompt.messages, source=source, asked_by=prompt.user, split=prompt.split
                )
                answer_ids = [queue.store.append_answer(prompt_id, **answer) for answer in texts]
                if len(answer_ids) > 1:
                    queue.add_item(prompt_id, answer_ids)
            counts["to be compared" if len(answer_ids) > 1 else "answers all equal"] += 1
        told(begin + len(part), len(new))
    return dict(counts)


def add_known_items(queue: AnnotationQueue, path: Path, kind: Kind) -> int:
    """Items with known rankings from a file of choices in our own form ("jsonl"); returns how many were new: a file
    that was added to brings what it has more."""
    choices, left_out = read_choices(path, "jsonl")
    if not choices:
        raise UserError(f"{path}: holds no ranking {left_out or ''}; write rows with messages, answers and ranking")
    source = f"{kind}:{path.name}#{sha256(path)[:16]}"
    n_new = 0
    with queue.store.together():
        there = _known_contents(queue, kind)
        for choice in choices:
            if len(choice.ranking) < 2:
                asked = choice.messages[-1]["content"][:60]
                raise UserError(f"{path}: {asked!r}: ties all answers, so that nobody could be wrong; take the row out")
            texts = [[choice.answers[place]["text"] for place in group] for group in choice.ranking]
            content = _content(choice.messages, texts)
            if content in there:
                continue
            there.add(content)
            n_new += 1
            prompt = queue.store.append_prompt(choice.messages, source=source)
            ids = [queue.store.append_answer(prompt, **answer) for answer in choice.answers]
            queue.add_item(prompt, ids, kind, known=[[ids[place] for place in group] for group in choice.ranking])
    return n_new


def _known_contents(queue: AnnotationQueue, kind: Kind) -> set[str]:
    chosen = sa.select(items.c.known, prompts.c.messages).join(prompts, items.c.prompt_id == prompts.c.id)
    of_items = sa.select(items.c.prompt_id).where(items.c.kind == kind)
    with queue.store.database.reading() as connection:
        rows = connection.execute(
            sa.select(answers.c.id, answers.c.text).where(answers.c.prompt_id.in_(of_items))
        ).all()
        texts = {row.id: row.text for row in rows}
        found = connection.execute(chosen.where(items.c.kind == kind)).all()
    return {_content(row.messages, [[texts[id] for id in group] for group in row.known]) for row in found}


def _content(messages: Sequence[Mapping[str, Any]], texts: list[list[str]]) -> str:
    """What two items with a known ranking are equal by; the order within a group says nothing."""
    return json.dumps([messages, [sorted(group) for group in texts]], sort_keys=True)
