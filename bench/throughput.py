"""Training throughput on this machine, side by side with a plain transformers loop. Prints ratios; needs no data.

    python bench/throughput.py --sizes 1m 10m --pairs 15
    python bench/throughput.py --sizes 1m --rows 8 16 64
    python bench/throughput.py --sizes 135m --pairs 3
    python bench/throughput.py --sizes 1m --dtype bfloat16

The peer is `LlamaForCausalLM` with SDPA, its own loss from labels, `clip_grad_norm_` and `torch.optim.AdamW` as torch
makes it, eager and under torch.compile: the faster of the two counts. Same shape, dtype, batch and context, random
tokens; with --dtype bfloat16 both keep fp32 weights, the peer under torch.autocast. Each side lives in a process of its
own, and the sides take turns within one run: the machine's noise hits both, so the ratio of a pair is steadier than
either rate. Peak memory is each process's maximal resident set.

The share of peak counts 6 N + 12 L H E T operations a token against this machine's own matrix product in that dtype.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from talaria.model.shape import ModelShape


@dataclass(frozen=True)
class Case:
    shape: ModelShape
    rows: int
    context: int
    steps_per_turn: int


CASES = {
    "1m": Case(
        ModelShape(vocab_size=2048, n_layers=4, d_model=128, n_heads=4, n_kv_heads=4, d_head=32, d_ff=352, context=256),
        rows=16,
        context=256,
        steps_per_turn=2,
    ),
    "10m": Case(
        ModelShape(vocab_size=8192, n_layers=8, d_model=288, n_heads=6, n_kv_heads=6, d_head=48, d_ff=768, context=256),
        rows=16,
        context=256,
        steps_per_turn=1,
    ),
    "135m": Case(
        ModelShape(
            vocab_size=49152, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536, context=512
        ),
        rows=2,
        context=512,
        steps_per_turn=1,
    ),
}
WARMUP_STEPS = 2
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0


def case_of(size: str, rows: int | None) -> Case:
    """The size's case, with another number of rows a batch if given."""
    return CASES[size] if rows is None else replace(CASES[size], rows=rows)


def ours(case: Case, dtype: str) -> Callable[[], float]:
    """Talaria's own step as its training loops call it, with the settings' defaults."""
    import torch

    from talaria.model.transformer import Transformer
    from talaria.tokens.batches import Batch
    from talaria.train.allocator import keep_freed_memory
    from talaria.train.optim import make_optimizers
    from talaria.train.settings import OptimizerSettings
    from talaria.train.step import StepState, optimisation_step

    keep_freed_memory()
    model = Transformer(case.shape)
    products = getattr(torch, dtype)
    optimizers = make_optimizers(model, OptimizerSettings(), LEARNING_RATE, products)
    state = StepState()
    tokens_BT = torch.randint(case.shape.vocab_size, (case.rows, case.context + 1))
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    mask_BT = torch.ones_like(inputs_BT, dtype=torch.bool)
    batch = Batch(inputs_BT, targets_BT, torch.zeros_like(inputs_BT), mask_BT)

    def step() -> float:
        result = optimisation_step(
            model,
            optimizers,
            batch,
            state,
            micro_rows=case.rows,
            rate_share=1.0,
            max_grad_norm=MAX_GRAD_NORM,
            dtype=products,
        )
        return result.loss

    return step


def llama_config(shape: ModelShape, context: int, **more: Any) -> Any:
    """The peer's configuration of a shape, SDPA."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        **more,
    )


def peer(case: Case, compiled: bool, dtype: str) -> Callable[[], float]:
    """The loop that transformers' users write."""
    import torch
    from transformers import LlamaForCausalLM

    shape = case.shape
    model = LlamaForCausalLM(llama_config(shape, case.context, use_cache=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    tokens_BT = torch.randint(shape.vocab_size, (case.rows, case.context))
    call = torch.compile(model) if compiled else model

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = call(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def work(side: str, case: Case, dtype: str) -> None:
    """The process of one side: trains `steps_per_turn` steps for each line on stdin and answers with a line."""
    import torch

    torch.manual_seed(0)
    step = ours(case, dtype) if side == "ours" else peer(case, side == "compiled", dtype)
    for _ in range(WARMUP_STEPS):
        step()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(case.steps_per_turn):
            loss = step()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "memory": memory, "loss": loss}), flush=True)


def measure_peak(dtype: str) -> float:
    """FLOP/s of the best of a few matrix products; in a process of its own, so that this one holds no threads."""
    code = (
        "import torch; from talaria.train.meter import measure_peak; "
        f"print(max(measure_peak(torch.{dtype}) for _ in range(5)))"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


class Side:
    """A process that trains on demand."""

    def __init__(self, side: str, size: str, rows: int, dtype: str) -> None:
        command = [sys.executable, __file__, "--work", side, "--sizes", size, "--rows", str(rows), "--dtype", dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.memory = 0
        self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended early; its error is above")
        reply: dict[str, float] = json.loads(line)
        return reply

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        reply = self.answer()
        self.seconds.append(reply["seconds"])
        self.memory = int(reply["memory"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(size: str, rows: int | None, pairs: int, sides: list[str], dtype: str) -> None:
    case = case_of(size, rows)
    peak = measure_peak(dtype)
    running = {name: Side(name, size, case.rows, dtype) for name in sides}
    for i in range(pairs):
        # Alternate who goes first, so that a slow drift of the machine favours neither.
        for name in sides if i % 2 == 0 else sides[::-1]:
            running[name].turn()
        seconds = "  ".join(f"{name} {side.seconds[-1]:.2f} s" for name, side in running.items())
        print(f"  pair {i + 1} of {pairs}: {seconds}", file=sys.stderr, flush=True)
    for side in running.values():
        side.close()

    tokens = case.steps_per_turn * case.rows * case.context
    print(
        f"{size}: {case.shape.n_params() / 1e6:.2f}M parameters, {case.rows} x {case.context} tokens, {pairs} pairs, "
        f"{dtype}, peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name, side in running.items():
        rate = tokens / statistics.median(side.seconds)
        share = rate * case.shape.flops_per_token(case.context) / peak
        print(f"  {name:9s}{rate:10,.0f} tok/s  {share:5.0%} of peak  {side.memory / 2**20:8,.0f} MiB")
    ratios = {
        name: [theirs / our for theirs, our in zip(side.seconds, running["ours"].seconds, strict=True)]
        for name, side in running.items()
        if name != "ours"
    }
    if not ratios:
        return
    best = min(ratios, key=lambda name: statistics.median(running[name].seconds))
    low, median, high = statistics.quantiles(ratios[best], n=4) if pairs > 1 else ratios[best] * 3
    print(f"  ratio    {median:10.2f}x (quartiles {low:.2f} to {high:.2f}) over the peer's best, {best}")
    print(f"  memory   {running['ours'].memory / running[best].memory:10.2f}x of the peer's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", nargs="+", type=int, default=[None], help="rows a batch, instead of each size's own")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the matrix products")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every side alike")
    parser.add_argument(
        "--sides", nargs="+", choices=["ours", "eager", "compiled"], default=["ours", "eager", "compiled"]
    )
    parser.add_argument("--work", choices=["ours", "eager", "compiled"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, case_of(arguments.sizes[0], arguments.rows[0]), arguments.dtype)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    for size in arguments.sizes:
        for rows in arguments.rows:
            compare(size, rows, arguments.pairs, arguments.sides, arguments.dtype)


if __name__ == "__main__":
    main()
