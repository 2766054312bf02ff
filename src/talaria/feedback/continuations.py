"""Conversations from plain documents: asked to continue a passage's opening, the assistant gives what follows.

They teach a model trained on somebody's own text to take turns and to end an answer; no instruction data is needed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.feedback.settings import ConversationSettings
from talaria.files import atomic_write

_ASKED_EN = ("Continue: {}", "Go on from here: {}", "What comes next? {}", "{}", "Write on after this: {}")
_ASKED_ZH = ("请续写：{}", "接下去：{}", "下面是什么？{}", "{}", "请接着写：{}")
_ENDS = ".!?。！？\n"


def write_continuations(documents: Iterable[Document], settings: ConversationSettings, path: Path) -> None:
    """Write `settings.continuations` conversations, passages drawn evenly over the corpus by reservoir sampling."""
    draw = random.Random(settings.seed)
    chosen: list[str] = []
    seen = 0
    span = settings.opening_characters + settings.answer_characters
    for document in documents:
        for start in range(0, max(1, len(document.text) - span // 2), span):
            passage = document.text[start : start + span].strip()
            if len(passage) < settings.opening_characters:
                continue
            seen += 1
            if len(chosen) < settings.continuations:
                chosen.append(passage)
            elif (place := draw.randrange(seen)) < settings.continuations:
                chosen[place] = passage
    if len(chosen) < 2:
        raise UserError(
            f"the corpus has {len(chosen)} passages of {settings.opening_characters} characters, too few to make "
            "conversations; add text or lower conversations.opening_characters"
        )
    rows = [_conversation(passage, settings, draw) for passage in chosen]
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _conversation(passage: str, settings: ConversationSettings, draw: random.Random) -> dict[str, object]:
    cut = _word_end(passage, draw.randint(settings.opening_characters // 3, settings.opening_characters))
    opening, answer = passage[:cut].strip(), passage[cut:].strip()
    last = max((answer.rfind(mark) for mark in _ENDS), default=-1)
    if last > len(answer) // 3:
        answer = answer[: last + 1].strip()
    asked = draw.choice(_ASKED_ZH if _is_chinese(opening) else _ASKED_EN).format(opening)
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer or passage}]
    return {"messages": messages, "kind": "continuation"}


def _word_end(text: str, place: int) -> int:
    """The next space at or after `place`, if one is near; Chinese has none and is cut in place."""
    space = text.find(" ", place)
    return space if place <= space < place + 20 else place


def _is_chinese(text: str) -> bool:
    return sum("\u4e00" <= character <= "\u9fff" for character in text) * 3 > len(text)
