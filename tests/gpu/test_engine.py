"""An engine on a GPU: the CPU's answers, alone or among others, in fp32; in bfloat16 and with rounded weights near."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_weights import random_model

from talaria.infer.engine import Engine
from talaria.infer.load import load
from talaria.infer.memory import serving_memory
from talaria.model.checkpoint import save_model
from talaria.model.quantized_folder import save_quantized
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

TEXT = "the sea is calm and the wind is low over the land of a sandal. 海很平静。"
PROMPTS = [
    "the sea",
    "a",
    "海很",
    "the wind is low over the land " * 3,
    "the sea",
    "calm 🙂 end",
    "of a sandal. the",
    "w",
]
LLAMA = {"norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu", "n_kv_heads": 2, "tie_embeddings": False}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
SHIFTED = {"token_shift": True, "ngram_embeddings": 2}


@pytest.fixture(scope="module", params=[LLAMA, GPT2, SHIFTED], ids=["llama", "gpt2", "shifted"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train([TEXT] * 20, TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=300, n_layers=2, d_model=64, n_heads=4, context=128, **request.param)
    folder = tmp_path_factory.mktemp("model")
    save_model(random_model(shape, deviation=0.1), tokenizer, folder)
    return folder


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3, "top_p": 0.9}, {"seed": 3, "top_k": 9}], ids=str)
def test_answers_are_the_cpus(saved: Path, options: dict) -> None:
    there = load(saved)
    assert there.model.device.type == "cuda", "the GPU is taken where there is one"
    here = load(saved, device="cpu", compiled=False)
    one, other = (engine.generate(PROMPTS, max_tokens=40, **options) for engine in (there, here))
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]
    for a, b in zip(one, other, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)


def test_an_answer_is_the_same_in_any_company(saved: Path) -> None:
    engine = load(saved)
    options = {"max_tokens": 25, "temperature": 0.9, "top_p": 0.95}
    together = engine.generate(PROMPTS, seed=list(range(len(PROMPTS))), **options)
    alone = [engine.generate([prompt], seed=seed, **options)[0] for seed, prompt in enumerate(PROMPTS)]
    tight = Engine(engine.trunk, engine.tokenizer, max_batch_size=3, prefill_chunk=8, prefix_cache=False)
    narrow = tight.generate(PROMPTS, seed=list(range(len(PROMPTS))), **options)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone] == [a.token_ids for a in narrow]


def test_penalties_grammars_and_top_log_probs_work(saved: Path) -> None:
    pytest.importorskip("llguidance")
    there, here = load(saved), load(saved, device="cpu", compiled=False)
    more = {"max_tokens": 12, "temperature": 0, "presence_penalty": 0.5, "logit_bias": {5: 2.0}, "top_logprobs": 3}
    one, other = (engine.generate(PROMPTS[:3], **more) for engine in (there, here))
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in other]
    held = there.generate(["the"] * 2, regex="[0-9]{4} (yes|no)", max_tokens=20, seed=0)
    assert all(answer.text[:4].isdigit() and answer.text[4:] in (" yes", " no") for answer in held)


@torch.no_grad()
def test_the_sampler_gives_the_trainers_log_probs(saved: Path) -> None:
    engine = load(saved)
    prompts = engine.tokenizer.encode_batch(PROMPTS)
    for prompt, answer in zip(prompts, engine.generate(prompts, max_tokens=20, seed=1), strict=True):
        ids = [*prompt, *answer.token_ids]
        log_probs = engine.trunk(torch.tensor([ids]).cuda())[0].log_softmax(-1)
        first = len(ids) - len(answer.token_ids)
        expected = [float(log_probs[first - 1 + place, token]) for place, token in enumerate(answer.token_ids)]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_rounded_weights_give_the_log_probabilities_of_the_cpus(
    saved: Path, tmp_path: Path, scheme: str | None
) -> None:
    pairs = [("the sea", " is calm"), ("a", " of land and")]
    expected = load(saved, scheme, device="cpu", compiled=False).loglikelihood(pairs)
    engines = [load(saved, scheme), load(saved, scheme, dtype="bfloat16")]
    if scheme is not None:
        save_quantized(engines[0].trunk, engines[0].tokenizer, tmp_path / "quantized")
        engines.append(load(tmp_path / "quantized"))
        engines.append(load(tmp_path / "quantized", device="cpu", compiled=False))
    exact = scheme is None
    for engine in engines:
        near = 1e-3 if exact and engine is engines[0] else 0.25
        for one, other in zip(engine.loglikelihood(pairs), expected, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=near)
        assert engine.generate(["the"] * 3, max_tokens=8, temperature=0)[0].token_ids


def test_bfloat16_takes_half_the_memory(saved: Path) -> None:
    def bytes_of(**options: str) -> int:
        engine = load(saved, **options)
        held = {tensor.data_ptr(): tensor.nbytes for tensor in (*engine.trunk.parameters(), *engine.trunk.buffers())}
        return sum(held.values())

    assert bytes_of(dtype="bfloat16") == bytes_of() // 2


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_memory_is_what_doctor_predicts(tmp_path: Path, scheme: str | None) -> None:
    tokenizer = Tokenizer.train([TEXT] * 20, TokenizerSettings(vocab_size=300))
    shape = ModelShape(vocab_size=8192, n_layers=8, d_model=1024, n_heads=8, context=1024)
    save_model(Transformer(shape, torch.Generator().manual_seed(0)), tokenizer, tmp_path / "model")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    engine = load(tmp_path / "model", scheme, max_batch_size=1)
    loaded = torch.cuda.memory_allocated() - before
    told = serving_memory(shape, scheme)
    assert loaded == pytest.approx(told.weights + told.cache, rel=0.03)
    torch.cuda.reset_peak_memory_stats()
    engine.generate([[5] * 1000], max_tokens=8, temperature=0)
    assert torch.cuda.max_memory_allocated() - before < told.weights + told.cache + told.workspace + (256 << 20)


def test_steps_are_recorded_and_read_weights_that_were_trained_since(saved: Path) -> None:
    engine, plain = load(saved), load(saved)
    graphs, shape = engine._scheduler.memory.graphs, engine.trunk.shape
    assert (graphs is None) == (shape.token_shift or shape.ngram_embeddings > 0)
    if graphs is None:
        pytest.skip("looks back: not recorded")
    plain._scheduler.memory.graphs = None
    recorded = {}
    for factor in (1.0, 1.7):
        for one in (engine, plain):
            with torch.no_grad():
                one.trunk.final_norm.weight.mul_(factor)
        for _ in range(2):
            answers = [one.generate(PROMPTS, max_tokens=30, seed=2) for one in (engine, plain)]
            assert [answer.token_ids for answer in answers[0]] == [answer.token_ids for answer in answers[1]]
        assert all(graphs._replays[key] is replay for key, replay in recorded.items()), "recorded anew"
        recorded = dict(graphs._replays)
    assert recorded


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_recorded_steps_of_bfloat16_and_rounded_weights_give_near_log_probs(saved: Path, scheme: str | None) -> None:
    engines = [load(saved, scheme, dtype="bfloat16") for _ in range(2)]
    graphs, engines[1]._scheduler.memory.graphs = engines[0]._scheduler.memory.graphs, None
    if graphs is None:
        pytest.skip("looks back: not recorded")
    for _ in range(2):  # the second time every step is recorded
        one, other = (engine.generate(PROMPTS[:3], max_tokens=20, temperature=0) for engine in engines)
    assert graphs._replays
    for a, b in zip(one, other, strict=True):
        n = next(
            (place for place, pair in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if len({*pair}) > 1), 20
        )
        assert n > 3 and a.log_probs[:n] == pytest.approx(b.log_probs[:n], abs=0.1)
