"""What is predicted for a recipe rests on its data and its base, or is said to be unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_weights import random_model

from talaria.corpus.document import Document
from talaria.model.checkpoint import save_model
from talaria.model.settings import ModelSettings
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.doctor import estimate_data_tokens, examine, training_bytes_on_gpu
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


SMOLLM2 = ModelShape(
    vocab_size=49152, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536, context=2048
)
GPT2 = ModelShape(
    vocab_size=50257,
    n_layers=12,
    d_model=768,
    n_heads=12,
    context=1024,
    norm="layernorm",
    positions="learned",
    feed_forward="gelu",
    bias=True,
)


@pytest.mark.parametrize(
    ("shape", "rows", "context", "dtype", "optimizer", "documents", "measured"),
    [  # MiB of tensors at the peak of a step on an H200, torch 2.11
        (SMOLLM2, 32, 1024, "bfloat16", "adamw", False, 22751),
        (SMOLLM2, 8, 1024, "bfloat16", "adamw", False, 7918),
        (SMOLLM2, 8, 1024, "bfloat16", "muon", False, 7499),
        (SMOLLM2, 8, 1024, "bfloat16", "adamw", True, 8420),
        (SMOLLM2, 1, 1024, "bfloat16", "adamw", False, 3121),
        (SMOLLM2, 8, 1024, "float32", "adamw", False, 11387),
        (SMOLLM2, 8, 1024, "float32", "adamw", True, 12295),
        (shape_from_depth(8, 8192, 1024), 32, 1024, "bfloat16", "muon", True, 9391),
        (shape_from_depth(8, 8192, 1024), 8, 256, "bfloat16", "muon", True, 982),
        (shape_from_depth(16, 32768, 1024), 16, 1024, "bfloat16", "adamw", False, 18960),
        (shape_from_depth(16, 32768, 1024), 16, 1024, "bfloat16", "muon", True, 18726),
        (shape_from_depth(16, 32768, 1024), 16, 1024, "float32", "adamw", True, 23459),
        (GPT2, 16, 1024, "bfloat16", "adamw", False, 8210),
        (GPT2, 16, 1024, "float32", "adamw", False, 11771),
        # What follows was measured when the constants were there.
        (SMOLLM2, 24, 512, "bfloat16", "adamw", True, 10727),
        (shape_from_depth(8, 8192, 1024), 64, 512, "float32", "adamw", False, 10756),
        (GPT2, 4, 512, "bfloat16", "muon", True, 3039),
    ],
)
def test_memory_of_training_on_a_gpu_is_what_one_took(
    shape: ModelShape, rows: int, context: int, dtype: str, optimizer: str, documents: bool, measured: int
) -> None:
    told = training_bytes_on_gpu(shape, rows, context, optimizer, dtype, documents) / 2**20
    print(f"{told:,.0f} told, {measured:,} measured, {told / measured - 1:+.1%}")
    assert told == pytest.approx(measured, rel=0.1)
