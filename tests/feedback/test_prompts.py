"""Prompts: each rule drops what it says and nothing else, users stay in one split, and nobody's address goes on."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from talaria.errors import UserError
from talaria.feedback.prompts import Prompt, clean_prompts, gather_prompts, read_prompts
from talaria.feedback.settings import PromptSettings


def asked(*texts: str, user: str | None = None) -> Prompt:
    """Turns of user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return Prompt(turns, user)


def kept_texts(found: list[Prompt], **settings: object) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in clean_prompts(found, PromptSettings(**settings))[0]]


def test_prompts_that_share_a_long_beginning_are_one_and_short_ones_only_if_equal():
    long = "Classify the sentiment of this tweet: " * 3  # 114 characters behind "user: "
    found = [
        asked(f"{long} good"),
        asked(f"{long} bad"),
        asked("Hi"),
        asked("Hi there"),
        asked("  HI "),
        asked(long[:80]),
    ]
    kept, counts = clean_prompts(found, PromptSettings(prefix_characters=100))
    assert [p.messages[0]["content"] for p in kept] == [f"{long} good", "Hi", "Hi there", long[:80]]
    assert counts.dropped["shares its first 100 characters with another, or is equal to it"] == 2
    assert counts.read == 6 and sum(counts.kept.values()) == 4


def test_the_prefix_rule_is_what_comparing_all_pairs_gives():
    import random

    draw = random.Random(0)
    texts = ["".join(draw.choice("ab") for _ in range(draw.randint(1, 12))) for _ in range(300)]

    def shared(a: str, b: str) -> int:
        return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    expected: list[str] = []
    for text in texts:
        key = f"user: {text}"
        if not any(shared(key, f"user: {other}") >= 12 or text == other for other in expected):
            expected.append(text)
    assert kept_texts([asked(text) for text in texts], prefix_characters=12) == expected


def test_a_conversation_logged_after_each_turn_counts_once():
    found = [asked("a", user="u"), asked("a", "b", "c", user="u"), asked("a", "b", "c", "d", "e", user="u")]
    assert kept_texts([*found, asked("a", user="somebody else")]) == ["e", "a"]


def test_at_most_so_many_of_a_user_whoever_else_is_there():
    found = [asked(f"prompt {n}", user="many") for n in range(300)] + [asked(f"mine {n}", user="few") for n in range(3)]
    kept, counts = clean_prompts(found, PromptSettings(per_user=200))
    assert counts.dropped["beyond 200 of one user"] == 100
    assert Counter(prompt.user for prompt in kept).most_common() == [(kept[0].user, 200), (kept[-1].user, 3)]
    alone, _ = clean_prompts(found[:300], PromptSettings(per_user=200))
    assert [p.messages for p in alone] == [p.messages for p in kept[:200]]
    assert [p.messages for p in alone] != [p.messages for p in found[:200]], "a sample and not the first ones"


def test_a_user_is_in_one_split_today_and_next_month():
    found = [asked(f"prompt {user} {n}", user=f"user {user}") for user in range(400) for n in range(2)]
    settings = PromptSettings(validation_share=0.1, test_share=0.2)
    kept, counts = clean_prompts(found, settings)
    splits = {prompt.user: prompt.split for prompt in kept}
    assert all(splits[prompt.user] == prompt.split for prompt in kept) and len(splits) == counts.users == 400
    assert abs(counts.kept["test"] / 800 - 0.2) < 0.06 and abs(counts.kept["validation"] / 800 - 0.1) < 0.05
    later, _ = clean_prompts([asked("something new", user="user 7")], settings)
    assert later[0].split == splits[later[0].user]
    other, _ = clean_prompts(found, settings.model_copy(update={"seed": 1}))
    assert {p.user for p in other}.isdisjoint(splits), "another seed, other pseudonyms"


def test_addresses_and_names_of_users_do_not_go_on(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {
            "messages": [{"role": "user", "content": "write to ann@example.org or +44 20 7946 0958"}],
            "user": "ann-laptop",
        }
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = gather_prompts([log], tmp_path / "out.jsonl", PromptSettings())
    text = (tmp_path / "out.jsonl").read_text()
    assert "ann" not in text.replace("channel", "") and "7946" not in text and "<email> or <phone>" in text
    assert counts.masked == {"email addresses": 1, "phone numbers": 1}
    assert "ann@example.org" in kept_texts(read_prompts(log), mask_personal_data=False)[0]


def test_what_was_written_is_read_again_with_its_split(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\nsecond\n")
    gather_prompts([tmp_path / "p.txt"], tmp_path / "out.jsonl", PromptSettings())
    again = read_prompts(tmp_path / "out.jsonl")
    assert [prompt.messages[0]["content"] for prompt in again] == ["first", "second"]
    assert all(prompt.split for prompt in again)


def test_every_form_is_read_and_the_answers_are_left_out(tmp_path):
    (tmp_path / "world").mkdir()
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "world" / "conversations.jsonl").write_text(json.dumps({"messages": conversation}) + "\n")
    rows = [{"prompt": "plain"}, {"instruction": "add", "input": "1 1", "output": "2"}, {"messages": conversation[1:]}]
    rows.append(
        {"instruction": "say", "instances": [{"input": "hi", "output": "Hi."}, {"input": "no", "output": "No."}]}
    )
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    counts = gather_prompts([tmp_path, tmp_path / "rows.json"], tmp_path / "out.jsonl", PromptSettings())
    found = [prompt.messages for prompt in read_prompts(tmp_path / "out.jsonl")]
    assert [messages[-1]["content"] for messages in found] == ["q", "plain", "add\n\n1 1", "say\n\nhi"]
    assert counts.dropped["no user turn, or an empty one"] == 1 and counts.without_user == 4
    (tmp_path / "bad.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:1: no prompt"):
        read_prompts(tmp_path / "bad.jsonl")


@pytest.mark.real_data
def test_real_prompts_given_twice_are_kept_once(real_data, tmp_path):
    path = real_data / "llama_factory_demo" / "alpaca_en_demo.json.gz"
    n = len(json.loads(gzip.decompress(path.read_bytes())))
    once = gather_prompts([path], tmp_path / "once.jsonl", PromptSettings())
    twice = gather_prompts([path, path], tmp_path / "twice.jsonl", PromptSettings())
    assert (once.read, twice.read) == (n, 2 * n)
    assert once.kept == twice.kept and sum(once.kept.values()) + sum(once.dropped.values()) == n
    short = gather_prompts([path], tmp_path / "short.jsonl", PromptSettings(prefix_characters=30))
    assert sum(short.kept.values()) < 0.97 * n


def test_a_system_prompt_that_all_share_makes_no_two_prompts_one():
    system = {"role": "system", "content": "You are an assistant. " * 20}
    found = [Prompt([system, *asked(f"Question {n}").messages]) for n in range(5)]
    found += [Prompt([{**system, "content": system["content"] + "Be brief."}, *found[0].messages[1:]]), found[0]]
    kept, counts = clean_prompts(found, PromptSettings(prefix_characters=100))
    assert len(kept) == 6 and counts.dropped["shares its first 100 characters with another, or is equal to it"] == 1


@pytest.mark.parametrize("instances", [["a"], {"input": "a"}, "a", 1])
def test_seed_tasks_of_another_shape_are_told_with_their_place(tmp_path, instances):
    path = tmp_path / "seeds.jsonl"
    path.write_text(json.dumps({"instruction": "x", "instances": instances}) + "\n")
    with pytest.raises(UserError, match=r"seeds\.jsonl:1: instances: write a list"):
        read_prompts(path)
