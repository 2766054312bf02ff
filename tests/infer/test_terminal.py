"""The terminal chat with piped input: what the engine is asked, what is printed."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from talaria.errors import UserError
from talaria.infer.contract import Chunk, row_seed
from talaria.infer.engine import Engine
from talaria.infer.line_editing import HISTORY_LENGTH, LineEditor, history_file
from talaria.infer.terminal import COMMANDS, HELP, SETTINGS, Continuation, run_terminal_chat
from talaria.tokens.conversations import read_conversations

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
    assert "prompt 0 is 99 tokens long (/new begins anew)" in out
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


def asked(engine: EchoEngine, turn: int) -> list[str]:
    return [message["content"] for message in engine.asked[turn]]


# ---------------------------------------------------------------------------------------- commands


def test_every_command_is_known_and_in_the_help(monkeypatch):
    for command in COMMANDS:
        assert command in HELP
        assert "unknown command" not in talk(monkeypatch, f"{command}\n", EchoEngine())


def test_retry_asks_the_last_question_again_and_keeps_the_newest_answer(monkeypatch):
    engine = EchoEngine()
    seeds = []
    stream_chat = engine.stream_chat

    def seeded(messages, **sampling):
        seeds.append(sampling["seed"])
        return stream_chat(messages, **sampling)

    engine.stream_chat = seeded
    out = talk(monkeypatch, "one\ntwo\n/retry\n/retry\nthree\n", engine, seed=5)
    assert out == "one.\ntwo.\ntwo.\ntwo.\nthree.\n"
    assert asked(engine, 1) == asked(engine, 2) == asked(engine, 3) == ["one", "one.", "two"]
    assert asked(engine, 4) == ["one", "one.", "two", "two.", "three"]
    assert seeds == [5, 5, row_seed(5, 1), row_seed(5, 2), 5], "the same seed would give the same answer"


def test_edit_asks_anew_in_place_of_the_last_question_and_undo_takes_it_back(monkeypatch):
    engine = EchoEngine()
    talk(monkeypatch, "same\nsame\n/edit other\nnext\n/undo\n/undo\nlast\n", engine)
    assert asked(engine, 2) == ["same", "same.", "other"]
    assert asked(engine, 3) == ["same", "same.", "other", "other.", "next"]
    assert asked(engine, 4) == ["same", "same.", "last"]


def test_an_answer_that_fails_leaves_the_one_it_was_to_replace(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, Terminal("one\n/edit too long\nnext\n"), engine)
    assert "99 tokens" in out
    assert asked(engine, 2) == ["one", "one.", "next"]


def test_set_changes_how_answers_are_drawn(monkeypatch):
    engine = EchoEngine()
    out = talk(monkeypatch, "/set temperature=0 top_k=5\nx\n/set\n", engine, temperature=0.7, seed=None)
    assert engine.sampling == {"temperature": 0.0, "top_k": 5, "seed": None}
    assert out == "x.\ntemperature=0.0 top_k=5\n"
    talk(monkeypatch, "/set temperature=none\nx\n", engine, temperature=0.7)
    assert engine.sampling == {}, "back to the engine's own"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/dance", "/help lists commands"),
        ("/set temperature=hot", "'hot' is not a number; write e.g. /set temperature="),
        ("/set temperature=nan", "must be 0 (greedy) or a positive number"),
        ("/set temperature=-1", "must be 0 (greedy) or a positive number"),
        ("/set top_p=2", "at most 1"),
        ("/set top_k=0.5", "not a whole number"),
        ("/set max_tokens=0", "at least 1"),
        ("/set seed=-1", "/set seed=none"),
        ("/set seed=" + "9" * 30, "/set seed=none"),
        ("/set warmth=1", "the names are temperature, top_p"),
        ("/set temperature", "write NAME=VALUE"),
        ("/set min_p=0.1 top_p=9", "at most 1"),
        ("/retry", "ask something first"),
        ("/edit", "ask something first"),
        ("/undo", "ask something first"),
        ("/save", "e.g. /save chat.jsonl"),
        ("/save chat.txt", "ends in .jsonl"),
        ("/save chat.jsonl", "ask something first"),
        ("/load", "e.g. /load chat.jsonl"),
        ("/load nowhere.jsonl", "nowhere.jsonl"),
        ("/load .", "."),
    ],
)
def test_a_command_that_is_wrong_is_told_in_one_line_and_changes_nothing(monkeypatch, tmp_path, line, told):
    monkeypatch.chdir(tmp_path)
    engine = EchoEngine()
    out = talk(monkeypatch, f"{line}\nhello\n", engine, temperature=0.7)
    complaint, answer, end = out.split("\n")
    assert told in complaint and (answer, end) == ("hello.", "")
    assert engine.sampling == {"temperature": 0.7}
    assert list(tmp_path.iterdir()) == []


def test_every_setting_reaches_a_real_engine(monkeypatch):
    engine = Engine(tiny_model(LLAMA, context=64), ByteTokenizer())
    settings = " ".join(f"{name}=1" for name in SETTINGS)
    assert "top_k=1" in talk(monkeypatch, f"/set {settings}\nhello\n/set\n", Continuation(engine))


def test_a_message_may_begin_with_a_slash(monkeypatch):
    engine = EchoEngine()
    talk(monkeypatch, "//etc/hosts\n", engine)
    assert asked(engine, 0) == ["/etc/hosts"]


def test_save_and_load_give_the_same_conversation(monkeypatch, tmp_path):
    file, engine = tmp_path / "chat.jsonl", EchoEngine()
    talk(monkeypatch, f"你好 🙂\n/save {file}\n", engine, system="Be brief.")
    assert read_conversations(file) == [[*engine.asked[0], {"role": "assistant", "content": "你好.🙂."}]]
    talk(monkeypatch, f"lost\n/load {file}\nmore\n/system\nnew\n", engine)
    assert asked(engine, 2) == ["Be brief.", "你好 🙂", "你好.🙂.", "more"] and asked(engine, 3) == ["new"]
    assert "exists already" in talk(monkeypatch, f"x\n/save {file}\n", engine)
    assert read_conversations(file)[0][1]["content"] == "你好 🙂"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ["{broken"],
        [{"messages": [{"role": "user", "content": "a"}]}],
        [{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}],
        [{"messages": [{"role": "user", "content": 5}]}],
        [{"instruction": "a", "output": "b"}] * 2,
    ],
)
def test_a_file_that_is_no_conversation_is_refused_whole(monkeypatch, tmp_path, rows):
    file, engine = tmp_path / "chat.jsonl", EchoEngine()
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    out = talk(monkeypatch, f"kept\n/load {file}\nnext\n", engine)
    assert str(file) in out and out.count("\n") == 3
    assert asked(engine, 1) == ["kept", "kept.", "next"]


def test_model_tells_size_and_use_of_the_context(monkeypatch):
    engine = Engine(tiny_model(LLAMA, context=96), ByteTokenizer())
    engine.chat_prompt = lambda messages: list("|".join(m["content"] for m in messages).encode())
    lines = talk(monkeypatch, "/model\nhello\n/model\n", engine, name="tiny", max_tokens=4).split("\n")
    first, second = lines[0], lines[-2]  # between them an answer, of any bytes
    assert first == f"tiny: {engine.model.shape.n_params():,} parameters, context of 96 tokens"
    assert int(second.removeprefix(f"{first}, of which this conversation fills ")) > len("hello")


# ----------------------------------------------------------------------------- lines and their history


def typed(monkeypatch, lines: str, **options) -> list[str]:
    """The messages that an editor makes of lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    editor, messages = LineEditor(**options), []
    try:
        while True:
            messages.append(editor.read("you: "))
    except EOFError:
        return messages
    finally:
        editor.close()


def test_messages_of_several_lines(monkeypatch):
    lines = 'one\\\ntwo\\\n  three\n"""a\n\n  b"""\n"""\n/c\n"""\n"""d"""\n /help \n""""""\n'
    assert typed(monkeypatch, lines) == ["one\ntwo\n  three", "a\n\n  b", "//c", "d", "/help", ""]


def test_piped_lines_are_a_turn_each_whatever_they_hold(monkeypatch):
    engine = EchoEngine()
    talk(monkeypatch, 'one\\\n"""\ntwo\n', engine)
    assert [messages[-1]["content"] for messages in engine.asked] == ["one\\", '"""', "two"]


def test_history_is_private_bounded_and_holds_whole_messages(monkeypatch, tmp_path):
    file = tmp_path / "state" / "history.jsonl"
    typed(monkeypatch, "one\\\ntwo\nsame\nsame\n\n", history=file)
    assert [json.loads(line) for line in file.open()] == ["one\ntwo", "same"]
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o077 == 0
    file.chmod(0o644)
    file.write_text("".join(f'"{i}"\n' for i in range(2 * HISTORY_LENGTH + 1)))
    typed(monkeypatch, "newest\n", history=file)
    kept = [json.loads(line) for line in file.open()]
    assert kept[-2:] == [str(2 * HISTORY_LENGTH), "newest"] and len(kept) == HISTORY_LENGTH + 1
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["no json\n", None])
def test_a_chat_without_its_history_goes_on_and_says_so(monkeypatch, tmp_path, content):
    file = tmp_path / "history.jsonl"
    file.mkdir() if content is None else file.write_text(content)
    out = talk(monkeypatch, Terminal("hello\n"), EchoEngine(), history=file)
    assert f"{file}: no" in out and "--no-history" in out and "assistant: hello." in out
    assert content is None or file.read_text() == content


def test_history_lies_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "talaria" / "chat-history.jsonl"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert history_file() == tmp_path / "home" / ".local" / "state" / "talaria" / "chat-history.jsonl"


def test_bytes_that_are_no_text_are_told(monkeypatch):
    for broken in ("\udcff\n",):
        with pytest.raises(UserError, match="not UTF-8"):
            talk(monkeypatch, broken, EchoEngine())
        assert "not UTF-8" in talk(monkeypatch, Terminal(f"{broken}hello\n"), EchoEngine())
