"""Requests that come, go, wait, share and give way: none of it may change a text, lose a chunk or keep a block."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from talaria.errors import UserError
from talaria.infer.contract import Sampling, row_seed
from talaria.infer.engine import Engine
from talaria.infer.lanes import Lanes
from talaria.infer.pages import Pages
from talaria.infer.prefix_store import n_blocks_for

from .conftest import LLAMA, ByteTokenizer, memory_of, runs, tiny_model

GREEDY = Sampling(max_tokens=24, temperature=0)
PROMPTS = [list(f"{word * 5} and then {word}".encode()) for word in ("sea", "wind", "你好", "🙂", "stone")]


def engine_of(model, **options) -> Engine:
    """An engine whose texts end at their limit, so that rows live long enough to meet; a token a row and step."""
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = frozenset()
    return Engine(runs(model), tokenizer, drafts=False, **options)


def finish(engine: Engine) -> dict[int, list[int]]:
    """Step to the end; the tokens of each request."""
    tokens: dict[int, list[int]] = {}
    while engine.busy:
        for request_id, chunk in engine.step():
            tokens.setdefault(request_id, []).extend(chunk.token_ids)
    return tokens


def answer(engine: Engine, prompt: list[int], sampling: Sampling = GREEDY, seed: int | None = None) -> list[int]:
    request_id = engine.submit(prompt, sampling, seed)
    return finish(engine)[request_id]


@torch.no_grad()
def assert_same_ids(model, prompt: list[int], expected: list[int], got: list[int]) -> None:
    """Greedy ids may part only where the two best logits are closer than 1e-4."""
    assert len(expected) == len(got)
    for place, (ours, other) in enumerate(zip(expected, got, strict=True)):
        if ours != other:
            best = model(torch.tensor([prompt + expected[:place]]))[0, -1].topk(2).values
            print(f"parted at {place} of {prompt}, gap {float(best[0] - best[1])}")
            assert best[0] - best[1] < 1e-4, (prompt, place)
            return


def count_reads(engine: Engine, monkeypatch) -> list[list[int]]:
    """Filled, one list a pass, with the prompt positions that are computed."""
    reads: list[list[int]] = []
    memory, scheduler = engine._scheduler.memory, engine._scheduler
    if isinstance(memory, Lanes):
        begin = memory.cache.begin_prefill

        def counting(first, starts, n_new, of=None):
            reads.append(list(n_new))
            return begin(first, starts, n_new, of)

        monkeypatch.setattr(memory.cache, "begin_prefill", counting)
        return reads
    # The newest tokens of answers come first of all that a step reads.
    n_decode, plan, read = [0], scheduler.plan, memory.reader.read

    def planning():
        planned = plan()
        n_decode[0] = len(planned.decode)
        return planned

    def reading(pieces, wanted):
        lengths = [len(piece.ids) for piece in pieces]
        assert lengths[: n_decode[0]] == [1] * n_decode[0]
        if prompts := lengths[n_decode[0] :]:
            reads.append(prompts)
        n_decode[0] = 0
        return read(pieces, wanted)

    monkeypatch.setattr(scheduler, "plan", planning)
    monkeypatch.setattr(memory.reader, "read", reading)
    return reads


def left_to_read(engine: Engine, n_prompt: int, n_shared: int | None = None) -> int:
    """Positions of a prompt that are computed where its first `n_shared`, or all of it, were read before.

    Whole blocks are reused, and two ids at least are read.
    """
    block = engine._scheduler.memory.block
    return n_prompt - min(n_prompt - 2, n_prompt if n_shared is None else n_shared) // block * block


def assert_sound(engine: Engine) -> None:
    """What must hold between any two steps."""
    scheduler, memory = engine._scheduler, engine._scheduler.memory
    assert {r.id for r in (*scheduler.rows, *scheduler.waiting)} == set(engine._requests)
    assert [r.is_read for r in scheduler.rows] == sorted((r.is_read for r in scheduler.rows), reverse=True)
    if isinstance(memory, Pages):
        assert_pages_are_sound(memory, scheduler.rows)
        assert scheduler.n_free_blocks == len(memory._free) + len(memory._kept)
        assert all(not request.blocks and not request.length for request in scheduler.waiting)
        return
    prefixes, held = memory.prefixes, len(scheduler.rows) * memory.cache.width
    assert scheduler.n_free_blocks == memory.n_blocks - held >= 0
    assert all(r.length <= memory.cache.width * 16 for r in scheduler.rows)
    if prefixes is not None:
        kept = set(prefixes._blocks.values())
        assert prefixes.boundary == held
        assert len(kept) == len(prefixes) == len(prefixes._names)
        assert not kept & prefixes._free
        assert kept | prefixes._free == set(range(held, memory.n_blocks))


def assert_pages_are_sound(memory: Pages, rows) -> None:
    """Every block is in one place, counted right; what somebody shares, or may come to share, nobody writes into."""
    assert sorted([*memory._free, *memory._kept, *memory._holders]) == list(range(memory.n_blocks))
    assert memory._holders == Counter(block for row in rows for block in row.blocks)
    assert {name: block for block, name in memory._names.items()} == memory._named
    assert len(memory._names) == len(memory._named)
    assert set(memory._kept) <= set(memory._names) and set(memory._names).isdisjoint(memory._free)
    for row in rows:
        assert len(row.blocks) == len(set(row.blocks)) >= n_blocks_for(row.length, memory.block)
        for block in row.blocks[row.length // memory.block :]:
            assert memory._holders[block] == 1 and block not in memory._names


def test_alone_and_among_63_others_arriving_at_random_steps(model):
    rng = random.Random(0)
    engine = engine_of(model, prefill_chunk=40)
    alone = [answer(engine_of(model), prompt) for prompt in PROMPTS]
    arrivals = [(rng.randrange(30), "own", i) for i in range(len(PROMPTS))]
    arrivals += [(rng.randrange(30), "other", rng.randrange(1, 60)) for _ in range(64 - len(PROMPTS))]
    ids, tokens = {}, {}
    for step in range(30):
        for at, kind, number in arrivals:
            if at == step and kind == "own":
                ids[engine.submit(PROMPTS[number], GREEDY, None)] = number
            elif at == step:
                engine.submit(rng.choices(range(256), k=number), Sampling(max_tokens=rng.randint(1, 30)), number)
        for request_id, chunk in engine.step():
            tokens.setdefault(request_id, []).extend(chunk.token_ids)
        assert_sound(engine)
    for request_id, rest in finish(engine).items():
        tokens.setdefault(request_id, []).extend(rest)
    assert len(tokens) == 64
    for request_id, number in ids.items():
        assert_same_ids(model, PROMPTS[number], alone[number], tokens[request_id])


def test_a_seed_fixes_a_sample_among_rows_that_sample_otherwise(model):
    sampling = Sampling(max_tokens=20, temperature=0.9, top_p=0.95, min_p=0.01, presence_penalty=0.5)
    alone = [answer(engine_of(model), prompt, sampling, seed) for seed, prompt in enumerate(PROMPTS)]
    engine = engine_of(model, prefill_chunk=20)
    others = [Sampling(temperature=0), Sampling(top_k=3), Sampling(temperature=2.0, logit_bias={5: 3.0})]
    ids = []
    for seed, prompt in enumerate(PROMPTS):
        engine.submit(prompt[::-1], others[seed % 3], 99 + seed)
        ids.append(engine.submit(prompt, sampling, seed))
        engine._advance()
    together = finish(engine)
    assert [together[i] for i in ids] == alone


def test_a_kept_prefix_saves_its_computation_and_changes_nothing(keeper, monkeypatch):
    prompt = list(b"a system prompt that many share, and more of it: how are you")
    without = answer(engine_of(keeper, prefix_cache=False), prompt)
    engine = engine_of(keeper)
    reads = count_reads(engine, monkeypatch)
    assert_same_ids(keeper, prompt, without, answer(engine, prompt))
    assert_same_ids(keeper, prompt, without, answer(engine, prompt))
    other = [*prompt[:40], 7, *prompt[41:]]
    assert_same_ids(keeper, other, answer(engine_of(keeper, prefix_cache=False), other), answer(engine, other))
    n = len(prompt)
    assert reads == [[n], [left_to_read(engine, n)], [left_to_read(engine, n, 40)]]
    assert left_to_read(engine, n, 40) == n - 32
    # A conversation goes on. Lanes keep the answer as well, all but its last token, which was never read; pages keep
    # the prompt alone, for what single tokens left differs in the last bits from what reading it would.
    longer = prompt + without + [1, 2, 3]
    answer(engine, longer, Sampling(max_tokens=2, temperature=0))
    n_read = n + len(without) - 1
    assert n // 32 < n_read // 32, "the answer must fill a block"
    assert reads[-1] == [
        left_to_read(engine, len(longer), n if isinstance(engine._scheduler.memory, Pages) else n_read)
    ]


@pytest.mark.parametrize("over", [0, 1, 2, 3])
def test_the_last_ids_of_a_kept_prompt_are_read_all_the_same(keeper, monkeypatch, over):
    """The bug: no id left to read, and so no logits; or one, which goes through other kernels than a prompt does."""
    prompt = [i * 13 % 256 for i in range(64 + over)]
    engine = engine_of(keeper)
    reads = count_reads(engine, monkeypatch)
    first, second = answer(engine, prompt), answer(engine, prompt)
    assert_same_ids(keeper, prompt, answer(engine_of(keeper, prefix_cache=False), prompt), first)
    assert_same_ids(keeper, prompt, first, second)
    assert reads == [[64 + over], [over if over >= 2 else engine._scheduler.memory.block + over]]


def test_rows_that_go_on_from_different_places_are_read_together(keeper, monkeypatch):
    """The bug is padding that is written where a shorter row's own last token stands."""
    base = [i * 11 % 256 for i in range(70)]
    places = ((64, 3), (16, 14), (32, 1), (0, 9))
    prompts = [[*base[:kept], 250, *base[:new]] for kept, new in places]
    engine = engine_of(keeper)
    answer(engine, base)
    reads = count_reads(engine, monkeypatch)
    ids = [engine.submit(prompt, GREEDY, None) for prompt in prompts]
    together = finish(engine)
    assert reads == [[left_to_read(engine, kept + 1 + new, kept) for kept, new in places]]
    assert [reads[0][place] for place in (0, 2, 3)] == [4, 2, 10]
    for prompt, request_id in zip(prompts, ids, strict=True):
        assert_same_ids(keeper, prompt, answer(engine_of(keeper, prefix_cache=False), prompt), together[request_id])


def test_models_that_look_back_keep_no_prefix():
    model = tiny_model({"token_shift": True, "ngram_embeddings": 2})
    engine = engine_of(model)
    prompt = list(range(40))
    assert answer(engine, prompt) == answer(engine, prompt)
    assert engine._scheduler.memory.prefixes is None


def test_kept_prefixes_end_with_the_weights_that_made_them():
    model = tiny_model(LLAMA)
    engine = engine_of(model)
    answer(engine, PROMPTS[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert answer(engine, PROMPTS[0]) == answer(engine_of(model, prefix_cache=False), PROMPTS[0])


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_a_long_prompt_is_read_in_chunks_and_stalls_nobody(model, monkeypatch, chunk):
    long = [i * 7 % 256 for i in range(70)]
    expected = answer(engine_of(model), long, Sampling(max_tokens=10, temperature=0))
    engine = engine_of(model, prefill_chunk=chunk)
    first = engine.submit(PROMPTS[0], Sampling(max_tokens=90 - len(PROMPTS[0]), temperature=0), None)
    engine.step()
    reads = count_reads(engine, monkeypatch)
    second = engine.submit(long, Sampling(max_tokens=10, temperature=0), None)
    got = []
    while len(got) < 10 and engine.busy:
        chunks = engine.step()
        got += [token for request_id, part in chunks if request_id == second for token in part.token_ids]
        if any(request.id == first for request in engine._scheduler.rows):
            assert first in [request_id for request_id, _ in chunks], "the running row must get its token at every step"
            assert all(sum(read) <= chunk for read in reads)
    assert sum(map(sum, reads)) == len(long)
    assert_same_ids(model, long, expected, got)


@torch.no_grad()
def test_log_probs_are_a_plain_forward_passes_through_chunks_prefixes_and_preemption(model):
    engine = engine_of(model, cache_bytes=memory_of(model, 192), prefill_chunk=9)
    prompts = [prompt[:15] for prompt in (*PROMPTS, *PROMPTS)]
    ids = [engine.submit(prompt, Sampling(max_tokens=60), seed) for seed, prompt in enumerate(prompts)]
    got: dict[int, tuple[list[int], list[float]]] = {}
    while engine.busy:
        for request_id, chunk in engine.step():
            tokens, log_probs = got.setdefault(request_id, ([], []))
            tokens += chunk.token_ids
            log_probs += chunk.log_probs
    assert engine._scheduler.n_preempted > 0
    for prompt, request_id in zip(prompts, ids, strict=True):
        tokens, log_probs = got[request_id]
        expected = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert log_probs == pytest.approx(expected[range(60), tokens].tolist(), abs=1e-4)


def test_preemption_when_memory_runs_out_changes_no_text(model):
    prompts = [prompt[:15] for prompt in PROMPTS]
    greedy, sampled = Sampling(max_tokens=60, temperature=0), Sampling(max_tokens=60)
    for sampling in (greedy, sampled):
        alone = [answer(engine_of(model), prompt, sampling, seed) for seed, prompt in enumerate(prompts)]
        engine = engine_of(model, cache_bytes=memory_of(model, 192))
        ids = [engine.submit(prompt, sampling, seed) for seed, prompt in enumerate(prompts)]
        got: dict[int, list[int]] = {}
        while engine.busy:
            for request_id, chunk in engine.step():
                got.setdefault(request_id, []).extend(chunk.token_ids)
            assert_sound(engine)
        assert engine._scheduler.n_preempted > 0
        for request_id, prompt, tokens in zip(ids, prompts, alone, strict=True):
            if sampling is greedy:
                assert_same_ids(model, prompt, tokens, got[request_id])
            else:
                assert got[request_id] == tokens


def test_the_newest_request_gives_way(llama):
    engine = engine_of(llama, cache_bytes=memory_of(llama, 112))
    ids = [engine.submit([i] * 14, Sampling(max_tokens=60, temperature=0), None) for i in range(3)]
    order = []
    while engine.busy:
        order += [request_id for request_id, chunk in engine.step() if chunk.finish_reason]
    assert engine._scheduler.n_preempted > 0
    assert order == ids


def test_memory_is_a_bound_and_what_cannot_fit_is_refused(llama):
    engine = engine_of(llama, cache_bytes=memory_of(llama, 64) + 100)
    memory = engine._scheduler.memory
    is_compiled = isinstance(memory, Pages)
    stored = memory.reader._memory.values() if is_compiled else memory.cache._stored
    # A compiled model has one block more, for padding.
    assert sum(array.nbytes for array in stored) == memory_of(llama, 64 + is_compiled * memory.block)
    need = n_blocks_for(69, memory.block) * memory.block
    message = (
        rf"the prompt of 50 tokens with max_tokens=20 needs {need} positions in memory and there are 64; "
        "lower max_tokens, shorten the prompt or raise cache_bytes"
    )
    with pytest.raises(UserError, match=message):
        engine.submit([1] * 50, Sampling(max_tokens=20), None)
    with pytest.raises(UserError, match="raise cache_bytes"):
        engine.generate([[1] * 50], max_tokens=20)
    assert not engine.busy
    # The last token of an answer is never read: 50 + 15 - 1 positions are enough.
    assert len(answer(engine, [1] * 50, Sampling(max_tokens=15), 0)) == 15


@pytest.mark.parametrize("n_positions", [144, 640])
def test_a_thousand_random_steps_leak_no_block(llama, n_positions):
    rng = random.Random(n_positions // 16)
    engine = engine_of(llama, cache_bytes=memory_of(llama, n_positions), max_batch_size=6, prefill_chunk=24)
    live: dict[int, list[int]] = {}
    asked: dict[int, int] = {}
    seen: dict[int, int] = {}
    cancelled: set[int] = set()
    start = engine._scheduler.n_free_blocks
    assert start == n_positions // engine._scheduler.memory.block
    for _ in range(1000):
        action = rng.random()
        if action < 0.35 and len(live) < 12:
            prompt = [rng.randrange(3)] * rng.randrange(0, 40) + rng.choices(range(256), k=rng.randint(1, 20))
            n_tokens = rng.randint(1, 95 - len(prompt))
            request_id = engine.submit(prompt, Sampling(max_tokens=n_tokens), rng.randrange(1000))
            live[request_id], asked[request_id] = prompt, n_tokens
        elif action < 0.45 and live:
            before, gone = engine._scheduler.n_free_blocks, rng.choice(list(live))
            was_running = any(request.id == gone for request in engine._scheduler.rows)
            engine.cancel(gone)
            engine.cancel(gone)  # a second time, as after a race, does nothing
            del live[gone]
            cancelled.add(gone)
            assert (engine._scheduler.n_free_blocks > before) == was_running
        else:
            for request_id, chunk in engine.step():
                assert request_id in live, "a chunk for nobody"
                seen[request_id] = seen.get(request_id, 0) + len(chunk.token_ids)
                if chunk.finish_reason:
                    del live[request_id]
        assert_sound(engine)
    for request_id, tokens in finish(engine).items():
        seen[request_id] = seen.get(request_id, 0) + len(tokens)
    assert_sound(engine)
    assert engine._scheduler.n_free_blocks == start
    assert not engine._scheduler.rows and not engine._scheduler.waiting
    for request_id, n_tokens in asked.items():
        if request_id not in cancelled:
            assert seen[request_id] == n_tokens
    assert n_positions > 144 or engine._scheduler.n_preempted > 0


def test_n_answers_read_their_prompt_once(keeper, monkeypatch):
    prompt = [i % 256 for i in range(50)]
    engine = engine_of(keeper)
    reads = count_reads(engine, monkeypatch)
    answers = engine.generate([prompt, PROMPTS[0]], max_tokens=12, seed=4, n=5)
    n = len(PROMPTS[0])
    # Of a compiled model the same text behind the same blocks is read once, blocks that are not full among them.
    again, anew = (1, 0) if isinstance(engine._scheduler.memory, Pages) else (4, 4)
    assert sum(map(sum, reads)) == 50 + again * left_to_read(engine, 50) + n + anew * left_to_read(engine, n)
    assert left_to_read(engine, 50) < 50
    assert len({tuple(completion.token_ids) for completion in answers[:5]}) == 5
    for index in range(5):
        [alone] = engine_of(keeper).generate([prompt], max_tokens=12, seed=[row_seed(4, index)])
        assert answers[index].token_ids == alone.token_ids
        [alone] = engine_of(keeper).generate([PROMPTS[0]], max_tokens=12, seed=[row_seed(row_seed(4, 1), index)])
        assert answers[5 + index].token_ids == alone.token_ids


def test_streams_batches_and_submitted_requests_may_be_woven_together(model):
    engine = engine_of(model)
    options = {"max_tokens": 15, "temperature": 0}
    expected = engine_of(model).generate(["one", "two", "three"], **options)
    submitted = engine.submit(list(b"three"), Sampling(**options), None)
    streamed, batch = [], None
    for chunk in engine.stream("one", **options):
        streamed += chunk.token_ids
        if batch is None:
            [batch] = engine.generate(["two"], **options)
    tokens = finish(engine)
    assert streamed == expected[0].token_ids
    assert batch.token_ids == expected[1].token_ids
    assert tokens == {submitted: expected[2].token_ids}


def test_a_stream_that_nobody_reads_to_its_end_frees_its_row(model):
    engine = engine_of(model)
    stream = engine.stream("hello", max_tokens=30, temperature=0)
    next(stream)
    assert engine.busy
    stream.close()
    assert not engine.busy
    assert engine._scheduler.n_free_blocks == engine._scheduler.memory.n_blocks
    engine.stream("never begun", max_tokens=30)
    assert not engine.busy


def test_an_engine_is_usable_after_a_model_that_was_not():
    """Keys and values that are NaN must not stay behind where later rows are padded."""
    model = tiny_model(LLAMA)
    engine = engine_of(model)
    expected = [answer(engine_of(model), prompt) for prompt in PROMPTS]
    healthy = model.blocks[0].attention.qkv.weight.detach().clone()
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.fill_(float("nan"))
    for prompt in PROMPTS:
        engine.submit(prompt * 2, GREEDY, None)
    with pytest.raises(UserError, match="not finite"):
        engine.step()
    assert not engine.busy
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight.copy_(healthy)
    ids = [engine.submit(prompt, GREEDY, None) for prompt in PROMPTS]
    got = finish(engine)
    for prompt, request_id, tokens in zip(PROMPTS, ids, expected, strict=True):
        assert_same_ids(model, prompt, tokens, got[request_id])


def test_a_stop_string_over_the_borders_of_tokens_ends_one_request_and_frees_it_at_once(model):
    """Every token is one byte here, so each stop string of two characters lies over a border, "你" over two more."""
    free = engine_of(model).generate(["one", "two"], max_tokens=40, temperature=1.5, seed=2)
    for at in (1, 5, 9):
        stop = free[0].text[at : at + 2]
        engine = engine_of(model)
        sampling = Sampling(max_tokens=40, temperature=1.5, stop=(stop,))
        first = engine.submit(list(b"one"), sampling, 2)
        second = engine.submit(list(b"two"), Sampling(max_tokens=40, temperature=1.5), row_seed(2, 1))
        texts, ended = {first: "", second: ""}, []
        while engine.busy:
            for request_id, chunk in engine.step():
                texts[request_id] += chunk.text
                if chunk.finish_reason:
                    ended.append((request_id, chunk.finish_reason))
                    held = [] if len(ended) == 2 else [second]
                    assert [request.id for request in engine._scheduler.rows] == held
        assert texts == {first: free[0].text[: free[0].text.index(stop)], second: free[1].text}
        assert ended == [(first, "stop"), (second, "length")]


def test_a_stream_never_cuts_a_character(monkeypatch):
    text = "naïve 你好 🙂👩‍👩‍👧 end"
    script = iter(text.encode())
    monkeypatch.setattr(
        "talaria.infer.engine.choose_tokens", lambda *_: (torch.tensor([next(script)]), torch.tensor([-1.0]))
    )
    engine = engine_of(tiny_model(LLAMA))
    pieces = [chunk.text for chunk in engine.stream("x", max_tokens=len(text.encode()))]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert {"你", "好", "🙂"} <= set(pieces)


def test_top_log_probs_are_the_log_softmax_whatever_is_done_to_the_choice(model):
    engine = engine_of(model)
    options = {"max_tokens": 8, "temperature": 0.7, "top_k": 4, "presence_penalty": 1.5, "logit_bias": {3: 9.0}}
    [completion, other] = engine.generate(["hello", "你好"], seed=1, top_logprobs=5, **options)
    chunks = list(engine.stream("hello", seed=1, top_logprobs=5, **options))
    streamed = [pair for chunk in chunks for top in chunk.top_log_probs for pair in top]
    at_once = [pair for top in completion.top_log_probs for pair in top]
    assert [token for token, _ in streamed] == [token for token, _ in at_once]
    assert [value for _, value in streamed] == pytest.approx([value for _, value in at_once], abs=1e-4)
    for prompt, got in (("hello", completion), ("你好", other)):
        with torch.no_grad():
            logits = model(torch.tensor([list(prompt.encode()) + got.token_ids]))[0]
        expected = torch.log_softmax(logits[len(prompt.encode()) - 1 : -1], -1)
        assert len(got.top_log_probs) == len(got.log_probs) == 8
        for place, top in enumerate(got.top_log_probs):
            values, ids = expected[place].topk(5)
            assert [token for token, _ in top] == ids.tolist()
            assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
            assert got.log_probs[place] == pytest.approx(float(expected[place, got.token_ids[place]]), abs=1e-4)
    assert engine.generate(["hello"], max_tokens=2, seed=1)[0].top_log_probs == []
