"""The log of prompts: only where it is asked for, whole, its owner's alone, and what `talaria prompts` reads."""

from __future__ import annotations

import json

import pytest

from serve.tiny_server import CHAT
from talaria.errors import UserError
from talaria.feedback.prompts import read_prompts
from talaria.serve.prompt_log import log_prompt, open_prompt_log


def test_chats_are_kept_only_where_it_is_asked_for(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    served().post(CHAT)
    assert not list(tmp_path.glob("*log*"))
    log = tmp_path / "prompts-log.jsonl"
    server = served(prompt_log=str(log))
    for text in ("first 你好", "second"):
        server.post(CHAT, messages=[{"role": "user", "content": text}])
    server.call("POST", CHAT, key="wrong", json={"model": "tiny", "messages": [{"role": "user", "content": "third"}]})
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(row["messages"], row["user"]) for row in rows] == [
        ([{"role": "user", "content": text}], "client-1") for text in ("first 你好", "second")
    ]
    assert log.stat().st_mode & 0o777 == 0o600
    assert [prompt.user for prompt in read_prompts(log)] == ["client-1", "client-1"]


def test_a_log_that_cannot_be_written_is_told_before_anybody_chats(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        open_prompt_log(str(tmp_path / "no such folder" / "log.jsonl"))


def test_half_a_character_in_a_tool_call_leaves_the_log_readable(tmp_path):
    """It passes every check of a request: the arguments are a JSON text, in which it is an escape."""
    log = tmp_path / "log.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "\ud800"}}}
    log_prompt(str(log), [{"role": "user", "content": "你好"}], "ann")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    log_prompt(str(log), [*turns, {"role": "user", "content": "go"}], "eve")
    assert [prompt.messages[-1]["content"] for prompt in read_prompts(log)] == ["你好", "go"]


def test_without_keys_nobody_is_named_so_that_all_are_not_one_person(served, tmp_path):
    log = tmp_path / "log.jsonl"
    served(open=True, prompt_log=str(log)).post(CHAT)
    assert [prompt.user for prompt in read_prompts(log)] == [None]
