"""Inference of one model on this machine, side by side with llama.cpp and transformers. Prints rates and ratios.

    python bench/inference.py MODEL.gguf --folder runs/inference

One stream, 16 streams and a prompt of 1,000 tokens; ours as INT4, INT8 and fp32, llama.cpp's Q4_0, Q4_1 and Q8_0
(needs llama-cpp-python; called through its C API, 16 streams as one batch), transformers in fp32 (SDPA). MODEL is a
GGUF file; the other forms are made from it into --folder and kept. Greedy throughout, no answer ends early. Each side
lives in a process of its own and they take turns, so the machine's noise hits all; a ratio is the median over turns.

A decode is the time of the answer's steps alone, prompts of 16 tokens excluded.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, ANSWER, STREAMS, LONG = 16, 64, 16, 1000
MEASURES = {
    "decode, 1 stream": (1, ANSWER),
    f"decode, {STREAMS} streams": (STREAMS, ANSWER),
    f"prefill {LONG}": (0, LONG),
}
OURS = ("ours-int4", "ours-int8", "ours-fp32")
LLAMA = {"llama.cpp-q4_0": 2, "llama.cpp-q4_1": 3, "llama.cpp-q8_0": 7}  # the library's numbers of these formats
SIDES = (*OURS, *LLAMA, "transformers")
TOKENS = range(300, 40_000)

Run = Callable[[int, int], float]
"""Streams and tokens in, seconds out; with 0 streams a prompt of that many tokens is read."""


def prompts(turn: int, n: int, length: int) -> list[list[int]]:
    """Random tokens, never the same twice, so that nothing is found already computed."""
    import random

    draw = random.Random(turn)
    return [[draw.choice(TOKENS) for _ in range(length)] for _ in range(n)]


def ours(model: Path, scheme: str) -> Run:
    from talaria.infer.engine import Engine
    from talaria.infer.load import load

    loaded = load(model, None if scheme == "fp32" else scheme, device="cpu")
    endless = copy.copy(loaded.tokenizer)
    endless.stop_ids = frozenset()
    # Random prompts are answered by endless repetition, which guesses would turn into any rate one likes.
    engine = Engine(loaded.model, endless, prefill_chunk=LONG, drafts=False)
    turn = 0

    def seconds(given: list[list[int]], n: int) -> float:
        start = time.perf_counter()
        completions = engine.generate(given, max_tokens=n, temperature=0)
        spent = time.perf_counter() - start
        assert all(len(completion.token_ids) == n for completion in completions)
        return spent

    def run(streams: int, n: int) -> float:
        nonlocal turn
        turn += 2
        if streams == 0:
            return seconds(prompts(turn, 1, n), 1)
        first = seconds(prompts(turn, streams, PROMPT), 1)
        return seconds(prompts(turn + 1, streams, PROMPT), n + 1) - first

    return run


def quiet_llama() -> Any:
    """llama.cpp's functions; it tells every tensor otherwise."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    return llama_cpp


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silence(*_: object) -> None: ...


def llama(model: Path, threads: int) -> Run:
    import numpy as np

    llama_cpp = quiet_llama()
    weights = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = STREAMS * 2048, 1024, 512
    settings.n_seq_max, settings.kv_unified = STREAMS, True
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(weights, settings)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(weights))
    batch = llama_cpp.llama_batch_init(1024, 0, 1)
    turn = 0

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        """One call over (token, position, stream, whether its logits are wanted)."""
        batch.n_tokens = len(rows)
        for i, (token, position, stream, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = stream, wanted
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def best(row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, shape=(n_vocab,)).argmax())

    def run(streams: int, n: int) -> float:
        nonlocal turn
        turn += 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if streams == 0:
            [prompt] = prompts(turn, 1, n)
            start = time.perf_counter()
            decode([(token, i, 0, i == n - 1) for i, token in enumerate(prompt)])
            best(n - 1)
            return time.perf_counter() - start
        given = prompts(turn, streams, PROMPT)
        decode([(token, i, s, i == PROMPT - 1) for s, prompt in enumerate(given) for i, token in enumerate(prompt)])
        last = [best(s * PROMPT + PROMPT - 1) for s in range(streams)]
        start = time.perf_counter()
        for step in range(n):
            decode([(token, PROMPT + step, s, True) for s, token in enumerate(last)])
            last = [best(s) for s in range(streams)]
        return time.perf_counter() - start

    return run


def transformers(folder: Path) -> Run:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    turn = 0

    def seconds(given: list[list[int]], n: int) -> float:
        ids = torch.tensor(given)
        start = time.perf_counter()
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
        )
        assert made.shape[1] == ids.shape[1] + n
        return time.perf_counter() - start

    def run(streams: int, n: int) -> float:
        nonlocal turn
        turn += 2
        if streams == 0:
            return seconds(prompts(turn, 1, n), 1)
        first = seconds(prompts(turn, streams, PROMPT), 1)
        return seconds(prompts(turn + 1, streams, PROMPT), n + 1) - first

    return run


def prepare(model: Path, folder: Path) -> None:
    """llama.cpp's forms and a Hugging Face folder, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "huggingface").exists():
        import talaria
        from talaria.model.checkpoint import export_huggingface

        engine = talaria.load(model, device="cpu", compiled=False)
        export_huggingface(engine.trunk, engine.tokenizer, folder / "huggingface")
    llama_cpp = quiet_llama()
    for name, number in LLAMA.items():
        target = folder / f"{name}.gguf"
        if not target.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = number, True
            code = llama_cpp.llama_model_quantize(str(model).encode(), str(target).encode(), ctypes.byref(settings))
            if code != 0:
                raise SystemExit(f"llama.cpp could not make {target}")


def work(side: str, model: Path, folder: Path, threads: int) -> None:
    """The process of one side: a line of streams and tokens in, a line of seconds out."""
    if side in OURS:
        import torch

        torch.set_num_threads(threads)
        run = ours(model, side.removeprefix("ours-"))
    elif side in LLAMA:
        run = llama(folder / f"{side}.gguf", threads)
    else:
        run = transformers(folder / "huggingface")
    for streams, tokens in MEASURES.values():
        run(streams, tokens if streams == 0 else 8)  # libraries prepare themselves on their first call
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        streams, tokens = json.loads(line)
        print(json.dumps(run(streams, tokens)), flush=True)


class Side:
    """A process that runs on demand."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        command = [sys.executable, __file__, str(arguments.model), "--folder", str(arguments.folder), "--work", name]
        self.process = subprocess.Popen(
            [*command, "--threads", str(arguments.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def ask(self, streams: int, tokens: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([streams, tokens]) + "\n")
        self.process.stdin.flush()
        return float(self.answer())

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended early; its error is above")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/inference"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every side alike")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.model, arguments.folder, arguments.threads)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    prepare(arguments.model, arguments.folder)
    running = {name: Side(name, arguments) for name in arguments.sides}
    for measure, (streams, tokens) in MEASURES.items():
        rates: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(arguments.turns):
            # Forwards and backwards, so that a slow drift of the machine favours nobody.
            for name in list(running)[:: 1 if turn % 2 == 0 else -1]:
                rates[name].append(max(streams, 1) * tokens / running[name].ask(streams, tokens))
        print(f"\n{measure}, tokens/s, medians of {arguments.turns} (quartiles)")
        for name, values in rates.items():
            print(f"  {name:16s}{_spread(values, ',.0f')}")
        tell_ratios(rates)
    read_rate = measure_read_rate()
    print(f"\nmemory reads {read_rate / 1e9:.1f} GB/s (sum of 256 MiB, best of seven)")


def tell_ratios(rates: dict[str, list[float]]) -> None:
    """Ours at its fastest against each peer at its fastest, turn by turn."""
    mine = max((name for name in rates if name in OURS), key=lambda name: statistics.median(rates[name]), default=None)
    for peers in (LLAMA, ("transformers",)):
        there = [name for name in peers if name in rates]
        if mine and there:
            best = max(there, key=lambda name: statistics.median(rates[name]))
            ratios = [our / their for our, their in zip(rates[mine], rates[best], strict=True)]
            print(f"  {mine} / {best}: {_spread(ratios, '.2f')}", flush=True)


def _spread(values: list[float], form: str) -> str:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def measure_read_rate() -> float:
    """In a process of its own, so that this one holds no threads."""
    code = "from talaria.infer.rates import memory_read_rate; print(memory_read_rate())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
