"""Thumbs: only with a key, whole in the store, and nothing half-right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.tiny_server import Server
from talaria.feedback.store import FeedbackStore
from talaria.serve.keys import make_key

THUMB: dict[str, Any] = {
    "rating": 1,
    "model": "tiny",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🙂"}],
    "answer": "<b>Hello</b>",
    "seed": 2**32 - 1,
    "sampling": {"temperature": 0.7, "max_tokens": 5},
}


@pytest.fixture
def store(tmp_path) -> FeedbackStore:
    return FeedbackStore(tmp_path / "feedback.db")


@pytest.fixture
def rated(served, store) -> Server:
    return served(store=store)


def test_a_thumb_is_in_the_store_under_the_name_of_its_key(rated, store, keys, tmp_path):
    answer_id = rated.call("POST", "/v1/feedback", json=THUMB).json()["answer_id"]
    other = make_key(keys, "somebody else")
    again = rated.call("POST", "/v1/feedback", key=other, json={"rating": -1, "answer_id": answer_id})
    assert again.json() == {"answer_id": answer_id}
    store.close()
    up, down = FeedbackStore(tmp_path / "feedback.db").read_ratings()
    assert (up.rating, up.annotator, down.rating, down.annotator) == (1, "client-0", -1, "somebody else")
    assert up.messages == THUMB["messages"] and up.answer == down.answer
    assert (up.answer.text, up.answer.model, up.answer.seed) == ("<b>Hello</b>", "tiny", 2**32 - 1)
    assert up.answer.sampling == THUMB["sampling"]


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_key_nothing_is_kept(rated, store, key):
    assert Server(rated.app, key or None).call("POST", "/v1/feedback", json=THUMB).status_code == 401
    assert store.read_ratings() == []


@pytest.mark.parametrize(
    "change",
    [
        {"rating": 2},
        {"rating": True},
        {"rating": None},
        {"answer_id": 1},
        {"model": None},
        {"messages": []},
        {"messages": None},
        {"answer": None},
        {"answer": "\ud800"},
        {"annotator": "somebody"},
        {"seed": -1},
        {"sampling": {"temperature": "hot"}},
        {"sampling": {"x": 1}},
    ],
)
def test_half_a_thumb_is_refused_and_not_kept(rated, store, change):
    body = json.dumps({**THUMB, **change}).encode()
    response = rated.call("POST", "/v1/feedback", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]
    assert store.read_ratings() == []


def test_an_answer_or_a_model_that_is_not_there_cannot_be_rated(rated, store):
    missing = rated.call("POST", "/v1/feedback", json={"rating": 1, "answer_id": 7})
    assert missing.status_code == 400 and "no answer 7" in missing.json()["error"]["message"]
    other = rated.call("POST", "/v1/feedback", json=THUMB | {"model": "gpt-9"})
    assert other.status_code == 404 and other.json()["error"]["code"] == "model_not_found"
    assert store.read_ratings() == []


def test_a_server_without_a_store_says_so(server):
    response = server.call("POST", "/v1/feedback", json=THUMB)
    assert response.status_code == 404 and "--set feedback=FILE" in response.json()["error"]["message"]


def test_a_thumb_that_cannot_be_kept_leaves_no_prompt_and_no_answer(rated, store, monkeypatch):
    """The bug: three transactions, so that a full disk between them left a prompt whose answer nobody rated."""
    monkeypatch.setattr(FeedbackStore, "append_rating", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rated.call("POST", "/v1/feedback", json=THUMB)
    assert not store.has_source("web chat")
