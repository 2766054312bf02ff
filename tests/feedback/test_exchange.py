"""Choices to and from other forms: what goes out comes back, and what a form cannot hold is counted and not bent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from talaria.errors import UserError
from talaria.feedback.agreement import measure_agreement
from talaria.feedback.exchange import export_choices, import_choices, read_choices
from talaria.feedback.store import FeedbackStore

CHOSEN, REJECTED = ({"role": "assistant", "content": text} for text in "yn")
ASKED = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Who asks?"},
    {"role": "user", "content": "I."},
]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "feedback.db")


def shape(store: FeedbackStore) -> list[object]:
    return [(c.messages, [[a.text for a in group] for group in c.ranking]) for c in store.read_comparisons()]


def hh(chosen: str, rejected: str, before: str = "\n\nHuman: Hi") -> dict[str, str]:
    return {"chosen": f"{before}\n\nAssistant: {chosen}", "rejected": f"{before}\n\nAssistant: {rejected}"}


def test_answers_that_begin_alike_lend_the_prompt_nothing(tmp_path):
    path = written(tmp_path / "hh.jsonl", hh("I can help you.", "I can not."))
    [choice], left_out = read_choices(path, "hh")
    assert choice.messages == [{"role": "user", "content": "Hi"}] and left_out == {}
    assert [answer["text"] for answer in choice.answers] == ["I can help you.", "I can not."]


def test_dialogues_that_cannot_be_compared_are_counted(tmp_path):
    path = written(
        tmp_path / "hh.jsonl",
        hh("same", "same"),
        hh("", "not empty"),
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: x",
        },
        {"chosen": "no mark", "rejected": "no mark"},
        hh("good", "bad", "\n\nHuman: first\n\nHuman: second"),
    )
    [choice], left_out = read_choices(path, "hh")
    assert choice.messages == [{"role": "user", "content": "first\n\nsecond"}]
    assert sorted(left_out.values()) == [1, 1, 1, 1] and "an answer is empty" in left_out


def test_a_file_comes_in_once_and_whole(store, tmp_path):
    path = written(tmp_path / "hh.jsonl", hh("a", "b"), hh("c", "d"))
    assert import_choices(store, path, "hh", criterion="harmless").n == 2
    with pytest.raises(UserError, match="already; nothing was added"):
        import_choices(store, path, "hh")
    assert {choice.criterion for choice in store.read_comparisons()} == {"harmless"}
    assert len({choice.prompt_id for choice in store.read_comparisons()}) == 1, "one prompt, so one batch element"
    good = {"messages": ASKED, "answers": [{"text": "a"}, {"text": "b"}], "ranking": [[0], [1]]}
    bad = written(tmp_path / "bad.jsonl", good, good | {"ranking": [[0], [0]]})
    with pytest.raises(UserError, match="two or more different answers"):
        import_choices(store, bad, "jsonl")
    assert len(store.read_comparisons()) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
                for turn in ASKED
            ],
            "chosen": {"from": "gpt", "value": "y"},
            "rejected": {"from": "gpt", "value": "n"},
        },
        {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
        {
            "chosen_messages": [
                {"role": turn["role"], "content": [{"type": "text", "value": turn["content"]}]}
                for turn in (*ASKED, CHOSEN)
            ],
            "rejected_messages": [*ASKED, REJECTED],
        },
    ],
    ids=["TRL", "LLaMA-Factory", "implicit prompt", "parts"],
)
def test_every_spelling_of_a_pair_is_read(store, tmp_path, row):
    import_choices(store, written(tmp_path / "dpo.jsonl", row), "dpo")
    assert shape(store) == [(ASKED, [["y"], ["n"]])]


def test_plain_and_alpaca_pairs_are_read(store, tmp_path):
    plain = {"prompt": "Q", "chosen": "y", "rejected": "n", "system": "Be kind."}
    alpaca = {"instruction": "Add", "input": "1 1", "chosen": "2", "rejected": "3"}
    import_choices(store, written(tmp_path / "dpo.jsonl", plain, alpaca), "dpo")
    first, second = store.read_comparisons()
    assert [turn["content"] for turn in first.messages] == ["Be kind.", "Q"]
    assert second.messages == [{"role": "user", "content": "Add\n\n1 1"}]


def test_our_own_form_loses_nothing(store, tmp_path):
    prompt = store.append_prompt([{"role": "system", "content": "系统"}, *ASKED], asked_by="u", split="test")
    a, b, c = (
        store.append_answer(prompt, t, model="sft", seed=2**40, sampling={"top_p": 0.5})
        for t in ("one", "two", "three")
    )
    details = {
        "seconds": 2.5,
        "flags": {"harmful": [c], "other": "x"},
        "scores": {a: 7, c: 1},
        "comment": "问",
        "criterion": "helpful",
    }
    store.append_comparison(prompt, [[b], [a, c]], annotator="ann", **details)
    store.append_comparison(prompt, [[b], [a], [c]], annotator="bob", criterion="helpful")
    export_choices(store.read_comparisons(), tmp_path / "out.jsonl", "jsonl")
    other = FeedbackStore(tmp_path / "other.db")
    import_choices(other, tmp_path / "out.jsonl", "jsonl")
    for before, after in zip(store.read_comparisons(), other.read_comparisons(), strict=True):
        names = {answer.id: answer.text for group in before.ranking for answer in group}
        again = {answer.id: answer.text for group in after.ranking for answer in group}
        for name in ("messages", "annotator", "seconds", "created_at", "comment", "criterion", "asked_by", "split"):
            assert getattr(after, name) == getattr(before, name), name
        assert [[(x.text, x.model, x.seed, x.sampling) for x in g] for g in after.ranking] == [
            [(x.text, x.model, x.seed, x.sampling) for x in g] for g in before.ranking
        ]
        assert {again[id]: score for id, score in after.scores.items()} == {
            names[id]: s for id, s in before.scores.items()
        }
        assert [again[id] for id in after.flags.get("harmful", [])] == [
            names[id] for id in before.flags.get("harmful", [])
        ]
        assert after.flags.get("other") == before.flags.get("other")
    # What several people judged is still the same answers, so they can still agree.
    assert (
        measure_agreement(other.read_comparisons()).among.n == measure_agreement(store.read_comparisons()).among.n == 3
    )


def test_a_prompt_put_aside_by_one_of_its_rows_is_put_aside(store, tmp_path):
    """The bug: the first row's split for all, and a test prompt that is trained on."""
    answers = [{"text": "a", "model": "m"}, {"text": "b", "model": "m"}]
    row = {
        "messages": [{"role": "user", "content": "sea"}],
        "answers": answers,
        "ranking": [[0], [1]],
        "annotator": "ann",
    }
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row | more) + "\n" for more in ({}, {"split": "test"})))
    import_choices(store, path, "jsonl")
    assert {choice.split for choice in store.read_comparisons()} == {"test"}


@pytest.mark.parametrize("form", ["hh", "dpo"])
def test_pairs_go_out_and_come_back(store, tmp_path, form):
    prompt = store.append_prompt(ASKED)
    a, b, c = (store.append_answer(prompt, text, model="m") for text in ("Because.", "No:\n\n1. it", "Maybe"))
    store.append_comparison(prompt, [[b], [a, c]], annotator="ann")
    counts = export_choices(store.read_comparisons(), tmp_path / "out.jsonl", form)
    assert (counts.n, counts.left_out) == (2, {"pairs that are tied": 1})
    other = FeedbackStore(tmp_path / "other.db")
    import_choices(other, tmp_path / "out.jsonl", form)
    assert shape(other) == [(ASKED, [["No:\n\n1. it"], ["Because."]]), (ASKED, [["No:\n\n1. it"], ["Maybe"]])]


def test_text_with_turn_marks_is_not_written_as_other_turns(store, tmp_path):
    for messages, answer in (
        (ASKED, "No.\n\nHuman: thanks"),
        (ASKED, " x"),
        ([{"role": "system", "content": "s"}, *ASKED], "x"),
    ):
        prompt = store.append_prompt(messages)
        a, b = (store.append_answer(prompt, text, model="m") for text in (answer, "fine"))
        store.append_comparison(prompt, [[a], [b]], annotator="ann")
    with pytest.raises(UserError, match=r"nothing to export .*2 left out: the text would not be read back"):
        export_choices(store.read_comparisons(), tmp_path / "out.jsonl", "hh")
    assert not (tmp_path / "out.jsonl").exists()


def test_trees_go_out_and_come_back_with_ties_and_branches(store, tmp_path):
    for messages in (ASKED[:1], ASKED):
        prompt = store.append_prompt(messages)
        ids = [store.append_answer(prompt, text, model="m") for text in ("Who asks?", "No", "Yes")]
        store.append_comparison(prompt, [[ids[0]], [ids[1], ids[2]]], annotator="ann")
    assert export_choices(store.read_comparisons(), tmp_path / "trees.jsonl", "oasst").n == 1
    [tree] = [json.loads(line) for line in (tmp_path / "trees.jsonl").read_text().splitlines()]
    assert [reply["rank"] for reply in tree["prompt"]["replies"]] == [0, 1, 1]
    other = FeedbackStore(tmp_path / "other.db")
    import_choices(other, tmp_path / "trees.jsonl", "oasst")
    assert shape(other) == shape(store)


def test_a_wrong_form_is_told(tmp_path):
    path = written(tmp_path / "x.jsonl", {"text": "no choice"})
    for form in ("hh", "oasst", "dpo", "jsonl"):
        with pytest.raises(UserError, match=r"x\.jsonl:1"):
            read_choices(path, form)
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"x\.jsonl:1: not valid JSON"):
        read_choices(path, "hh")
    with pytest.raises(UserError, match="unknown; choose hh, oasst, dpo, jsonl"):
        read_choices(path, "csv")


@pytest.mark.parametrize(
    "change",
    [
        {"ranking": [[0], [2]]},
        {"ranking": [[0], [-1]]},
        {"ranking": [[["a"]], [1]]},
        {"ranking": [[0], [True]]},
        {"answers": [{"text": "a"}, {"text": 1}]},
        {"answers": [{"text": "a", "seed": 2**63}, {"text": "b"}]},
        {"scores": {"2": 7}},
        {"scores": {"x": 7}},
        {"flags": {"harmful": [2]}},
        {"flags": {"harmful": 0}},
        {"verdict": "liked"},
        {"created_at": "yesterday"},
        {"seconds": "fast"},
    ],
)
def test_a_row_of_our_own_form_that_is_wrong_is_told_with_its_place(tmp_path, change):
    row = {"messages": ASKED, "answers": [{"text": "a"}, {"text": "b"}], "ranking": [[0], [1]]}
    read_choices(written(tmp_path / "good.jsonl", row), "jsonl")
    with pytest.raises(UserError, match=r"bad\.jsonl:2: "):
        read_choices(written(tmp_path / "bad.jsonl", row, row | change), "jsonl")


# ------------------------------------------------------------------------------- public data


@pytest.mark.real_data
def test_hh_rlhf_comes_in_with_prompts_that_both_dialogues_share(real_data, store):
    path = real_data / "hh_rlhf" / "harmless-base_1500.jsonl.gz"
    counts = import_choices(store, path, "hh", criterion="harmless")
    assert counts.n + sum(counts.left_out.values()) == 1500 and counts.n > 1400
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = {row["chosen"].strip(): row["rejected"].strip() for row in rows}
    checked = 0
    for choice in store.read_comparisons():
        before = "\n\n".join(
            f"{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}" for turn in choice.messages
        )
        chosen, rejected = (f"{before}\n\nAssistant: {group[0].text}".strip() for group in choice.ranking)
        checked += texts.get(chosen) == rejected
    assert checked > 0.95 * counts.n, "the rest has white space or doubled turns that were put in order"


@pytest.mark.real_data
def test_open_assistant_trees_come_in(real_data, store):
    counts = import_choices(store, real_data / "open_assistant" / "data_en_100_tree.jsonl.gz", "oasst")
    assert counts.n == 212 and sum(counts.left_out.values()) > 0
    choices = store.read_comparisons()
    assert max(sum(map(len, choice.ranking)) for choice in choices) > 3
    assert any(len(choice.messages) > 2 for choice in choices)
    assert all(choice.messages[-1]["role"] == "user" for choice in choices)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["dpo_en_demo.json.gz", "dpo_zh_demo.json.gz", "v1_dpo_demo.jsonl.gz"])
def test_llama_factory_pairs_come_in(real_data, store, name):
    counts = import_choices(store, real_data / "llama_factory_demo" / name, "dpo")
    assert counts.n >= 10 and counts.left_out == {}
    assert all(choice.messages[-1]["role"] == "user" for choice in store.read_comparisons())


@pytest.mark.parametrize("bad", ["\ud800", "a\0b"])
@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("dpo", {"prompt": "q", "chosen": "BAD", "rejected": "b"}),
        ("dpo", {"prompt": "BAD", "chosen": "a", "rejected": "b"}),
        (
            "jsonl",
            {"messages": ASKED, "answers": [{"text": "a"}, {"text": "b"}], "ranking": [[0], [1]], "comment": "BAD"},
        ),
    ],
)
def test_text_that_no_database_holds_is_told_with_its_place(store, tmp_path, bad, form, row):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row).replace("BAD", json.dumps(bad)[1:-1]) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:1: .*half a character"):
        import_choices(store, path, form)
    assert store.read_judgements() == []


def test_answers_that_nobody_compared_are_in_no_tree_together(store, tmp_path):
    for texts in ("ab", "cd"):
        prompt = store.append_prompt(ASKED[:1])
        store.append_comparison(
            prompt, [[store.append_answer(prompt, text, model="m")] for text in texts], annotator="ann"
        )
    assert export_choices(store.read_comparisons(), tmp_path / "trees.jsonl", "oasst").n == 2
    choices, _ = read_choices(tmp_path / "trees.jsonl", "oasst")
    assert [[answer["text"] for answer in choice.answers] for choice in choices] == [["a", "b"], ["c", "d"]]
