"""What is predicted for a recipe rests on its data and its base, or is said to be unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_weights import random_model

from talaria.corpus.document import Document
from talaria.model.checkpoint import save_model
from talaria.model.settings import ModelSettings
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.doctor import estimate_data_tokens, examine
from talaria.train.settings import PretrainSettings, SftSettings

MODEL = ModelSettings(depth=1, d_model=16, n_heads=2, context=16)


def told(*arguments: object, **options: object) -> list[str]:
    """The cells of the table's last row."""
    group = examine(*arguments, **options)  # type: ignore[arg-type]
    table = group.renderables[1]
    return [str(list(column.cells)[-1]) for column in table.columns]  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "talaria.train.doctor.probe", lambda shape, rows, context, micro_rows, optimizer, dtype: rows * context / 100
    )
    monkeypatch.setattr("talaria.train.doctor.peak_flops", lambda dtype: 1e9)


def test_epochs_are_of_the_data_not_of_an_invented_size() -> None:
    pretrain = PretrainSettings(epochs=2, batch_tokens=64)
    name, _, tokens, *_, time = told(MODEL, pretrain, None, data_tokens=3200)
    assert (name, tokens, time) == ("recipe", "6,400", "64 s")
    assert told(MODEL, pretrain)[2::5] == ["unknown", "unknown"]
    assert told(MODEL, PretrainSettings(tokens=640, batch_tokens=64))[2] == "640"


def test_the_base_of_fine_tuning_is_what_is_trained(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"], TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=3, d_model=32, n_heads=2, context=32)
    save_model(random_model(shape), tokenizer, tmp_path)
    row = told(MODEL, None, None, SftSettings(base=str(tmp_path), batch_tokens=64))
    assert row[:4] == ["sft.base", f"{shape.n_params():,}", "unknown", "64"]


def test_data_is_counted_if_there_are_shards_and_estimated_if_there_are_files(tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("x" * 7000)
    assert estimate_data_tokens(run, None, [str(text)]) == 2000
    assert estimate_data_tokens(run, 10, []) == 24_000
    assert estimate_data_tokens(run, 10, [str(text)]) == 26_000
    assert estimate_data_tokens(run, None, ["hf:someone/something"]) is None
    assert estimate_data_tokens(run, None, []) is None
    settings = TokenizerSettings(vocab_size=300)
    tokenizer = Tokenizer.train(["a b c"], settings)
    write_shards([Document("0", "a b c " * 50, "made")], tokenizer, run / "tokenizer" / "shards", settings)
    counted = Shards(run / "tokenizer" / "shards", "train").n_tokens
    assert estimate_data_tokens(run, 10, [str(text)]) == counted
