"""results.csv and the answered items in, the exam's tables and sample answers out."""

from __future__ import annotations

from html import escape
from typing import Any

from talaria.report.chart import interval_bar
from talaria.report.results import WIN_SHARES, ResultRow
from talaria.report.run_data import NULL_MODELS, RunData

_SAMPLES_PER_TASK = 2
_LONGEST = 600


def scores_section(data: RunData) -> str:
    """Accuracy by task with intervals, null baselines beside the models; likelihood figures below."""
    if not data.results:
        return '<p class="missing">This run has not been evaluated; <code>talaria eval</code> does it.</p>'
    parts = []
    accuracy = [row for row in data.results if row.metric == "accuracy"]
    if accuracy:
        parts.append(
            "<p>Share of right answers, each judged by its task's rule, with 95 % intervals (Wilson). "
            "<em>chance</em> guesses among an item's choices; <em>majority</em> always gives the most frequent answer "
            "of the relation. Both are computed from the questions alone.</p>"
        )
        if any(row.model == "majority" and row.score > 0.9 for row in accuracy):
            parts.append(
                "<p>Where <em>majority</em> is near 100 %, one fixed reply is right on nearly every question, as with "
                "refusals: read such a task beside the one whose questions want the opposite.</p>"
            )
        parts.append(_accuracy_table(accuracy, data.models))
    if likelihood := [row for row in data.results if row.metric in ("choice_accuracy", "answer_log_prob")]:
        parts.append(
            "<details><summary>scores by likelihood</summary><p>Whether the right choice is the likeliest of an item's "
            "choices, and the mean log-probability of a token of the right answer (nats). Both move before the "
            f"generated answers become right.</p>{_plain_table(likelihood)}</details>"
        )
    shown_elsewhere = ("accuracy", "choice_accuracy", "answer_log_prob", "gain_from_examples", *WIN_SHARES)
    other = [row for row in data.results if row.metric not in shown_elsewhere]
    if other:
        parts.append(f"<h3>Held-out text</h3>{_plain_table(other)}")
    return "".join(parts)


def _accuracy_table(rows: list[ResultRow], models: list[str]) -> str:
    parts = [
        '<table class="scores"><thead><tr><th colspan="2"></th><th class="n">right</th><th class="n">interval</th>'
        '<th class="n items">questions</th></tr></thead>'
    ]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        version = escape(of_task[0].task_version)
        parts.append(f'<tbody><tr><th colspan="5">{escape(task)} <span class="unit">version {version}</span></th></tr>')
        for row in sorted(of_task, key=lambda row: row.model in NULL_MODELS):
            kind = "null" if row.model in NULL_MODELS else "main" if row.model == models[-1] else "other"
            interval = row.interval()
            limits = f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}" if interval else "exact"
            told = f"{task}, {row.model}: {100 * row.score:.1f} % ({limits}) of {row.n}"
            parts.append(
                f'<tr class="{kind}"><td class="model">{escape(row.model)}</td>'
                f'<td class="track">{interval_bar(row.score, interval, told, kind)}</td>'
                f'<td class="n score">{100 * row.score:.1f} %</td><td class="n unit">{limits}</td>'
                f'<td class="n items unit">{row.n:,}</td></tr>'
            )
        parts.append("</tbody>")
    return "".join([*parts, "</table>"])


def _plain_table(rows: list[ResultRow]) -> str:
    parts = [
        '<div class="wide"><table><thead><tr><th>task</th><th>metric</th><th>model</th><th class="n">score</th>'
        '<th class="n">95 % interval</th><th class="n">n</th></tr></thead><tbody>'
    ]
    for row in rows:
        interval = row.interval()
        limits = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        metric = row.metric.replace("_", " ")
        parts.append(
            f"<tr><td>{escape(row.task)}</td><td>{escape(metric)}</td><td>{escape(row.model)}</td>"
            f'<td class="n">{row.score:.3f}</td><td class="n">{limits}</td><td class="n">{row.n:,}</td></tr>'
        )
    return "".join([*parts, "</tbody></table></div>"])


def samples_section(data: RunData) -> str:
    """Some questions with every model's answer. The choice is by rule: a task's first item that the run's last model
    gets wrong, and its first that it gets right."""
    if not data.items:
        return _continuations(data) or '<p class="missing">No answers were kept.</p>'
    order = [name for name in data.models if name in data.items] or list(data.items)
    judged = data.items[order[-1]]
    answers = {name: {item["id"]: item for item in data.items[name]} for name in order}
    parts = [
        f"<p>From each task the first question that <em>{escape(order[-1])}</em> answers right and the first that it "
        "answers wrong, where there is one.</p>",
        '<div class="samples">',
    ]
    for task in dict.fromkeys(item["task"] for item in judged):
        of_task = [item for item in judged if item["task"] == task]
        firsts = [next((item for item in of_task if item["right"] is wanted), None) for wanted in (True, False)]
        for item in [first for first in firsts if first is not None][:_SAMPLES_PER_TASK]:
            parts.append(_sample(task, item, {name: answers[name].get(item["id"]) for name in order}))
    return "".join([*parts, "</div>"])


def _continuations(data: RunData) -> str:
    """Openings of held-out text, how it goes on, and how each model does; empty where a run has none."""
    order = [name for name in data.models if data.continuations.get(name)]
    if not order:
        return ""
    parts = [
        "<p>Openings of held-out documents, how the text goes on, and what each model writes there.</p>",
        '<div class="samples">',
    ]
    for number, passage in enumerate(data.continuations[order[0]]):
        lines = [f"<dt>the text</dt><dd></dd><dd>{escape(_cut(passage['text']))}</dd>"]
        for name in order:
            rows = data.continuations[name]
            answer = rows[number]["answer"] if number < len(rows) else ""
            shown = escape(_cut(answer)) or '<span class="unit">(nothing)</span>'
            lines.append(f"<dt>{escape(name)}</dt><dd></dd><dd>{shown}</dd>")
        parts.append(
            f'<div class="sample"><p><span class="unit">held-out text</span>\n{escape(_cut(passage["opening"]))}</p>'
            f"<dl>{''.join(lines)}</dl></div>"
        )
    return "".join([*parts, "</div>"])


def _sample(task: str, item: dict[str, Any], answers: dict[str, dict[str, Any] | None]) -> str:
    lines = [f"<dt>right answer</dt><dd></dd><dd>{escape(_cut(item['gold']))}</dd>"]
    for name, answer in answers.items():
        if answer is not None:
            mark = '<dd class="right">✓</dd>' if answer["right"] else '<dd class="wrong">✗</dd>'
            text = escape(_cut(answer["answer"])) or '<span class="unit">(nothing)</span>'
            lines.append(f"<dt>{escape(name)}</dt>{mark}<dd>{text}</dd>")
    return (
        f'<div class="sample"><p><span class="unit">{escape(task)}</span>\n{escape(_cut(item["prompt"]))}</p>'
        f"<dl>{''.join(lines)}</dl></div>"
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
