"""A reward model of a real pretrained model over people's real choices: does it beat chance on prompts held out?

    python bench/real_preferences.py MODEL FOLDER --hh harmless-base_1500.jsonl.gz --oasst data_en_100_tree.jsonl.gz

MODEL is SmolLM2-135M-Instruct, a Hugging Face folder or .gguf file. The choices whose answers all fit, by default 128
tokens of a pair of hh-rlhf and 384 of an OpenAssistant ranking, prompt included, are put into FOLDER/choices.db; then
the [reward] stage of recipes/smollm2_aligned.toml runs in FOLDER/runs. Run again after a kill, it goes on. Printed is
reward.json's accuracy with its interval, helpful and harmless together and apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from talaria.feedback.exchange import export_choices, import_choices
from talaria.feedback.store import Comparison, FeedbackStore
from talaria.model.checkpoint import load_model
from talaria.pipeline import run_recipe
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.answers import encode_answer

RECIPE = Path(__file__).parent.parent / "recipes" / "smollm2_aligned.toml"


def tokens(choice: Comparison, tokenizer: Tokenizer) -> int:
    """Of the longest answer, its prompt included."""
    answers = [answer.text for group in choice.ranking for answer in group]
    return max(sum(map(len, encode_answer(tokenizer, choice.messages, text))) for text in answers)


def gather(folder: Path, model: Path, files: list[tuple[Path, str, str, int]]) -> None:
    """Make choices.db, whole or not at all, from files with their form, criterion and most tokens."""
    if (folder / "choices.db").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _, tokenizer = load_model(model)
    part = folder / "choices.partial.db"
    for leftover in folder.glob("*.partial*"):
        leftover.unlink()
    store = FeedbackStore(part)
    for file, form, criterion, most in files:
        whole = FeedbackStore(folder / f"{form}.partial.db")
        import_choices(whole, file, form, criterion)
        choices = whole.read_comparisons()
        whole.close()
        kept = [choice for choice in choices if tokens(choice, tokenizer) <= most]
        export_choices(kept, folder / f"{form}.partial.jsonl", "jsonl")
        import_choices(store, folder / f"{form}.partial.jsonl", "jsonl")
        print(f"{file.name}: {len(kept)} of {len(choices)} choices take at most {most} tokens", flush=True)
    store.close()  # the last connection brings all rows into the file itself
    part.rename(folder / "choices.db")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hh", type=Path, required=True)
    parser.add_argument("--oasst", type=Path, required=True)
    parser.add_argument("--hh-tokens", type=int, default=128)
    parser.add_argument("--oasst-tokens", type=int, default=384)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, e.g. run.seed=1")
    arguments = parser.parse_args()
    files = [
        (arguments.hh, "hh", "harmless", arguments.hh_tokens),
        (arguments.oasst, "oasst", "helpful", arguments.oasst_tokens),
    ]
    gather(arguments.folder, arguments.model, files)
    given = [
        f"run.folder={arguments.folder / 'runs'}",
        "run.name=smollm2",
        f"sft.base={arguments.model}",
        f"reward.feedback=[{arguments.folder / 'choices.db'}]",
    ]
    run_recipe(RECIPE, [*given, *arguments.set], until="reward")
    stage = arguments.folder / "runs" / "smollm2" / "reward"
    quality = json.loads((stage / "reward.json").read_text())
    record = json.loads((stage / "training.json").read_text())
    print(f"{record['prompts']} prompts, {record['pairs']} pairs; {record['prompts_held_out']} prompts held out")
    for name in ("together", "helpful", "harmless"):
        told = quality[name]
        low, high = told["interval"]
        print(f"{name:9} {told['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {told['pairs']} pairs")
    print(json.dumps({name: quality[name] for name in ("by_margin", "calibration", "out_of_distribution")}))


if __name__ == "__main__":
    main()
