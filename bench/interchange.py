"""A run's model exported to GGUF and to a Hugging Face folder: is what others make of it the same?

    python bench/interchange.py runs/laptop [--prompts 50]

Asks exam questions greedily, 64 tokens each, of our engine, transformers and llama.cpp (pip install llama-cpp-python)
and counts equal answers; then reads the run's own pages, and Python files of this machine, with both tokenizers and
counts pieces of 600 characters with equal ids.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

import llama_cpp
import torch
import transformers

import talaria
from talaria.model.checkpoint import export_huggingface
from talaria.model.export_gguf import TYPES, export_gguf

PIECE = 600


def pieces(texts: list[str], limit: int = 400) -> list[str]:
    cut = [text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE)]
    random.Random(0).shuffle(cut)
    return cut[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    given = parser.parse_args()
    engine = talaria.load(given.run)
    tokenizer, folder = engine.tokenizer, Path(tempfile.mkdtemp())
    rows = [json.loads(line) for line in (given.run / "world" / "exam.jsonl").open(encoding="utf-8")]
    items = random.Random(1).sample(rows, given.prompts)
    prompts = [engine.chat_prompt(item["messages"]) for item in items]
    ours = [engine.generate([prompt], max_tokens=64, temperature=0)[0].token_ids for prompt in prompts]

    export_huggingface(engine.model, tokenizer, folder / "folder")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "folder", dtype=torch.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "folder")
    told = [
        model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :].tolist()
        for ids in prompts
    ]
    templates = [
        theirs.apply_chat_template(item["messages"], add_generation_prompt=True, return_dict=False) for item in items
    ]
    print(f"transformers, greedy answers: {sum(map(list.__eq__, told, ours))} of {len(ours)} equal")
    print(f"transformers, prompts through the chat template: {sum(map(list.__eq__, templates, prompts))} equal")

    for type in TYPES:
        export_gguf(engine.model, tokenizer, folder / f"{type}.gguf", type)
        threads = len(os.sched_getaffinity(0))
        llama = llama_cpp.Llama(
            str(folder / f"{type}.gguf"),
            n_ctx=engine.context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        told = []
        for prompt in prompts:
            ids: list[int] = []
            for id in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
                ids.append(id)
                if len(ids) == 64 or id in tokenizer.stop_ids:
                    break
            told.append(ids)
        print(f"llama.cpp {type}, greedy answers: {sum(map(list.__eq__, told, ours))} of {len(ours)} equal")

    pages = [json.loads(line)["text"] for line in (given.run / "world" / "pages.jsonl").open(encoding="utf-8")]
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    for name, texts in (("pages", pieces(pages)), ("Python files", pieces(code))):
        equal = sum(
            llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text) for text in texts
        )
        print(f"llama.cpp, ids of {name}: {equal} of {len(texts)} pieces equal")


if __name__ == "__main__":
    main()
