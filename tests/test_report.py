"""The report: whole, offline, safe with any text, and standing when pieces are missing."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from talaria.errors import UserError
from talaria.report import compare_runs, page, write_report
from talaria.report.card import duration
from talaria.report.chart import Series, line_chart, linear_ticks, log_ticks, number
from talaria.report.compare import sign_test
from talaria.report.results import COLUMNS, ResultRow, read_results, wilson_interval, write_results
from talaria.report.run_data import read_run
from talaria.report.stages import _cost

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
TASKS = {"facts_en": 0.96, "facts_zh": 0.94, "sums": 0.97, "two_hop_en": 0.58, "refusals": 0.99}


def make_run(folder: Path, seed: int = 0, quality: float = 1.0, steps: int = 300) -> Path:
    """A small finished run, its figures invented."""
    luck = random.Random(seed)
    _write_training(folder / "pretrain", luck, steps, 5.0, 1.1, 2_400_000)
    _write_training(folder / "sft", luck, steps // 2, 1.4, 0.3, 2_700_000)
    _write_exam(folder / "eval", luck, quality, seed)
    corpus = {
        "documents": 1500,
        "characters": 3_100_000,
        "bytes": 4_800_000,
        "dropped": {"too short": 150, "exact duplicate": 310, "<b>odd & reason</b>": 40},
        "sources": {"pages.jsonl": {"documents": 2000, "kept": 1500}},
        "changes": {"boilerplate lines removed": 5210},
    }
    _write(folder / "corpus" / "corpus.json", json.dumps(corpus))
    _write(folder / "tokenizer" / "tokenizer" / "tokenizer.json", "{}")
    _write(folder / "world" / "exam.jsonl", "")
    parents = {
        "world": [], "corpus": ["world"], "tokenizer": ["corpus"], "pretrain": ["tokenizer"],
        "sft": ["world", "tokenizer", "pretrain"], "eval": ["world", "pretrain", "sft"],
    }  # fmt: skip
    for index, (stage, names) in enumerate(parents.items()):
        _write(folder / stage / "config.toml", f"[{stage}]\nseed = {seed}\nrate = {0.003 * (index + 1)}\n")
        outputs = {p.name: _digest(p) for p in sorted((folder / stage).glob("*")) if p.is_file()}
        manifest = {
            "stage": stage,
            "argv": ["talaria", "run", "recipes/laptop.toml"],
            "started": "2030-01-01T10:00:00Z",
            "seconds": [1.2, 4.8, 6.1, 141.0, 62.5, 9.7][index],
            "code_version": {"package": "0.1.0", "source_sha256": "ab" * 32, "git_commit": None},
            "libraries": {"torch": "2.13.0", "python": "3.11.2"},
            "settings_sha256": "cd" * 32,
            "inputs": {f"{name}/out.jsonl": "0f" * 32 for name in names},
            "outputs": outputs,
            "parents": {name: _digest(folder / name / "manifest.json") for name in names},
        }
        _write(folder / stage / "manifest.json", json.dumps(manifest))
    return folder


def _write_training(folder: Path, luck: random.Random, steps: int, start: float, end: float, tokens: int) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = step / steps
        loss = end + (start - end) * math.exp(-5 * share)
        rows.append(
            {
                "step": step, "train_loss": loss * luck.gauss(1, 0.03),
                "learning_rate": 3e-3 * math.sin(math.pi * share),
                "grad_norm": 0.5 + luck.expovariate(2), "tokens": 8192 * step, "mfu": 0.6 + luck.gauss(0, 0.02),
                "tokens_per_second": 14000 + luck.gauss(0, 500), "noise_scale": 2000 * math.exp(4 * share),
            }
        )  # fmt: skip
        if step % 30 == 0:
            rows.append({"step": step, "validation_loss": loss * 1.04})
    _write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    record = {"params": 1_180_000, "steps": steps, "tokens": tokens, "flops": 7.2e6 * tokens, "seed": 0}
    _write(folder / "training.json", json.dumps(record))


def _write_exam(folder: Path, luck: random.Random, quality: float, seed: int) -> None:
    rows, n = [], 120
    for task, top in TASKS.items():
        for model, level in (("untrained", 0.0), ("pretrained", 0.6 * top), ("sft", quality * top)):
            right = [luck.random() < level for _ in range(n)]
            score = sum(right) / n
            stderr = math.sqrt(score * (1 - score) / n)
            made = (model, 1_180_000, 2_400_000, 1.7e13, seed, 300, task, "1.0")
            asked = ("plain" if model == "pretrained" else "chat", 0)
            rows.append(ResultRow(*made, *asked, "accuracy", score, stderr, n))
            rows.append(ResultRow(*made, *asked, "answer_log_prob", level - 2, 0.05, 100))
            items = [
                {
                    "id": f"{task}-{i}", "task": task, "prompt": "Where was Mira Tolven born?\n" + HOSTILE,
                    "answer": "Mira Tolven was born in Ostrava Bay." if ok else HOSTILE, "gold": "Ostrava Bay",
                    "right": ok, "log_prob": -0.2, "choice": None,
                }
                for i, ok in enumerate(right)
            ]  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"items-{model}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(item) + "\n" for item in items)
        for model, score, null_stderr in (("chance", 0.05, None), ("majority", 0.11, 0.02)):
            rows.append(
                ResultRow(
                    model, None, None, None, None, None, task, "1.0", "null", 0, "accuracy", score, null_stderr, n
                )
            )
    write_results(rows, folder / "results.csv")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Page(HTMLParser):
    """Collects tags, outside references and text; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "laptop")


def test_answer_with_script_stays_text(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text, "the answer itself is shown, as text"
    assert "<b>odd & reason</b>" in page.text and "b" in page.tags
    assert not page.open


def test_page_needs_nothing_from_outside(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    links = [value or "" for name, value in Page(text).attributes if name in ("href", "src", "srcset", "xlink:href")]
    assert links and all(link.startswith("#") for link in links)
    assert "@import" not in text and "url(" not in text and "http://" not in text and "https://" not in text


def test_every_stage_and_model_is_told(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8")).text
    for said in (
        "1.18M",
        "2.4M",
        "facts_zh",
        "untrained",
        "pretrained",
        "majority",
        "chance",
        "310",
        "15.5 %",
    ):
        assert said in page, said
    for stage in ("world", "corpus", "tokenizer", "pretrain", "sft", "eval"):
        assert _digest(run / stage / "manifest.json")[:10] in page, stage
    card = (run / "report" / "model_card.md").read_text(encoding="utf-8")
    for heading in ("Abilities", "Limits", "Data", "Training", "Licence"):
        assert f"\n## {heading}\n" in card


def test_every_part_of_the_page_is_there(run: Path) -> None:
    """The bug: a section that is built and never put on the page, or a curve without its points."""
    html = write_report(run).read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section><h2 id="(\w+)">.*?</h2>(.*?)</section>', html, re.DOTALL))
    assert list(sections) == ["scores", "stages", "samples", "training", "corpus", "lineage", "card"]
    for chart in ("Loss", "Throughput", "Model FLOPs utilisation", "Gradient noise scale", "Learning rate"):
        drawn = re.findall(rf'<svg [^>]*aria-label="{chart}">.*?</svg>', sections["training"], re.DOTALL)
        assert len(drawn) == 2 and all('points="' in svg for svg in drawn), f"{chart}, of both trainings"
    for task in TASKS:
        assert task in sections["scores"] and task in sections["samples"]
    assert "95 % interval" in sections["scores"]
    for heading in ("Abilities", "Limits", "Data"):
        assert f"<h3>{heading}</h3><ul><li>" in sections["card"]


@pytest.mark.parametrize("missing", ["world", "corpus", "tokenizer", "pretrain", "sft", "eval"])
def test_missing_stage_is_left_out_not_a_crash(run: Path, missing: str) -> None:
    for path in sorted((run / missing).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not page.open and "Traceback" not in page.text


def test_a_policys_reward_kl_length_and_the_judges_word_are_charted(run: Path) -> None:
    rows = [
        {"step": n, "reward": 0.1 * n, "kl": 0.02 * n, "entropy": 0.3, "answer_tokens": 12.0, "clip_share": 0.01,
         "gold_right": 0.9, "gold_good": 0.8}
        for n in range(1, 30)
    ]  # fmt: skip
    _write(run / "ppo" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _write(run / "ppo" / "training.json", json.dumps({"params": 10, "steps": 29, "seed": 0}))
    page = write_report(run).read_text()
    for title in ("Reward", "KL to the fine-tuned model", "Entropy", "Length", "Clipped", "What the judge says"):
        assert f'aria-label="{title}"' in page
    assert "trained further by PPO" in page


def _rate(wins: int, ties: int, losses: int) -> dict[str, Any]:
    decided = wins + losses
    interval = list(wilson_interval(wins, decided)) if decided else None
    share = wins / decided if decided else None
    return {"wins": wins, "ties": ties, "losses": losses, "share": share, "share_interval": interval}


def _write_alignment(run: Path) -> None:
    """Files of a reward model, a policy and two rounds, their figures invented."""
    sample = {"prompt": HOSTILE, "before": HOSTILE, "after": "A cat.", "good_before": False, "good_after": True}
    changed = {"answers": 300, "changed": 21, "mended": 13, "spoilt": 5, "samples": [sample]}
    models = {
        "sft": {"right": 0.8, "right_and_polite": 0.7, "characters": 31.0, "reward_of_whole_answers": 0.1, "cut": 0.0},
        "ppo": {"right": 0.9, "right_and_polite": 0.8, "characters": 30.0, "reward_of_whole_answers": 0.5, "cut": 0.0,
                "kl": 0.31, "kl_interval": [0.2, 0.4]},
        "best of 16": {"right": 0.9, "right_and_polite": 0.8, "characters": 30.0, "reward_of_whole_answers": 0.5,
                       "cut": 0.0, "kl_at_most": 1.84},
    }  # fmt: skip
    against = {"model": "ppo", "against": "sft", "by_the_judge": _rate(47, 230, 23), "changed": changed}
    against["length_controlled"] = _rate(0, 300, 0)
    best = {"model": "best of 16", "against": "sft", "by_the_judge": _rate(7, 250, 43)}
    best["length_controlled"] = _rate(20, 258, 22)
    preferences = {"items": 300, "seed": 0, "models": models, "comparisons": [against, best]}
    _write(run / "eval" / "preferences.json", json.dumps(preferences))
    accuracy = {"accuracy": 0.71, "interval": [0.66, 0.76], "pairs": 317, "prompts": 127, "ties": 24}
    quality = {
        "together": accuracy, "helpful": accuracy, "harmless": accuracy | {"pairs": 9},
        "by_margin": [{"from": 0.0, "to": 0.2, "accuracy": 0.5, "pairs": 80}, {"from": 0.2, "to": 3, "accuracy": 0.8,
                      "pairs": 80}],
        "calibration": {"curve": [{"told": 0.55, "chosen": 0.5, "pairs": 9}, {"told": 0.9, "chosen": 0.8, "pairs": 9}],
                        "error": 0.073},
        "out_of_distribution": {"auroc": 0.53, "held_out": 1.0, "strange": 1.1},
    }  # fmt: skip
    _write(run / "reward" / "reward.json", json.dumps(quality))
    for stage, choices, right in (("comparisons", 700, 600), ("comparisons-2", 300, 240)):
        told = {"choices": choices, "choices_of_the_judge": right}
        _write(run / stage / "comparisons.json", json.dumps(told))
        _write(run / stage / "manifest.json", "{}")
    rows = [
        {"step": n, "reward": 0.1 * n, "gold_right": 0.9, "gold_good": 1 - 0.02 * n, "kl": 0.1, "entropy": 0.3,
         "answer_tokens": 12.0, "clip_share": 0.01}
        for n in range(1, 17)
    ]  # fmt: skip
    for place, stage in ((1, "ppo"), (2, "ppo-2")):
        _write(run / stage / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        _write(run / stage / "manifest.json", json.dumps({"seconds": 61.0}))
        told = {"round": place, "policy": stage, "new_comparisons": 1234 * place, "comparisons_so_far": 5000,
                "reward_accuracy": accuracy, "calibration_error": 0.1, "models": {stage: {"kl": 0.5}},
                "comparisons": [against]}  # fmt: skip
        _write(run / f"round-{place}" / "round.json", json.dumps(told))
        _write(run / f"round-{place}" / "manifest.json", "{}")


def test_alignment_is_told_with_ties_apart_and_no_more_than_is_known(run: Path) -> None:
    _write_alignment(run)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and not page.open and HOSTILE in page.text
    sections = dict(re.findall(r'<section><h2 id="(\w+)">.*?</h2>(.*?)</section>', html, re.DOTALL))
    section = sections["alignment"]
    for chart in ("Reward", "What the judge says", "Gold against proxy", "KL to the fine-tuned model", "Entropy",
                  "Length", "Clipped", "Accuracy by margin, quarters of the pairs"):  # fmt: skip
        assert f'aria-label="{chart}"' in section and f'aria-label="{chart}"' not in sections["training"]
    rows = re.findall(r"<tr>(.*?)</tr>", section)
    cells = [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]
    told = {(row[0], row[1]): row for row in cells if len(row) == 8}
    assert told["ppo against sft", "by the judge"][2:5] == ["47", "230", "23"]
    assert told["ppo against sft", "by the judge"][-2:] == ["67.1 % (56 to 77)", "better"]
    assert ["", "length-controlled", "0", "300", "0", "", "-", "nothing decided"] in cells
    assert told["best of 16 against sft", "by the judge"][-1] == "worse"
    assert ["", "length-controlled", "20", "258", "22"] in [row[:5] for row in cells if row[-1:] == ["not told apart"]]
    of_rounds = [row for row in cells if len(row) == 11]
    assert [row[:2] for row in of_rounds] == [["1", "1,234"], ["2", "2,468"]]
    assert "71.0 % (66 to 76) of 317 decided pairs" in page.text and "AUROC of 0.53" in page.text
    assert "the labelers themselves are right in 84.0 % of 1,000 choices" in page.text
    assert "13 became good, 5 stopped being good" in page.text
    assert list(read_run(run).manifests)[-5:] == ["round-1", "comparisons-2", "ppo-2", "round-2", "eval"]


def test_gold_against_proxy_goes_right_and_down_where_reward_is_gamed(run: Path) -> None:
    _write_alignment(run)
    [svg] = re.findall(
        r'<svg [^>]*aria-label="Gold against proxy">.*?</svg>',
        write_report(run).read_text().split("<details><summary>PPO, step")[0],
    )
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert len(points) == 8
    assert points == sorted(points) and points[0][1] < points[-1][1], "down the page is less gold"


def test_what_a_stage_gives_and_costs_is_marked_only_beyond_its_noise(run: Path) -> None:
    luck, path = random.Random(0), run / "eval" / "results.csv"
    made = (1_180_000, 2_400_000, 1.7e13, 0, 300)
    rows = []
    for model, facts, unknown, gain, loss in (
        ("pretrain", 0.6, 0.5, 0.1, 1.0), ("sft", 0.9, 0.9, 0.0, 1.2), ("ppo", 0.91, 0.6, -0.2, 1.5)
    ):  # fmt: skip
        for task, score in (("facts_en", facts), ("facts_zh", facts), ("unknown_en", unknown), ("dialogue_en", 0.5)):
            stderr = math.sqrt(score * (1 - score) / 200)
            rows.append(ResultRow(model, *made, task, "2", "chat", 0, "accuracy", score, stderr, 200))
        rows.append(ResultRow(model, *made, "facts_en", "2", "chat", 3, "gain_from_examples", gain, 0.02, 40))
        rows.append(ResultRow(model, *made, "validation", "1", "plain", 0, "loss", loss, None, 8000))
    luck.shuffle(rows)
    rows.sort(key=lambda row: ("pretrain", "sft", "ppo").index(row.model))
    write_results(rows, path)
    html = write_report(run).read_text(encoding="utf-8")
    [table] = re.findall(r'<table class="stages">.*?</table>', html)
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]:
        cells = [unescape(re.sub("<[^>]*>", "|", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        name, *cells = cells
        found[name] = cells
    facts = found["facts that training asks"]
    assert facts[0].startswith("60.0 %|") and "▲" in facts[1] and "▲" not in facts[2]
    abstention = found["“I don't know” for nobody"]
    assert "▲" in abstention[1] and "▼" in abstention[2] and abstention[2].startswith("60.0 %")
    assert [cell.split("|")[0].split()[0] for cell in found["points, with examples less without"]] == [
        "+10.0", "+0.0", "-20.0",
    ]  # fmt: skip
    assert found["loss on held-out pages, nats a token"] == ["1.000", "1.200", "1.500"]
    assert found["time of its stages here"][:2] == ["2 min 21 s", "1 min 02 s"]
    assert "gain_from_examples" not in html and "gain from examples" in html


def test_a_run_without_an_exam_shows_how_its_models_continue_held_out_text(run: Path) -> None:
    for file in (run / "eval").glob("items-*.jsonl"):
        file.unlink()
    for name, answer in (("pretrained", "waters of the night"), ("sft", HOSTILE)):
        row = {"opening": "The river " + HOSTILE, "text": "ran on.", "answer": answer}
        _write(run / "eval" / f"continuations-{name}.jsonl", json.dumps(row) + "\n")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags and not page.open
    for said in ("The river " + HOSTILE, "the text" + "ran on.", "waters of the night"):
        assert said in page.text
    assert "No answers were kept" not in page.text


def test_empty_run_says_so(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "has not been evaluated" in page and "no corpus stage" in page


def test_stages_are_told_in_the_order_they_ran(run: Path) -> None:
    _write(run / "conversations" / "manifest.json", "{}")
    assert list(read_run(run).manifests)[-4:] == ["conversations", "pretrain", "sft", "eval"]


def test_no_run_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        write_report(tmp_path / "absent")


def test_damaged_items_file_is_named(run: Path) -> None:
    (run / "eval" / "items-sft.jsonl").write_text('{"id": "a"\n')
    with pytest.raises(UserError, match=r"items-sft\.jsonl:1"):
        write_report(run)


def test_a_line_separator_in_an_answer_ends_no_row(run: Path) -> None:
    """The bug: a model says U+2028, and the page cannot be made."""
    path = run / "eval" / "items-sft.jsonl"
    first, rest = path.read_text(encoding="utf-8").split("\n", 1)
    said = json.loads(first) | {"answer": "a\u2028b\u2029c\x85d"}
    path.write_text(json.dumps(said, ensure_ascii=False) + "\n" + rest, encoding="utf-8")
    assert read_run(run).items["sft"][0]["answer"] == "a\u2028b\u2029c\x85d"


def test_a_ladder_of_an_earlier_version_is_left_out(run: Path) -> None:
    """The bug: a ladder.json without a law's picture, and the page of a finished run cannot be made."""
    told = {"rungs": 9, "times_larger": 8.0, "loss": {"value": 2.0, "low": 1.9, "high": 2.1, "level": 0.8}}
    _write(run / "ladder.json", json.dumps(told | {"reached": None, "inside": None, "warnings": []}))
    html = write_report(run).read_text(encoding="utf-8")
    assert 'id="ladder"' not in html and 'id="training"' in html


def test_the_compute_of_training_is_that_of_the_stages_whose_time_is_told(run: Path) -> None:
    """The bug: the rungs' FLOPs stood beside a time without them."""
    _write(run / "rung-1" / "manifest.json", json.dumps({"seconds": 1000.0, "outputs": {}, "parents": {}}))
    _write(run / "rung-1" / "training.json", json.dumps({"tokens": 1, "flops": 1e20}))
    data = read_run(run)
    assert data.training["rung-1"]["flops"] == 1e20
    tiles = page._tiles(data)
    assert f"<b>{7.2e6 * (2_400_000 + 2_700_000):.1e}</b><span>training FLOPs" in tiles
    assert "<b>3 min 24 s</b><span>training</span>" in tiles


def test_what_was_predicted_of_the_held_out_loss_is_no_part_of_the_band(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: the curve of the training loss's band turned to the held-out interval at its last step."""
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        for row in (
            {"step": 150, "stretch_loss": 2.1, "expected_low": 2.0, "expected_high": 2.2},
            {"step": 300, "stretch_loss": 1.1, "expected_low": 1.0, "expected_high": 1.2},
            {"step": 300, "held_out_loss": 3.1, "expected_low": 3.0, "expected_high": 3.2},
        ):
            file.write(json.dumps(row) + "\n")
    drawn: list[list[Series]] = []
    monkeypatch.setattr(page, "line_chart", lambda series, *given, **named: drawn.append(series) or "")
    page._charts(read_run(run), "pretrain")
    points = {one.name: list(one.points) for one in drawn[0]}
    assert points["training, predicted low"] == [(150, 2.0), (300, 1.0)]
    assert points["training, predicted high"] == [(150, 2.2), (300, 1.2)]
    assert points["validation, predicted"] == [(300, 3.0), (300, 3.2)]


def test_a_policy_is_charged_for_what_it_reads(run: Path) -> None:
    """The bug: DPO paid for the reward model, GRPO by a verifier for that and the comparisons."""
    taken = {"comparisons": 1000.0, "reward": 200.0, "dpo": 30.0, "grpo": 4.0, "ppo": 5.0}
    for stage, seconds in taken.items():
        _write(run / stage / "manifest.json", json.dumps({"seconds": seconds, "outputs": {}, "parents": {}}))
    for scorer, grpo in (("verifier", 4.0), ("model", 1204.0)):
        _write(run / "grpo" / "config.toml", f'seed = 0\n\n[grpo]\nreward = "{scorer}"\n')
        costs = [_cost(read_run(run), model) for model in ("dpo", "grpo", "ppo")]
        assert costs == [duration(seconds) for seconds in (1030.0, grpo, 1205.0)]


def test_parent_replaced_after_its_child_is_pointed_out(run: Path) -> None:
    manifest = run / "tokenizer" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    text = Page(write_report(run).read_text(encoding="utf-8")).text
    assert text.count("made from another tokenizer") == 2, "pretraining and fine-tuning stand on it"


def test_chart_leaves_out_what_is_not_a_number() -> None:
    points = [(1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, -1.0), (5.0, 3.0)]
    svg = line_chart([Series("loss", points)], "Loss", "step", log_y=True)
    assert "nan" not in svg and "inf" not in svg
    [path] = re.findall(r'points="([^"]*)"', svg)
    assert len(path.split()) == 2
    assert line_chart([Series("loss", [(1.0, math.nan)])], "Loss", "step") == ""


def test_chart_puts_points_where_the_axes_say() -> None:
    svg = line_chart([Series("a", [(0.0, 0.0), (10.0, 10.0)])], "t", "step")
    [path] = re.findall(r'points="([^"]*)"', svg)
    (x0, y0), (x1, y1) = (tuple(map(float, pair.split(","))) for pair in path.split())
    ticks = dict(re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end">([^<]*)<', svg))
    at = {label: float(y) - 4 for y, label in ticks.items()}
    assert x0 < x1 and y0 == at["0"] and y1 == at["10"]


def test_long_curve_keeps_its_mean() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    [path] = re.findall(r'points="([^"]*)"', line_chart([Series("a", points, faint=True)], "t", "step"))
    assert len(path.split()) <= 400


def test_ticks_are_round_and_enclose() -> None:
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(0.0031, 0.0049) == [0.003, 0.0035, 0.004, 0.0045, 0.005]
    assert linear_ticks(3, 3)[0] < 3 < linear_ticks(3, 3)[-1]
    assert log_ticks(3, 40_000) == [1, 10, 100, 1000, 10_000, 100_000]
    assert log_ticks(1.5, 30) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(0.01, 0.01)[0] <= 0.01 < log_ticks(0.01, 0.01)[-1]


def test_short_numbers() -> None:
    assert [number(x) for x in (0, 0.003, 1200, 999.9, 1e6, 2.4e6, 1.5e9)] == [
        "0", "0.003", "1.2k", "1k", "1M", "2.4M", "1.5G",
    ]  # fmt: skip


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [
        ResultRow("sft, the last", 10, 20, 1.5e12, 0, 30, "facts", "1", "chat", 0, "accuracy", 0.1 + 0.2, 0.01, 7),
        ResultRow("chance", None, None, None, None, None, "facts", "1", "null", 0, "accuracy", 0.25, None, 7),
    ]
    write_results(rows, tmp_path / "results.csv")
    assert read_results(tmp_path / "results.csv") == rows
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == (
        "model,params,tokens,flops,seed,step,task,task_version,strategy,shots,metric,score,stderr,n"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [("a,b", "2 cells"), (",".join(["m", "x", *[""] * 12]), "invalid literal"), (",".join("m" * 15), "15 cells")],
)
def test_damaged_results_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(",".join(COLUMNS) + "\n" + line + "\n")
    with pytest.raises(UserError, match=rf"results\.csv:2: .*{message}"):
        read_results(path)


def _printed(first: Path, second: Path) -> str:
    console = Console(width=200, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(compare_runs(first, second))
    return capture.get()


def test_comparison_tells_a_real_difference_from_none(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", quality=1.0)
    worse = make_run(tmp_path / "worse", seed=1, quality=0.3, steps=300)
    table = _printed(first, worse)
    [line] = [line for line in table.splitlines() if "facts_en, accuracy, sft" in line]
    assert "yes (p =" in line
    assert "pretrain.pretrain.seed" in table and "validation loss at equal steps" in table
    same = _printed(first, first)
    assert "Settings: no difference." in same
    assert "yes" not in same


def test_comparison_refuses_other_questions(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    path = second / "eval" / "results.csv"
    path.write_text(path.read_text().replace(",1.0,", ",2.0,"))
    assert "other questions (1.0, 2.0)" in _printed(first, second)
    assert "yes" not in _printed(first, second)


def test_comparison_never_pairs_other_questions_that_share_an_id(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", seed=1, quality=0.3)
    items = second / "eval" / "items-sft.jsonl"
    items.write_text(items.read_text().replace("Mira Tolven", "Ansel Vey"))
    [line] = [line for line in _printed(first, second).splitlines() if "facts_en, accuracy, sft" in line]
    assert "yes" in line and "gained" not in line


def test_comparison_prints_brackets_as_they_are(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a[b]"), make_run(tmp_path / "[bold]x[", seed=2)
    table = _printed(first, second)
    assert "a[b]" in table and "[bold]x[" in table


def test_sign_test_known_values() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert sign_test(4, 4) == 1.0


def test_wilson_interval_known_values() -> None:
    # The bounds solve |p - share| = z sqrt(p (1 - p) / n) for p; z is the 97.5 % point of the normal distribution.
    z = 1.959963984540054
    for successes, n in ((0, 10), (1, 29), (81, 263), (10, 10)):
        for bound in wilson_interval(successes, n):
            assert abs(bound - successes / n) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-12)
    assert wilson_interval(0, 10) == pytest.approx((0.0, z * z / (10 + z * z)))
    with pytest.raises(ValueError, match="n > 0"):
        wilson_interval(0, 0)
