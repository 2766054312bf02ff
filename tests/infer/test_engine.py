"""The engine against the model's own forward pass, and against itself alone and in a batch."""

from __future__ import annotations

import pytest
import torch

from talaria.errors import UsageError, UserError
from talaria.infer.contract import Sampling, row_seed
from talaria.infer.engine import Engine
from talaria.model.compiled import PagedReader

from .conftest import GPT2, LLAMA, SHIFTED, ByteTokenizer, memory_of, model_named, runs, tiny_model
from .test_sampling import reference_penalties

PROMPTS = ["a", "hello there", "你好，世界", "x" * 40, "emoji 🙂 end", "two\nlines", "0123456789" * 3, "hello there"]


def naive_greedy(model, prompt_ids, n_tokens, stop_ids):
    """Greedy decoding by whole forward passes, no cache; also the gaps between the two best logits."""
    ids, gaps = list(prompt_ids), []
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids]))[0, -1]
        best = logits.topk(2).values
        gaps.append(float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt_ids) :], gaps


def forward_log_probs(model, prompt_ids, token_ids):
    """The trainer's view: log-softmax of one forward pass over prompt and answer."""
    logits = model(torch.tensor([prompt_ids + token_ids]))[0]
    log_probs = logits.float().log_softmax(-1)
    return [float(log_probs[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(token_ids)]


@torch.no_grad()
def test_batched_greedy_is_what_whole_forward_passes_give(engine, model):
    completions = engine.generate(PROMPTS, max_tokens=30, temperature=0)
    parted = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        prompt_ids = engine.tokenizer.encode(prompt)
        expected, gaps = naive_greedy(model, prompt_ids, 30, engine.tokenizer.stop_ids)
        assert completion.prompt_tokens == len(prompt_ids)
        if completion.token_ids != expected:
            at = next(i for i, (a, b) in enumerate(zip(completion.token_ids, expected, strict=False)) if a != b)
            parted.append((prompt, at, gaps[at]))
    print("places where batched and single part:", parted)
    assert all(gap < 1e-4 for _, _, gap in parted), parted
    assert len(parted) < len(PROMPTS) // 2


def test_each_request_keeps_its_text_whatever_runs_beside_it(engine):
    options = {"max_tokens": 25, "temperature": 0.9, "top_p": 0.95}
    together = engine.generate(PROMPTS, seed=list(range(len(PROMPTS))), **options)
    alone = [engine.generate([p], seed=i, **options)[0] for i, p in enumerate(PROMPTS)]
    backwards = engine.generate(PROMPTS[::-1], seed=list(range(len(PROMPTS)))[::-1], **options)[::-1]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.token_ids for c in together] == [c.token_ids for c in backwards]
    assert len({c.text for c in together}) > 4


def test_rows_that_leave_early_do_not_disturb_the_others(model):
    """With many stop ids, rows finish at different steps and holes are filled again and again."""
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = frozenset(range(0, 257, 9))
    engine = Engine(runs(model), tokenizer)
    prompts = [f"prompt {i} " + "ab" * (i % 11) for i in range(30)]
    together = engine.generate(prompts, max_tokens=40, temperature=1.0, seed=3)
    lengths = {len(c.token_ids) for c in together}
    assert len(lengths) > 5
    for i, prompt in enumerate(prompts):
        [single] = engine.generate([prompt], max_tokens=40, temperature=1.0, seed=[row_seed(3, i)])
        assert single.token_ids == together[i].token_ids
        assert single.finish_reason == together[i].finish_reason
        assert single.log_probs == pytest.approx(together[i].log_probs, abs=1e-4)


def test_small_batches_and_small_caches_give_the_same_answers(model):
    options = {"max_tokens": 20, "temperature": 0}
    wide = Engine(runs(model), ByteTokenizer()).generate(PROMPTS, **options)
    narrow = Engine(runs(model), ByteTokenizer(), max_batch_size=3).generate(PROMPTS, **options)
    two_rows = memory_of(model, 128)
    tight = Engine(runs(model), ByteTokenizer(), cache_bytes=two_rows).generate(PROMPTS, **options)
    assert [c.token_ids for c in wide] == [c.token_ids for c in narrow] == [c.token_ids for c in tight]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 5}, {"temperature": 0}, {"top_p": 0.5}])
def test_log_probs_are_the_trainers_forward_log_probs(engine, model, options):
    """Before temperature and filters: the bug is a policy ratio that starts away from 1."""
    for prompt, completion in zip(PROMPTS, engine.generate(PROMPTS, max_tokens=20, seed=1, **options), strict=True):
        expected = forward_log_probs(model, engine.tokenizer.encode(prompt), completion.token_ids)
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_loglikelihood_is_the_forward_log_prob_of_the_continuation(engine, model):
    pairs = [("a", "bc"), ("hello there", " world"), ("x" * 60, "y"), ("你好", "，世界"), ([1, 2, 3], [4])]
    for (context, continuation), score in zip(pairs, engine.loglikelihood(pairs), strict=True):
        context_ids, ids = (engine.tokenizer.encode(t) if isinstance(t, str) else t for t in (context, continuation))
        assert score.log_prob == pytest.approx(sum(forward_log_probs(model, context_ids, ids)), abs=1e-3)
        assert score.n_tokens == len(ids)
    [greedy] = engine.generate(["hello"], max_tokens=6, temperature=0)
    [score, other] = engine.loglikelihood([("hello", greedy.token_ids), ("hello", [*greedy.token_ids[:-1], 7])])
    assert score.is_greedy
    assert not other.is_greedy
    assert score.log_prob == pytest.approx(sum(greedy.log_probs), abs=1e-3)


def test_bos_stands_before_plain_prompts_and_for_an_empty_one():
    engine = Engine(tiny_model(LLAMA), ByteTokenizer(bos_id=256))
    options = {"max_tokens": 5, "temperature": 0}
    [text, ids, empty, bos] = engine.generate(["hi", [256, 104, 105], "", [256]], **options)
    assert text.token_ids == ids.token_ids
    assert text.prompt_tokens == 3
    assert empty.token_ids == bos.token_ids
    assert engine.loglikelihood([("hi", "x")]) == engine.loglikelihood([([256, 104, 105], "x")])


def test_generation_ends_where_the_context_ends():
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = frozenset()
    engine = Engine(tiny_model(GPT2, context=32), tokenizer)
    [short, long] = engine.generate(["a" * 30, "b"], max_tokens=1000, temperature=0)
    assert (len(short.token_ids), short.finish_reason) == (2, "length")
    assert (len(long.token_ids), long.finish_reason) == (31, "length")


def test_bad_requests_name_the_lengths_and_the_next_step():
    engine = Engine(tiny_model(GPT2, context=32), ByteTokenizer())
    with pytest.raises(UserError, match=r"prompt 1 is 32 tokens long .* context is 32; shorten it to at most 31"):
        engine.generate(["fine", "a" * 32])
    with pytest.raises(UserError, match="prompt 0 is empty"):
        engine.generate([""])
    with pytest.raises(UserError, match=r"pair 0 is 32 \+ 2 tokens"):
        engine.loglikelihood([("a" * 32, "bc")])
    assert engine.loglikelihood([("a" * 31, "bc")])[0].n_tokens == 2
    with pytest.raises(UserError, match="token ids must lie in 0"):
        engine.generate([[300]])
    with pytest.raises(UsageError, match="pass a list"):
        engine.generate("one string")
    with pytest.raises(UsageError, match="2 seeds for 1 prompts"):
        engine.generate(["a"], seed=[1, 2])
    for bad in ({"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"max_tokens": 0}, {"stop": [""]}, {"seed": -1}):
        with pytest.raises(UsageError):
            engine.generate(["a"], **bad)


def test_the_stop_token_ends_the_text_but_stays_among_the_ids():
    tokenizer = ByteTokenizer()
    engine = Engine(tiny_model(LLAMA), tokenizer)
    [free] = engine.generate(["hello"], max_tokens=10, temperature=0)
    tokenizer.stop_ids = frozenset({free.token_ids[4]})
    cut_at = free.token_ids.index(free.token_ids[4])
    [completion] = Engine(engine.model, tokenizer).generate(["hello"], max_tokens=10, temperature=0)
    assert completion.token_ids == free.token_ids[: cut_at + 1]
    assert completion.text == tokenizer.decode(free.token_ids[:cut_at])
    assert completion.finish_reason == "stop"
    assert len(completion.log_probs) == len(completion.token_ids)


def test_ids_beyond_the_tokenizer_are_never_chosen():
    model = tiny_model(LLAMA, vocab_size=320)
    with torch.no_grad():
        model.unembed.weight[257:] *= 50
    completions = Engine(model, ByteTokenizer()).generate(PROMPTS, max_tokens=20, temperature=1.5, seed=0)
    completions += Engine(model, ByteTokenizer()).generate(PROMPTS, max_tokens=20, temperature=0)
    assert max(max(c.token_ids) for c in completions) < 257
    # A prompt may hold one all the same, and the likeliest tokens are told among those that can be chosen.
    options = {"max_tokens": 3, "presence_penalty": 1.0, "top_logprobs": 300}
    [completion] = Engine(model, ByteTokenizer()).generate([[300, 1]], seed=0, **options)
    assert [sorted(token for token, _ in top) for top in completion.top_log_probs] == [list(range(257))] * 3
    with torch.no_grad():
        logits_V = model(torch.tensor([[300, 1]]))[0, -1]
    assert completion.log_probs[0] == pytest.approx(float(logits_V.log_softmax(-1)[completion.token_ids[0]]), abs=1e-4)


@torch.no_grad()
def test_penalised_greedy_is_what_whole_forward_passes_and_the_definitions_give(engine, model):
    """The bug is a count that misses the prompt, the newest token, or that a neighbour's tokens get into."""
    options = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2, "logit_bias": {65: 3.0}}
    prompts = [engine.tokenizer.encode(prompt) for prompt in PROMPTS]
    for prompt, completion in zip(
        prompts, engine.generate(prompts, max_tokens=20, temperature=0, **options), strict=True
    ):
        answer: list[int] = []
        for token in completion.token_ids:
            logits = model(torch.tensor([prompt + answer]))[0, -1].tolist()
            changed = reference_penalties(logits, prompt, answer, Sampling(**options))
            assert changed[token] > max(changed) - 1e-4
            answer.append(token)


def test_stream_and_generate_tell_the_same_story(engine):
    for stop in ((), ("e", "\x00")):
        for prompt in PROMPTS:
            options = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "stop": stop}
            [completion] = engine.generate([prompt], **options)
            chunks = list(engine.stream(prompt, **options))
            assert "".join(c.text for c in chunks) == completion.text
            assert [t for c in chunks for t in c.token_ids] == completion.token_ids
            assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [completion.finish_reason]
            assert [x for c in chunks for x in c.log_probs] == pytest.approx(completion.log_probs, abs=1e-5)


def test_stop_strings_end_each_row_at_its_own_place(engine):
    [free] = engine.generate(["hello"], max_tokens=40, temperature=1.0, seed=9)
    stop = free.text[5:8]
    [stopped, other] = engine.generate(["hello", "zzz"], max_tokens=40, temperature=1.0, seed=9, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(free.token_ids)
    assert stop not in other.text


def test_streaming_checks_its_prompt_before_the_first_chunk_is_asked_for(engine):
    with pytest.raises(UserError, match="empty"):
        engine.stream("")


@pytest.mark.parametrize("variant", [LLAMA, GPT2, SHIFTED], ids=["llama", "gpt2", "looks back"])
def test_answers_to_the_same_prompt_are_those_it_gets_alone(variant, monkeypatch):
    """The bug: prompts that are read once for several answers, whose keys then stand in the wrong rows."""
    model = tiny_model(variant).double()
    read, hidden = [], type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda self, tokens, *rest: read.append(tokens) or hidden(self, tokens, *rest)
    )
    prompts = ["longer ones first", "ab", "ab", "longer ones first", "abc", "ab"]
    options = {"max_tokens": 12, "temperature": 1.0}
    engine = Engine(model, ByteTokenizer(), prefix_cache=False)
    together = engine.generate(prompts, seed=list(range(6)), **options)
    assert len(read[0]) == (6 if variant is SHIFTED else 3)
    for number, (prompt, told) in enumerate(zip(prompts, together, strict=True)):
        [alone] = engine.generate([prompt], seed=[number], **options)
        assert told.token_ids == alone.token_ids
        assert told.log_probs == pytest.approx(alone.log_probs, abs=1e-9)
    assert len({tuple(told.token_ids) for told in together}) == 6


@pytest.mark.parametrize("name", ["compiled-llama", "compiled-gpt2"])
def test_answers_to_the_same_prompt_are_those_it_gets_alone_compiled(name, monkeypatch):
    """The bugs: keys of a prompt that was read once and not given to the others; logits of the wrong prompt."""
    model = runs(model_named(name))
    n_read, read = [], PagedReader.read
    monkeypatch.setattr(
        PagedReader, "read", lambda self, pieces, wanted: n_read.append(len(pieces)) or read(self, pieces, wanted)
    )
    prompts = ["longer ones first, " * 2, "ab", "cd", "ab", "longer ones first, " * 2, "a", "abc", "ab", "a"]
    options = {"max_tokens": 12, "temperature": 1.0}
    engine = Engine(model, ByteTokenizer(), prefix_cache=False)
    together = engine.generate(prompts, seed=list(range(9)), **options)
    assert n_read[:2] == [2, 4], "the prompts of one token, and then the four of more"
    for number, (prompt, told) in enumerate(zip(prompts, together, strict=True)):
        [alone] = engine.generate([prompt], seed=[number], **options)
        assert (told.token_ids, told.log_probs) == (alone.token_ids, alone.log_probs)
