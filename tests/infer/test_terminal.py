"""The terminal chat with piped input: what the engine is asked, what is printed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from talaria.errors import UserError
from talaria.infer.contract import Chunk
from talaria.infer.engine import Engine
from talaria.infer.terminal import run_terminal_chat

from .conftest import LLAMA, ByteTokenizer, tiny_model


class EchoEngine:
    """Answers with the last question, word by word; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[dict]] = []

    def stream_chat(self, messages, **sampling):
        self.asked.append([dict(message) for message in messages])
        self.sampling = sampling
        question = messages[-1]["content"]
        if question == "too long":
            raise UserError("prompt 0 is 99 tokens long")
        for word in question.split(" "):
            if word == "interrupt":
                raise KeyboardInterrupt
            yield Chunk(f"{word}.", [], [], None)
        yield Chunk("", [], [], "stop")


def talk(monkeypatch, lines: str | io.StringIO, engine: EchoEngine, **options) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines) if isinstance(lines, str) else lines)
    out = io.StringIO()
    run_terminal_chat(engine, console=Console(file=out, soft_wrap=True, highlight=False), **options)
    return out.getvalue()


def test_piped_lines_give_plain_answers_and_one_conversation(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, "hello\n\n你好 🙂\n", engine, system="Be brief.", temperature=0)
    assert out == "hello.\n你好.🙂.\n"
    assert [(m["role"], m["content"]) for m in engine.asked[1]] == [
        ("system", "Be brief."),
        ("user", "hello"),
        ("assistant", "hello."),
        ("user", "你好 🙂"),
    ]
    assert engine.sampling == {"temperature": 0}


def test_reset_keeps_the_system_message_and_system_replaces_it(monkeypatch):
    engine = EchoEngine()
    talk(monkeypatch, "one\n/reset\ntwo\n/system Be loud.\nthree\n/system\nfour\n", engine, system="Be brief.")
    assert [[m["content"] for m in asked] for asked in engine.asked] == [
        ["Be brief.", "one"],
        ["Be brief.", "two"],
        ["Be loud.", "three"],
        ["four"],
    ]


def test_quit_leaves_and_commands_are_not_sent_to_the_model(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, "/help\n/dance\n/quit\nnever\n", engine)
    assert engine.asked == []
    assert "/system TEXT" in out
    assert "unknown command /dance" in out


def test_ctrl_c_stops_the_answer_not_the_chat(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, "so far interrupt lost\nnext\n", engine)
    assert out == "so.far. [stopped]\nnext.\n"
    assert [m["content"] for m in engine.asked[1]] == ["so far interrupt lost", "so.far.", "next"]


class Terminal(io.StringIO):
    """Standard input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_an_error_is_shown_and_its_question_forgotten(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, Terminal("too long\nnext\n/reset\n"), engine, name="tiny")
    assert "prompt 0 is 99 tokens long (/reset begins anew)" in out
    assert "tiny: next." in out
    assert "conversation forgotten" in out
    assert [m["content"] for m in engine.asked[1]] == ["next"]


def test_piped_an_error_reaches_the_caller(monkeypatch):
    with pytest.raises(UserError, match="99 tokens"):
        talk(monkeypatch, "too long\nnext\n", EchoEngine())


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x9b31m", "\x07"])
def test_answers_cannot_steer_the_terminal_nor_rich(monkeypatch, hostile):
    out = talk(monkeypatch, f"a{hostile}b [bold]c[/nonsense]\n", EchoEngine())
    assert not set(out) & set("\x1b\x9b\x07")
    assert "[bold]c[/nonsense]" in out


def test_a_conversation_longer_than_the_context_goes_on_without_its_oldest_turns(monkeypatch):
    """The bug: once the context was full, every further question was an error."""
    engine = Engine(tiny_model(LLAMA, context=96), ByteTokenizer())
    engine.chat_prompt = lambda messages: list("|".join(m["content"] for m in messages).encode())
    asked: list[int] = []
    stream_chat = engine.stream_chat

    def counted(messages, **sampling):
        asked.append(len(messages))
        return stream_chat(messages, **sampling)

    engine.stream_chat = counted
    lines = "".join(f"question {i}\n" for i in range(12))
    talk(monkeypatch, lines, engine, system="Brief.", temperature=0, max_tokens=4)
    assert len(asked) == 12
    assert asked[:3] == [2, 4, 6], "while there is room every turn is kept"
    assert max(asked) < 12, "later the oldest are left out"
