"""What `talaria bench` prints, on an engine whose speed is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import talaria

from talaria.errors import UserError
from talaria.infer import rates
from talaria.infer.engine import Engine
from talaria.model.checkpoint import save_model
from talaria.model.quantized import weight_bytes
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

from .conftest import LLAMA, ByteTokenizer, tiny_model


def test_rates_are_those_of_a_known_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millisecond a prompt token of a row and ten a step of the whole batch: prefill must stay out of decode."""
    clock = [0.0]
    seen: set[tuple[int, ...]] = set()

    def generate(self: Engine, prompts: list[list[int]], *, max_tokens: int, temperature: float) -> None:
        assert not self.tokenizer.stop_ids, "an answer that ends early would count as fast"
        assert temperature == 0
        for prompt in map(tuple, prompts):
            assert prompt not in seen, "a prompt that came before may be found in a cache"
            seen.add(prompt)
        clock[0] += 0.001 * sum(map(len, prompts)) + 0.010 * (max_tokens - 1)

    monkeypatch.setattr(Engine, "generate", generate)
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = tiny_model(LLAMA, context=256)
    step_bytes = weight_bytes(model) - weight_bytes(model.embed)  # not tied: a step reads one row of this table
    monkeypatch.setattr(rates, "memory_read_rate", lambda device: 1000.0 * step_bytes)
    tokenizer = ByteTokenizer()
    found = rates.measure_rates(Engine(model, tokenizer), repeats=3)
    assert [(row.work, row.batch, row.tokens) for row in found.rows] == [
        ("prefill", 1, 128),  # 512 do not fit into the context
        ("decode", 1, 32),
        ("decode", 16, 32),
    ]
    assert [row.median for row in found.rows] == pytest.approx([1000, 100, 1600])
    assert [row.read_share for row in found.rows] == [None, pytest.approx(0.1), pytest.approx(0.1)]
    assert tokenizer.stop_ids, "the engine given keeps its own"


def test_quartiles_are_of_the_repeats() -> None:
    rate = rates._rate("decode", 1, 32, [1.0, 2.0, 3.0, 4.0, 100.0])
    assert (rate.median, rate.quartiles) == (3.0, (2.0, 4.0))
    assert rates._rate("decode", 1, 32, [7.0]).quartiles == (7.0, 7.0)


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="a context of 17 tokens is too short"):
        rates.measure_rates(Engine(tiny_model(LLAMA, context=17), ByteTokenizer()))


def test_the_command_prints_json_or_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.train(["none"], TokenizerSettings(vocab_size=270))
    save_model(tiny_model(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")
    assert talaria("bench", tmp_path / "model", "--json", "--repeats", 1, "--quantize", "int8") == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["work"] for row in told["rows"]] == ["decode", "decode"]
    assert all(row["median"] > 0 and row["read_share"] > 0 for row in told["rows"])
    assert talaria("bench", tmp_path / "model", "--repeats", 1) == 0
    assert "decode" in capsys.readouterr().out
    assert talaria("bench", tmp_path / "model", "--quantize", "int3") == 2
