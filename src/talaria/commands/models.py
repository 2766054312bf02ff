"""What is done with a model: in and out of foreign formats, smaller, measured, talked to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from talaria.commands.console import console
from talaria.errors import UsageError, UserError
from talaria.files import atomic_folder


def import_model(source: Path, target: Path) -> None:
    """Read a Hugging Face folder or .gguf file and write it as a model folder."""
    from talaria.model.checkpoint import load_model, save_model

    if target.exists():
        raise UserError(f"{target}: exists already; choose another folder or delete it")
    model, tokenizer = load_model(source)
    with atomic_folder(target) as folder:
        save_model(model, tokenizer, folder)
    console.print(f"{target}: {model.shape.n_params():,} parameters; talk to it: talaria chat {target}")


def export_model(path: Path, to: str, output: Path, type: str | None) -> None:
    """Write a model as a Hugging Face folder or as one .gguf file, for other engines."""
    from talaria.infer.load import find_model
    from talaria.model.checkpoint import export_huggingface, load_model
    from talaria.model.export_gguf import TYPES, export_gguf
    from talaria.model.quantized_folder import is_quantized

    if to not in ("huggingface", "gguf"):
        raise UsageError(f"--to {to}: unknown; choose huggingface or gguf")
    if type is not None and (to != "gguf" or type not in TYPES):
        raise UsageError(f"--type {type}: choose {', '.join(TYPES)}, with --to gguf; a folder keeps fp32")
    if to == "gguf" and output.suffix != ".gguf":
        raise UsageError(f"--output {output}: name a file that ends in .gguf")
    if output.exists():
        raise UserError(f"{output}: exists already; choose another name or delete it")
    found = find_model(path)
    if is_quantized(found):
        raise UserError(f"{found}: is quantized for our own engine; export the model that it was made from")
    model, tokenizer = load_model(found)
    try:
        if to == "gguf":
            export_gguf(model, tokenizer, output, type or "f32")
        else:
            with atomic_folder(output) as folder:
                export_huggingface(model, tokenizer, folder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    n_bytes = sum(file.stat().st_size for file in ([output] if output.is_file() else output.iterdir()))
    console.print(f"{output}: {model.shape.n_params():,} parameters, {n_bytes:,} bytes")


def quantize_model(path: Path, to: str, text: Path | None, n_tokens: int, output: Path | None) -> None:
    """Print what quantizing a model saves and costs; write the quantized model where `output` is given."""
    from talaria.eval.fidelity import batches_of_shards, batches_of_text, compare_models, fidelity_table
    from talaria.infer.load import load
    from talaria.model.compiled import can_compile, compile_transformer
    from talaria.model.quantized import QuantizedTransformer, int8_instead, weight_bytes
    from talaria.model.quantized_folder import save_quantized

    if output is not None and output.exists():
        raise UserError(f"{output}: exists already; choose another folder or delete it")
    after = load(path, quantize=to, compiled=False)
    before, tokenizer, quantized = load(path, compiled=False), after.tokenizer, after.trunk
    assert isinstance(quantized, QuantizedTransformer)
    window = min(after.context, 1024)
    if text is not None:
        batches = batches_of_text(text, tokenizer, window, n_tokens)
    else:
        beside = [place / "tokenizer" / "shards" for place in (path, *path.resolve().parents[:2])]
        shards = next((place for place in beside if place.is_dir()), None)
        if shards is None:
            raise UserError(f"{path}: no held-out text of a run beside it; give one with --text FILE")
        batches = batches_of_shards(shards, tokenizer, window, n_tokens)
    # Measured is what answers: the compiled model where there is one.
    answers = compile_transformer(quantized) if can_compile(quantized.shape) else quantized
    fidelity = compare_models(before.trunk, answers, batches)
    Console().print(fidelity_table(fidelity, weight_bytes(before.trunk), weight_bytes(quantized), to))
    wide = int8_instead(quantized)
    if wide:
        console.print(f"int8 instead, for INT4 takes rows of a multiple of 32 only: {', '.join(wide)}")
    if output is not None:
        with atomic_folder(output) as folder:
            save_quantized(quantized, tokenizer, folder)
        console.print(f"{output}: talk to it: talaria chat {output}")


def bench(path: Path | None, quantize: str | None, dtype: str, repeats: int, as_json: bool) -> None:
    """Print how fast a model reads and writes on this machine; without a path, an untrained one of depth 8."""
    from talaria.infer.load import load
    from talaria.infer.rates import measure_rates, rates_table
    from talaria.model.checkpoint import save_model
    from talaria.model.shape import shape_from_depth
    from talaria.model.transformer import Transformer
    from talaria.tokens.settings import TokenizerSettings
    from talaria.tokens.tokenizer import Tokenizer

    with TemporaryDirectory() as scratch:
        if path is None:
            path = Path(scratch)
            model = Transformer(shape_from_depth(8, 8192, context=1024))
            save_model(model, Tokenizer.train(["none"], TokenizerSettings(vocab_size=512)), path)
        engine = load(path, quantize, dtype=dtype)
    rates = measure_rates(engine, repeats)
    if as_json:
        print(json.dumps(asdict(rates), indent=1))
    else:
        Console().print(rates_table(rates))


def chat(path: Path, system: str | None, history: bool, dtype: str, **sampling: Any) -> None:
    """Talk to a model in the terminal."""
    from talaria.infer.line_editing import history_file
    from talaria.infer.load import load
    from talaria.infer.terminal import Continuation, run_terminal_chat

    engine = load(path, dtype=dtype)
    chats = engine.tokenizer.chat_template is not None
    if not chats:
        console.print("this model has no chat template: it goes on from what you type")
    run_terminal_chat(
        engine if chats else Continuation(engine),
        system,
        path.resolve().name,
        history=history_file() if history else None,
        **sampling,
    )
