"""What guesses from the text itself give one stream, on real requests, beside llama.cpp with and without its own.

    python bench/drafts.py MODEL.gguf --requests alpaca.jsonl.gz --peer MODEL-Q4_0.gguf --threads 2

Requests are records with `instruction` and `input`, put to the model one after another in its chat format. Ours as INT8
and INT4 with guesses and without, greedy and sampled; llama.cpp (llama-cpp-python's own loop, greedy) plain and with
`LlamaPromptLookupDecoding`. Sides take turns request by request, all in one process; a rate is all tokens of all
requests by all seconds, prompts included. Answers with guesses are held against those without: they are the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

Answer = Callable[[list[int], int], Sequence[int]]
"""A prompt and a seed in, the answer's ids out."""


def ours(model: Path, scheme: str) -> dict[str, Answer]:
    from talaria.infer.engine import Engine
    from talaria.infer.load import load

    loaded = load(model, scheme, device="cpu")
    sides: dict[str, Answer] = {}
    for way, sampling in (("greedy", {"temperature": 0.0}), ("0.7", {"temperature": 0.7, "top_p": 0.95})):
        for drafts in (False, True):
            engine = Engine(loaded.model, loaded.tokenizer, drafts=drafts, prefix_cache=False)
            name = f"ours {scheme}, {way}{', guesses' if drafts else ''}"
            sides[name] = lambda prompt, seed, engine=engine, sampling=sampling: (
                engine.generate([prompt], max_tokens=LONGEST, seed=seed, **sampling)[0].token_ids
            )
    return sides


def llama(peer: Path, threads: int) -> dict[str, Answer]:
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    sides: dict[str, Answer] = {}
    for name, more in (
        ("llama.cpp, greedy", {}),
        ("llama.cpp, greedy, guesses", {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=3)}),
    ):
        model = Llama(str(peer), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False, **more)
        end = {model.token_eos()}

        def answer(prompt: list[int], seed: int, model: Any = model, end: set[int] = end) -> list[int]:
            model.reset()
            ids: list[int] = []
            for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
                ids.append(token)
                if token in end or len(ids) == LONGEST:
                    break
            return ids

        sides[name] = answer
    return sides


LONGEST = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--from-record", type=int, default=40_000)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--peer", type=Path, help="a GGUF file for llama.cpp")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    import talaria

    torch.set_num_threads(arguments.threads)
    opened = gzip.open if arguments.requests.suffix == ".gz" else open
    with opened(arguments.requests, "rt", encoding="utf-8") as lines:
        chosen = islice(lines, arguments.from_record, arguments.from_record + arguments.items)
        records = [json.loads(line) for line in chosen]
    engine = talaria.load(arguments.model, device="cpu", compiled=False)
    prompts = [
        engine.chat_prompt([{"role": "user", "content": f"{record['instruction']}\n{record['input']}".strip()}])
        for record in records
    ]
    sides = ours(arguments.model, "int8") | ours(arguments.model, "int4")
    if arguments.peer:
        sides |= llama(arguments.peer, arguments.threads)
    tokens, seconds = dict.fromkeys(sides, 0), dict.fromkeys(sides, 0.0)
    for side in sides.values():
        side(prompts[0], 0)  # libraries prepare themselves on their first call
    for i, prompt in enumerate(prompts):
        answers = {}
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            answers[name] = list(sides[name](prompt, i))
            seconds[name] += time.perf_counter() - start
            tokens[name] += len(answers[name])
        for name, answer in answers.items():
            if name.startswith("ours") and answer != answers[name.removesuffix(", guesses")]:
                raise SystemExit(f"{name}: another answer to request {i} than without guesses")
    for name in sides:
        print(f"{name:32s}{tokens[name] / seconds[name]:8.1f} tokens/s of {tokens[name]:,}")


if __name__ == "__main__":
    main()
