"""Prompts for people and models to answer: files of conversations in, clean prompts with users and splits out.

    counts = gather_prompts([Path("log.jsonl"), Path("runs/laptop")], Path("prompts.jsonl"), PromptSettings())

The rules are those of InstructGPT (Ouyang et al. 2022, section 3.2): duplicates by a long common prefix go, one user
gives at most 200, personal data is masked, and users, not prompts, are split. Each rule counts what it did.
Users are named by a hash in what is written: nobody reads a name there, but who knows the names can find them again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from talaria.corpus.clean import mask_personal_data, normalise
from talaria.corpus.document import decode_line
from talaria.corpus.files import kind_of, read_lines
from talaria.errors import UserError
from talaria.feedback.settings import PromptSettings
from talaria.files import atomic_write
from talaria.tokens.chat import check_messages
from talaria.tokens.conversations import read_rows

Message = dict[str, Any]
WORLD = Path("world") / "conversations.jsonl"


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a user's turn; who asked, where it comes from, and its split once it has one."""

    messages: list[Message]
    user: str | None = None
    source: str = ""
    split: str | None = None


@dataclass(frozen=True)
class PromptCounts:
    """What each rule did: `dropped` and `masked` by reason, `kept` by split; `without_user` of those that were kept."""

    read: int
    dropped: dict[str, int]
    masked: dict[str, int]
    kept: dict[str, int]
    users: int
    without_user: int


def gather_prompts(paths: Sequence[Path], output: Path, settings: PromptSettings) -> PromptCounts:
    """Write the prompts of files, or of runs' worlds, to `output` as JSONL: messages, user (a hash), source, split."""
    found = [prompt for path in paths for prompt in read_prompts(path / WORLD if (path / WORLD).is_file() else path)]
    kept, counts = clean_prompts(found, settings)
    if not kept:
        raise UserError(f"{paths[0]}: no prompt is left ({counts.dropped}); give more files or change the rules")
    rows = [
        {"messages": prompt.messages, "user": prompt.user, "source": prompt.source, "split": prompt.split}
        for prompt in kept
    ]
    atomic_write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return counts


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, plain or .gz/.zst: rows {"messages": [...], "user": ...}, {"prompt": text} or
    {"instruction", "input"}, as JSONL or one JSON array; of a .txt file a line each. What answers the last user is left
    out. Raises UserError that names file and line."""
    if kind_of(path) == ".txt":
        lines = [decode_line(path, line, offset).strip() for _, offset, line in read_lines(path)]
        return [Prompt([{"role": "user", "content": line}], source=path.name) for line in lines if line]
    return [_prompt(row, place, path.name) for place, row in read_rows(path)]


def clean_prompts(found: Sequence[Prompt], settings: PromptSettings) -> tuple[list[Prompt], PromptCounts]:
    """Apply the rules in order: masked, empty, gone on with in a longer one, said before, too many of a user, split."""
    dropped, masked = Counter({"no user turn, or an empty one": 0}), Counter[str]()
    kept = []
    for prompt in found:
        masked_one = _masked(prompt, masked) if settings.mask_personal_data else prompt
        if not masked_one.messages or not masked_one.messages[-1]["content"].strip():
            dropped["no user turn, or an empty one"] += 1
        else:
            kept.append(masked_one)
    kept = _without_beginnings(kept, dropped)
    kept = _without_duplicates(kept, settings.prefix_characters, dropped)
    kept = _at_most(kept, settings, dropped)
    kept = [_split(prompt, settings) for prompt in kept]
    users = {prompt.user for prompt in kept} - {None}
    return kept, PromptCounts(
        read=len(found),
        dropped=dict(dropped),
        masked=dict(masked),
        kept=dict(Counter(str(prompt.split) for prompt in kept)),
        users=len(users),
        without_user=sum(prompt.user is None for prompt in kept),
    )


def _masked(prompt: Prompt, masked: Counter[str]) -> Prompt:
    messages = []
    for message in prompt.messages:
        text, emails, phones = mask_personal_data(normalise(message["content"]))
        masked["email addresses"] += emails
        masked["phone numbers"] += phones
        messages.append({"role": message["role"], "content": text})
    return replace(prompt, messages=messages)


def _without_beginnings(prompts: list[Prompt], dropped: Counter[str]) -> list[Prompt]:
    """A log of chats holds each conversation after each of its turns: the longest stands for all."""
    beginnings = {
        (prompt.user, _key(prompt.messages[:n])) for prompt in prompts for n in range(1, len(prompt.messages))
    }
    kept = [prompt for prompt in prompts if (prompt.user, _key(prompt.messages)) not in beginnings]
    dropped["the same conversation goes on in another prompt"] += len(prompts) - len(kept)
    return kept


def _without_duplicates(prompts: list[Prompt], n_characters: int, dropped: Counter[str]) -> list[Prompt]:
    """Two prompts are the same if they share their first n characters, or are equal and shorter: sharing a prefix of
    that length is an equivalence, so the prefix is a key and no pair is compared. The first one stays.

    System turns count whole, beside the prefix: a whole service shares one, and what its users ask comes behind it."""
    first: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        system = [turn for turn in prompt.messages if turn["role"] == "system"]
        said = [turn for turn in prompt.messages if turn["role"] != "system"]
        first.setdefault((_key(system), _key(said)[:n_characters]), prompt)
    dropped[f"shares its first {n_characters} characters with another, or is equal to it"] += len(prompts) - len(first)
    return list(first.values())


def _at_most(prompts: list[Prompt], settings: PromptSettings, dropped: Counter[str]) -> list[Prompt]:
    """Of a user with too many a sample stays, drawn by hash, so that it does not depend on what else is there."""
    by_user: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if prompt.user is not None:
            by_user.setdefault(prompt.user, []).append(index)
    surplus: set[int] = set()
    for indices in by_user.values():
        order = sorted(indices, key=lambda index: _hash(f"{settings.seed}\0{_key(prompts[index].messages)}"))
        surplus |= set(order[settings.per_user :])
    dropped[f"beyond {settings.per_user} of one user"] += len(surplus)
    return [prompt for index, prompt in enumerate(prompts) if index not in surplus]


def _split(prompt: Prompt, settings: PromptSettings) -> Prompt:
    """By the hash of the user, so that one who comes back next month is in the same split; else of the prompt."""
    who = _hash(f"{settings.seed}\0{prompt.user}") if prompt.user is not None else None
    place = int(who or _hash(f"{settings.seed}\0{_key(prompt.messages)}"), 16) / 16**64
    if place < settings.test_share:
        split = "test"
    elif place < settings.test_share + settings.validation_share:
        split = "validation"
    else:
        split = "train"
    return replace(prompt, split=split, user=None if who is None else who[:16])


def _key(messages: Sequence[Message]) -> str:
    """What two prompts are compared by: case and spacing do not count."""
    return "\n".join(" ".join(f"{turn['role']}: {turn['content']}".split()).casefold() for turn in messages)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _prompt(row: Any, place: str, source: str) -> Prompt:
    if not isinstance(row, dict):
        raise UserError(f'{place}: write an object with "messages", "prompt" or "instruction"')
    user = row.get("user", row.get("asked_by"))
    if isinstance(row.get("messages"), list):
        check_messages(row["messages"], f"{place}: messages", with_tools=True)
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"] if m["role"] != "tool"]
    elif isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    elif isinstance(row.get("instruction"), str):
        instances = row.get("instances") or [{}]  # of seed tasks
        if not isinstance(instances, list) or not isinstance(instances[0], dict):
            raise UserError(f'{place}: instances: write a list of {{"input": ..., "output": ...}}')
        given = row.get("input", instances[0].get("input"))
        asked = "\n\n".join(part for part in (row["instruction"], given) if isinstance(part, str) and part)
        messages = [{"role": "user", "content": asked}]
    else:
        raise UserError(f'{place}: no prompt; a row needs "messages", "prompt" or "instruction"')
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return Prompt(messages, None if user is None else str(user), source, row.get("split"))
