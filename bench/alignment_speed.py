"""Prompts to updated weights: our GRPO against TRL's on one tiny model and one core, our PPO beside them; and where our
time goes. Random weights and words; needs no data.

    taskset -c 1 python bench/alignment_speed.py --peer TRL_VENV/bin/python
    taskset -c 1 python bench/alignment_speed.py                       # ours alone

A step is 16 prompts with four answers each (PPO: 64 prompts), up to 32 tokens an answer, one pass of updates over them
(PPO: one pass in one minibatch, and so for its value network), fp32, with a reference model and its KL penalty. With
`--dtype bfloat16` the products of learning are bf16 in both GRPOs, ours as `grpo.dtype`, TRL's as its `bf16`. Both
sides load the same folder and have the same prompts; the reward is a rule on the text. Each side is a process of its
own that does a few steps whenever it is its turn; the medians of the turns are compared. TRL has no PPO since 1.0.
TRL's gradient checkpointing is off, as is all logging and saving on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWERS, GROUP, TOKENS = 64, 4, 32
SIDES = ("ours grpo", "ours ppo", "trl grpo")


def prepare(folder: Path) -> None:
    """A model folder, a reward model that began as it, and prompts."""
    import torch

    from talaria.model.checkpoint import save_model
    from talaria.model.scalar import ScalarModel, save_scalar_model
    from talaria.model.shape import ModelShape
    from talaria.model.transformer import Transformer
    from talaria.tokens.settings import TokenizerSettings
    from talaria.tokens.tokenizer import Tokenizer

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 7))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=50)) for _ in range(2000)]
    tokenizer = Tokenizer.train(texts, TokenizerSettings(vocab_size=2048))
    shape = ModelShape(
        vocab_size=tokenizer.vocab_size,
        n_layers=6,
        d_model=128,
        n_heads=4,
        n_kv_heads=4,
        d_head=32,
        d_ff=352,
        context=256,
    )
    model = Transformer(shape, torch.Generator().manual_seed(0))
    save_model(model, tokenizer, folder / "model")
    save_scalar_model(ScalarModel(model, torch.Generator().manual_seed(0)), tokenizer, folder / "reward")
    asked = [" ".join(draw.choices(words, k=6)) for _ in range(256)]
    rows = [
        {"messages": [{"role": "user", "content": text}], "grader": "contains", "answer": "a", "aliases": []}
        for text in asked
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{shape.n_params() / 1e6:.2f}M parameters, {ANSWERS} answers of up to {TOKENS} tokens a step")


def take_turns(parts: dict[str, float]) -> Callable[[], None]:
    """What a side calls after each step: it tells how long the step took, where, and waits for the next turn."""
    state = {"left": 0, "since": time.perf_counter(), "processor": time.process_time()}
    seconds: list[float] = []

    def after_step() -> None:
        seconds.append(time.perf_counter() - state["since"])
        state["left"] -= 1
        if state["left"] <= 0:
            if state["left"] == 0:
                processor = time.process_time() - state["processor"]
                print(json.dumps({"seconds": seconds, "processor": processor, "parts": parts}), flush=True)
            else:
                print(json.dumps({"ready": True}), flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            state["left"], state["processor"] = int(line), time.process_time()
            seconds.clear()
            parts.clear()
        state["since"] = time.perf_counter()

    return after_step


def ours(name: str, folder: Path, stage: Path, dtype: str) -> None:
    import torch

    from talaria.train import grpo as grpo_module
    from talaria.train import ppo as ppo_module
    from talaria.train.settings import GrpoSettings, PpoSettings
    from talaria.train.tuning import Tuning

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    parts: dict[str, float] = defaultdict(float)
    after_step, end_step = take_turns(parts), Tuning.end_step

    def end_and_wait(tuning: Tuning, told: str, **values: Any) -> None:
        end_step(tuning, told, **values)
        after_step()

    Tuning.end_step = end_and_wait  # type: ignore[method-assign]

    def timed(module: Any, function: str, part: str) -> None:
        plain = getattr(module, function)

        def measured(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return plain(*given, **named)
            finally:
                parts[part] += time.perf_counter() - start

        setattr(module, function, measured)

    prompts, base = [folder / "prompts.jsonl"], folder / "model"
    same: dict[str, Any] = {"steps": 100_000, "max_tokens": TOKENS, "epochs": 1, "checkpoint_every_seconds": 1e9}
    if name == "ours grpo":
        for function, part in (("sample", "sampling"), ("check", "reward"), ("update", "update")):
            timed(grpo_module, function, part)
        timed(grpo_module, "over_pieces", "reference")
        settings = GrpoSettings(rollouts=ANSWERS // GROUP, group=GROUP, kl_coefficient=0.04, dtype=dtype, **same)
        grpo_module.grpo(settings, base, None, prompts, 0, stage)
    else:
        for function, part in (("answer", "sampling"), ("reward_of", "reward"), ("update", "update")):
            timed(ppo_module, function, part)
        timed(ppo_module, "assess", "policy, reference and value")
        ppo_module.ppo(
            PpoSettings(rollouts=ANSWERS, minibatches=1, **same), base, folder / "reward", prompts, None, 0, stage
        )


def trl(folder: Path, stage: Path, dtype: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    after_step = take_turns({})

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_given: Any, **_named: Any) -> None:
            after_step()

    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    config = GRPOConfig(
        output_dir=str(stage),
        per_device_train_batch_size=ANSWERS,
        num_generations=GROUP,
        max_completion_length=TOKENS,
        num_iterations=1,
        beta=0.04,
        temperature=1.0,
        learning_rate=1e-4,
        max_steps=100_000,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        reward_funcs=lambda completions, **_: [float("a" in answer[0]["content"]) for answer in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in rows]),
        callbacks=[Turns()],
    )
    trainer.train()


class Side:
    """A process that makes steps when told to."""

    def __init__(self, name: str, python: str, folder: Path, told: list[str]) -> None:
        command = [python, __file__, "--work", name, "--folder", str(folder), *told]
        errors = open(folder / f"{name}.log", "w")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.log = errors.name
        self.turns: list[dict[str, Any]] = []
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"a side ended early; its words: {Path(self.log).read_text()[-2000:]}")

    def turn(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.turns.append(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(peer: str | None, turns: int, steps: int, folder: Path, told: list[str]) -> None:
    prepare(folder)
    names = [name for name in SIDES if peer is not None or name != "trl grpo"]
    pythons = {name: peer if name.startswith("trl") and peer else sys.executable for name in names}
    sides = {name: Side(name, python, folder, told) for name, python in pythons.items()}
    for side in sides.values():
        side.turn(2)  # warms up
        side.turns.clear()
    for number in range(turns):
        for name in names if number % 2 == 0 else names[::-1]:
            sides[name].turn(steps)
    for side in sides.values():
        side.close()
    medians = {}
    for name, side in sides.items():
        each = [statistics.median(turn["seconds"]) for turn in side.turns]
        medians[name] = statistics.median(each)
        processor = statistics.median(turn["processor"] / steps for turn in side.turns)
        rate = ANSWERS * TOKENS / medians[name]
        print(
            f"{name:10} {medians[name]:.3f} s a step ({min(each):.3f} to {max(each):.3f} in {turns} turns of {steps}), "
            f"{processor:.3f} s of the processor, {rate:,.0f} tokens/s at most"
        )
        whole = sum(sum(turn["seconds"]) for turn in side.turns)
        shares = {part: sum(turn["parts"].get(part, 0.0) for turn in side.turns) for part in side.turns[0]["parts"]}
        if shares:
            told = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in shares.items())
            print(f"{'':10} {told}, the rest {1 - sum(shares.values()) / whole:.0%}")
    if "trl grpo" in medians:
        print(f"ratio      {medians['trl grpo'] / medians['ours grpo']:.2f}x of TRL's GRPO")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the python of an environment that has TRL")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--threads", type=int, default=1, help="for every side alike")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products of both GRPOs"
    )
    parser.add_argument("--work", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype, work = arguments.dtype, arguments.work
    if work is None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.peer, arguments.turns, arguments.steps, Path(folder), ["--dtype", dtype])
    elif work == "trl grpo":
        trl(arguments.folder, arguments.folder / "trl", dtype)
    else:
        ours(work, arguments.folder, arguments.folder / work.replace(" ", "-"), dtype)


if __name__ == "__main__":
    main()
