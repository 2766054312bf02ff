"""Memory of serving a model, predicted and measured: weights, cache, workspace; fp32, int8 and
int4, the trunk of torch and the compiled one.

    python bench/memory.py MODEL --folder runs/memory

MODEL is what `talaria.load` takes; its forms are kept in --folder. Each runs in a process of its own, whose resident
memory is read when another, tiny model has run with the same tokenizer, when the model is there, and at its peak over a
prompt that nearly fills the context, of which 2,048 positions are used at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import talaria

POSITIONS, ANSWER = 2048, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--scheme", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scheme:
        print(json.dumps(measure(options.model, options.scheme == "compiled")))
        return
    print("| weights | predicted: weights, cache, workspace | measured: weights, the rest at the peak | compiled |")
    print("|---|---|---|---|")
    for scheme in (None, "int8", "int4"):
        model = options.folder / (scheme or "fp32")
        if not model.exists():
            write(options.model, scheme, model)
        measured = []
        for form in ("trunk", "compiled"):
            command = [sys.executable, __file__, str(model), "--scheme", form]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        cells = [_megabytes(parts) for parts in (predict(options.model, scheme), *measured)]
        print(f"| {scheme or 'fp32'} | {' | '.join(cells)} |", flush=True)


def write(path: Path, scheme: str | None, folder: Path) -> None:
    from talaria.infer.load import find_model
    from talaria.model.checkpoint import load_model, save_model
    from talaria.model.quantized import check_scheme, quantize
    from talaria.model.quantized_folder import save_quantized

    model, tokenizer = load_model(find_model(path))
    if scheme is None:
        save_model(model, tokenizer, folder)
    else:
        save_quantized(quantize(model, check_scheme(scheme)), tokenizer, folder)


def predict(path: Path, scheme: str | None) -> list[int]:
    from talaria.infer.load import find_model
    from talaria.infer.memory import serving_memory
    from talaria.model.checkpoint import load_shape

    shape = load_shape(find_model(path))
    memory = serving_memory(shape.model_copy(update={"context": min(shape.context, POSITIONS)}), scheme)
    return [memory.weights, memory.cache, memory.workspace]


def measure(path: Path, compiled: bool) -> list[int]:
    """Bytes of weights, and of all else at the peak."""
    import torch

    from talaria.infer.engine import Engine
    from talaria.model.shape import ModelShape
    from talaria.model.transformer import Transformer
    from talaria.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=32, n_heads=1, context=64)
    Engine(Transformer(shape).eval(), tokenizer).generate(["a"], max_tokens=1)
    before = _status("VmRSS")
    engine = talaria.load(path, compiled=compiled)
    engine.generate(["a"], max_tokens=1)
    loaded = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    ids = torch.randint(
        300, 3000, (min(engine.context, POSITIONS) - ANSWER,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    engine.generate([ids], max_tokens=ANSWER, temperature=0)
    return [loaded - before, _status("VmHWM") - loaded]


def _status(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def _megabytes(parts: list[int]) -> str:
    return ", ".join(f"{n / 1e6:,.0f} MB" for n in parts)


if __name__ == "__main__":
    main()
