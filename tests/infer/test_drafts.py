"""Guesses from the text itself: what is guessed, and that no answer knows of it."""

from __future__ import annotations

import pytest
import torch

from talaria.infer.contract import Sampling
from talaria.infer.drafts import FIRST, Drafts
from talaria.infer.engine import Engine
from talaria.model.compiled import PAGE, PagedReader, compile_transformer
from talaria.model.quantized import quantize

from .conftest import ByteTokenizer


def test_a_guess_is_what_followed_the_last_time():
    drafts = Drafts()
    assert drafts.guess([1, 2, 3, 9, 1, 2, 3], 7) == [9, 1, 2]
    assert drafts.guess([1, 2, 3, 9, 1, 2, 3, 8, 2, 3], 7) == [8, 2, 3]
    assert drafts.guess([1, 2, 3, 9, 1, 2, 3, 8, 2, 3, 4], 7) == []


def test_a_longer_stretch_goes_before_a_later_one():
    assert Drafts().guess([1, 2, 3, 7, 0, 2, 3, 8, 1, 2, 3], 1) == [7]


def test_guesses_grow_while_they_come_true_and_begin_anew_when_they_do_not():
    text, drafts = [1, 2, 3, 4] * 10, Drafts()
    assert len(drafts.guess(text[:8], 100)) == FIRST
    assert len(drafts.guess(text[:11], 100)) == 2 * FIRST + 1
    assert len(drafts.guess([*text[:11], 0, 1, 2], 100)) == FIRST


def test_no_more_is_guessed_than_is_asked_for():
    assert Drafts().guess([1, 2, 3, 4] * 3, 1) == [1]


def test_a_text_that_goes_round_in_circles_is_guessed_beyond_its_end():
    assert Drafts().guess([9, 1, 2, 1, 2], 7) == [1, 2, 1]


@pytest.fixture(scope="module", params=[None, "int8", "int4"])
def model(request):
    """A random model of few words: what it said before it says again, and not always."""
    pytest.importorskip("openvino", reason="needs openvino: pip install 'talaria-lm[serve]'")
    from model.test_quantized import LLAMA, model_of

    trunk = model_of(LLAMA, context=4 * PAGE, vocab_size=300)
    with torch.no_grad():
        trunk.head_weight()[:97] = 0
        trunk.head_weight()[103:] = 0
    return compile_transformer(trunk if request.param is None else quantize(trunk, request.param))


@pytest.fixture
def tokenizer():
    endless = ByteTokenizer()
    endless.stop_ids = frozenset()
    return endless


def prompt_of(n: int, seed: int = 0) -> list[int]:
    half = torch.randint(256, (n // 2,), generator=torch.Generator().manual_seed(seed)).tolist()
    return half + half


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.1, "seed": 5},
        {"temperature": 1.0, "top_k": 3, "seed": 1},
        {"temperature": 0.0, "top_logprobs": 2},
        {"temperature": 0.0, "frequency_penalty": 1.0},
        {"temperature": 0.0, "regex": "[a-f]{3,40}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_prompts", [1, 2, 3])
def test_answers_are_the_same_with_guesses_and_without(model, tokenizer, sampling, n_prompts, monkeypatch):
    """The bugs: keys of a wrong guess that stay in sight, a random number used for two tokens, an answer that runs on
    past its length, other kernels for a guess than for a token alone."""
    prompts = [prompt_of(20 + 11 * i, i) for i in range(n_prompts)]
    steps = {}
    answers = {}
    for drafts in (False, True):
        engine = Engine(model, tokenizer, drafts=drafts)
        n_steps, step = 0, engine._advance

        def counted(step=step):
            nonlocal n_steps
            n_steps += 1
            step()

        monkeypatch.setattr(engine, "_advance", counted)
        answers[drafts] = engine.generate(prompts, max_tokens=70, **sampling)
        steps[drafts] = n_steps
    assert answers[True] == answers[False]
    if not model.few_are_as_one:
        assert steps[True] == steps[False], "guesses cost more than they save"
    elif n_prompts == 1 and not {"frequency_penalty", "regex"} & set(sampling):
        assert steps[True] < steps[False], "no guess came true: the test shows nothing"


def test_a_request_that_lost_its_memory_forgets_its_guesses(model, tokenizer):
    """The bug: guesses of the step before, read behind a prompt that is read again."""
    sampling = Sampling(max_tokens=60, temperature=0)
    prompts = [prompt_of(30), prompt_of(30, 1)]
    alone = [
        Engine(model, tokenizer, drafts=False).generate([prompt], max_tokens=60, temperature=0) for prompt in prompts
    ]
    engine = Engine(model, tokenizer, cache_bytes=4 * model.shape.kv_cache_bytes(1, PAGE))
    ids = [engine.submit(prompt, sampling, None) for prompt in prompts]
    got: dict[int, list[int]] = {id: [] for id in ids}
    while engine.busy:
        for id, chunk in engine.step():
            got[id] += chunk.token_ids
    assert engine._scheduler.n_preempted > 0
    assert [len(got[id]) for id in ids] == [60, 60]
    # What was read again went through the kernels of prompts: nearly the same numbers, here the same tokens.
    assert [got[id] for id in ids] == [completion.token_ids for [completion] in alone]


def test_nothing_is_guessed_beside_many_answers(model, tokenizer, monkeypatch):
    """Rows of guesses cost what they are worth only where the step is bound by reading the weights."""
    widths = []
    read = PagedReader.read

    def seen(self, pieces, wanted):
        widths.append(len(pieces))
        return read(self, pieces, wanted)

    monkeypatch.setattr(PagedReader, "read", seen)
    Engine(model, tokenizer).generate([prompt_of(20, i) for i in range(9)], max_tokens=20, temperature=0)
    assert max(widths) == 9
