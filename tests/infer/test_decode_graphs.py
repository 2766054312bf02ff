"""Recorded steps, without the recording: what they read and write is that of other steps, which a CPU can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_weights import random_model

from talaria.infer.decode_graphs import DecodeGraphs
from talaria.infer.engine import Engine
from talaria.infer.kv_cache import KVCache
from talaria.infer.lanes import Lanes
from talaria.infer.prefix_store import PrefixStore
from talaria.model.lora import add_lora, without_lora
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

PROMPTS = ["the sea", "a", "the wind is low over the land " * 30, "the sea", "calm end", "of a sandal. the", "w"]


class Counted(DecodeGraphs):
    """Steps run anew instead of being recorded, and counted; with what a recorded one could not see change."""

    n_run = n_recorded = 0

    def _recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        self.n_recorded += 1
        on, width = [lora.enabled for lora in self._loras], self._cache.width

        def run() -> None:
            self.n_run += 1
            assert ([lora.enabled for lora in self._loras], self._cache.width) == (on, width)
            step()

        return run


def engine_of(heads: int, recorded: bool = True, **options: int) -> Engine:
    tokenizer = Tokenizer.train(PROMPTS * 20, TokenizerSettings(vocab_size=300))
    tokenizer.stop_ids = frozenset()
    shape = ModelShape(vocab_size=300, n_layers=2, d_model=64, n_heads=4, n_kv_heads=heads, context=512)
    engine = Engine(random_model(shape, deviation=0.1), tokenizer, **options)
    if recorded:
        old, model = engine._scheduler.memory, engine.trunk
        cache = KVCache(shape, old.n_blocks, engine.max_batch_size, torch.float32, model.device, spare=True)
        engine._scheduler.memory = Lanes(cache, PrefixStore(old.n_blocks), Counted(model, cache))
    return engine


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"max_batch_size": 3}, {"cache_bytes": 1 << 20}], ids=str)
def test_answers_are_those_of_steps_that_are_not_recorded(heads: int, options: dict) -> None:
    recorded, plain = engine_of(heads, **options), engine_of(heads, recorded=False, **options)
    for settings in ({"temperature": 0}, {"temperature": 1.0}):  # the second time beginnings are known
        answers = [
            engine.generate(PROMPTS, seed=list(range(len(PROMPTS))), max_tokens=60, **settings)
            for engine in (recorded, plain)
        ]
        assert [answer.token_ids for answer in answers[0]] == [answer.token_ids for answer in answers[1]]
        for one, other in zip(*answers, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    graphs = recorded._scheduler.memory.graphs
    assert graphs.n_run > 30 and graphs.n_recorded < 12


def test_answers_of_any_length_share_a_few_recorded_steps() -> None:
    """The bug: lanes as wide as the longest answer may become, and a step recorded for every width."""
    engine = engine_of(2)
    for n in (5, 20, 40, 60, 80, 100):
        for _ in range(2):
            engine.generate(["the sea"], max_tokens=n)
    assert engine._scheduler.memory.graphs.n_recorded == 1


def test_more_sizes_than_are_kept_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talaria.infer.decode_graphs._MOST", 1)
    recorded, plain = engine_of(2), engine_of(2, recorded=False)
    for n in (1, 3, 1, 3):
        answers = [engine.generate(PROMPTS[:n], max_tokens=9, temperature=0) for engine in (recorded, plain)]
        assert [answer.token_ids for answer in answers[0]] == [answer.token_ids for answer in answers[1]]
    graphs = recorded._scheduler.memory.graphs
    assert graphs.n_recorded > len(graphs._replays) == 1


def test_where_memory_is_too_short_to_record_steps_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = engine_of(2), engine_of(2, recorded=False)

    n_tried = 0

    def fails(step: Callable[[], None]) -> Callable[[], None]:
        nonlocal n_tried
        n_tried += 1
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine._scheduler.memory.graphs, "_recorded", fails)
    for _ in range(2):
        one, other = (each.generate(PROMPTS, max_tokens=9, temperature=0) for each in (engine, plain))
        assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]
    assert n_tried == 1


def test_rows_that_fill_up_write_where_nobody_reads() -> None:
    engine = engine_of(2, max_batch_size=8)
    memory = engine._scheduler.memory
    engine.generate(PROMPTS[2:3], max_tokens=1)  # its beginning is kept, behind the lanes
    kept = [stored[:-32].view(torch.int32).clone() for stored in memory.cache._stored]
    for _ in range(3):
        engine.generate(["q", "w", "e"], max_tokens=9, temperature=0)
    assert memory.graphs.n_run > 0
    lanes = 3 * memory.cache.width * memory.block * 2 * 16
    for before, stored in zip(kept, memory.cache._stored, strict=True):
        assert torch.equal(before[lanes:], stored[lanes:-32].view(torch.int32))


def test_steps_are_recorded_anew_when_weights_move_and_not_when_they_are_trained() -> None:
    engine = engine_of(4)
    graphs = engine._scheduler.memory.graphs
    for _ in range(3):
        engine.generate(["the sea"], max_tokens=9)
    n = graphs.n_recorded
    weight = engine.trunk.final_norm.weight
    with torch.no_grad():
        weight.mul_(1.5)
    engine.generate(["the sea"], max_tokens=9)
    assert n == 1 == graphs.n_recorded
    weight.data = weight.data.clone()
    engine.generate(["the sea"], max_tokens=9)
    assert graphs.n_recorded == 2


def test_a_lora_that_is_switched_off_is_not_in_the_answer() -> None:
    engine, plain = engine_of(4), engine_of(4, recorded=False)
    add_lora(engine.trunk, 2, 4.0)
    with torch.no_grad():
        for name, parameter in engine.trunk.named_parameters():
            if name.endswith(("up", "down")):
                parameter.normal_(0, 1.0)
    options = {"max_tokens": 20, "temperature": 0}
    [[other], _] = [engine.generate(["the sea"], **options) for _ in range(2)]
    with without_lora(engine.trunk):
        [answer] = engine.generate(["the sea"], **options)
    [expected] = plain.generate(["the sea"], **options)
    assert answer.token_ids == expected.token_ids != other.token_ids
