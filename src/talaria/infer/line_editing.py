'''Messages typed at a terminal: line editing and history by readline, and messages of several lines.

    editor = LineEditor(history_file(), ["/help"])
    message = editor.read("you: ")                 # EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C

A line that ends in a backslash goes on in the next one. """ begins a block that the next """ ends. Pasted lines stay
together where readline knows bracketed paste (GNU readline 8 and later). Without readline (Windows) lines are read
plainly, and no history is kept.
'''

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from talaria.errors import UserError

HISTORY_LENGTH = 1000
QUOTES = '"""'


def history_file() -> Path:
    """Where what was typed is kept: $XDG_STATE_HOME or ~/.local/state (XDG base directories, 0.8)."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "talaria" / "chat-history.jsonl"


class LineEditor:
    """Reads messages from standard input. `commands` are what the tab key completes at the beginning of a line.

    `history` is a file of JSON strings, one message a line, with mode 0600; None keeps nothing. Raises UserError where
    it cannot be opened.
    """

    def __init__(self, history: Path | None = None, commands: Sequence[str] = ()) -> None:
        self._commands = commands
        self._history: IO[str] | None = None
        self._newest = ""
        try:  # here, since importing it may already write to standard output
            self._readline: Any = importlib.import_module("readline")
        except ImportError:
            self._readline = None
            return
        readline = self._readline
        self._completer_before = readline.get_completer()
        readline.set_auto_history(False)  # a message of several lines is one entry, not several
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")
        if history is not None:
            self._open(history)

    def close(self) -> None:
        """Give readline back as it was."""
        if self._history is not None:
            self._history.close()
        if self._readline is not None:
            self._readline.set_auto_history(True)
            self._readline.set_completer(self._completer_before)

    @property
    def can_prefill(self) -> bool:
        """Whether `read` can begin with a text that is there to be changed."""
        return self._readline is not None and sys.stdin.isatty()

    @property
    def counts_columns(self) -> bool:
        """Whether a prompt's colours between \\001 and \\002 are known to take no room."""
        return self._readline is not None and "GNU" in self._readline.__doc__

    def read(self, prompt: str, prefill: str = "") -> str:
        """One message, without surrounding blanks; a slash that a block in triple quotes begins with is doubled."""
        line = self._line(prompt, prefill)
        lines = []
        if line.lstrip().startswith(QUOTES):
            line = line.lstrip().removeprefix(QUOTES)
            while not line.rstrip().endswith(QUOTES):
                lines.append(line)
                line = self._line("... ")
            block = "\n".join([*lines, line.rstrip().removesuffix(QUOTES)]).strip("\n")
            message = f"/{block}" if block.startswith("/") else block
        else:
            while line.endswith("\\"):
                lines.append(line.removesuffix("\\"))
                line = self._line("... ")
            message = "\n".join([*lines, line]).strip()
        self._remember(message)
        return message

    def _line(self, prompt: str, prefill: str = "") -> str:
        if self._readline is None:
            return input(prompt)
        self._readline.set_startup_hook(lambda: self._readline.insert_text(prefill))
        try:
            return input(prompt)
        finally:
            self._readline.set_startup_hook(None)

    def _complete(self, text: str, index: int) -> str | None:
        found = [name for name in self._commands if name.startswith(text)] if self._readline.get_begidx() == 0 else []
        return found[index] if index < len(found) else None

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            os.fchmod(descriptor, 0o600)
            self._history = os.fdopen(descriptor, "a+", encoding="utf-8")
            self._history.seek(0)
            entries = [json.loads(line) for line in self._history]
        except OSError as error:
            raise UserError(f"{path}: no history is kept ({error.strerror}); --no-history asks for none") from None
        except ValueError:
            raise UserError(f"{path}: not a history of chats; delete it, or --no-history leaves it alone") from None
        if len(entries) > 2 * HISTORY_LENGTH:
            self._history.truncate(0)
            self._history.writelines(f"{json.dumps(entry)}\n" for entry in entries[-HISTORY_LENGTH:])
            self._history.flush()
        for entry in entries[-HISTORY_LENGTH:]:
            self._readline.add_history(str(entry))

    def _remember(self, message: str) -> None:
        if self._readline is None or not message or message == self._newest:
            return
        self._newest = message
        self._readline.add_history(message)
        if self._history is not None:  # at once, so that a chat that is killed loses nothing
            self._history.write(f"{json.dumps(message)}\n")
            self._history.flush()
