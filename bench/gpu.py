"""What a GPU makes of it: training and answering of 135M parameters beside transformers on the same GPU, and the memory
of six billion parameters beside what `talaria doctor` predicts.

    python bench/gpu.py train answer memory

Random weights and tokens, in turns within one process; medians of --turns, lowest to highest. Training is one step of
32 x 1,024 tokens under bf16 autocast with fp32 weights, ours by the step that the training loops make, theirs
`LlamaForCausalLM` with SDPA and fused AdamW, each eager and under torch.compile. Answers are greedy and of 64 tokens
behind 16; a decode's time is that of the call less that of a call for one token.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import torch
from throughput import llama_config
from torch import nn

from talaria.infer.engine import Engine
from talaria.infer.memory import serving_memory
from talaria.infer.rates import memory_read_rate
from talaria.model.quantized import quantize, step_bytes, to_bfloat16, weight_bytes
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.doctor import SIX_BILLION, training_bytes
from talaria.train.meter import peak_flops
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings, PretrainSettings
from talaria.train.step import StepState, optimisation_step

SHAPE = ModelShape(
    vocab_size=49152, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536, context=2048
)
ROWS, CONTEXT = 32, 1024
PROMPT, ANSWER, STREAMS, LONG = 16, 64, 64, 1000
GPU = torch.device("cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["train", "answer", "memory"])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for part in options.parts:
        {"train": train, "answer": answer, "memory": memory}[part](options.turns)


def in_turns(sides: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each side, who comes first alternating."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(sides[name]())
    return seconds


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def clear() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


# ------------------------------------------------------------------------------------------- training


def train(turns: int) -> None:
    peak = peak_flops(torch.bfloat16)
    told = training_bytes(SHAPE, ROWS, CONTEXT, PretrainSettings(dtype="bfloat16"))
    print(f"one step of {ROWS} x {CONTEXT} tokens; peak {peak / 1e12:.0f} TFLOP/s; doctor: {told / 2**20:,.0f} MiB")
    print("| | tokens/s | share of the peak | memory |")
    print("|---|---|---|---|")
    for compiled in (False, True):
        makers = {"ours": our_step, "transformers": their_step}
        steps, held = {}, {}
        for name, make in makers.items():
            clear()
            before = torch.cuda.memory_allocated()
            steps[name] = make(compiled)
            for _ in range(3):
                steps[name]()
            held[name] = torch.cuda.max_memory_allocated() - before
        sides = {name: lambda step=step: timed(step) for name, step in steps.items()}
        for name, seconds in in_turns(sides, 2 * turns).items():
            rates = sorted(ROWS * CONTEXT / second for second in seconds)
            share = statistics.median(rates) * SHAPE.flops_per_token(CONTEXT) / peak
            form = f"{name}, compiled" if compiled else name
            print(f"| {form} | {spread(rates)} | {share:.1%} | {held[name] / 2**20:,.0f} MiB |", flush=True)
        del steps, sides
        clear()


def our_step(compiled: bool) -> Callable[[], object]:
    model = Transformer(SHAPE, torch.Generator(GPU).manual_seed(0), GPU)
    if compiled:
        model.hidden = torch.compile(model.hidden)  # type: ignore[method-assign]
    optimizers = make_optimizers(model, OptimizerSettings(), 1e-3, torch.bfloat16)
    tokens_BT = torch.randint(SHAPE.vocab_size, (ROWS, CONTEXT + 1), device=GPU)
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    mask_BT = torch.ones_like(inputs_BT, dtype=torch.bool)
    batch, state = Batch(inputs_BT, targets_BT, torch.zeros_like(inputs_BT), mask_BT), StepState()
    return lambda: optimisation_step(
        model, optimizers, batch, state, micro_rows=ROWS, rate_share=1.0, max_grad_norm=1.0, dtype=torch.bfloat16
    )


def their_model() -> nn.Module:
    from transformers import LlamaForCausalLM

    with GPU:
        return LlamaForCausalLM(llama_config(SHAPE, SHAPE.context))


def their_step(compiled: bool) -> Callable[[], object]:
    model = their_model().train()
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens_BT = torch.randint(SHAPE.vocab_size, (ROWS, CONTEXT), device=GPU)

    def step() -> float:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = call(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


# ------------------------------------------------------------------------------------------- answering


def answer(turns: int) -> None:
    runs = {name: our_run(name) for name in ("fp32", "bf16", "int8", "int4")} | {"transformers, bf16": their_run()}
    read_rate = memory_read_rate(GPU)
    print(f"memory is read at {read_rate / 1e12:.2f} TB/s")
    for name, (_, n_bytes) in runs.items():
        if n_bytes is not None:
            print(
                f"{name}: {n_bytes / 1e6:,.0f} MB of weights read a step, {1e3 * n_bytes / read_rate:.2f} ms at least"
            )
    print(f"| tokens/s | {' | '.join(runs)} |")
    print(f"|---|{'---|' * len(runs)}")
    works: dict[str, tuple[int, Callable[[Run], float]]] = {
        f"decode, {n} streams": (n * ANSWER, lambda run, n=n: run(n, PROMPT, 1 + ANSWER) - run(n, PROMPT, 1))
        for n in (1, STREAMS)
    }
    works[f"prompt of {LONG}"] = LONG, lambda run: run(1, LONG, 1)
    for title, (tokens, seconds_of) in works.items():
        sides = {name: lambda run=run, seconds_of=seconds_of: seconds_of(run) for name, (run, _) in runs.items()}
        for side in sides.values():
            side()
        cells = [spread(sorted(tokens / s for s in seconds)) for seconds in in_turns(sides, turns).values()]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    runs.clear()
    clear()


Run = Callable[[int, int, int], float]
"""Streams, prompt tokens, answer tokens in; seconds out."""


def our_run(form: str) -> tuple[Run, int]:
    model = Transformer(SHAPE, torch.Generator(GPU).manual_seed(0), GPU).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)  # no block is the identity
    if form == "bf16":
        to_bfloat16(model)
    elif form in ("int8", "int4"):
        model = quantize(model, form)  # type: ignore[arg-type]
        to_bfloat16(model)
    engine = Engine(model, endless(), max_batch_size=STREAMS, prefill_chunk=LONG, prefix_cache=False)

    def run(n: int, prompt: int, answer: int) -> float:
        ids = torch.randint(engine.tokenizer.vocab_size, (n, prompt)).tolist()
        return timed(lambda: engine.generate(ids, max_tokens=answer, temperature=0))

    return run, step_bytes(model)


def endless() -> Tokenizer:
    tokenizer = Tokenizer.train(["the wing of a sandal " * 9], TokenizerSettings(vocab_size=300))
    tokenizer.stop_ids = frozenset()
    return tokenizer


def their_run() -> tuple[Run, None]:
    model = their_model().to(torch.bfloat16).eval()

    @torch.inference_mode()
    def run(n: int, prompt: int, answer: int) -> float:
        ids = torch.randint(280, (n, prompt), device=GPU)
        more = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "pad_token_id": 0}
        return timed(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **more))  # type: ignore[operator]

    return run, None


# ------------------------------------------------------------------------------------------- memory


def memory(_: int) -> None:
    shape = SIX_BILLION
    print(f"{shape.n_params():,} parameters, one conversation of {shape.context:,} tokens")
    print("| | predicted: weights, cache, workspace | measured: weights, cache, the rest at the peak | all |")
    print("|---|---|---|---|")
    for form in ("bf16", "int8", "int4"):
        clear()
        base = torch.cuda.memory_allocated()
        model = Transformer(shape, device="meta").to(torch.bfloat16 if form == "bf16" else torch.float32)
        model = model.to_empty(device=GPU).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.02)
        if form != "bf16":
            model = quantize(model, form)  # type: ignore[arg-type]
            to_bfloat16(model)
        gc.collect()
        weights = torch.cuda.memory_allocated() - base
        engine = Engine(model, endless(), max_batch_size=1, cache_bytes=1 << 40)
        cache = torch.cuda.memory_allocated() - base - weights
        torch.cuda.reset_peak_memory_stats()
        ids = torch.randint(engine.tokenizer.vocab_size, (shape.context - 16,)).tolist()
        engine.generate([ids], max_tokens=16, temperature=0)
        peak = torch.cuda.max_memory_allocated() - base
        told = serving_memory(shape, None if form == "bf16" else form, dtype="bfloat16")
        cells = [gigabytes(told.weights, told.cache, told.workspace), gigabytes(weights, cache, peak - weights - cache)]
        print(f"| {form} | {' | '.join(cells)} | {gigabytes(peak)} |", flush=True)
        assert weight_bytes(model) <= weights
        del engine, model


def gigabytes(*sizes: int) -> str:
    return ", ".join(f"{size / 1e9:.2f}" for size in sizes) + " GB"


def spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"


if __name__ == "__main__":
    main()
