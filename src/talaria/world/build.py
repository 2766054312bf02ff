"""Write a world to a folder.

In: `WorldSettings`. Out: pages.jsonl, labels.jsonl, conversations.jsonl, exam.jsonl, facts.jsonl, world.json. The same
settings give the same bytes.

    from talaria.world.build import write_world
    from talaria.world.settings import WorldSettings

    write_world(WorldSettings(seed=1, entities=240), Path("world"))
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from talaria.world.dialogue import build_conversations
from talaria.world.exam import build_exam
from talaria.world.mess import add_mess
from talaria.world.pages import build_pages
from talaria.world.people import build_world, stream
from talaria.world.settings import WORLD_VERSION, WorldSettings


def write_world(settings: WorldSettings, folder: Path) -> None:
    """Write the six files below `folder`, which is made if need be."""
    world = build_world(settings)
    exam = build_exam(world, settings)
    pages = add_mess(build_pages(world, settings), exam, settings)
    stream(settings, "pages/order").shuffle(pages)
    conversations = build_conversations(world, settings)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"page-{number:05d}" for number in range(len(pages))]
    page_rows = [
        {"id": id_, "url": f"https://{page.host}/{page.path}", "text": page.text}
        for id_, page in zip(ids, pages, strict=True)
    ]
    label_rows = [{"id": id_, "labels": page.labels or ["clean"]} for id_, page in zip(ids, pages, strict=True)]
    fact_rows = [
        {
            "subject": fact.subject.name._asdict(),
            "kind": fact.subject.kind,
            "relation": fact.relation,
            "object": fact.object._asdict(),
            "shown_as_question": fact.asked,
        }
        for fact in world.facts
    ]
    _write_rows(folder / "pages.jsonl", page_rows)
    _write_rows(folder / "labels.jsonl", label_rows)
    _write_rows(folder / "conversations.jsonl", conversations)
    _write_rows(folder / "exam.jsonl", exam)
    _write_rows(folder / "facts.jsonl", fact_rows)
    summary = {
        "version": WORLD_VERSION,
        "settings": settings.model_dump(),
        "entities": len(world.entities),
        "facts": len(world.facts),
        "facts_never_asked": sum(not fact.asked for fact in world.facts),
        "pages": len(pages),
        "pages_by_label": _count(label for row in label_rows for label in row["labels"]),
        "conversations_by_kind": _count(row["kind"] for row in conversations),
        "exam_by_task": _count(item["task"] for item in exam),
    }
    (folder / "world.json").write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
