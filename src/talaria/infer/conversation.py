"""A conversation that goes on: turns are added, taken back, said anew, saved and loaded.

conversation = Conversation(system="Be brief.")
conversation.turns.append(Turn("Hello!", "Hello."))
conversation.save(Path("hello.jsonl"))         # a row that fine-tuning reads: {"messages": [...]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from talaria.errors import UserError
from talaria.files import atomic_write
from talaria.tokens.conversations import read_conversations


@dataclass(frozen=True)
class Turn:
    """What was asked and what was answered, if only in part."""

    question: str
    answer: str


@dataclass
class Conversation:
    """A system message, if any, and the turns behind it."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, first: int = 0, last: int | None = None) -> list[dict[str, str]]:
        """The system message and the turns `first` up to but not including `last`, as a chat template takes them."""
        said = [] if self.system is None else [("system", self.system)]
        for turn in self.turns[first:last]:
            said += [("user", turn.question), ("assistant", turn.answer)]
        return [{"role": role, "content": content} for role, content in said]

    def save(self, path: Path) -> None:
        """Write one row of JSONL. Raises UserError for another suffix, and where a file would be overwritten."""
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: name a file that ends in .jsonl")
        if path.exists():
            raise UserError(f"{path}: exists already; choose another name or delete it")
        if not self.turns:
            raise UserError(f"{path}: nothing has been said yet; ask something first")
        try:
            atomic_write(path, json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


def load_conversation(path: Path) -> Conversation:
    """The one conversation of a file, JSONL or JSON array. Raises UserError unless questions and answers take turns."""
    try:
        found = read_conversations(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that /save wrote") from None
    if len(found) > 1:
        raise UserError(f"{path}: holds {len(found)} conversations; give a file with one")
    [messages] = found
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    if [message["role"] for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise UserError(f"{path}: user and assistant do not take turns up to an answer; mend the file")
    said = [message["content"] for message in messages]
    return Conversation(system, [Turn(*pair) for pair in zip(said[::2], said[1::2], strict=True)])
