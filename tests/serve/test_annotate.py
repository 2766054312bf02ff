"""The annotation page's server: only with a key, whole in the store, and nothing that tells which model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.tiny_server import Server, tiny_engine
from talaria.feedback.queue import AnnotationQueue
from talaria.feedback.settings import CollectSettings, QueueSettings
from talaria.feedback.store import FeedbackStore
from talaria.serve.annotate import create_annotation_app
from talaria.serve.keys import Keyring, make_key
from talaria.serve.settings import AnnotateSettings

SEED = 770_177_077  # which no identifier drawn by chance holds
MODELS = ("secretive-model", "hush-hush-7b")
SETTINGS = AnnotateSettings(collect=CollectSettings(answers=3, max_tokens=8))


@pytest.fixture
def queue(tmp_path: Path) -> AnnotationQueue:
    """Two ordinary items; answers are called 0 and 1 from the best."""
    queue = AnnotationQueue(FeedbackStore(tmp_path / "feedback.db"), QueueSettings(hidden_share=0.0))
    add(queue, 2)
    return queue


def add(queue: AnnotationQueue, n: int, kind: Any = "ordinary") -> None:
    for i in range(n):
        prompt = queue.store.append_prompt([{"role": "user", "content": f"question {i}"}], source="hush-file")
        ids = [queue.store.append_answer(prompt, str(j), model=MODELS[j], seed=SEED) for j in range(2)]
        queue.add_item(prompt, ids, kind, known=None if kind == "ordinary" else [[id] for id in ids])


@pytest.fixture
def page(queue: AnnotationQueue, tmp_path: Path) -> Server:
    key = make_key(tmp_path / "keys.json", "ann")
    engines = {name: tiny_engine(seed) for seed, name in enumerate(MODELS)}
    return Server(create_annotation_app(queue, Keyring(tmp_path / "keys.json"), engines, SETTINGS), key)


def call(page: Server, name: str, **body: Any) -> dict[str, Any]:
    response = page.call("POST", f"/annotate/{name}", json=body)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def test_a_judgement_is_in_the_store_before_it_is_answered(page, queue):
    state = call(page, "next")
    item = state["item"]
    assert (state["annotator"], state["done"], state["left"], state["test"]) == ("ann", 0, 2, "none")
    best = item["answers"].index("0")
    told = {"scores": {str(best): 7}, "flags": {"harmful": [1 - best]}, "comment": " why ", "seconds": 3.5}
    after = call(page, "judge", assignment=item["assignment"], ranking=[[best], [1 - best]], **told)
    assert (after["done"], after["left"]) == (1, 1) and after["item"]["assignment"] != item["assignment"]
    [choice] = queue.store.read_comparisons()
    assert [[answer.text for answer in group] for group in choice.ranking] == [["0"], ["1"]]
    assert (choice.annotator, choice.seconds, choice.comment) == ("ann", 3.5, "why")
    assert choice.scores == {choice.ranking[0][0].id: 7} and choice.flags == {"harmful": [choice.ranking[1][0].id]}
    again = call(page, "undo")
    assert again["item"]["assignment"] == item["assignment"] and queue.store.read_comparisons() == []
    call(page, "judge", assignment=item["assignment"], verdict="skipped")
    assert [row.verdict for row in queue.store.read_judgements()] == ["ranked", "withdrawn", "skipped"]


def test_no_reply_tells_the_model_the_seed_the_source_or_a_hidden_item(page, queue):
    add(queue, 3, "hidden")
    shy = AnnotationQueue(queue.store, QueueSettings(hidden_share=0.9))
    page = Server(create_annotation_app(shy, None, {}, SETTINGS), None)
    shapes, kinds = set(), set()
    for _ in range(5):
        response = page.call("POST", "/annotate/next", json={})
        item = response.json()["item"]
        if item is None:
            break
        kinds.add(shy.known_rankings()[item["assignment"]][0])
        shapes.add(tuple(sorted(item)))
        told = response.text + json.dumps(dict(response.headers))
        for secret in (*MODELS, str(SEED), "hush", "seed", "known", "hidden", "ordinary", "prompt_id", "answer_ids"):
            assert secret not in told, secret
        assert (item["test"], item["talk"]) == (False, False)
        call(page, "judge", assignment=item["assignment"], ranking=[[0], [1]])
    assert kinds == {"ordinary", "hidden"} and len(shapes) == 1


def test_a_talk_puts_the_models_side_by_side_and_names_none(page, queue):
    asked = [{"role": "user", "content": "hello"}]
    response = page.call("POST", "/annotate/talk", json={"messages": asked})
    item = response.json()["item"]
    assert item["talk"] and len(item["answers"]) == 3 and item["messages"] == asked
    assert not any(name in response.text for name in MODELS)
    assert call(page, "next", talk=True)["item"] == item, "a page that was loaded anew finds its answers"
    call(page, "judge", assignment=item["assignment"], ranking=[[2], [0, 1]])
    [choice] = queue.store.read_comparisons()
    answers = [answer for group in choice.ranking for answer in group]
    assert {answer.model for answer in answers} == set(MODELS) and len({answer.seed for answer in answers}) == 3
    assert choice.asked_by == "ann" and answers[0].sampling == {"temperature": 1.0, "max_tokens": 8}
    engine = tiny_engine(MODELS.index(answers[0].model))
    again = engine.chat(asked, max_tokens=8, temperature=1.0, seed=answers[0].seed).text.replace("\0", "")
    assert again == answers[0].text == item["answers"][2], "the seed that was kept makes the answer again"


@pytest.mark.parametrize("path", ["next", "judge", "undo", "talk"])
@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_key_nothing_is_told_or_kept(page, queue, path, key):
    assert Server(page.app, key or None).call("POST", f"/annotate/{path}", json={}).status_code == 401
    assert Server(page.app, key or None).call("GET", "/annotate/guidelines").status_code == 401
    assert queue.store.read_judgements() == []


@pytest.mark.parametrize(
    "body",
    [
        {"ranking": [[0]]},
        {"ranking": [[0], [2]]},
        {"ranking": [[0], [0]]},
        {"ranking": [[0], [1]], "scores": {"0": 8}},
        {"ranking": [[0], [1]], "scores": {"5": 3}},
        {"ranking": [[0], [1]], "scores": {"²": 3}},
        {"ranking": [[0], [1]], "flags": {"x": [0]}},
        {"ranking": [[0], [1]], "seconds": -1},
        {"ranking": [[0], [1]], "comment": "\ud800"},
        {"ranking": [[0], [1]], "annotator": "bob"},
        {"verdict": "withdrawn"},
        {"ranking": [[0], [1]], "assignment": 99},
    ],
)
def test_half_a_judgement_is_refused_and_not_kept(page, queue, body):
    assignment = call(page, "next")["item"]["assignment"]
    sent = json.dumps({"assignment": assignment, **body}).encode()
    response = page.call("POST", "/annotate/judge", content=sent, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]
    assert queue.store.read_judgements() == []


def test_the_page_is_open_and_confined_and_says_nothing(page, queue):
    response = Server(page.app, None).call("GET", "/")
    assert response.status_code == 200 and "page/annotate.js" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert Server(page.app, None).call("GET", "/v1/models").status_code == 401


def test_the_test_comes_before_talking(page, queue):
    add(queue, 1, "qualification")
    assert call(page, "next")["test"] == "open"
    refused = page.call("POST", "/annotate/talk", json={"messages": [{"role": "user", "content": "hello"}]})
    assert refused.status_code == 409 and "test comes first" in refused.json()["error"]["message"]


def test_guidelines_are_read_as_they_are_now(queue, tmp_path):
    file = tmp_path / "guidelines.md"
    page = Server(create_annotation_app(queue, None, {}, SETTINGS, guidelines={"en": file}), None)
    for text in ("# First", "# Edited"):
        file.write_text(text)
        told = page.call("GET", "/annotate/guidelines").json()
        assert told["en"] == text and "指南" not in told["en"] and "并列" in told["zh"]


@pytest.mark.parametrize("body", [{"ranking": [[0], [0]]}, {"verdict": "skipped", "ranking": [[0]]}])
def test_a_refusal_does_not_tell_which_answer_is_which_in_the_store(page, body):
    """Answers were stored in the order of the models: their ids would name the model."""
    assignment = call(page, "next")["item"]["assignment"]
    told = [
        page.call(
            "POST", "/annotate/judge", json={"assignment": assignment, **json.loads(json.dumps(body).replace("0", n))}
        )
        for n in "01"
    ]
    assert [answer.status_code for answer in told] == [400, 400]
    for answer, n in zip(told, "01", strict=True):
        assert json.dumps(body["ranking"]).replace("0", n) in answer.json()["error"]["message"], (
            "the caller's own places"
        )


def test_an_undo_that_is_told_again_takes_no_other_judgement_back(page, queue):
    first = call(page, "next")
    assert first["last"] is None
    for _ in range(2):
        state = call(page, "judge", assignment=call(page, "next")["item"]["assignment"], ranking=[[0], [1]])
    undone = call(page, "undo", judgement=state["last"])
    assert call(page, "undo", judgement=state["last"])["item"] == undone["item"]
    assert [row.verdict for row in queue.store.read_judgements()] == ["ranked", "ranked", "withdrawn"]
    call(page, "judge", assignment=undone["item"]["assignment"], ranking=[[1], [0]])
    assert call(page, "undo", judgement=state["last"])["done"] == 2, "what was judged anew stands"


def test_numbers_that_no_store_holds_are_refused(page):
    for name, body in (("judge", {"assignment": 2**31, "ranking": [[0], [1]]}), ("undo", {"judgement": 2**31})):
        response = page.call("POST", f"/annotate/{name}", json=body)
        assert response.status_code == 400 and "less than 2147483648" in response.json()["error"]["message"]
