"""What alignment gives and costs, over seeds: the reward model against the labelers' agreement, PPO-ptx and best-of-16
against the best fine-tuned checkpoint, three rounds; PPO without its KL term and PPO with it, with pretraining text and
without.

    python bench/alignment_study.py --folder runs/study --seeds 0 1 2 3 4     # makes what is missing, then the tables
    python bench/alignment_study.py --folder runs/study --seeds 0 1 2 3 4 --tables

A seed decides the world, the weights, the labelers and every draw, and has one pretrained and one fine-tuned model,
`bench/alignment_study.toml`. Each arm is a stage of the seed's run, so that a study that was killed goes on; two
processes with seeds of their own fill two cores. Answers are sampled at temperature 1 to questions of the exam, as many
of every task. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from talaria.config import Settings
from talaria.errors import UserError
from talaria.eval.preferences import best_of, best_of_n_kl, win_rate
from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import mean_interval, wilson_interval
from talaria.eval.validation import held_out_loss
from talaria.feedback.comparisons import collect_comparisons
from talaria.feedback.settings import ComparisonSettings
from talaria.infer.contract import row_seed
from talaria.infer.engine import Engine
from talaria.infer.load import load
from talaria.model.checkpoint import load_model
from talaria.model.scalar import load_scalar_model
from talaria.pipeline import stages
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import Stage, atomic_write, lock, read_json, read_metrics, read_rows, run_stage, to_json
from talaria.tokens.shards import Shards
from talaria.train.answers import answer_log_probs, over_pieces, pad_answers
from talaria.train.ppo import ppo, reward_of
from talaria.train.reward import train_reward
from talaria.train.settings import OptimizerSettings, PpoSettings, RewardSettings
from talaria.world.judge import check
from talaria.world.labelers import ACCURACY, is_good
from talaria.world.practice import practice_items
from talaria.world.settings import WorldSettings

RECIPE = Path(__file__).with_suffix(".toml")
BASE_STAGES = ("world", "corpus", "tokenizer", "pretrain", "sft")
ROUNDS, N, ROWS = 3, 16, 128
VARIANTS = "ppo-without-ptx", "ppo-without-kl", "ppo-ptx-without-kl"
CHECKPOINT_ITEMS, EXAM_ITEMS, BEST_OF_ITEMS = 200, 520, 260


class Seeded(Settings):
    """What decides an arm, beside its inputs."""

    seed: int
    world: WorldSettings | None = None
    comparisons: ComparisonSettings | None = None
    reward: RewardSettings | None = None
    ppo: PpoSettings | None = None
    items: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="arms to make, with what they need made before")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, make nothing")
    parser.add_argument("overrides", nargs="*", help="recipe overrides, key=value")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        for seed in options.seeds:
            make(options.folder, seed, options.only, options.overrides)
    if options.only is None:
        tables(options.folder, options.seeds)


# ------------------------------------------------------------------------------------------- arms


def make(folder: Path, seed: int, only: Sequence[str] | None, overrides: Sequence[str]) -> None:
    """Every arm of a seed that is not there yet."""
    names = [f"run.folder={folder}", f"run.name=seed-{seed}", f"run.seed={seed}", f"world.seed={seed}"]
    recipe = read_recipe(RECIPE, [*names, *overrides])
    at = run_path(recipe)
    with lock(at):
        for stage in _all(recipe, at):
            if only is not None and stage.name not in (*BASE_STAGES, *only):
                continue
            started = time.process_time()
            if run_stage(at, stage):
                print(f"seed {seed}: {stage.name} made in {time.process_time() - started:.1f} CPU s", flush=True)


def _all(recipe: Recipe, at: Path) -> Iterator[Stage]:
    for stage in stages(recipe):
        yield stage
        if stage.name == BASE_STAGES[-1]:
            break
    yield from arms(recipe, at)


def arms(recipe: Recipe, at: Path) -> Iterator[Stage]:
    """Stages of a seed's run after fine-tuning, in order. Each round's reward model begins as the fine-tuned model and
    reads all comparisons so far; each round's policy begins as the one before, its KL is to the fine-tuned model."""
    seed, world = recipe.run.seed, recipe.world
    assert world is not None and recipe.comparisons is not None
    assert recipe.reward is not None and recipe.ppo is not None
    best = at / "best" / "model"
    yield Stage(
        "best",
        Seeded(seed=seed, world=world, items=CHECKPOINT_ITEMS),
        {"checkpoints": at / "sft" / "validated"},
        ("sft",),
        lambda folder: choose_checkpoint(world, at / "sft" / "validated", seed, folder),
    )
    for number in range(1, ROUNDS + 1):
        yield _comparisons(recipe, at, number)
        yield _reward(recipe.reward, at, number, seed)
        yield _ppo(recipe.ppo, at, number, seed)
    plain = recipe.ppo.model_copy(update={"ptx_coefficient": 0.0})
    yield _ppo(plain, at, 1, seed, name="ppo-without-ptx")
    yield _ppo(without_kl(plain), at, 1, seed, name="ppo-without-kl")
    yield _ppo(without_kl(recipe.ppo), at, 1, seed, name="ppo-ptx-without-kl")
    for name in ("best", *(numbered("ppo", n) for n in range(1, ROUNDS + 1)), *VARIANTS):
        yield _measured(name, at, seed)
    yield Stage(
        "best-of-16",
        Seeded(seed=seed, items=BEST_OF_ITEMS),
        {"model": best, "reward": at / "reward" / "reward_model", "exam": at / "world" / "exam.jsonl"},
        ("best", "reward"),
        lambda folder: best_of_answers(at, seed, folder),
    )


def numbered(stage: str, number: int) -> str:
    return stage if number == 1 else f"{stage}-{number}"


def without_kl(settings: PpoSettings) -> PpoSettings:
    """The same without a penalty, at three times the rate all along: what nothing holds back."""
    optimizer = OptimizerSettings(
        **settings.optimizer.model_dump()
        | {"learning_rate": 3 * (settings.optimizer.learning_rate or 1e-4), "final_rate": 1.0}
    )
    return settings.model_copy(update={"kl_coefficient": 0.0, "optimizer": optimizer})


def _comparisons(recipe: Recipe, at: Path, number: int) -> Stage:
    policy = "best" if number == 1 else numbered("ppo", number - 1)
    seed, world, settings = row_seed(recipe.run.seed, number - 1), recipe.world, recipe.comparisons
    assert world is not None and settings is not None

    def work(folder: Path) -> None:
        engine = load(at / policy / "model", compiled=False, max_batch_size=settings.batch_size, prefix_cache=False)
        collect_comparisons(settings, world, engine, policy, seed, folder)

    told = Seeded(seed=seed, world=world, comparisons=settings)
    return Stage(numbered("comparisons", number), told, {"model": at / policy / "model"}, (policy,), work)


def _reward(settings: RewardSettings, at: Path, number: int, seed: int) -> Stage:
    collected = [numbered("comparisons", n) for n in range(1, number + 1)]
    databases = [at / stage / "feedback.db" for stage in collected]
    base = at / "best" / "model"

    def work(folder: Path) -> None:
        train_reward(settings, base, databases, seed, folder)

    return Stage(
        numbered("reward", number),
        Seeded(seed=seed, reward=settings),
        {"base": base} | dict(zip(collected, databases, strict=True)),
        ("best", *collected),
        work,
    )


def _ppo(settings: PpoSettings, at: Path, number: int, seed: int, name: str = "ppo") -> Stage:
    reward, collected = numbered("reward", number), numbered("comparisons", number)
    base, prompts = at / "best" / "model", at / collected / "policy_prompts.jsonl"
    inputs = {"base": base, "reward": at / reward / "reward_model", "prompts": prompts}
    parents, start = ["best", reward, collected], None
    if number > 1:
        inputs["start"] = start = at / numbered("ppo", number - 1) / "model"
        parents.append(numbered("ppo", number - 1))
    if settings.ptx_coefficient:
        inputs["replay"] = at / "tokenizer" / "shards"
        parents.append("tokenizer")
    own = row_seed(seed, number - 1)

    def work(folder: Path) -> None:
        ppo(settings, base, inputs["reward"], [prompts], inputs.get("replay"), own, folder, start)

    return Stage(numbered(name, number), Seeded(seed=own, ppo=settings), inputs, tuple(parents), work)


def _measured(name: str, at: Path, seed: int) -> Stage:
    inputs = {"model": at / name / "model", "base": at / "best" / "model", "exam": at / "world" / "exam.jsonl"}
    inputs |= {"reward": at / "reward" / "reward_model", "shards": at / "tokenizer" / "shards"}
    parents = tuple(dict.fromkeys((name, "best", "world", "reward", "tokenizer")))
    told = Seeded(seed=seed, items=EXAM_ITEMS)
    return Stage(f"measured-{name}", told, inputs, parents, lambda folder: measure(at, name, seed, folder))


# --------------------------------------------------------------------------------- what arms do


def choose_checkpoint(world: WorldSettings, checkpoints: Path, seed: int, folder: Path) -> None:
    """The checkpoint with the most right and polite answers at temperature 1 to a draw of questions of its own; some
    of them are asked by arms as well."""
    items = practice_items(world, CHECKPOINT_ITEMS, row_seed(seed, ROUNDS))
    found = sorted(path for path in checkpoints.iterdir() if path.name != "step-000000")
    scores = {}
    for path in found:
        model, tokenizer = load_model(path)
        texts = [c.text for c in _answers(Engine(model, tokenizer, max_batch_size=ROWS), items, 1, seed)]
        scores[path.name] = statistics.fmean(is_good(item, text) for item, text in zip(items, texts, strict=True))
    best = max(scores, key=lambda name: (scores[name], name))
    shutil.copytree(checkpoints / best, folder / "model", dirs_exist_ok=True)
    atomic_write(folder / "chosen.json", to_json({"best": best, "good": scores}))


def measure(at: Path, name: str, seed: int, folder: Path) -> None:
    """A model's answers to the exam, its KL to the fine-tuned model, its loss on held-out pages."""
    items = exam_items(at, EXAM_ITEMS, seed)
    model, tokenizer = load_model(at / name / "model")
    base, _ = load_model(at / "best" / "model")
    rewarder, _ = load_scalar_model(at / "reward" / "reward_model")
    engine = Engine(model, tokenizer, max_batch_size=ROWS)
    # Its own draws: with those of the model that it is compared with, ties would come by construction.
    number = sum(ord(letter) << (8 * place) for place, letter in enumerate(name))
    answers = _answers(engine, items, 1, row_seed(seed, number % (1 << 30)))
    prompts = [engine.chat_prompt(item["messages"]) for item in items]
    rows = pad_answers(prompts, [answer.token_ids for answer in answers])
    ratio = over_pieces(lambda piece: answer_log_probs(model, piece)[0], rows, 32)
    ratio -= over_pieces(lambda piece: answer_log_probs(base, piece)[0], rows, 32)
    rewards = reward_of(rewarder, tokenizer, items, answers, -1.0, 32)
    loss, n_tokens, _ = held_out_loss(engine, Shards(at / "tokenizer" / "shards", "validation"), EvalSettings())
    pairs = [(item, answer.text) for item, answer in zip(items, answers, strict=True)]
    atomic_write(folder / "answers.json", to_json([text for _, text in pairs]))
    told = {
        "right": statistics.fmean(check(item, text) for item, text in pairs),
        "good": statistics.fmean(is_good(item, text) for item, text in pairs),
        "characters": statistics.fmean(len(text) for _, text in pairs),
        "cut": statistics.fmean(answer.finish_reason != "stop" for answer in answers),
        "reward": float(rewards.mean()),
        "kl": float(ratio.sum() / len(items)),
        "page_loss": loss,
        "page_tokens": n_tokens,
        "by_task": {
            task: statistics.fmean(check(item, text) for item, text in pairs if item["task"] == task)
            for task in sorted({item["task"] for item in items})
        },
    }
    atomic_write(folder / "measured.json", to_json(told))


def best_of_answers(at: Path, seed: int, folder: Path) -> None:
    """Of 16 answers of the fine-tuned model to each question, the one that the reward model scores highest."""
    items = exam_items(at, EXAM_ITEMS, seed)[:BEST_OF_ITEMS]
    model, tokenizer = load_model(at / "best" / "model")
    rewarder, _ = load_scalar_model(at / "reward" / "reward_model")
    many = _answers(Engine(model, tokenizer, max_batch_size=ROWS), items, N, row_seed(seed, 1 << 31))
    owners = [item for item in items for _ in range(N)]
    pieces = [
        reward_of(rewarder, tokenizer, owners[i : i + ROWS], many[i : i + ROWS], -1e9, 32)
        for i in range(0, len(many), ROWS)
    ]
    places = best_of(torch.cat(pieces).tolist(), N)
    atomic_write(folder / "answers.json", to_json([many[place].text for place in places]))


def _answers(engine: Engine, items: Sequence[dict[str, Any]], n: int, seed: int) -> list[Any]:
    prompts = [engine.chat_prompt(item["messages"]) for item in items]
    return engine.generate(prompts, n=n, max_tokens=48, temperature=1.0, seed=seed)


def exam_items(at: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """As many of every task as it has, shuffled, so that any first part is as mixed."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for item in read_rows(at / "world" / "exam.jsonl"):
        by_task.setdefault(item["task"], []).append(item)
    draw = random.Random(seed)
    each = -(-count // len(by_task))
    items = [item for _, rows in sorted(by_task.items()) for item in draw.sample(rows, min(each, len(rows)))]
    draw.shuffle(items)
    return items


# ------------------------------------------------------------------------------------------ tables


def tables(folder: Path, seeds: Sequence[int]) -> None:
    """Print every figure that all seeds have, and what the seeds were."""
    runs = {seed: folder / f"seed-{seed}" for seed in seeds}
    print(f"seeds {', '.join(map(str, seeds))}; mean over seeds (95 % interval, Student's t)\n")
    for part in (_told_base, _told_reward, _told_wins, _told_over_optimisation, _told_tax):
        try:
            part(runs)
        except (FileNotFoundError, UserError) as error:
            print(f"not there yet: {error}")
        print()


def _over(runs: dict[int, Path], value: Callable[[Path], float]) -> str:
    values = [value(at) for at in runs.values()]
    each = " ".join(f"{x:.3f}" for x in values)
    if len(values) < 2:
        return each
    mean, low, high = mean_interval(values)
    return f"{mean:.3f} ({low:.3f} to {high:.3f}); {each}"


def _json(at: Path, stage: str, file: str) -> Any:
    return read_json(at / stage / file)


def _told_base(runs: dict[int, Path]) -> None:
    for seed, at in runs.items():
        chosen = _json(at, "best", "chosen.json")
        scores = ", ".join(f"{name[5:].lstrip('0')} {score:.3f}" for name, score in chosen["good"].items())
        print(f"seed {seed}: fine-tuned checkpoints by right and polite answers: {scores}; best {chosen['best']}")
    for number in range(1, ROUNDS + 1):
        pool = [_json(at, numbered("comparisons", number), "comparisons.json") for at in runs.values()]
        names = "right_and_polite", "compared_with_a_good_answer", "compared_with_good_and_bad"
        told = ", ".join(f"{name} {statistics.fmean(row[name] for row in pool):.3f}" for name in names)
        compared = statistics.fmean(row["prompts_compared"] for row in pool)
        agreement = statistics.fmean(row["agreement"] for row in pool)
        print(f"pool of round {number}: {told}; prompts compared {compared:.0f}; labelers agree {agreement:.3f}")


def _told_reward(runs: dict[int, Path]) -> None:
    print(f"reward model, share of the labelers' held-out choices; no model can do better than {ACCURACY}:")
    for name in [numbered("reward", n) for n in range(1, ROUNDS + 1)]:
        told = _over(runs, lambda at, name=name: _json(at, name, "reward.json")["together"]["accuracy"])
        pairs = sum(_json(at, name, "reward.json")["together"]["pairs"] for at in runs.values())
        print(f"  {name}: {told}; {pairs} pairs")


def _told_wins(runs: dict[int, Path]) -> None:
    arms = [(numbered("ppo", n), "best") for n in range(1, ROUNDS + 1)]
    arms += [(numbered("ppo", n), numbered("ppo", n - 1)) for n in range(2, ROUNDS + 1)]
    arms += [(name, "best") for name in ("best-of-16", *VARIANTS)]
    for name in dict.fromkeys(name for arm in arms for name in arm[::-1] if name != "best-of-16"):
        values = [_json(at, f"measured-{name}", "measured.json") for at in runs.values()]
        told = ", ".join(
            f"{key} {statistics.fmean(row[key] for row in values):.3f}"
            for key in ("right", "good", "characters", "cut", "reward", "kl")
        )
        print(f"{name}: {told}")
    print(f"KL of best-of-{N}: at most {best_of_n_kl(N):.2f}")
    for own, other in arms:
        for by_length in (True, False):
            rates = [_rate(at, seed, own, other, by_length) for seed, at in runs.items()]
            wins, ties, losses = (sum(rate[key] for rate in rates) for key in ("wins", "ties", "losses"))
            shares = [rate["share"] for rate in rates]
            rule = "" if by_length else ", length-controlled"
            over = "too few decided"
            if None not in shares and len(shares) > 1:
                mean, low, high = mean_interval(shares)
                over = f"{mean:.3f} ({low:.3f} to {high:.3f}) over seeds"
            low, high = wilson_interval(wins, max(1, wins + losses))
            each = " ".join(f"{share:.3f}" for share in shares if share is not None)
            print(
                f"{own} against {other}{rule}: {wins} wins, {ties} ties, {losses} losses; {over}; "
                f"pooled {wins / max(1, wins + losses):.3f} ({low:.3f} to {high:.3f}); {each}"
            )


def _rate(at: Path, seed: int, own: str, other: str, by_length: bool) -> dict[str, Any]:
    items = exam_items(at, EXAM_ITEMS, seed)
    texts = [_json(at, name if name == "best-of-16" else f"measured-{name}", "answers.json") for name in (own, other)]
    count = min(map(len, texts))
    return win_rate(items[:count], texts[0][:count], texts[1][:count], by_length=by_length)


def _told_over_optimisation(runs: dict[int, Path]) -> None:
    """Proxy and gold on the prompts of PPO, in tenths of the run without KL."""
    print("PPO without KL, by tenths of its steps: reward, right and polite, KL")
    parts: list[list[dict[str, float]]] = []
    for at in runs.values():
        rows = read_metrics(at / "ppo-without-kl" / "metrics.jsonl")
        size = len(rows) // 10
        parts.append(
            [
                {
                    key: statistics.fmean(float(row[key]) for row in rows[i * size : (i + 1) * size])
                    for key in ("reward", "gold_good", "kl")
                }
                for i in range(10)
            ]
        )
    for tenth in range(10):
        means = {key: statistics.fmean(part[tenth][key] for part in parts) for key in parts[0][0]}
        print("  " + ", ".join(f"{key} {mean:.3f}" for key, mean in means.items()))
    ends = dict(zip(runs, parts, strict=True))
    for key in ("reward", "gold_good"):
        by_run = {runs[seed]: part[-1][key] - max(p[key] for p in part[:-1]) for seed, part in ends.items()}
        print(f"  {key}, last tenth minus the best one before: {_over(runs, lambda at, d=by_run: d[at])}")
        by_run = {runs[seed]: part[-1][key] - part[0][key] for seed, part in ends.items()}
        print(f"  {key}, last tenth minus the first: {_over(runs, lambda at, d=by_run: d[at])}")


def _told_tax(runs: dict[int, Path]) -> None:
    def loss(at: Path, name: str) -> float:
        return float(_json(at, f"measured-{name}", "measured.json")["page_loss"])

    print(f"loss on held-out pages, nats a token; fine-tuned: {_over(runs, lambda at: loss(at, 'best'))}")
    for without, ptx in (("ppo-without-ptx", "ppo"), ("ppo-without-kl", "ppo-ptx-without-kl")):
        for name in (without, ptx):
            print(f"  tax of {name}: {_over(runs, lambda at, name=name: loss(at, name) - loss(at, 'best'))}")

        def saved(at: Path, without: str = without, ptx: str = ptx) -> float:
            return (loss(at, without) - loss(at, "best")) / 2 - (loss(at, ptx) - loss(at, "best"))

        print(f"  half the tax of {without}, less that of {ptx} (above 0: at least halved): {_over(runs, saved)}")


if __name__ == "__main__":
    main()
