"""The compiled trunk against torch's: the same function, whatever blocks its memory lies in and whoever reads beside.

Activations of INT8's and INT4's products are rounded to 8 bits, so bounds there come from that; all else is fp32.
"""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from infer.conftest import ByteTokenizer

from talaria.errors import UserError
from talaria.infer.contract import Sampling
from talaria.infer.engine import Engine
from talaria.model.compiled import (
    MANY,
    PAGE,
    Piece,
    _few_sizes,
    can_compile,
    can_compile_live,
    compile_transformer,
    has_int8_products,
)
from talaria.model.lora import add_lora, without_lora
from talaria.model.quantized import quantize, to_int4
from talaria.model.quantized_linear import GROUP, Int4Linear, Int8Linear
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, apply_gradients

from .test_quantized import GPT2, LLAMA, SHIFTED, model_of, shape_of, with_shown_weights

ov = pytest.importorskip("openvino", reason="needs openvino: pip install 'talaria-lm[serve]'")

SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 32}
CASES = {
    "llama": LLAMA,
    "llama tied, narrow heads": LLAMA | {"tie_embeddings": True, "d_head": 8},
    "llama 3.1": LLAMA | {"rope_scaling": SCALING, "rope_theta": 500.0},
    "gpt2": GPT2,
    "gpt2 untied, wide heads": GPT2 | {"tie_embeddings": False, "d_head": 32, "n_kv_heads": 1},
    "qwen3": LLAMA | {"qk_norm": True, "d_head": 32, "tie_embeddings": True},
    "qwen3 without rope": LLAMA | {"qk_norm": True, "positions": "learned"},
}
FAMILIES = ["llama", "gpt2", "qwen3"]
CONTEXT = 160


@cache
def pair(name: str, scheme: str | None = None):
    """A trunk of torch in fp32 and the compiled model of the same weights."""
    original = model_of(CASES[name], context=CONTEXT)
    if scheme is None:
        return original, compile_transformer(original)
    quantized = quantize(copy.deepcopy(original), scheme)
    shown = with_shown_weights(original, quantized)
    with torch.no_grad():
        for where, module in quantized.named_modules():
            if isinstance(module, Int4Linear):
                shown.get_submodule(where).weight.copy_(whole_steps(module))
    return shown, compile_transformer(quantized)


def whole_steps(linear: Int4Linear) -> torch.Tensor:
    """The weight without the rounding of its zeros, which the compiled product does not know."""
    scales, steps = linear.scales_and_steps()
    q = linear.quantised().view(linear.n_rows, -1, GROUP).float()
    return ((q - steps.float()) * scales).view(linear.n_rows, -1)


def ids_of(n: int, seed: int = 0) -> list[int]:
    return torch.randint(300, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def used_reader(model, n_blocks: int = 12):
    """A reader whose memory holds what a broken model left there."""
    reader = model.reader(n_blocks)
    for array in reader._memory.values():
        array.fill(math.nan)
    return reader


def hidden_of(trunk, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return trunk.hidden(torch.tensor([ids]))[0]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits, of weights that are multiplied as int8; where the processor cannot, the rounding of fp32."""
    if has_int8_products():
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_trunks(name):
    trunk, compiled = pair(name)
    tokens = torch.tensor([ids_of(70), ids_of(70, 1)])
    with torch.no_grad():
        expected = trunk(tokens)
    assert_close(compiled.head(compiled.hidden(tokens)), expected)
    scores = compiled.scores(compiled.hidden(tokens).flatten(0, 1))
    assert_close(scores.log_totals, expected.flatten(0, 1).logsumexp(-1))
    assert torch.equal(scores.best(), scores.logits.argmax(-1))


@pytest.mark.parametrize("name", CASES)
def test_documents_of_one_row_do_not_see_each_other(name):
    """The bug: positions that start again, while keys of the document before are still looked at."""
    trunk, compiled = pair(name)
    tokens = torch.tensor([ids_of(70), ids_of(70, 1)])
    for lengths in ([70], [1, 33, 32, 4], [31, 1, 1, 37]):
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        mask = (document[:, None] == document[None, :]).tril()[None, None]
        with torch.no_grad():
            expected = trunk(tokens, positions, mask)
        assert_close(compiled.head(compiled.hidden(tokens, positions, mask)), expected)
    each = torch.stack([positions[0], torch.arange(70)])
    with torch.no_grad():
        expected = torch.cat([trunk(tokens[:1], positions, mask), trunk(tokens[1:])])
    assert_close(compiled.head(compiled.hidden(tokens, each)), expected)


@pytest.mark.parametrize("name", CASES)
def test_chunks_and_single_tokens_through_scattered_blocks(name):
    """The bugs: a block's number taken for its place, a neighbour's keys, what an earlier row left in a block."""
    trunk, compiled = pair(name)
    sequences = {0: (ids_of(75), [7, 2, 11]), 1: (ids_of(90, 1), [0, 9, 3]), 2: (ids_of(75, 2), [5, 1, 10])}
    expected = {i: hidden_of(trunk, ids) for i, (ids, _) in sequences.items()}
    reader, at = used_reader(compiled), dict.fromkeys(sequences, 0)
    steps = [[(0, 33)], [(1, 40), (0, 2)], [(2, 64), (1, 24), (0, 5)], [(0, 1), (1, 1), (2, 1)], [(2, 1)]]
    steps += [[(0, 24), (2, 2)], [(2, 1), (0, 1), (1, 1)], [(0, 1)], [(1, 2)], [(1, 1)], [(2, 5), (1, 10), (0, 8)]]
    for step in steps:
        pieces, wanted, due, n_before = [], [], [], 0
        for i, n in step:
            ids, blocks = sequences[i]
            pieces.append(Piece(ids[at[i] : at[i] + n], at[i], blocks))
            wanted += [n_before, n_before + n - 1]
            due += [expected[i][at[i]], expected[i][at[i] + n - 1]]
            at[i] += n
            n_before += n
        assert_close(reader.read(pieces, wanted), torch.stack(due))
    assert at == {0: 75, 1: 79, 2: 74}


def test_sequences_may_name_the_same_blocks():
    trunk, compiled = pair("llama")
    beginning, reader = ids_of(2 * PAGE), used_reader(compiled)
    first, second = beginning + ids_of(9, 1), beginning + ids_of(7, 2)
    reader.read([Piece(first, 0, [4, 8, 2])], [0])
    found = reader.read([Piece(second[2 * PAGE :], 2 * PAGE, [4, 8, 6])], range(7))
    assert_close(found, hidden_of(trunk, second)[2 * PAGE :])
    more = reader.read([Piece([first[-1]], len(first) - 1, [4, 8, 2]), Piece([5], len(second), [4, 8, 6])], [0, 1])
    assert_close(more, torch.stack([hidden_of(trunk, first)[-1], hidden_of(trunk, [*second, 5])[-1]]))


def test_a_chunk_of_which_nothing_is_wanted_is_read_all_the_same():
    trunk, compiled = pair("gpt2")
    reader, ids = used_reader(compiled), ids_of(40)
    assert reader.read([Piece(ids[:30], 0, [3, 1])], []).shape == (0, 64)
    assert_close(reader.read([Piece(ids[30:], 30, [3, 1])], [9]), hidden_of(trunk, ids)[-1:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_live_weights_are_those_of_the_model_after_every_update(name, with_lora, threads):
    """The bug: a sampler that answers with the weights of the step before."""
    model, before = model_of(CASES[name], context=CONTEXT), torch.get_num_threads()
    if with_lora:
        add_lora(model, 4, 8.0, torch.Generator().manual_seed(0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    torch.set_num_threads(threads)
    try:
        compiled = compile_transformer(model, live=True)
        texts = torch.tensor([ids_of(40, i) for i in range(16)])
        logits = []
        for _ in range(2):
            logits.append(model.head(model.hidden(texts)[:, -2:]))
            reader, blocks = compiled.reader(32), [[2 * i, 2 * i + 1] for i in range(16)]
            pieces = [Piece(ids[:39], 0, own) for ids, own in zip(texts.tolist(), blocks, strict=True)]
            prompts = reader.read(pieces, [39 * (i + 1) - 1 for i in range(16)])
            pieces = [Piece(ids[39:], 39, own) for ids, own in zip(texts.tolist(), blocks, strict=True)]
            newest = reader.read(pieces, range(16))
            assert_close(torch.stack([compiled.head(prompts), compiled.head(newest)], dim=1), logits[-1].detach())
            optimizer.zero_grad()
            logits[-1].square().sum().backward()
            optimizer.step()
        assert (logits[0] - logits[1]).abs().max() > 0.1, "the update changes nothing that can be seen"
    finally:
        torch.set_num_threads(before)


def test_threads_go_where_there_is_room():
    """The bug: OpenVINO's default binds its threads to cores; beside one busy process a token then took seven times as
    long."""
    _, compiled = pair("llama")
    trunks = compiled._trunks
    assert trunks.single is not None
    for graph in (trunks.any, trunks.single):
        assert graph.get_property("ENABLE_CPU_PINNING") is False


def test_live_weights_that_moved_are_noticed():
    model = model_of(LLAMA, context=CONTEXT)
    compiled = compile_transformer(model, live=True)
    compiled.reader(2)
    out = model.blocks[0].attention.out
    old = out.weight
    for moved in (torch.nn.Parameter(old.detach().clone()), old):
        out.weight = moved
        if moved is old:
            old.data = old.data.clone()
        with pytest.raises(AssertionError, match="weights have moved"):
            compiled.reader(2)


def test_a_lora_that_is_switched_off_is_not_computed_all_the_same():
    model = model_of(LLAMA, context=CONTEXT)
    add_lora(model, 4, 8.0, torch.Generator().manual_seed(0))
    compiled = compile_transformer(model, live=True)
    with without_lora(model), pytest.raises(AssertionError, match="switched off"):
        compiled.reader(2)
    compiled.reader(2)


def test_what_was_kept_of_a_prompt_goes_with_the_live_weights_that_computed_it():
    """The bug: fused AdamW leaves no mark on the weights that it changes."""
    model, tokenizer = model_of(LLAMA, context=CONTEXT), ByteTokenizer()
    engine = Engine(compile_transformer(model, live=True), tokenizer)
    prompt = [token % 256 for token in ids_of(2 * PAGE + 3)]
    engine.generate([prompt], max_tokens=4, temperature=0)
    optimizers = make_optimizers(model, OptimizerSettings(), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_gradients([model], optimizers, StepState(), 1.0, rate_share=1.0, max_grad_norm=1.0)
    found = engine.generate([prompt], max_tokens=4, temperature=0)
    anew = Engine(model, tokenizer).generate([prompt], max_tokens=4, temperature=0)
    assert_close(torch.tensor(found[0].log_probs), torch.tensor(anew[0].log_probs))


@pytest.mark.parametrize("change", ["double", "quantize"])
def test_weights_that_no_graph_can_read_where_they_lie(change):
    model = model_of(LLAMA)
    assert can_compile_live(model)
    assert not can_compile_live(model.double() if change == "double" else quantize(model, "int8"))


def linear_graph(linear):
    """An INT4 product alone, compiled with the settings of a model."""
    from talaria.model.openvino_graph import _Layers

    _, model = pair("llama", "int4")
    x = ov.opset13.parameter([-1, linear.n_columns], ov.Type.f32)
    names = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS")
    settings = {name: model._trunks.any.get_property(name) for name in names}
    compiled = ov.Core().compile_model(ov.Model([_Layers(live=False).linear(linear, x)], [x]), "CPU", settings)
    return lambda rows: torch.from_numpy(compiled([rows.numpy()])[0].copy())


def test_prompts_of_all_lengths_are_read_in_few_sizes(monkeypatch):
    """The bug: kernels for every number of tokens, kept for ever, so that a server's memory grew for hours."""
    _, compiled = pair("llama", "int4")
    reader, sizes, hidden = compiled.reader(5), set(), {}
    for n in range(2, CONTEXT + 1):
        [hidden[n]] = reader.read([Piece(ids_of(n), 0, range(5))], wanted=[n - 1])
        sizes.add(reader._request.get_tensor("tokens").shape[0])
    assert len(sizes) == CONTEXT // 8
    monkeypatch.setattr("talaria.model.compiled._few_sizes", lambda n: n)
    for n in (2, 9, 131, 160):
        [alone] = reader.read([Piece(ids_of(n), 0, range(5))], wanted=[n - 1])
        assert torch.equal(hidden[n], alone)


@pytest.mark.parametrize("n_prompts", [20, 40])
def test_padding_of_many_tokens_lies_in_its_own_block(n_prompts):
    """The bug: up to 255 tokens of padding in one block of 32, which overwrote what came behind it in memory."""
    _, compiled = pair("llama", "int4")
    n, n_blocks = 103, 4 * n_prompts
    assert _few_sizes(n * n_prompts) - n * n_prompts > PAGE
    reader = compiled.reader(n_blocks + 1)
    rest = n_blocks  # a block that belongs to somebody who is not read now
    for array in reader._memory.values():
        array[rest] = 7.0
    pieces = [Piece(ids_of(n, i), 0, range(4 * i, 4 * i + 4)) for i in range(n_prompts)]
    for piece in reader._padded(pieces):
        assert len(piece.blocks) * PAGE >= piece.start + len(piece.ids) and rest not in piece.blocks
    together = reader.read(pieces, wanted=[n * (i + 1) - 1 for i in range(n_prompts)])
    assert all((array[rest] == 7.0).all() for array in reader._memory.values())
    for i in (0, n_prompts - 1):
        [alone] = compiled.reader(4).read([Piece(ids_of(n, i), 0, range(4))], wanted=[n - 1])
        assert torch.equal(together[i], alone)


def test_what_a_caller_handed_over_stays_as_it_was():
    """The bug: an input kept without a copy and written over by the next call of the same size."""
    model = compile_transformer(model_of(LLAMA))
    given, more = torch.randn(3, model.shape.d_model), torch.randn(3, model.shape.d_model)
    before = given.clone()
    first = model.head(given)
    second = model.head(more)
    assert torch.equal(given, before)
    assert torch.equal(model.head(given), first) and not torch.equal(first, second)


def test_many_rows_go_through_the_head_in_few_sizes():
    _, compiled = pair("llama")
    rows = compiled.hidden(torch.tensor([ids_of(150)]))[0]
    all_at_once, sizes = compiled.head(rows), set()
    for n in range(1, 151):
        scores = compiled.scores(rows[:n])
        assert scores.logits.shape[0] == scores.log_totals.shape[0] == n
        sizes.add(compiled._head.get_tensor("hidden").shape[0])
        assert torch.equal(scores.best(), all_at_once[:n].argmax(-1))
    assert len(sizes) == MANY + (152 - MANY) // 8


@pytest.mark.parametrize("size", [(64, 64), (70, 96), (96, 256)], ids=str)
def test_int4_products_are_those_of_the_weights(size):
    """Exact, not nearly: 8 bits hold a one among zeros, and whole numbers up to 127, without rounding."""
    (N, K), generator = size, torch.Generator().manual_seed(0)
    weight = torch.randn(N, K, generator=generator)
    weight[0], weight[1], weight[2] = weight[0].abs() + 1, -weight[1].abs() - 1, 0
    linear = Int4Linear(*to_int4(weight, torch.ones(K)), torch.randn(N, generator=generator))
    product, expected = linear_graph(linear), whole_steps(linear)
    torch.testing.assert_close(product(torch.eye(K)).T - linear.bias[:, None], expected, rtol=1e-6, atol=1e-6)
    one_by_one = torch.cat([product(row[None]) for row in torch.eye(K)[: 2 * GROUP]])
    assert torch.equal(one_by_one, product(torch.eye(K))[: 2 * GROUP])
    whole = torch.randint(-127, 128, (5, K), generator=generator).float()
    whole[:, ::GROUP] = 127
    torch.testing.assert_close(product(whole / 8), whole / 8 @ expected.T + linear.bias, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 256)], ids=str)
def test_int4_rounds_activations_within_their_own_32_columns(size):
    """The bug: one scale for a whole row, or for all rows, so that one large activation drowns all others.

    A number is off by half a step at the most, 1/254 of the largest of its 32.
    """
    (N, K), generator = size, torch.Generator().manual_seed(0)
    linear = Int4Linear(*to_int4(torch.randn(N, K, generator=generator), torch.ones(K)))
    x = torch.randn(6, K, generator=generator)
    x[:, :GROUP], x[3] = x[:, :GROUP].sign() * 1000, x[3].sign() * 5000  # which 8 bits hold as they are
    product, weight = linear_graph(linear), whole_steps(linear).double()
    largest = x.view(6, -1, GROUP).abs().amax(-1, keepdim=True).double()
    largest[:, 0], largest[3] = 0, 0
    off = (largest / 254).expand(6, K // GROUP, GROUP).reshape(6, K)
    bound = 1.001 * off @ weight.abs().T + 1e-6 * (x.double().abs() @ weight.abs().T)
    assert bool(((product(x).double() - x.double() @ weight.T).abs() <= bound).all())


@pytest.mark.parametrize(("scheme", "n_together"), [("int4", 32), ("int8", 64)])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_off_by_what_rounding_activations_costs(name, scheme, n_together):
    """A rounded number is off by a uniform error within half a step, 1/127 of the largest of its group, so by a root
    mean square of 1/(127 sqrt(12)) of that; the largest of n is at most sqrt(n) times their root mean square: 1.3 % for
    32, 1.8 % for the 64 of INT8 and the head. Errors of products one behind another, four a layer and the head's, add
    up as independent ones do.
    """
    trunk, compiled = pair(name, scheme)
    tokens = torch.tensor([ids_of(70), ids_of(70, 1)])
    with torch.no_grad():
        expected = trunk(tokens)
    error = compiled.head(compiled.hidden(tokens)) - expected
    n_columns = 4 * trunk.shape.n_layers * n_together + 64
    assert error.norm() < math.sqrt(n_columns) / (127 * math.sqrt(12)) * expected.norm()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_beside", [1, 5, 20])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_tokens_do_not_depend_on_who_is_beside_them(name, scheme, n_beside):
    """The bug: activations rounded by a scale that rows share, or kernels chosen by how many there are."""
    _, compiled = pair(name, scheme)
    sequences = [(ids_of(20 + i, i), [3 * i, 3 * i + 1]) for i in range(1 + n_beside)]
    found = []
    for n in (1, 1 + n_beside):
        reader = used_reader(compiled, 64)
        for ids, blocks in sequences:
            reader.read([Piece(ids[:-1], 0, blocks)], [0])
        singles = [Piece(ids[-1:], len(ids) - 1, blocks) for ids, blocks in sequences[:n]]
        found.append(reader.read(singles[::-1], range(n))[-1:])
        found.append(compiled.head(reader.read(singles, range(n)))[:1])
    assert_alike(found[0], found[2])
    assert_alike(found[1], found[3])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_read_alike_alone_in_company_and_in_chunks(name, scheme):
    _, compiled = pair(name, scheme)
    ids, own = ids_of(45), [5, 9]
    alone = used_reader(compiled).read([Piece(ids, 0, own)], range(45))
    others = [Piece(ids_of(7 + i, i), 0, [i]) for i in range(4)]
    n_before = sum(len(piece.ids) for piece in others[:2])
    pieces = [*others[:2], Piece(ids, 0, own), *others[2:]]
    assert torch.equal(used_reader(compiled).read(pieces, range(n_before, n_before + 45)), alone)
    for cut in (2, 17, 32, 43):
        reader = used_reader(compiled)
        first = reader.read([Piece(ids[:cut], 0, own)], range(cut))
        second = reader.read([*others, Piece(ids[cut:], cut, own)], range(34, 34 + 45 - cut))
        assert torch.equal(torch.cat([first, second]), alone)


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_two_engines_over_one_model_have_memories_of_their_own(scheme):
    _, compiled = pair("llama", scheme)
    prompts, sampling = [ids_of(40, 1), ids_of(50, 2)], Sampling(max_tokens=20, temperature=0)
    prompts = [[token % 256 for token in prompt] for prompt in prompts]
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = frozenset()
    alone = [Engine(compiled, tokenizer).generate([p], max_tokens=20, temperature=0)[0].token_ids for p in prompts]
    engines = [Engine(compiled, tokenizer) for _ in prompts]
    for engine, prompt in zip(engines, prompts, strict=True):
        engine.submit(prompt, sampling, None)
    got: list[list[int]] = [[], []]
    while any(engine.busy for engine in engines):
        for engine, tokens in zip(engines, got, strict=True):
            tokens += [token for _, chunk in engine.step() for token in chunk.token_ids]
    assert got == alone


def test_weights_whose_zeros_are_no_whole_steps_are_refused():
    """The bug: zeros of an earlier version rounded to the next step, and answers that are nearly right."""
    quantized = quantize(model_of(LLAMA), "int4")
    quantized.blocks[1].feed_forward.down.grid[..., 1] += 0.4 * quantized.blocks[1].feed_forward.down.grid[..., 0]
    with pytest.raises(UserError, match="earlier version; quantize the model again"):
        compile_transformer(quantized)


def test_a_width_that_int4_cannot_take_is_compiled_as_int8():
    original = model_of(LLAMA, d_ff=40)
    quantized = quantize(copy.deepcopy(original), "int4")
    assert isinstance(quantized.blocks[0].feed_forward.down, Int8Linear)
    tokens = torch.tensor([ids_of(30)])
    with torch.no_grad():
        expected = with_shown_weights(original, quantized)(tokens)
    compiled = compile_transformer(quantized)
    assert (compiled.head(compiled.hidden(tokens)) - expected).norm() < 0.05 * expected.norm()


def test_which_shapes_can_be_compiled():
    for variant in CASES.values():
        assert can_compile(shape_of(variant))
    for variant in (SHIFTED, {"token_shift": True}, {"ngram_embeddings": 1}):
        assert not can_compile(shape_of(variant))


@pytest.mark.parametrize("small", [1 << 28, 0], ids=["graphs of their own", "one graph"])
@pytest.mark.parametrize("n_threads", [2, 5])
def test_a_token_alone_is_read_as_in_company_whatever_the_threads(monkeypatch, n_threads, small):
    """The bug: with fewer sequences than threads, threads shared a sequence's positions, and its sums were rounded as
    no batch rounds them. One thread, or a single block of positions, shows nothing."""
    monkeypatch.setattr("talaria.model.compiled.SMALL", small)
    original, before = model_of(CASES["llama"], context=CONTEXT), torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        model = compile_transformer(quantize(original, "int4"))
    finally:
        torch.set_num_threads(before)
    many = 8 * n_threads + 1
    length, blocks = 4 * PAGE + 11, [list(range(5 * row, 5 * row + 5)) for row in range(many)]
    lengths = [length - 9 * (row % 7) for row in range(many)]
    reader = model.reader(5 * many)
    for row, own in enumerate(blocks):
        reader.read([Piece(ids_of(lengths[row], row), 0, own)], [])
    alone = reader.read([Piece([7], length, blocks[0])], [0])
    for n in (2, 3, 7, many):
        pieces = [Piece([7], lengths[row], blocks[row]) for row in range(n)]
        assert_alike(reader.read(pieces, [0]), alone)
        assert_alike(reader.read(pieces, range(n))[:1], alone)
    for row, piece in enumerate(pieces):
        assert_alike(reader.read(pieces, range(n))[row : row + 1], reader.read([piece], [0]))
