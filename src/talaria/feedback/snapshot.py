"""What people have chosen so far, frozen for a round: their databases in, one that nobody writes to any more out.

The databases themselves stay open to annotators and are only read, so that nothing is lost and no finished round
becomes stale by what is added to them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from talaria.errors import UserError
from talaria.feedback.exchange import export_choices, import_choices
from talaria.feedback.settings import DATABASE
from talaria.feedback.store import Comparison, FeedbackStore
from talaria.run import without_passwords


def freeze_choices(stores: Sequence[str], policy: str | None, wanted: int, next_step: str, folder: Path) -> None:
    """Write `folder`/feedback.db with every choice that stands in `stores` (paths or URLs).

    UserError, which ends with `next_step`, where fewer than `wanted` rankings hold an answer of the model named
    `policy` (None: of any).
    """
    found = [_choices(store) for store in stores]
    new = sum(_holds(choice, policy) for choices in found for choice in choices)
    if new < wanted:
        of = "" if policy is None else f" with answers of {policy}"
        shown = ", ".join(without_passwords(store) for store in stores)
        raise UserError(f"{shown}: {new} rankings{of}, this round needs {wanted}; {next_step}")
    for leftover in folder.glob(f"{DATABASE}*"):
        leftover.unlink()
    frozen = FeedbackStore(folder / DATABASE)
    with tempfile.TemporaryDirectory() as scratch:
        for number, choices in enumerate(found):
            if choices:
                file = Path(scratch) / f"{number}.jsonl"
                export_choices(choices, file, "jsonl")
                import_choices(frozen, file, "jsonl")
    frozen.close()


def count_choices(database: str) -> int:
    """Choices that stand in a database (path or URL)."""
    return len(_choices(database))


def _choices(location: str) -> list[Comparison]:
    if "://" not in location and not Path(location).is_file():
        return []
    store = FeedbackStore(location)
    choices = store.read_comparisons()
    store.close()
    return choices


def _holds(choice: Comparison, policy: str | None) -> bool:
    return policy is None or any(answer.model == policy for group in choice.ranking for answer in group)
