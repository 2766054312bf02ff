"""A reward head over a real pretrained model and people's real choices: does it beat chance on prompts held out?

    python bench/real_preferences.py MODEL FOLDER --hh harmless-base_1500.jsonl.gz --oasst data_en_100_tree.jsonl.gz

MODEL is SmolLM2-135M-Instruct, a Hugging Face folder or .gguf file. What a head reads of an answer, the state at its
end and how likely the model finds it, is computed once, in bf16, and kept in FOLDER piece by piece: run again after a
kill, it goes on, and `--seconds` ends it early. A prompt is read once for all its answers.

Prompts are in five parts, by how their conversation begins. Every part is scored by a head fitted to the others as the
stage [reward] fits it (`reads_likelihood`, `epochs = 0`), so that each choice is held out once: one head for helpful
and harmless together, and one for each alone. A third of the prompts is for choosing settings (`--development`); in the
final figures it is trained on and never scored. Printed are accuracies with intervals over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from talaria.feedback.exchange import import_choices
from talaria.feedback.store import FeedbackStore
from talaria.model.checkpoint import load_model
from talaria.model.scalar import ScalarModel
from talaria.model.transformer import Transformer
from talaria.train.answers import likelihood, read_scored
from talaria.train.branches import branch_rows
from talaria.train.log_probs import chosen_log_probs
from talaria.train.reward import Compared, fit_head, read_compared
from talaria.train.reward_quality import of_pairs

FOLDS, PIECE_TOKENS, DEVELOPMENT = 5, 1536, 0.35
LIMITS = {"harmless": 384, "helpful": 768}  # tokens of a prompt with its answer


def gather(folder: Path, hh: Path, oasst: Path) -> Path:
    """choices.db, whole or not at all."""
    whole = folder / "choices.db"
    if not whole.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "choices.partial.db"
        for leftover in folder.glob("choices.partial*"):
            leftover.unlink()
        store = FeedbackStore(part)
        import_choices(store, hh, "hh", "harmless")
        import_choices(store, oasst, "oasst", "helpful")
        store.close()  # the last connection brings all rows into the file itself
        part.rename(whole)
    return whole


def shortened(prompt: Compared) -> Compared:
    """Without the answers that are too long, and their pairs."""
    limit = LIMITS[prompt.objective]
    fits = [len(asked) + len(answer) <= limit for asked, answer in prompt.ids]
    pairs = [(i, j, share) for i, j, share in prompt.pairs if fits[i] and fits[j]]
    kept = sorted({place for i, j, _ in pairs for place in (i, j)})
    new = {old: place for place, old in enumerate(kept)}
    pairs = [(new[i], new[j], share) for i, j, share in pairs]
    texts, ids = [prompt.texts[place] for place in kept], [prompt.ids[place] for place in kept]
    return Compared(prompt.messages, prompt.objective, texts, pairs, ids)


def tokens(prompt: Compared) -> int:
    return len(prompt.ids[0][0]) + sum(len(answer) for _, answer in prompt.ids)


def pieces_of(prompts: Sequence[Compared]) -> list[list[Compared]]:
    """Prompts of one objective and of like length, bounded in tokens with their padding."""
    pieces: list[list[Compared]] = []
    for prompt in sorted(prompts, key=lambda prompt: (prompt.objective == "harmless", tokens(prompt))):
        fits = pieces and pieces[-1][0].objective == prompt.objective
        if not fits or (len(pieces[-1]) + 1) * tokens(prompt) > PIECE_TOKENS:
            pieces.append([])
        pieces[-1].append(prompt)
    return pieces


@torch.no_grad()
def read(model: Transformer, prompts: Sequence[Compared]) -> Tensor:
    """What `train.answers.what_is_scored` gives for all answers in order, (N, D + 5)."""
    # With a token behind its end, which is not looked at, an answer's last state has read the end too.
    rows = branch_rows([(prompt.ids[0][0], [[*answer, 0] for _, answer in prompt.ids]) for prompt in prompts])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_BTD = rows.hidden(model)
        chosen_N, _ = chosen_log_probs(model.head(hidden_BTD[rows.mask_BT]), rows.targets_BT[rows.mask_BT])
    log_probs_BT = chosen_N.new_zeros(rows.mask_BT.shape).masked_scatter(rows.mask_BT, chosen_N)
    found = []
    for row, prompt in enumerate(prompts):
        for number in range(1, len(prompt.ids) + 1):
            inside_T = rows.branch_BT[row] == number
            own_1T = log_probs_BT[row, inside_T][None, :-1]
            likely_F = likelihood(own_1T, torch.ones_like(own_1T, dtype=torch.bool))[0]
            found.append(torch.cat([hidden_BTD[row, inside_T][-1].float(), likely_F]))
    return torch.stack(found)


def read_all(model: Transformer, prompts: Sequence[Compared], folder: Path, seconds: float) -> dict[str, Tensor]:
    """Of each prompt, by its key, what is read of its answers (K, D + 5)."""
    folder.mkdir(exist_ok=True)
    known: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        known |= load_file(file)
    started = time.process_time()
    for piece in pieces_of([prompt for prompt in prompts if key(prompt) not in known]):
        if time.process_time() - started > seconds:
            break
        read_NF = read(model, piece)
        parts = torch.split(read_NF, [len(prompt.ids) for prompt in piece])
        found = {key(prompt): part.clone() for prompt, part in zip(piece, parts, strict=True)}
        part_file = folder / "piece.partial"
        save_file(found, part_file)
        part_file.rename(folder / f"{key(piece[0])[:16]}.safetensors")
        known |= found
    return known


def key(prompt: Compared) -> str:
    """Of a prompt with its answers."""
    drawn = random.Random(json.dumps([prompt.messages, prompt.objective, prompt.texts], sort_keys=True))
    return f"{drawn.getrandbits(128):032x}"


def draw(prompt: Compared, what: str) -> float:
    """The same for all prompts of conversations that begin alike."""
    return random.Random(f"{what}/{prompt.opening}").random()


def held_out(
    model: ScalarModel, scored: Sequence[Compared], always: Sequence[Compared], known: dict[str, Tensor], ridge: float
) -> list[tuple[int, str, float, float]]:
    """Pairs of the prompts in `scored`, each with its margin by a head that was fitted to the other parts of them and
    to the prompts in `always`, as `reward_quality.of_pairs` takes them."""
    rows = []
    for fold in range(FOLDS):
        own = [int(draw(prompt, "fold") * FOLDS) == fold for prompt in scored]
        training = [*always, *(prompt for prompt, is_own in zip(scored, own, strict=True) if not is_own)]
        fit_head(model, training, torch.cat([known[key(prompt)] for prompt in training]), ridge)
        for number, (prompt, is_own) in enumerate(zip(scored, own, strict=True)):
            if is_own:
                scores = read_scored(model, known[key(prompt)]).tolist()
                rows += [(number, prompt.objective, scores[i] - scores[j], share) for i, j, share in prompt.pairs]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hh", type=Path, required=True)
    parser.add_argument("--oasst", type=Path, required=True)
    parser.add_argument("--development", action="store_true", help="figures of the prompts that settings are chosen on")
    parser.add_argument("--ridge", type=float, default=1e-2, help="penalty of the fit; the stage's own is the default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of the processor, to read answers for")
    arguments = parser.parse_args()
    trunk, tokenizer = load_model(arguments.model)
    database = gather(arguments.folder, arguments.hh, arguments.oasst)
    parts = read_compared([database], tokenizer, trunk.shape.context, 0.5, 0)[:2]
    prompts = [short for part in parts for prompt in part if (short := shortened(prompt)).pairs]
    known = read_all(trunk, prompts, arguments.folder / "read", arguments.seconds)
    prompts = [prompt for prompt in prompts if key(prompt) in known]
    model = ScalarModel(trunk, reads_likelihood=True)
    for objectives in (("helpful", "harmless"), ("helpful",), ("harmless",)):
        development, final = [], []
        for prompt in prompts:
            if prompt.objective in objectives:
                (development if draw(prompt, "dev") < DEVELOPMENT else final).append(prompt)
        scored, always = (development, []) if arguments.development else (final, development)
        quality = of_pairs(held_out(model, scored, always, known, arguments.ridge))
        print(f"one head for {' and '.join(objectives)}, {len(scored)} prompts, {len(always)} more to train on")
        for name in ("together", *objectives) if len(objectives) > 1 else objectives:
            told = quality[name]
            low, high = told["interval"]
            print(f"  {name:9} {told['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {told['pairs']} pairs")
        print(f"  {json.dumps({name: quality[name] for name in ('by_margin', 'calibration')})}", flush=True)


if __name__ == "__main__":
    main()
