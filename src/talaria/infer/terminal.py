"""A conversation in the terminal: lines typed or piped in, answers streamed out.

run_terminal_chat(load("runs/laptop"))
printf 'Who are you?\\n/exit\\n' | talaria chat runs/laptop     # no colours, one answer a line
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Message, Sampling, row_seed
from talaria.infer.conversation import Conversation, Turn, load_conversation
from talaria.infer.engine import Engine
from talaria.infer.line_editing import LineEditor

HELP = '''\
/new             forget the conversation so far (also /clear, /reset)
/system TEXT     set the system message and begin anew; without TEXT, remove it
/set NAME=VALUE  change how answers are drawn, e.g. /set temperature=0; without NAME, show it
/retry           answer the last question again
/edit TEXT       ask TEXT in place of the last question; without TEXT, change it where you type
/undo            take the last question and answer back
/save FILE.jsonl, /load FILE.jsonl
                 keep the conversation, go on with one
/model           what answers here, and how much of its context is used
/help            show this
/exit            leave (also /quit, Ctrl-D); Ctrl-C stops an answer

A line that ends in \\ goes on in the next; """ begins and ends a message of several lines, // one with a slash.'''
COMMANDS = (
    *("/new", "/clear", "/reset", "/system", "/set", "/retry", "/edit", "/undo", "/save", "/load", "/model"),
    *("/help", "/exit", "/quit"),
)
NOT_UTF8 = "standard input is not UTF-8; save it as UTF-8 and pipe it again, or set the terminal to UTF-8"
# What /set takes, by how its value is read.
SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
}


class ChatEngine(Protocol):
    """What the chat needs: a local or a remote engine."""

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        """Answer a conversation, piece by piece."""
        ...


class Continuation:
    """A model without a chat template as a chat engine: it goes on from what was typed last."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def stream_chat(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Chunk]:
        return self.engine.stream(messages[-1]["content"], **sampling)


def run_terminal_chat(
    engine: ChatEngine,
    system: str | None = None,
    name: str = "assistant",
    console: Console | None = None,
    history: Path | None = None,
    **sampling: Any,
) -> None:
    """Talk until /exit or the end of the input. `sampling` goes to `engine.stream_chat`.

    At a terminal lines are edited, and what is typed is kept in the file `history`, if one is named. An error that the
    user can mend (say, a conversation longer than the context) is shown and the chat goes on.

    When standard input is not a terminal there are no prompts and no greeting: each line is a turn, and answers only,
    each ended by a newline, are printed. An error of the engine is raised then, so that a script notices; what is wrong
    with a command stands where its answer would.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    if not sys.stdin.isatty():
        _TerminalChat(engine, system, name, console, sampling, None).run()
        return
    console.print(Text(f"Talking to {name}. /help lists commands.", style="dim"))
    try:
        editor = LineEditor(history, COMMANDS)
    except UserError as error:
        console.print(Text(str(error), style="red"))
        editor = LineEditor(None, COMMANDS)
    try:
        _TerminalChat(engine, system, name, console, sampling, editor).run()
    finally:
        editor.close()


class _TerminalChat:
    """The state of one chat. Without an `editor` lines are piped in, and a script is told answers only."""

    def __init__(
        self,
        engine: ChatEngine,
        system: str | None,
        name: str,
        console: Console,
        sampling: Mapping[str, Any],
        editor: LineEditor | None,
    ) -> None:
        self._engine, self._name, self._console, self._editor = engine, name, console, editor
        self._sampling = dict(sampling)
        self._conversation = Conversation(system)
        self._n_left_out = 0  # of the oldest turns, those that the context has no room for
        self._n_retries = 0  # of the last answer

    def run(self) -> None:
        """Take line by line, until one says to leave or there are no more."""
        going_on = True
        while going_on:
            try:
                line = self._read_line()
                going_on = line is not None and self._take(line)
            except KeyboardInterrupt:  # at the prompt it clears the line, as in a shell
                if self._editor is None:
                    raise
                self._console.out("")
            except UserError as error:
                if self._editor is None:
                    raise
                self._complain(error)

    def _read_line(self, prefill: str = "") -> str | None:
        """The next message without surrounding blanks; None at the end of the input."""
        try:
            if self._editor is None:
                line = sys.stdin.readline()
                return _utf8(line.strip()) if line else None
            return _utf8(self._editor.read(self._prompt("you: ", "1;36"), prefill))
        except UnicodeDecodeError:
            raise UserError(NOT_UTF8) from None
        except EOFError:
            self._console.out("")
            return None

    def _take(self, line: str) -> bool:
        """Answer, or do what a command says; returns whether the chat goes on."""
        turns = self._conversation.turns
        if not line.startswith("/") or line.startswith("//"):
            if line:
                self._n_retries = 0
                self._ask(line.removeprefix("/"), len(turns))
            return True
        command, _, argument = line.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        try:
            question = self._obey(command, argument.strip())
        except UserError as error:
            self._complain(error)
            return True
        if question is not None:
            self._ask(question, len(turns) - 1)
        return True

    def _obey(self, command: str, argument: str) -> str | None:
        """Do what a command says. Returns what is to be asked in place of the last question, if anything."""
        conversation = self._conversation
        match command:
            case "/help":
                self._console.print(Text(HELP))
            case "/new" | "/clear" | "/reset":
                self._begin(Conversation(conversation.system))
                self._note("conversation forgotten")
            case "/system":
                self._begin(Conversation(argument or None))
                self._note("system message set" if argument else "system message removed")
            case "/set":
                self._sampling = changed_sampling(self._sampling, argument)
                told = " ".join(f"{name}={value}" for name, value in self._sampling.items() if value is not None)
                self._console.print(Text(told)) if not argument else self._note(told)
            case "/retry":
                question = self._last(command).question
                self._n_retries += 1
                if self._sampling.get("temperature") == 0:
                    self._note("at temperature 0 an answer stays the same; /set temperature=0.7 varies it")
                return question
            case "/edit":
                question = self._last(command).question
                self._n_retries = 0
                return argument or self._edited(question)
            case "/undo":
                self._last(command)
                conversation.turns.pop()
                self._note("the last question and answer are taken back")
            case "/save":
                conversation.save(_file(command, argument))
                self._note(f"{argument} written; /load {argument} goes on with it")
            case "/load":
                self._begin(load_conversation(_file(command, argument)))
                self._note(f"a conversation of {len(self._conversation.turns)} turns goes on")
            case "/model":
                self._console.print(Text(self._about_the_model()))
            case _:
                raise UserError(f"unknown command {command}; /help lists commands, // begins a message with a slash")
        return None

    def _begin(self, conversation: Conversation) -> None:
        self._conversation, self._n_left_out, self._n_retries = conversation, 0, 0

    def _last(self, command: str) -> Turn:
        if not self._conversation.turns:
            raise UserError(f"{command}: nothing has been answered yet; ask something first")
        return self._conversation.turns[-1]

    def _edited(self, question: str) -> str | None:
        if self._editor is None or not self._editor.can_prefill:
            raise UserError("/edit: write the new question behind it, /edit TEXT")
        return self._read_line(prefill=question) or None

    def _about_the_model(self) -> str:
        engine = self._engine.engine if isinstance(self._engine, Continuation) else self._engine
        if not isinstance(engine, Engine):
            return self._name
        shape = engine.model.shape
        size = f"{self._name}: {shape.n_params():,} parameters, context of {engine.context} tokens"
        if isinstance(self._engine, Continuation) or not self._conversation.turns:
            return size
        n_tokens = len(engine.chat_prompt(self._conversation.messages(self._n_left_out)))
        return f"{size}, of which this conversation fills {n_tokens}"

    def _ask(self, question: str, n_before: int) -> None:
        """Answer a question that comes behind the first `n_before` turns; with its answer it replaces what follows."""
        n_left_out, messages = self._fitting(question, n_before)
        if n_left_out > self._n_left_out:
            self._note("the oldest turns no longer fit the model's context and are left out")
        self._n_left_out = n_left_out
        sampling = self._sampling
        if self._n_retries and sampling.get("seed") is not None:  # or it would be the same answer
            sampling = sampling | {"seed": row_seed(sampling["seed"], self._n_retries)}
        if answer := self._answer(messages, sampling):
            self._conversation.turns[n_before:] = [Turn(question, answer)]

    def _fitting(self, question: str, n_before: int) -> tuple[int, list[dict[str, str]]]:
        """What is asked, without as many of the oldest turns as a quarter of a local model's context needs for the
        answer; and their number."""
        asked = {"role": "user", "content": question}
        engine, first = self._engine, 0
        messages = [*self._conversation.messages(0, n_before), asked]
        if isinstance(engine, Engine):
            room = min(self._sampling.get("max_tokens", engine.context), engine.context // 4)
            while first < n_before and len(engine.chat_prompt(messages)) > engine.context - room:
                first += 1
                messages = [*self._conversation.messages(first, n_before), asked]
        return first, messages

    def _answer(self, messages: list[dict[str, str]], sampling: Mapping[str, Any]) -> str:
        """Print the answer as it comes; returns it, or what there was of it when Ctrl-C came, or "" after an error."""
        console = self._console
        if self._editor is not None:
            console.print(Text(f"{self._name}: ", style="bold green"), end="")
        pieces: list[str] = []
        try:
            for chunk in self._engine.stream_chat(messages, **sampling):
                pieces.append(chunk.text)
                console.out(printable(chunk.text), end="")
                console.file.flush()
        except KeyboardInterrupt:
            told = " [stopped]" if "".join(pieces) else "[stopped; the question is forgotten]"
            console.print(Text(told, style="dim"), end="")
        except UserError as error:
            if self._editor is None:
                raise
            self._complain(UserError(f"{error} (/new begins anew)"))
            return ""
        console.out("")
        return "".join(pieces)

    def _note(self, text: str) -> None:
        if self._editor is not None:
            self._console.print(Text(text, style="dim"))

    def _complain(self, error: UserError) -> None:
        self._console.print(Text(str(error), style="red"))

    def _prompt(self, text: str, style: str) -> str:
        """Coloured where the console is; readline leaves out what stands between 1 and 2 when it counts columns."""
        plain = self._console.color_system is None or self._editor is None or not self._editor.counts_columns
        return text if plain else f"\001\033[{style}m\002{text}\001\033[0m\002"


def changed_sampling(sampling: Mapping[str, Any], assignments: str) -> dict[str, Any]:
    """`sampling` with what "NAME=VALUE NAME=VALUE" says; VALUE none goes back to the engine's default.

    Raises UserError for a name that is not in SETTINGS and for a value that the engine would refuse.
    """
    changed = dict(sampling)
    for assignment in assignments.split():
        name, equals, value = assignment.partition("=")
        if not equals or name not in SETTINGS:
            raise UserError(f"/set {assignment}: write NAME=VALUE; the names are {', '.join(SETTINGS)}")
        if value == "none":
            changed.pop(name, None)
            continue
        try:
            changed[name] = SETTINGS[name](value)
        except ValueError:
            kind = "a whole number" if SETTINGS[name] is int else "a number"
            raise UserError(f"/set {assignment}: {value!r} is not {kind}; write e.g. /set {name}=1") from None
    seed = changed.get("seed")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"/set seed={seed}: must lie in 0..2^63-1; /set seed=none draws one")
    Sampling(**{name: value for name, value in changed.items() if name != "seed"})
    return changed


def printable(text: str) -> str:
    """`text` without control characters: a model's words must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def _utf8(text: str) -> str:
    """Where the locale is none, bytes that are not UTF-8 come as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(NOT_UTF8) from None
    return text


def _file(command: str, argument: str) -> Path:
    if not argument:
        raise UserError(f"{command}: name a file, e.g. {command} chat.jsonl")
    return Path(argument).expanduser()
