"""`talaria chat` at a real terminal: a pseudo-terminal, keys as a person presses them, a tiny model on disk."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from random_weights import random_model

from talaria.model.checkpoint import save_model
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

# The first line makes the pseudo-terminal the one that Ctrl-C comes from.
CHAT = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); from talaria.cli import main; main()"
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy answer never ends by itself (with this seed), so that there is something to stop."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    tokenizer = Tokenizer.train(["hello world, 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=2, d_model=16, n_heads=2, context=8192)
    save_model(random_model(shape, seed=1), tokenizer, folder)
    return folder


class Terminal:
    """The person's end."""

    def __init__(self, model: Path, state: Path, *options: str) -> None:
        self._keys, its_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHAT, "chat", str(model), "--temperature", "0", *options],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=os.environ | {"XDG_STATE_HOME": str(state), "TERM": "xterm", "COLUMNS": "200"},
        )
        os.close(its_end)
        self.screen = ""

    def type(self, keys: str, until: str | None = "you: ") -> str:
        """Press keys, no quicker than a person does; returns what appears up to the text `until`.

        (Python's readline loses a Ctrl-C in the instant between the prompt and its wait for keys, till the next key.)
        """
        time.sleep(1.0 if CTRL_C in keys else 0.2)
        os.write(self._keys, keys.encode())
        return "" if until is None else self.wait(until)

    def wait(self, until: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while until not in self.screen:
            assert time.monotonic() < deadline, f"{until!r} does not appear: {self.screen[-1000:]!r}"
            if select.select([self._keys], [], [], 0.1)[0]:
                self.screen += os.read(self._keys, 4096).decode(errors="replace")
        before, _, self.screen = self.screen.partition(until)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keys)


@contextmanager
def chatting(model: Path, state: Path, *options: str) -> Iterator[Terminal]:
    terminal = Terminal(model, state, *options)
    try:
        terminal.wait("you: ")
        yield terminal
    finally:
        terminal.close()


def said(file: Path, role: str) -> list[str]:
    return [message["content"] for message in json.loads(file.read_text())["messages"] if message["role"] == role]


def test_a_person_types_pastes_stops_leaves_and_comes_back(model: Path, tmp_path: Path) -> None:
    first, second, state = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "state"
    with chatting(model, state, "--max-tokens", "3") as terminal:
        terminal.type("hello \\\n", "... ")
        terminal.type("world\n")
        terminal.type('"""\n', "... ")
        terminal.type("/no command\n", "... ")
        terminal.type('second"""\n')
        terminal.type("\x1b[200~pasted one\rpasted two\x1b[201~\n")
        terminal.type(f"not sent{CTRL_C}")
        terminal.type("/set max_tokens=8000\n")
        begun = time.monotonic()
        terminal.type("stop me\n", "tiny: ")
        terminal.type(CTRL_C, "[stopped]")
        assert time.monotonic() - begun < 30
        terminal.wait("you: ")
        assert "unknown command /dance" in terminal.type("/dance\n")
        terminal.type("/sa\t", "/save")  # the tab key
        terminal.type(f" {first}\n")
        terminal.type(CTRL_D, None)
        assert terminal.process.wait(30) == 0
    assert said(first, "user") == ["hello \nworld", "/no command\nsecond", "pasted one\npasted two", "stop me"]
    partial = said(first, "assistant")[-1]
    assert 0 < len(partial) < 8000 * 2, "what there was of the stopped answer stays"

    [kept] = state.rglob("*.jsonl")
    assert kept.stat().st_mode & 0o777 == 0o600
    with chatting(model, state, "--max-tokens", "3") as terminal:
        terminal.type(f"{UP * 3}\n")  # past /save and /dance
        terminal.type("/edit\n", "stop me")
        terminal.type(" again\n")
        terminal.type(f"/save {second}\n")
        terminal.type("/exit\n", None)
        assert terminal.process.wait(30) == 0
    assert said(second, "user") == ["stop me again"]


def test_without_history_nothing_typed_is_kept(model: Path, tmp_path: Path) -> None:
    with chatting(model, tmp_path / "state", "--max-tokens", "3", "--no-history") as terminal:
        told = terminal.type("hello\n")
        assert "tiny: " in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told)
        terminal.type(CTRL_D, None)
        assert terminal.process.wait(30) == 0
    assert not (tmp_path / "state").exists()
