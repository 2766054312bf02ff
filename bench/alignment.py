"""What the reward model and the policy trained on it are worth, by the judge who never errs: win rates against the
fine-tuned model, ties apart, with and without the rule of length; best-of-n by the reward model beside it; KL.

    python bench/alignment.py runs/aligned --items 600 --n 16 --policy ppo

Answers are sampled at temperature 1 to questions of the exam, the same number of every task.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import torch

from talaria.eval.preferences import best_of, best_of_n_kl, win_rate
from talaria.infer.engine import Engine
from talaria.model.checkpoint import load_model
from talaria.model.device import default_device
from talaria.model.scalar import load_scalar_model
from talaria.train.answers import answer_log_probs, over_pieces, pad_answers
from talaria.train.ppo import reward_of
from talaria.world.judge import check
from talaria.world.labelers import is_good

ROWS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--policy", default="ppo", help="stage whose model is compared with sft's")
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--n", type=int, default=16, help="answers of best-of-n; 0 leaves it out")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    items = draw_items(arguments.run / "world" / "exam.jsonl", arguments.items, arguments.seed)
    device = default_device()
    base, tokenizer = load_model(arguments.run / "sft" / "model")
    policy, _ = load_model(arguments.run / arguments.policy / "model")
    rewarder, _ = load_scalar_model(arguments.run / "reward" / "reward_model")
    for model in (base, policy, rewarder):
        model.to(device)
    told: dict[str, Any] = {"items": len(items), "seed": arguments.seed}

    def answer(model: Any, n: int, seed: int) -> list[Any]:
        engine = Engine(model, tokenizer, max_batch_size=ROWS, prefix_cache=False)
        prompts = [engine.chat_prompt(item["messages"]) for item in items]
        return engine.generate(prompts, n=n, max_tokens=arguments.max_tokens, temperature=1.0, seed=seed)

    def describe(name: str, completions: list[Any], scores: list[float]) -> None:
        pairs = list(zip(items, completions, strict=True))
        told[name] = {
            "right": sum(check(item, c.text) for item, c in pairs) / len(items),
            "right_and_polite": sum(is_good(item, c.text) for item, c in pairs) / len(items),
            "characters": sum(len(c.text) for c in completions) / len(items),
            "reward of whole answers": statistics.fmean(score for score in scores if score > -math.inf),
        }

    def compare(name: str, own: list[Any], other: list[Any]) -> None:
        texts = [c.text for c in own], [c.text for c in other]
        told[name] = {
            "by the judge": win_rate(items, *texts, by_length=True),
            "length-controlled": win_rate(items, *texts, by_length=False),
        }

    def scores_of(owners: list[dict[str, Any]], completions: list[Any]) -> list[float]:
        pieces = [
            reward_of(rewarder, tokenizer, owners[i : i + ROWS], completions[i : i + ROWS], -math.inf, ROWS)
            for i in range(0, len(owners), ROWS)
        ]
        return [float(x) for x in torch.cat(pieces)]

    before, after = answer(base, 1, arguments.seed), answer(policy, 1, arguments.seed + 1)
    describe("sft", before, scores_of(items, before))
    describe(arguments.policy, after, scores_of(items, after))
    compare(f"{arguments.policy} against sft", after, before)
    rows = pad_answers([tokenizer_ids(tokenizer, item) for item in items], [c.token_ids for c in after], device)
    log_ratio = over_pieces(lambda piece: answer_log_probs(policy, piece)[0], rows, 32)
    log_ratio -= over_pieces(lambda piece: answer_log_probs(base, piece)[0], rows, 32)
    told["kl"] = float(log_ratio.sum() / len(items))
    if arguments.n:
        many = answer(base, arguments.n, arguments.seed + 2)
        scores = scores_of([item for item in items for _ in range(arguments.n)], many)
        places = best_of(scores, arguments.n)
        best = [many[place] for place in places]
        describe(f"best of {arguments.n}", best, [scores[place] for place in places])
        compare(f"best of {arguments.n} against sft", best, before)
        told["kl of best-of-n, at most"] = best_of_n_kl(arguments.n)
    print(json.dumps(told, indent=1))


def tokenizer_ids(tokenizer: Any, item: dict[str, Any]) -> list[int]:
    from talaria.tokens.chat import encode_chat

    return encode_chat(tokenizer, item["messages"], add_generation_prompt=True).ids


def draw_items(exam: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """As many of every task, as far as it has them."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in exam.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        by_task.setdefault(item["task"], []).append(item)
    draw = random.Random(seed)
    each = -(-count // len(by_task))
    return [item for _, rows in sorted(by_task.items()) for item in draw.sample(rows, min(each, len(rows)))]


if __name__ == "__main__":
    main()
