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
import itertools
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from talaria.config import Settings
from talaria.errors import UserError
from talaria.eval.preferences import Preferences, draw_items
from talaria.eval.settings import EvalSettings
from talaria.eval.statistics import mean_interval
from talaria.eval.validation import held_out_loss
from talaria.feedback.comparisons import collect_comparisons
from talaria.feedback.settings import ComparisonSettings
from talaria.files import atomic_write, read_json, to_json
from talaria.infer.contract import row_seed
from talaria.infer.load import load
from talaria.pipeline import stages
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import Stage, lock, read_metrics, run_stage
from talaria.tokens.shards import Shards
from talaria.train.ppo import ppo
from talaria.train.reward import train_reward
from talaria.train.settings import OptimizerSettings, PpoSettings, RewardSettings
from talaria.world.labelers import ACCURACY, is_good
from talaria.world.practice import practice_items
from talaria.world.settings import WorldSettings

RECIPE = Path(__file__).with_suffix(".toml")
BASE_STAGES = ("world", "corpus", "tokenizer", "pretrain", "sft")
ROUNDS = 3
CHECKPOINT_ITEMS = 200
JUDGED = EvalSettings(preference_items=520, max_tokens=48, batch_size=128, best_of=16)
ROUND_NAMES = [f"round-{number}" for number in range(1, ROUNDS + 1)]
MODELS = ["best", *ROUND_NAMES, "ppo-ptx", "ppo-without-ptx", "ppo-without-kl", "ppo-ptx-without-kl"]


class Seeded(Settings):
    """What decides an arm, beside its inputs."""

    seed: int
    world: WorldSettings | None = None
    comparisons: ComparisonSettings | None = None
    reward: RewardSettings | None = None
    ppo: PpoSettings | None = None
    eval: EvalSettings | None = None
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
    """Stages of a seed's run after fine-tuning, in order. KL is always to the fine-tuned model. A round collects with
    the policy of the one before and improves it for a third of the steps; its reward model begins as the fine-tuned
    model and reads all comparisons so far."""
    seed, world, settings = recipe.run.seed, recipe.world, recipe.ppo
    assert world is not None and settings is not None
    yield Stage(
        "best",
        Seeded(seed=seed, world=world, items=CHECKPOINT_ITEMS),
        {"checkpoints": at / "sft" / "validated"},
        ("sft",),
        lambda folder: choose_checkpoint(world, at / "sft" / "validated", seed, folder),
    )
    share = settings.model_copy(update={"steps": -(-settings.steps // ROUNDS)})
    for number in range(1, ROUNDS + 1):
        yield _comparisons(recipe, at, number)
        yield _reward(recipe, at, number)
        yield _ppo(share, at, number, seed, f"round-{number}")
    plain = settings.model_copy(update={"ptx_coefficient": 0.0})
    variants = {
        "ppo-ptx": settings,
        "ppo-without-ptx": plain,
        "ppo-without-kl": without_kl(plain),
        "ppo-ptx-without-kl": without_kl(settings),
    }
    for name, variant in variants.items():
        yield _ppo(variant, at, 1, seed, name)
    yield _judged(at, seed)


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
    policy = "best" if number == 1 else f"round-{number - 1}"
    seed, world, settings = row_seed(recipe.run.seed, number - 1), recipe.world, recipe.comparisons
    assert world is not None and settings is not None

    def work(folder: Path) -> None:
        engine = load(at / policy / "model", compiled=False, max_batch_size=settings.batch_size, prefix_cache=False)
        collect_comparisons(settings, world, engine, policy, seed, folder)

    told = Seeded(seed=seed, world=world, comparisons=settings)
    return Stage(numbered("comparisons", number), told, {"model": at / policy / "model"}, (policy,), work)


def _reward(recipe: Recipe, at: Path, number: int) -> Stage:
    settings, seed = recipe.reward, recipe.run.seed
    assert settings is not None
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


def _ppo(settings: PpoSettings, at: Path, number: int, seed: int, name: str) -> Stage:
    reward, collected = numbered("reward", number), numbered("comparisons", number)
    base, prompts = at / "best" / "model", at / collected / "policy_prompts.jsonl"
    inputs = {"base": base, "reward": at / reward / "reward_model", "prompts": prompts}
    parents, start = ["best", reward, collected], None
    if number > 1:
        inputs["start"] = start = at / f"round-{number - 1}" / "model"
        parents.append(f"round-{number - 1}")
    if settings.ptx_coefficient:
        inputs["replay"] = at / "tokenizer" / "shards"
        parents.append("tokenizer")
    own = row_seed(seed, number - 1)

    def work(folder: Path) -> None:
        ppo(settings, base, inputs["reward"], [prompts], inputs.get("replay"), own, folder, start)

    return Stage(name, Seeded(seed=own, ppo=settings), inputs, tuple(parents), work)


def _judged(at: Path, seed: int) -> Stage:
    inputs = {name: at / name / "model" for name in MODELS}
    inputs |= {"reward": at / "reward" / "reward_model", "exam": at / "world" / "exam.jsonl"}
    inputs["shards"] = at / "tokenizer" / "shards"
    parents = (*MODELS, "reward", "world", "tokenizer")
    return Stage("judged", Seeded(seed=seed, eval=JUDGED), inputs, parents, lambda folder: judge_all(at, seed, folder))


# --------------------------------------------------------------------------------- what arms do


def choose_checkpoint(world: WorldSettings, checkpoints: Path, seed: int, folder: Path) -> None:
    """The checkpoint with the most right and polite answers at temperature 1 to a draw of questions of its own; some
    of them are asked by arms as well."""
    items = practice_items(world, CHECKPOINT_ITEMS, row_seed(seed, ROUNDS))
    found = sorted(path for path in checkpoints.iterdir() if path.name != "step-000000")
    scores = {}
    for path in found:
        engine = load(path, compiled=False, max_batch_size=JUDGED.batch_size, prefix_cache=False)
        prompts = [engine.chat_prompt(item["messages"]) for item in items]
        answers = engine.generate(prompts, max_tokens=JUDGED.max_tokens, temperature=1.0, seed=seed)
        scores[path.name] = statistics.fmean(
            is_good(item, answer.text) for item, answer in zip(items, answers, strict=True)
        )
    best = max(scores, key=lambda name: (scores[name], name))
    shutil.copytree(checkpoints / best, folder / "model", dirs_exist_ok=True)
    atomic_write(folder / "chosen.json", to_json({"best": best, "good": scores}))


def judge_all(at: Path, seed: int, folder: Path) -> None:
    """preferences.json: every policy and best-of-16 against the fine-tuned model, each round against the one before;
    pages.json: each model's loss on held-out pages, nats a token."""
    items = draw_items(at / "world" / "exam.jsonl", JUDGED.preference_items, seed)
    told = Preferences(JUDGED, items, at / "reward" / "reward_model", seed)
    losses = {}
    for name in MODELS:
        told.answer(name, at / name / "model")
        engine = load(at / name / "model", compiled=False)
        losses[name], _, _ = held_out_loss(engine, Shards(at / "tokenizer" / "shards", "validation"), JUDGED)
    for name in (*MODELS[1:], told.answer_best_of()):
        told.compare(name, MODELS[0])
    for before, after in itertools.pairwise(ROUND_NAMES):
        told.compare(after, before)
    atomic_write(folder / "preferences.json", to_json(told.to_json()))
    atomic_write(folder / "pages.json", to_json(losses))


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


def _over(found: Iterable[float | None]) -> str:
    given = list(found)
    values = [value for value in given if value is not None]
    if len(values) < len(given):
        return f"not defined on {len(given) - len(values)} of {len(given)} seeds"  # such as a share of nothing decided
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
        told = _over(_json(at, name, "reward.json")["together"]["accuracy"] for at in runs.values())
        pairs = sum(_json(at, name, "reward.json")["together"]["pairs"] for at in runs.values())
        print(f"  {name}: {told}; {pairs} pairs")


def _told_wins(runs: dict[int, Path]) -> None:
    told = [_json(at, "judged", "preferences.json") for at in runs.values()]
    print(f"{told[0]['items']} questions a seed")
    for name in told[0]["models"]:
        models = [seeded["models"][name] for seeded in told]
        for key in ("right", "right_and_polite", "reward_of_whole_answers", "kl", "kl_at_most", "cut", "characters"):
            if key in models[0]:
                print(f"{name}: {key} {_over(model[key] for model in models)}")
    for pair in zip(*(seeded["comparisons"] for seeded in told), strict=True):
        for rule in ("by_the_judge", "length_controlled"):
            rates = [compared[rule] for compared in pair]
            wins, ties, losses = (sum(rate[key] for rate in rates) for key in ("wins", "ties", "losses"))
            print(f"{pair[0]['model']} against {pair[0]['against']}, {rule}: {wins} wins, {ties} ties, {losses} losses")
            print(f"  share of the decided {_over(rate['share'] for rate in rates)}")


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
    for key in ("reward", "gold_good"):
        against_best = (part[-1][key] - max(tenth[key] for tenth in part[:-1]) for part in parts)
        print(f"  {key}, last tenth minus the best one before: {_over(against_best)}")
        print(f"  {key}, last tenth minus the first: {_over(part[-1][key] - part[0][key] for part in parts)}")


def _told_tax(runs: dict[int, Path]) -> None:
    losses = [_json(at, "judged", "pages.json") for at in runs.values()]
    print(f"loss on held-out pages, nats a token; fine-tuned: {_over(loss['best'] for loss in losses)}")
    for without, ptx in (("ppo-without-ptx", "ppo-ptx"), ("ppo-without-kl", "ppo-ptx-without-kl")):
        taxes = [(loss[without] - loss["best"], loss[ptx] - loss["best"]) for loss in losses]
        print(f"  tax of {without}: {_over(tax for tax, _ in taxes)}")
        print(f"  tax of {ptx}: {_over(tax for _, tax in taxes)}")
        saved = (tax / 2 - with_text for tax, with_text in taxes)
        print(f"  half the tax of {without}, less that of {ptx} (above 0: at least halved): {_over(saved)}")


if __name__ == "__main__":
    main()
