"""The log of prompts, for those who run a server and have told its users: a JSON line for each chat.

log_prompt("prompts-log.jsonl", messages, "ann")          # talaria prompts prompts-log.jsonl reads it
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from talaria.errors import UserError


def open_prompt_log(path: str) -> int:
    """A descriptor of the file, which its owner alone may read. Raises UserError where it cannot be written."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"prompt_log {path}: cannot be written ({error.strerror}); name another file") from None


def log_prompt(path: str, messages: Sequence[Mapping[str, Any]], user: str | None) -> None:
    """Add a line to the file. One write at its end, so that lines of several servers never mix. `user` None: nobody
    knows who. Half a character, which a tool call's arguments may hold, becomes "?": no reader takes it as text."""
    row = {"messages": messages, "user": user, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    descriptor = open_prompt_log(path)
    try:
        os.write(descriptor, (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
    finally:
        os.close(descriptor)
