"""The recipe that `talaria init` writes: what it predicts is what its stages will do with these texts."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from talaria.corpus.build import build_corpus, read_corpus
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UserError
from talaria.feedback.continuations import write_continuations
from talaria.feedback.settings import ConversationSettings
from talaria.tokens.batches import pack_conversations
from talaria.tokens.chat import encode_chat
from talaria.tokens.conversations import read_conversations
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.sizing import REPLAY_SHARE, OwnTextPlan, plan_own_text

WORDS = ["river", "ferry", "letter", "clerk", "morning", "harbour", "winter", "orange", "window", "garden", "bridge"]
CHARACTERS = "渡船今天运来许多橙子他们在桥边等候春风夜雨山高水长月明千里故人西辞黄鹤楼烟花三月下扬州孤帆远影碧空尽"


STEP_SECONDS = 6.0


@pytest.fixture(autouse=True)
def a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talaria.train.sizing.probe", lambda *_: STEP_SECONDS)


def write_texts(folder: Path, language: str, characters: int) -> Path:
    draw = random.Random(0)
    folder.mkdir()
    for number in range(8):
        text, size = "", characters // 8
        while len(text) < size:
            some = draw.choices(WORDS if language == "en" else CHARACTERS, k=draw.randint(6, 14))
            text += (" ".join(some) + ". ") if language == "en" else "".join(some) + "。"
            text += "\n\n" if draw.random() < 0.1 else ""
        (folder / f"{number}.txt").write_text(text)
    return folder


def sft_steps(texts: Path, plan: OwnTextPlan, scratch: Path) -> int:
    """Steps of fine-tuning that the plan's recipe makes of the texts."""
    build_corpus(CorpusSettings(paths=[str(texts)]), scratch)
    tokenizer = Tokenizer.train((d.text for d in read_corpus(scratch)), TokenizerSettings(vocab_size=plan.vocab_size))
    file = scratch / "conversations.jsonl"
    write_continuations(read_corpus(scratch), ConversationSettings(continuations=plan.continuations), file)
    chats = [encode_chat(tokenizer, messages) for messages in read_conversations(file)]
    rows = plan.batch_tokens // plan.context
    chat_rows = rows - max(1, round(rows * REPLAY_SHARE))
    return math.ceil(len(pack_conversations(chats, plan.context).inputs_RT) / chat_rows)


@pytest.mark.parametrize(("language", "characters"), [("en", 1_600_000), ("zh", 400_000)])
def test_fine_tuning_takes_its_share_in_any_language(tmp_path: Path, language: str, characters: int) -> None:
    """The bug: a Chinese passage has two or three times an English one's tokens, and took as much longer."""
    texts = write_texts(tmp_path / "texts", language, characters)
    plan = plan_own_text(texts, minutes=40)
    seconds = STEP_SECONDS * sft_steps(texts, plan, tmp_path / "corpus")
    assert seconds == pytest.approx(0.08 * 2400, rel=0.15)
    assert plan.rest_seconds == pytest.approx(1.25 * seconds + 8, rel=0.15)
    assert plan.seconds == pytest.approx(2400, rel=0.05)


def test_little_text_is_not_said_to_fill_the_time(tmp_path: Path) -> None:
    """The bug: as much time predicted for a page of text, read four times, as for a library."""
    texts = write_texts(tmp_path / "texts", "en", 60_000)
    plan = plan_own_text(texts, minutes=40)
    assert plan.epochs == pytest.approx(4, rel=0.1)
    steps = plan.tokens / plan.batch_tokens + 1.25 * sft_steps(texts, plan, tmp_path / "corpus")
    assert plan.seconds == pytest.approx(STEP_SECONDS * steps + 8, rel=0.1)
    assert plan.seconds < 1200


def test_more_text_than_the_time_holds_is_refused(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts", "en", 60_000)
    with pytest.raises(UserError, match=r"give more with --minutes"):
        plan_own_text(texts, minutes=0.5)
