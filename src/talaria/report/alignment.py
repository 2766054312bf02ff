"""What alignment came to: wins, curves of the policies, trust in the reward model, answers before and after, rounds.

In: preferences.json, round.json, reward.json, comparisons.json, metrics of the policies. Out: a section of the report;
empty where a run has no alignment.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from statistics import fmean
from typing import Any

from talaria.report.chart import Series, interval_bar, line_chart, with_median
from talaria.report.run_data import RunData, is_policy, title_of

_LONGEST = 400
_CHOICES = ("choices", "choices_of_the_judge")


def alignment_section(data: RunData) -> str:
    """The section; empty for a run without a reward model or a policy."""
    policies = [stage for stage in data.metrics if is_policy(stage) and data.metrics[stage]]
    rewards = list(data.quality)
    if not policies and not rewards:
        return ""
    parts = [_wins(data.preferences), _rounds(data.rounds)]
    for place, stage in enumerate(reversed(policies)):
        charts = f'<div class="charts">{"".join(policy_charts(data, stage))}</div>'
        title = escape(title_of(stage, data))
        whole = f"<h3>{title}, step by step</h3>{charts}"
        parts.append(whole if place == 0 else f"<details><summary>{title}, step by step</summary>{charts}</details>")
    if rewards:
        parts.append(_reward_model(data, rewards[-1]))
    if data.preferences:
        parts.append(_before_and_after(data))
    return "".join(parts)


def round_sentence(told: dict[str, Any]) -> str:
    """What a round came to, for the terminal."""
    accuracy = told["reward_accuracy"]
    parts = [
        f"round {told['round']}: {told['new_comparisons']:,} new comparisons ({told['comparisons_so_far']:,} so far)",
        f"reward model right in {_percent(accuracy['accuracy'], accuracy['interval'])} of held-out choices",
        f"KL to sft {_number(told['models'][told['policy']].get('kl'))} nats an answer",
    ]
    for comparison in told["comparisons"]:
        changed = comparison["changed"]
        line = f"against {comparison['against']}: "
        if rate := comparison.get("by_the_judge"):
            line += (
                f"{rate['wins']} wins, {rate['ties']} ties, {rate['losses']} losses, "
                f"{_percent(rate['share'], rate['share_interval'])} of the decided; length-controlled "
                f"{_percent(comparison['length_controlled']['share'], None)}; "
            )
        parts.append(line + f"{changed['changed']} of {changed['answers']} greedy answers changed")
    return "\n    ".join(parts)


def policy_charts(data: RunData, stage: str) -> list[str]:
    """Curves of a policy over its steps."""

    def series(key: str, name: str, factor: float = 1.0, faint: bool = False) -> Series:
        rows = data.metrics[stage]
        points = [(float(row["step"]), factor * float(row[key])) for row in rows if row.get(key) is not None]
        return Series(name, points, faint=faint)

    gold = [series("gold_right", "right", 100), series("gold_good", "right and polite", 100)]
    clipped = [series("clip_share", "policy", 100), series("value_clip_share", "value", 100)]
    return [
        line_chart(with_median(series("reward", "reward")), "Reward", "step", "mean score of the answers"),
        line_chart(gold, "What the judge says", "step", "% of the answers"),
        _gold_against_proxy(data.metrics[stage]),
        line_chart(with_median(series("kl", "KL")), "KL to the fine-tuned model", "step", "nats an answer"),
        line_chart(with_median(series("entropy", "entropy")), "Entropy", "step", "nats a token"),
        line_chart(with_median(series("answer_tokens", "length")), "Length", "step", "tokens an answer"),
        line_chart(clipped, "Clipped", "step", "% of the tokens"),
        line_chart([series("ptx_loss", "pretraining text")], "Loss on pretraining text", "step", "nats per token"),
    ]


def _gold_against_proxy(rows: list[dict[str, Any]]) -> str:
    """Means of eighths of the run, in order: right and down is over-optimisation (Gao et al. 2023)."""
    told = [(float(row["reward"]), 100 * float(row["gold_good"])) for row in rows if row.get("gold_good") is not None]
    cuts = [round(part * len(told) / 8) for part in range(9)]
    groups = [told[start:stop] for start, stop in pairwise(cuts) if stop > start]
    points = [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
    series = [Series("in order", points, dots=True), Series("the first", points[:1])]
    return line_chart(series, "Gold against proxy", "reward", "% right and polite, means of eighths")


def _wins(told: dict[str, Any] | None) -> str:
    if not told:
        return ""
    parts = [
        f"<p>Answers at temperature 1 to {told['items']} questions of the exam, compared by the judge who never errs: "
        "the right answer is preferred, then the polite full sentence, then the clearly shorter one; length-controlled "
        "leaves the last rule out. The share is that of wins among the decided pairs; ties count for nobody. "
        "Intervals of 95 % are over questions, of one run.</p>",
        _win_table(told["comparisons"]),
        '<div class="wide"><table><thead><tr><th>model</th><th class="n">right</th><th class="n">right and polite</th>'
        '<th class="n">characters</th><th class="n">reward</th><th class="n">KL, nats an answer</th></tr></thead>'
        "<tbody>",
    ]
    for name in dict.fromkeys(name for one in told["comparisons"] for name in (one["against"], one["model"])):
        model = told["models"][name]
        kl = _number(model.get("kl"), model.get("kl_interval"))
        if "kl_at_most" in model:
            kl = f"at most {model['kl_at_most']:.2f}"
        parts.append(
            f'<tr><td>{escape(name)}</td><td class="n">{_percent(model.get("right"))}</td>'
            f'<td class="n">{_percent(model.get("right_and_polite"))}</td><td class="n">{model["characters"]:.1f}</td>'
            f'<td class="n">{_number(model["reward_of_whole_answers"])}</td><td class="n">{kl}</td></tr>'
        )
    return "".join([*parts, "</tbody></table></div>"])


def _win_table(comparisons: list[dict[str, Any]]) -> str:
    rows = []
    for comparison in comparisons:
        for key, kind in (("by_the_judge", "by the judge"), ("length_controlled", "length-controlled")):
            if (rate := comparison.get(key)) is None:
                continue
            name = f"{comparison['model']} against {comparison['against']}"
            share, interval = rate["share"], rate["share_interval"]
            told = f"{name}, {kind}: {_percent(share, interval)} of the decided"
            bar = interval_bar(share, tuple(interval), told, "main") if share is not None else ""
            first = f"<td>{escape(name)}</td>" if key == "by_the_judge" else "<td></td>"
            rows.append(
                f'<tr>{first}<td class="unit">{kind}</td><td class="n">{rate["wins"]}</td><td class="n">{rate["ties"]}'
                f'</td><td class="n">{rate["losses"]}</td><td class="bars">{bar}</td>'
                f'<td class="n">{_percent(share, interval)}</td><td>{_verdict(interval)}</td></tr>'
            )
    if not rows:
        return ""
    return (
        '<div class="wide"><table><thead><tr><th></th><th></th><th class="n">wins</th><th class="n">ties</th>'
        '<th class="n">losses</th><th></th><th class="n">share of wins</th><th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(interval: list[float] | None) -> str:
    if interval is None:
        return '<span class="unit">nothing decided</span>'
    if interval[0] > 0.5:
        return '<span class="right">better</span>'
    return '<span class="wrong">worse</span>' if interval[1] < 0.5 else '<span class="unit">not told apart</span>'


def _rounds(rounds: list[dict[str, Any]]) -> str:
    if not rounds:
        return ""
    parts = [
        "<h3>Rounds</h3><p>In each round the newest policy answers, the answers are compared, the reward model is "
        "trained anew on all comparisons so far, and the policy is improved against it.</p>",
        '<div class="wide"><table><thead><tr><th>round</th><th class="n">new comparisons</th>'
        '<th class="n">reward accuracy</th><th class="n">KL</th><th>against</th><th class="n">wins</th>'
        '<th class="n">ties</th><th class="n">losses</th><th class="n">share</th><th class="n">length-controlled</th>'
        '<th class="n">answers changed</th></tr></thead><tbody>',
    ]
    for told in rounds:
        accuracy = told["reward_accuracy"]
        for place, comparison in enumerate(told["comparisons"]):
            changed, rate = comparison["changed"], comparison.get("by_the_judge")
            controlled = comparison.get("length_controlled")
            left = (
                f'<td>{told["round"]}</td><td class="n">{told["new_comparisons"]:,}</td>'
                f'<td class="n">{_percent(accuracy["accuracy"], accuracy["interval"])}</td>'
                f'<td class="n">{_number(told["models"][told["policy"]].get("kl"))}</td>'
                if place == 0
                else "<td></td>" * 4
            )
            counts = [str(rate[key]) if rate else "" for key in ("wins", "ties", "losses")]
            shares = [_percent(one["share"], one["share_interval"]) if one else "" for one in (rate, controlled)]
            cells = "".join(f'<td class="n">{cell}</td>' for cell in [*counts, *shares])
            parts.append(
                f"<tr>{left}<td>{escape(comparison['against'])}</td>{cells}"
                f'<td class="n">{changed["changed"]} of {changed["answers"]}</td></tr>'
            )
    parts.append("</tbody></table></div>")
    newest = rounds[-1]
    samples = newest["comparisons"][-1]["changed"]["samples"]
    cards = "".join(_sample(sample, newest["comparisons"][-1]["against"], newest["policy"]) for sample in samples)
    shown = f"<details><summary>answers that changed in round {newest['round']}</summary>"
    return "".join([*parts, f'{shown}<div class="samples">{cards}</div></details>' if samples else ""])


def _reward_model(data: RunData, stage: str) -> str:
    quality = data.quality[stage]
    together = quality["together"]
    lines = [
        f"On held-out prompts its better answer is the one that was chosen in "
        f"{_percent(together['accuracy'], together['interval'])} of {together['pairs']:,} decided pairs"
    ]
    choices, right = (sum(told.get(key, 0) for told in data.comparisons.values()) for key in _CHOICES)
    if choices and together["pairs"]:  # none is right against more of their choices
        lines[0] += f" (the labelers themselves are right in {_percent(right / choices)} of {choices:,} choices)"
    lines[0] += "."
    apart = [
        f"{name} {_percent(quality[name]['accuracy'], quality[name]['interval'])} of {quality[name]['pairs']:,}"
        for name in quality
        if name not in ("together", "by_margin", "calibration", "out_of_distribution")
    ]
    if len(apart) > 1:
        lines.append(f"Apart: {'; '.join(apart)}.")
    strange = quality["out_of_distribution"]
    if strange.get("auroc") is not None:
        lines.append(
            f"Its out-of-distribution score tells conversations with another prompt's answer from held-out ones "
            f"with an AUROC of {strange['auroc']:.2f} (0.5 is chance)."
        )
    curve, margins = quality["calibration"]["curve"], quality["by_margin"]
    told = [(100 * point["told"], 100 * point["chosen"]) for point in curve]
    charts = [
        line_chart(
            [Series("the reward model", told, dots=True), Series("perfect", [(50, 50), (100, 100)], faint=True)],
            f"Calibration, mean error {100 * quality['calibration']['error']:.1f} points",
            "told probability, %",
            "% chosen",
        ),
        line_chart(
            [Series("accuracy", [((m["from"] + m["to"]) / 2, 100 * m["accuracy"]) for m in margins], dots=True)],
            "Accuracy by margin, quarters of the pairs",
            "distance of the scores",
            "% right",
        ),
        line_chart(
            [Series("loss", [(float(r["step"]), float(r["train_loss"])) for r in data.metrics.get(stage, [])])],
            "Loss of the reward model",
            "step",
            "nats a prompt",
        ),
    ]
    return (
        f"<h3>{escape(title_of(stage, data))}</h3><p>{escape(' '.join(lines))}</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _before_and_after(data: RunData) -> str:
    assert data.preferences is not None
    compared = [one for one in data.preferences["comparisons"] if one.get("changed")]
    if not compared:
        return ""
    last = compared[-1]
    changed = last["changed"]
    said = f"{changed['changed']} of {changed['answers']} greedy answers differ"
    if changed["mended"] is not None:
        said += f": {changed['mended']} became good, {changed['spoilt']} stopped being good"
    cards = "".join(_sample(sample, last["against"], last["model"]) for sample in changed["samples"])
    return (
        f"<h3>Before and after</h3><p>Between {escape(last['against'])} and {escape(last['model'])} {said}. Shown are "
        f'the first three of each kind; ✓ is right and polite.</p><div class="samples">{cards}</div>'
    )


def _sample(sample: dict[str, Any], before: str, after: str) -> str:
    lines = []
    for name, key in ((before, "before"), (after, "after")):
        good = sample.get(f"good_{key}")
        mark = "<dd></dd>" if good is None else '<dd class="right">✓</dd>' if good else '<dd class="wrong">✗</dd>'
        text = sample[key] if len(sample[key]) <= _LONGEST else sample[key][:_LONGEST] + " ..."
        lines.append(f"<dt>{escape(name)}</dt>{mark}<dd>{escape(text) or '<span class=unit>(nothing)</span>'}</dd>")
    return f'<div class="sample"><p>{escape(sample["prompt"][:_LONGEST])}</p><dl>{"".join(lines)}</dl></div>'


def _percent(share: float | None, interval: Any = None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f} %" + (f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else "")


def _number(value: float | None, interval: Any = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
