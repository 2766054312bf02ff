"""Forms that others keep choices in, row by row: a row of a file in, choices out, and back.

    READERS["hh"](row, "file.jsonl:3")                        # yields choices; why a part of it is left out is a str
    WRITERS["dpo"](comparisons, left_out)                     # yields rows; counts by reason what it leaves out

exchange.py says what the forms are and does the files.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from talaria.errors import UserError
from talaria.feedback.store import FLAGS, MOST_ANSWERS, Comparison, Verdict
from talaria.tokens.chat import check_messages

Message = dict[str, Any]


class LeftOut(Exception):
    """A row that holds no usable choice; says why."""


@dataclass(frozen=True)
class Choice:
    """A choice outside the store. Answers are named by their place in `answers`."""

    messages: list[Message]
    answers: list[dict[str, Any]]
    """What `append_answer` takes: text, model, and where known seed and sampling."""
    ranking: list[list[int]]
    annotator: str
    details: dict[str, Any] = field(default_factory=dict)
    """What `append_comparison` takes further."""
    asked_by: str | None = None
    split: str | None = None


def _pair(messages: list[Message], chosen: str, rejected: str, annotator: str, **details: Any) -> Choice:
    if not messages or messages[-1]["role"] != "user":
        raise LeftOut("the prompt does not end with the user's turn")
    if not chosen.strip() or not rejected.strip():
        raise LeftOut("an answer is empty")
    if chosen == rejected:
        raise LeftOut("both answers are the same")
    answers = [{"text": text, "model": "unknown"} for text in (chosen, rejected)]
    return Choice(messages, answers, [[0], [1]], annotator, details)


# ------------------------------------------------------------------------------- hh-rlhf

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _read_hh(row: dict[str, Any], place: str) -> Iterator[Choice | str]:
    if not isinstance(row.get("chosen"), str) or not isinstance(row.get("rejected"), str):
        raise UserError(f'{place}: "chosen" and "rejected" must be text; is this the form "dpo"?')
    chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
    n_shared = 0
    # Whole turns, not characters: two answers that begin alike share no prompt by that.
    while n_shared < min(len(chosen), len(rejected)) and chosen[n_shared] == rejected[n_shared]:
        n_shared += 1
    if n_shared == len(chosen) == len(rejected):
        raise LeftOut("both answers are the same")
    tails = chosen[n_shared:], rejected[n_shared:]
    if any(len(tail) != 1 or tail[0]["role"] != "assistant" for tail in tails):
        raise LeftOut("the dialogues part before their last answers")
    yield _pair(chosen[:n_shared], tails[0][0]["content"], tails[1][0]["content"], "hh-rlhf")


def _turns(text: str) -> list[Message]:
    """Turns of a dialogue; two of one speaker in a row are one turn."""
    start, *rest = _TURN.split(text)
    if start.strip() or not rest:
        raise LeftOut('the text does not begin with "Human:"')
    turns: list[Message] = []
    for speaker, said in zip(rest[::2], rest[1::2], strict=True):
        said = said.strip()
        if turns and turns[-1]["role"] == _ROLES[speaker]:
            turns[-1]["content"] += f"\n\n{said}"
        else:
            turns.append({"role": _ROLES[speaker], "content": said})
    return turns


def _write_hh(comparisons: Iterable[Comparison], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for messages, better, worse in _strict_pairs(comparisons, left_out):
        turns = [(message["role"], message["content"]) for message in messages]
        spoken = "".join(f"\n\n{'Human' if role == 'user' else 'Assistant'}: {said}" for role, said in turns)
        row = {"chosen": f"{spoken}\n\nAssistant: {better}", "rejected": f"{spoken}\n\nAssistant: {worse}"}
        if not {role for role, _ in turns} <= {"user", "assistant"}:
            left_out["hh has no place for a system prompt or tools"] += 1
        elif any(
            _turns(row[key]) != [*messages, {"role": "assistant", "content": said}]
            for key, said in (("chosen", better), ("rejected", worse))
        ):
            left_out["the text would not be read back as it is (turn marks or white space at an end)"] += 1
        else:
            yield row


# ------------------------------------------------------------------------------- DPO pairs

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _read_dpo(row: dict[str, Any], place: str) -> Iterator[Choice | str]:
    chosen = row.get("chosen", row.get("chosen_messages"))
    rejected = row.get("rejected", row.get("rejected_messages"))
    if chosen is None or rejected is None:
        raise UserError(f'{place}: no "chosen" and "rejected"; is this another form?')
    prompt = row.get("prompt", row.get("conversations", row.get("messages")))
    if prompt is None and isinstance(row.get("instruction"), str):
        prompt = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    told = [_messages(value, "assistant", place) for value in (chosen, rejected)]
    if prompt is None:  # whole conversations that part at the end
        n_shared = 0
        while n_shared < min(map(len, told)) and told[0][n_shared] == told[1][n_shared]:
            n_shared += 1
        messages, told = told[0][:n_shared], [turns[n_shared:] for turns in told]
        if told == [[], []]:
            raise LeftOut("both answers are the same")
    else:
        messages = _messages(prompt, "user", place)
    if isinstance(row.get("system"), str) and row["system"]:
        messages = [{"role": "system", "content": row["system"]}, *messages]
    if any(len(turns) != 1 or turns[0]["role"] != "assistant" for turns in told):
        raise LeftOut("chosen or rejected is not one answer")
    yield _pair(messages, told[0][0]["content"], told[1][0]["content"], str(row.get("annotator", "dpo")))


def _messages(value: Any, role: str, place: str) -> list[Message]:
    """Text, one turn or a list of turns, each with role and content or from and value, content as text or in parts."""
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    turns = [turns] if isinstance(turns, dict) else turns
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{place}: neither text nor turns: {str(value)[:60]!r}")
    found = []
    for turn in turns:
        speaker, said = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(said, list) and all(isinstance(part, dict) for part in said):
            said = "".join(str(part.get("text", part.get("value", ""))) for part in said)
        if speaker not in _SPEAKERS or not isinstance(said, str):
            raise LeftOut(f"a turn of {speaker!r}, or without text")
        found.append({"role": _SPEAKERS[speaker], "content": said})
    return found


def _write_dpo(comparisons: Iterable[Comparison], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for messages, better, worse in _strict_pairs(comparisons, left_out):
        answers = ([{"role": "assistant", "content": said}] for said in (better, worse))
        yield {"prompt": messages, **dict(zip(("chosen", "rejected"), answers, strict=True))}


def _strict_pairs(
    comparisons: Iterable[Comparison], left_out: Counter[str]
) -> Iterator[tuple[list[Message], str, str]]:
    for choice in comparisons:
        left_out["pairs that are tied"] += sum(len(group) * (len(group) - 1) // 2 for group in choice.ranking)
        for upper, lower in combinations(choice.ranking, 2):
            for better in upper:
                for worse in lower:
                    yield choice.messages, better.text, worse.text
    if not left_out["pairs that are tied"]:
        del left_out["pairs that are tied"]


# ------------------------------------------------------------------------------- OpenAssistant


def _read_tree(row: dict[str, Any], place: str) -> Iterator[Choice | str]:
    root = row.get("prompt")
    if not isinstance(root, dict) or "text" not in root:
        raise UserError(f'{place}: no "prompt" with "text" and "replies"; is this an OpenAssistant message tree?')
    waiting: list[tuple[dict[str, Any], list[Message]]] = [(root, [])]
    while waiting:
        node, before = waiting.pop()
        role = "assistant" if node.get("role") == "assistant" else "user"
        messages = [*before, {"role": role, "content": str(node["text"])}]
        replies = [reply for reply in node.get("replies") or () if not reply.get("deleted")]
        waiting += [(reply, messages) for reply in reversed(replies)]
        if role == "assistant" or not replies:
            continue
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len(ranked) < 2:
            yield "a message with fewer than two ranked replies"
        elif len(ranked) > MOST_ANSWERS:
            yield f"a message with more than {MOST_ANSWERS} ranked replies"
        else:
            groups: dict[int, list[int]] = defaultdict(list)
            for index, reply in enumerate(ranked):
                groups[reply["rank"]].append(index)
            answers = [{"text": str(reply["text"]), "model": reply.get("model_name") or "a person"} for reply in ranked]
            yield Choice(messages, answers, [groups[rank] for rank in sorted(groups)], "open-assistant")


def _write_trees(comparisons: Iterable[Comparison], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """A tree for each first message; replies that several people ranked stand by their mean place. A conversation that
    was stored twice, with answers that nobody compared with each other, gets a tree more."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    prompts: dict[int, Comparison] = {}
    answers: dict[int, dict[int, Any]] = defaultdict(dict)
    for choice in comparisons:
        prompts.setdefault(choice.prompt_id, choice)
        above = 0
        for group in choice.ranking:
            for answer in group:
                places[choice.prompt_id, answer.id].append(above)
                answers[choice.prompt_id][answer.id] = answer
            above += len(group)
    trees: dict[tuple[str, int], dict[str, Any]] = {}
    times: Counter[str] = Counter()  # of a conversation
    for prompt_id, choice in prompts.items():
        turns = choice.messages
        if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            left_out["a tree has no place for a system prompt or tools"] += 1
            continue
        conversation = json.dumps([turn["content"] for turn in turns])
        which = turns[0]["content"], times[conversation]
        times[conversation] += 1
        node = trees.setdefault(which, _node(turns[0]["content"], "prompter", str(prompt_id)))
        for turn in turns[1:]:
            role = "prompter" if turn["role"] == "user" else "assistant"
            node = _reply(node, turn["content"], role)
        found = answers[prompt_id].values()
        means = {answer.id: sum(places[prompt_id, answer.id]) / len(places[prompt_id, answer.id]) for answer in found}
        ranks = {mean: rank for rank, mean in enumerate(sorted(set(means.values())))}
        for answer in found:
            _reply(node, answer.text, "assistant").update(rank=ranks[means[answer.id]], model_name=answer.model)
    for tree in trees.values():
        yield {"message_tree_id": tree["message_id"], "tree_state": "ready_for_export", "prompt": tree}


def _node(text: str, role: str, message_id: str) -> dict[str, Any]:
    return {"message_id": message_id, "text": text, "role": role, "deleted": False, "replies": []}


def _reply(node: dict[str, Any], text: str, role: str) -> dict[str, Any]:
    """The reply of this text, made where there is none."""
    for reply in node["replies"]:
        if reply["text"] == text and reply["role"] == role:
            return reply  # type: ignore[no-any-return]
    made = _node(text, role, f"{node['message_id']}.{len(node['replies'])}")
    node["replies"].append({**made, "parent_id": node["message_id"]})
    return node["replies"][-1]  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------- our own


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str
    model: str = "unknown"
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    sampling: dict[str, Any] = {}


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    answers: list[_Answer]
    ranking: list[list[int]]
    annotator: str = "unknown"
    seconds: float | None = None
    flags: dict[str, Any] = {}
    verdict: Verdict = "ranked"
    scores: dict[Annotated[str, Field(pattern="^[0-9]{1,3}$")], int] = {}
    comment: str | None = None
    criterion: str | None = None
    created_at: Annotated[AwareDatetime, Field(strict=False)] | None = None
    asked_by: str | None = None
    split: str | None = None


def _read_own(row: dict[str, Any], place: str) -> Iterator[Choice | str]:
    check_messages(row.get("messages") or (), f"{place}: messages", with_tools=True)
    try:
        told = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{place}: {where}: {first['msg']}; see docs/feedback.md for a row of this form") from None
    flagged = [told.flags[name] for name in FLAGS if name in told.flags]
    if not all(isinstance(places, list) and all(type(one) is int for one in places) for places in flagged):
        raise UserError(f'{place}: flags: write the places of answers, e.g. {{"harmful": [0]}}')
    named = {one for group in (*told.ranking, *flagged) for one in group} | set(map(int, told.scores))
    if not named <= set(range(len(told.answers))):
        raise UserError(f"{place}: names answer {max(named)} of {len(told.answers)}; places in answers count from 0")
    answers = [answer.model_dump() for answer in told.answers]
    details = told.model_dump(exclude={"answers", "ranking", "annotator", "asked_by", "split"}, exclude_unset=True)
    yield Choice(row["messages"], answers, told.ranking, told.annotator, details, told.asked_by, told.split)


def _write_own(comparisons: Iterable[Comparison], _left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for choice in comparisons:
        answers = [answer for group in choice.ranking for answer in group]
        place = {answer.id: index for index, answer in enumerate(answers)}
        row = {
            "messages": choice.messages,
            "answers": [
                {"text": answer.text, "model": answer.model, "seed": answer.seed, "sampling": answer.sampling}
                for answer in answers
            ],
            "ranking": [[place[answer.id] for answer in group] for group in choice.ranking],
            "annotator": choice.annotator,
            "seconds": choice.seconds,
            "flags": {
                name: [place[answer_id] for answer_id in told if answer_id in place] if name in FLAGS else told
                for name, told in choice.flags.items()
            },
            "verdict": choice.verdict,
            "scores": {
                str(place[answer_id]): score for answer_id, score in choice.scores.items() if answer_id in place
            },
            "comment": choice.comment,
            "criterion": choice.criterion,
            "created_at": choice.created_at.isoformat(),
            "asked_by": choice.asked_by,
            "split": choice.split,
        }
        yield {name: value for name, value in row.items() if value not in (None, {})}


READERS: dict[str, Callable[[dict[str, Any], str], Iterator[Choice | str]]] = {
    "hh": _read_hh,
    "oasst": _read_tree,
    "dpo": _read_dpo,
    "jsonl": _read_own,
}
WRITERS: dict[str, Callable[[Iterable[Comparison], Counter[str]], Iterator[dict[str, Any]]]] = {
    "hh": _write_hh,
    "oasst": _write_trees,
    "dpo": _write_dpo,
    "jsonl": _write_own,
}
