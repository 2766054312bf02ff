"""A conversation in the terminal: lines typed or piped in, answers streamed out.

run_terminal_chat(load("runs/laptop"))
printf 'Who are you?\\n/quit\\n' | talaria chat runs/laptop     # no colours, one answer a line
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Message
from talaria.infer.engine import Engine

HELP = """\
/reset        forget the conversation so far
/system TEXT  set the system message and begin anew; without TEXT, remove it
/help         show this
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


class ChatEngine(Protocol):
    """What the chat needs: a local or a remote engine."""

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        """Answer a conversation, piece by piece."""
        ...


class Continuation:
    """A model without a chat template as a chat engine: it goes on from what was typed last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        return self._engine.stream(messages[-1]["content"], **sampling)


def run_terminal_chat(
    engine: ChatEngine,
    system: str | None = None,
    name: str = "assistant",
    console: Console | None = None,
    **sampling: Any,
) -> None:
    """Talk until /quit or the end of the input. `sampling` goes to `engine.stream_chat`.

    When standard input is not a terminal there are no prompts and no greeting: answers only, each ended by a newline.
    At a terminal an error that the user can mend (say, a conversation longer than the context) is shown and the chat
    goes on; with piped input it is raised, so that a script notices.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # line editing and history, where the platform has them
            importlib.import_module("readline")
        console.print(Text(f"Talking to {name}. /help lists commands.", style="dim"))
    history: list[dict[str, str]] = _beginning(system)
    while (line := _read_line(console, interactive)) is not None:
        command, _, argument = line.partition(" ")
        if not line:
            continue
        if command == "/quit":
            return
        if command == "/help":
            console.print(Text(HELP))
        elif command == "/reset":
            history = history[:1] if history and history[0]["role"] == "system" else []
            _note(console, "conversation forgotten", interactive)
        elif command == "/system":
            history = _beginning(argument.strip() or None)
            _note(console, "system message set" if history else "system message removed", interactive)
        elif line.startswith("/"):
            console.print(Text(f"unknown command {command}; /help lists commands", style="red"))
        else:
            question = {"role": "user", "content": line}
            if (shorter := _fitting(engine, history, question, sampling)) != history:
                _note(console, "the oldest turns no longer fit the model's context and are left out", interactive)
                history = shorter
            answer = _answer(engine, [*history, question], name, console, interactive, sampling)
            if answer:
                history += [question, {"role": "assistant", "content": answer}]


def _fitting(
    engine: ChatEngine, history: list[dict[str, str]], question: dict[str, str], sampling: dict[str, Any]
) -> list[dict[str, str]]:
    """`history` without its oldest turns, so that a quarter of a local model's context is free for the answer."""
    if not isinstance(engine, Engine):
        return history
    room = min(sampling.get("max_tokens", engine.context), engine.context // 4)
    first = 1 if history and history[0]["role"] == "system" else 0
    while len(history) > first and len(engine.chat_prompt([*history, question])) > engine.context - room:
        history = history[:first] + history[first + 2 :]
    return history


def _answer(
    engine: ChatEngine,
    messages: list[dict[str, str]],
    name: str,
    console: Console,
    interactive: bool,
    sampling: dict[str, Any],
) -> str:
    """Print the answer as it comes; returns it, or what there was of it when Ctrl-C came, or "" after an error."""
    if interactive:
        console.print(Text(f"{name}: ", style="bold green"), end="")
    pieces: list[str] = []
    try:
        for chunk in engine.stream_chat(messages, **sampling):
            pieces.append(chunk.text)
            console.out(printable(chunk.text), end="")
            console.file.flush()
    except KeyboardInterrupt:
        console.print(Text(" [stopped]", style="dim"), end="")
    except UserError as error:
        if not interactive:
            raise
        console.print(Text(f"{error} (/reset begins anew)", style="red"))
        return ""
    console.out("")
    return "".join(pieces)


def printable(text: str) -> str:
    """`text` without control characters: a model's words must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _read_line(console: Console, interactive: bool) -> str | None:
    """The next line without surrounding blanks; None at the end of the input."""
    try:
        if interactive:
            return console.input(Text("you: ", style="bold cyan")).strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8; save it as UTF-8 and pipe it again") from None
    except EOFError:
        console.out("")
        return None
    except KeyboardInterrupt:  # at the prompt it clears the line, as in a shell
        console.out("")
        return ""


def _beginning(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _note(console: Console, text: str, interactive: bool) -> None:
    if interactive:
        console.print(Text(text, style="dim"))
