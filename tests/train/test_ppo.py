"""PPO's known bugs, each with an assertion that fails when it is put back (tests/mutations.py does that)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_alignment import tiny_policy, tiny_tokenizer, write_models, write_prompts
from torch import Tensor

from talaria.errors import UserError
from talaria.files import sha256
from talaria.infer.contract import Completion
from talaria.infer.engine import Engine
from talaria.model.checkpoint import load_model
from talaria.model.lora import add_lora
from talaria.model.scalar import ScalarModel, head_apart, load_scalar_model, save_scalar_model
from talaria.model.transformer import Transformer
from talaria.run import read_metrics
from talaria.tokens.batches import Batch
from talaria.tokens.tokenizer import CHAT_TEMPLATE, Tokenizer
from talaria.train.answers import (
    Answers,
    answer_log_probs,
    encode_answer,
    in_pieces,
    last_places,
    likelihood_so_far,
    over_pieces,
    pad_answers,
    read_scored,
    score,
    shortest_first,
)
from talaria.train.cores import Cut
from talaria.train.policy_losses import advantages
from talaria.train.ppo import Told, assess, ppo, update
from talaria.train.rollouts import Policy, draw_prompts, read_prompts, reward_of, sample, sampler
from talaria.train.settings import LoraSettings, OptimizerSettings, PpoSettings
from talaria.train.step import summed_loss
from talaria.train.tuning import Tuning
from talaria.train.value_head import fit_value

SETTINGS = PpoSettings(
    steps=3,
    rollouts=8,
    max_tokens=12,
    epochs=2,
    minibatches=2,
    checkpoint_every_seconds=1e9,
    optimizer=OptimizerSettings(learning_rate=3e-3, warmup_share=0.0, weight_decay=0.0),
)
ONCE = SETTINGS.model_copy(update={"epochs": 1, "minibatches": 1})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"), tokenizer)


def prompts_of(tokenizer: Tokenizer, folder: Path, count: int = 8) -> list[dict]:
    return read_prompts([write_prompts(folder / "prompts.jsonl", count)], tokenizer, room=40)


def test_prompts_end_with_the_user_and_may_hold_any_separator_of_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "sea\u2028land"}]}
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n\n")
    [item] = read_prompts([file], tokenizer, room=40)
    assert item["messages"] == row["messages"]
    row["messages"].append({"role": "assistant", "content": "one"})
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: not a prompt \(its last turn is not the user's\)"):
        read_prompts([file], tokenizer, room=40)


def test_a_policy_is_not_trained_on_prompts_of_other_splits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The bug: the users that `talaria prompts` held out, in the training of the policy all the same."""
    rows = [
        {"messages": [{"role": "user", "content": f"sea {split}"}], "split": split}
        for split in ("train", "validation", "test", None)
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item["split"] for item in read_prompts([file], tokenizer, room=40)] == ["train", None]
    assert [item["split"] for item in read_prompts([file], tokenizer, 40, ("validation",))] == ["validation"]
    file.write_text(json.dumps(rows[1]))
    with pytest.raises(UserError, match=r"no prompt of at most 40 tokens; 1 are of other splits than train"):
        read_prompts([file], tokenizer, room=40)
    file.write_text(json.dumps(rows[0] | {"split": "train_prefs"}))
    with pytest.raises(UserError, match=r"jsonl:1: not a prompt \(its split is 'train_prefs', none of train, val"):
        read_prompts([file], tokenizer, room=40)


def test_an_answer_that_was_cut_is_never_better_than_the_worst_whole_one(tokenizer: Tokenizer) -> None:
    """The bug: -1 as a floor for rewards that may lie anywhere, so that rambling pays where all answers are bad."""
    rewarder = ScalarModel(tiny_policy(tokenizer), torch.Generator().manual_seed(0))
    with torch.no_grad():
        rewarder.bias.fill_(-50.0)
    items = [{"messages": [{"role": "user", "content": "sea"}]}] * 3
    whole, cut = (Completion("one word", [5], [0.0], reason, 3, []) for reason in ("stop", "length"))
    scores = reward_of(rewarder, tokenizer, items, [whole, cut, whole], -1.0, Cut(8))
    assert float(scores[1]) == float(scores.min()) < -40


def rolled(policy: Policy, tokenizer: Tokenizer, items: list[dict]) -> tuple[list[Completion], Answers]:
    completions = sample(policy, tokenizer, [item["ids"] for item in items], 12, seed=4)
    return completions, pad_answers([item["ids"] for item in items], [c.token_ids for c in completions])


def exact(tokenizer: Tokenizer) -> tuple[Transformer, Transformer, ScalarModel]:
    """A policy, another one as its reference, and a value network, in float64."""
    policy, reference = tiny_policy(tokenizer).double(), tiny_policy(tokenizer, 1).double()
    value = ScalarModel(tiny_policy(tokenizer, 2).double(), torch.Generator().manual_seed(0))
    return policy, reference, value


# ------------------------------------------------------------------ what the models read


def test_padding_and_the_end_token_may_be_one_token(tokenizer: Tokenizer) -> None:
    """The bug: padding is told by its id, so where it is the end token too, the end never counts."""
    answers = pad_answers([[5, 6], [7]], [[8, 0], [9, 0, 0, 0]])
    assert answers.mask_BT.tolist() == [[False, True, True, False], [True, True, True, True]]
    assert last_places(answers.mask_BT).tolist() == [2, 3]
    model = ScalarModel(tiny_policy(tokenizer).double(), torch.Generator().manual_seed(0))
    alone = [float(score(model, pad_answers([p], [a])).detach()) for p, a in (([5, 6], [8, 0]), ([7], [9, 0, 0, 0]))]
    assert score(model, answers).tolist() == pytest.approx(alone, abs=1e-12)


def test_the_beginning_token_stands_once_and_where_training_had_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bug: the template writes it and the encoder adds another, or neither does."""
    [item] = prompts_of(tokenizer, tmp_path, 1)
    asked, answer = encode_answer(tokenizer, item["messages"], "gods and land")
    assert asked == item["ids"] == Engine(tiny_policy(tokenizer), tokenizer).chat_prompt(item["messages"])
    assert (
        tokenizer.bos_id is not None and [*asked, *answer].count(tokenizer.bos_id) == asked.count(tokenizer.bos_id) == 1
    )
    assert asked[0] == tokenizer.bos_id


@pytest.mark.parametrize("text", ["the sea", " the sea", "\nthe", "", "gods\n\n"])
def test_reward_model_and_policy_read_the_same_prompt_and_end_whatever_an_answer_begins_with(
    tokenizer: Tokenizer, tmp_path: Path, text: str
) -> None:
    """The bug: the answer's first characters merge with the template's last, or the template's own words after the
    end token are scored. Published templates write a line end there, and one before the answer."""
    spoken = tiny_tokenizer()
    spoken.chat_template = CHAT_TEMPLATE.replace("<|end|>'", "<|end|>\\n'").replace(
        "<|assistant|>'", "<|assistant|>\\n'"
    )
    spoken.chat_template = spoken.chat_template.replace("+ '|>' +", "+ '|>\\n' +")
    for kind in (tokenizer, spoken):
        asks_and_ends_alike(kind, tmp_path, text)


def asks_and_ends_alike(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    [item] = prompts_of(tokenizer, tmp_path, 1)
    asked, answer = encode_answer(tokenizer, item["messages"], text)
    assert asked == item["ids"]
    assert answer[-1] in tokenizer.stop_ids
    assert not set(answer[:-1]) & tokenizer.stop_ids


def test_an_answer_that_was_cut_is_not_scored_as_one_that_ended(
    models: tuple[Path, Path], tokenizer: Tokenizer
) -> None:
    policy = tiny_policy(tokenizer)
    model = ScalarModel(policy, torch.Generator().manual_seed(5))
    items = [{"messages": [{"role": "user", "content": "the sea"}]}] * 2
    ended = Completion("of gods", [1], [0.0], "stop", 3)
    cut = Completion("of gods", [1], [0.0], "length", 3)
    scores = reward_of(model, tokenizer, items, [ended, cut], -7.0, Cut(8))
    asked, answer = encode_answer(tokenizer, items[0]["messages"], "of gods")
    with torch.no_grad():
        whole = float(score(model, pad_answers([asked], [answer])))
    assert scores.tolist() == pytest.approx([whole, -7.0], abs=1e-5)
    long = Completion("\ufffd" * 60, [1], [0.0], "stop", 3)  # bytes that are no character are three tokens each
    assert reward_of(model, tokenizer, items, [ended, long], -7.0, Cut(8))[1] == -7.0


# ------------------------------------------------------------------ log-probabilities, KL, entropy


def test_sampler_and_trainer_have_the_same_log_probabilities(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """float64, so that only a difference of meaning is left: a shift by a place, another softmax, another mask."""
    policy = tiny_policy(tokenizer).double()
    completions, answers = rolled(policy, tokenizer, prompts_of(tokenizer, tmp_path))
    with torch.no_grad():
        log_probs = answer_log_probs(policy, answers)[0][answers.mask_BT]
    sampler = torch.tensor([p for c in completions for p in c.log_probs], dtype=torch.float64)
    assert len(sampler) == len(log_probs) > 20
    assert float((sampler - log_probs).abs().max()) <= 1e-9


def test_the_sampler_answers_with_the_weights_of_the_last_update(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bug: a compiled sampler that keeps the weights it was made of, so that PPO is ever further off its policy."""
    policy, items = tiny_policy(tokenizer), prompts_of(tokenizer, tmp_path)
    speaker = sampler(policy)
    for _ in range(2):
        completions, answers = rolled(speaker, tokenizer, items)
        with torch.no_grad():
            log_probs = answer_log_probs(policy, answers)[0][answers.mask_BT]
            for parameter in policy.parameters():
                parameter.mul_(1.3)
        told = torch.tensor([p for c in completions for p in c.log_probs])
        assert float((told - log_probs).abs().max()) <= 1e-4


def test_padding_is_in_neither_log_probabilities_nor_entropy_nor_kl(tokenizer: Tokenizer, tmp_path: Path) -> None:
    policy, reference, value = exact(tokenizer)
    items = prompts_of(tokenizer, tmp_path)
    completions, together = rolled(policy, tokenizer, items)
    scores = torch.linspace(-1, 1, len(items), dtype=torch.float64)
    rollouts, log_ratio, entropy = assess(SETTINGS, policy, reference, value, together, scores, 0.1, Cut(3))
    assert len({len(c.token_ids) for c in completions}) > 1, "needs answers of different lengths"
    for x in (log_ratio, entropy, rollouts.log_probs_BT, rollouts.advantages_BT):
        assert (x[~together.mask_BT] == 0).all()
    for row, (item, completion) in enumerate(zip(items, completions, strict=True)):
        alone = pad_answers([item["ids"]], [completion.token_ids])
        _, own_ratio, own_entropy = assess(
            SETTINGS, policy, reference, value, alone, scores[row : row + 1], 0.1, Cut(1)
        )
        assert float(log_ratio[row].sum()) == pytest.approx(float(own_ratio.sum()), abs=1e-9)
        assert float(entropy[row].sum()) == pytest.approx(float(own_entropy.sum()), abs=1e-9)
        probs = policy(alone.inputs_BT)[0].detach().softmax(-1)
        by_hand = -(probs * probs.log()).sum(-1)[alone.mask_BT[0]].sum()
        assert float(own_entropy.sum()) == pytest.approx(float(by_hand), abs=1e-9)


def test_a_piece_of_the_rows_is_as_wide_as_its_longest_and_stands_where_it_stood(tokenizer: Tokenizer) -> None:
    policy = tiny_policy(tokenizer)
    prompts, told = [[5] * n for n in (9, 2, 4, 1)], [[7] * n for n in (20, 3, 1, 2)]
    order = shortest_first(prompts, told)
    assert order == [3, 1, 2, 0]
    answers = pad_answers([prompts[row] for row in order], [told[row] for row in order])
    assert [piece.inputs_BT.shape for piece in in_pieces(answers, 2)] == [(2, 4), (2, 28)]
    whole = torch.stack(answer_log_probs(policy, answers), dim=-1).detach()
    cut = over_pieces(lambda piece: torch.stack(answer_log_probs(policy, piece), dim=-1), answers, Cut(2))
    assert cut.shape == whole.shape and torch.allclose(cut, whole, atol=1e-5, rtol=0)


def test_advantages_are_those_of_rewards_with_a_kl_price_and_a_score_at_the_end(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Bugs: the score lands on padding or a place too early; the price has the wrong sign or is paid by padding."""
    policy, reference, value = exact(tokenizer)
    items = prompts_of(tokenizer, tmp_path)
    _, answers = rolled(policy, tokenizer, items)
    scores = torch.linspace(-1, 1, len(items), dtype=torch.float64)
    rollouts, _, _ = assess(SETTINGS, policy, reference, value, answers, scores, 0.3, Cut(8))
    with torch.no_grad():
        log_ratio = answer_log_probs(policy, answers)[0] - answer_log_probs(reference, answers)[0]
        values = value(answers.inputs_BT)
    rewards = torch.zeros_like(values)
    for row, mask in enumerate(answers.mask_BT):
        places = mask.nonzero().flatten().tolist()
        for place in places:
            rewards[row, place] = -0.3 * log_ratio[row, place]
        rewards[row, places[-1]] += scores[row]
    expected = advantages(rewards, values, answers.mask_BT, SETTINGS.gamma, SETTINGS.gae_lambda)
    returns = torch.where(answers.mask_BT, expected + values, 0.0)
    assert torch.allclose(rollouts.returns_BT, returns, atol=1e-9, rtol=0)
    inside = expected[answers.mask_BT]
    white = (inside - inside.mean()) / inside.std(correction=0)
    assert torch.allclose(rollouts.advantages_BT[answers.mask_BT], white, atol=1e-6, rtol=0)


def test_a_value_is_that_of_the_state_before_the_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bug: values one place late, which know the token that was chosen: the advantage is then of nothing."""
    policy, reference, value = exact(tokenizer)
    _, answers = rolled(policy, tokenizer, prompts_of(tokenizer, tmp_path))
    scores = torch.zeros(len(answers.inputs_BT), dtype=torch.float64)
    before = assess(SETTINGS, policy, reference, value, answers, scores, 0.0, Cut(8))[0].values_BT
    last = last_places(answers.mask_BT)
    rows = torch.arange(len(last))
    changed = answers.targets_BT.clone()
    changed[rows, last] = (changed[rows, last] + 1) % 100
    other = Answers(answers.inputs_BT, changed, answers.mask_BT)
    after = assess(SETTINGS, policy, reference, value, other, scores, 0.0, Cut(8))[0].values_BT
    assert torch.equal(before, after)
    earlier = answers.inputs_BT.clone()
    earlier[rows, last] = (earlier[rows, last] + 1) % 100  # the token before the last one
    moved = Answers(earlier, answers.targets_BT, answers.mask_BT)
    assert (assess(SETTINGS, policy, reference, value, moved, scores, 0.0, Cut(8))[0].values_BT != before)[
        rows, last
    ].all()


def test_a_value_knows_how_likely_the_answer_so_far_is_and_not_the_token_that_comes() -> None:
    """Bugs: features one place late, which know the token that is chosen; those of an answer before reach the next."""
    log_probs = torch.tensor([[9.0, -1.0, -3.0, -2.0, 9.0], [9.0, 9.0, 9.0, -5.0, -4.0]], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    features = likelihood_so_far(log_probs, mask)
    assert (features[~mask] == 0).all()
    for row, place in mask.nonzero().tolist():
        before = log_probs[row, :place][mask[row, :place]]
        expected = [0.0, 0.0, 0.0, 1.0, 1.0]
        if len(before):
            lowest, total = float(before.min()), float(before.sum())
            expected = [total / len(before), lowest, len(before) / 10, math.exp(lowest), math.exp(total)]
        assert features[row, place].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reads_likelihood", [False, True])
def test_the_values_head_is_fitted_before_the_first_update(tokenizer: Tokenizer, reads_likelihood: bool) -> None:
    """The bug: a value network that begins at 0, so that an easy prompt passes for a good answer."""
    value = ScalarModel(tiny_policy(tokenizer).double(), None, reads_likelihood)
    draw, width = torch.Generator().manual_seed(0), 32 + 5 * reads_likelihood
    read = torch.randn(400, width, generator=draw, dtype=torch.float64) * torch.linspace(0.1, 9, width) + 3
    returns = read @ torch.linspace(-1, 1, width).double() + 0.7 + torch.randn(400, generator=draw).double()
    fit_value(value, iter([(read[:150], returns[:150]), (read[150:], returns[150:])]), ridge=0.1)
    scale = read.std(dim=0, correction=0)
    columns = torch.cat([(read - read.mean(dim=0)) / scale, math.sqrt(400 * 0.1) * torch.eye(width).double()])
    aims = torch.cat([returns - returns.mean(), torch.zeros(width).double()])
    weights = torch.linalg.lstsq(columns, aims[:, None]).solution.squeeze(1) / scale
    fitted = returns.mean() + (read - read.mean(dim=0)) @ weights
    assert torch.allclose(read_scored(value, read).detach(), fitted, atol=1e-9, rtol=0)


# ------------------------------------------------------------------ the loop


def test_the_first_step_begins_at_the_fine_tuned_model_and_later_ones_leave_it(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Bugs: KL is not 0 at step 0; the reference is the policy itself, so that KL stays 0; dropout, or anything else
    that makes the same weights give another probability in the update than in the rollout."""
    base, reward = models
    before = sha256(base), sha256(reward)
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    ppo(ONCE, base, reward, [prompts], None, 7, tmp_path / "ppo")
    rows = read_metrics(tmp_path / "ppo" / "metrics.jsonl")
    assert rows[0]["kl"] == 0.0
    for row in rows:
        assert abs(row["update_kl"]) < 1e-6 and row["clip_share"] == 0  # the first update is from the policy itself
        assert row["sampler_gap_max"] < 1e-4
    assert all(abs(row["kl"]) > 1e-4 for row in rows[1:])
    assert (sha256(base), sha256(reward)) == before
    tuned, _ = load_model(tmp_path / "ppo" / "model")
    assert not torch.equal(tuned.embed.weight, load_model(base)[0].embed.weight)


def test_with_lora_reference_and_reward_model_are_the_models_without_it(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Their memory is that of policy and value network. The bug: what is trained moves what it is measured by."""
    policy, tokenizer = load_model(models[0])
    value = load_scalar_model(models[1])[0]
    rewarder, draw = head_apart(value), torch.Generator().manual_seed(3)
    for trunk in (policy, value.trunk):
        add_lora(trunk, 2, 4.0, draw)
    with torch.no_grad():
        for parameter in (*policy.parameters(), *value.parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    items = prompts_of(tokenizer, tmp_path)
    completions = sample(policy, tokenizer, [item["ids"] for item in items], 12, seed=1)
    scores = [
        reward_of(model, tokenizer, items, completions, -1.0, Cut(8))
        for model in (rewarder, load_scalar_model(models[1])[0], value)
    ]
    assert torch.equal(scores[0], scores[1])
    answers = pad_answers([item["ids"] for item in items], [answer.token_ids for answer in completions])
    ratios = [
        assess(SETTINGS, policy, reference, value, answers, scores[0], 0.1, Cut(8))[1]
        for reference in (policy, load_model(models[0])[0])
    ]
    assert torch.equal(ratios[0], ratios[1]) and float(ratios[0].abs().max()) > 1e-2
    settings = ONCE.model_copy(update={"lora": LoraSettings(rank=2)})
    ppo(settings, *models, [write_prompts(tmp_path / "p.jsonl")], None, 7, tmp_path / "ppo")
    kl = [row["kl"] for row in read_metrics(tmp_path / "ppo" / "metrics.jsonl")]
    assert kl[0] == 0.0 and all(abs(later) > 1e-5 for later in kl[1:])


def test_no_module_behaves_otherwise_in_training(tokenizer: Tokenizer) -> None:
    """The bug: dropout is left on, and log-probabilities of the update are another model's."""
    policy, answers = tiny_policy(tokenizer).train(), pad_answers([[5, 6, 7]], [[8, 9, 2]])
    with torch.no_grad():
        first, again = answer_log_probs(policy, answers)[0], answer_log_probs(policy, answers)[0]
        still = answer_log_probs(policy.eval(), answers)[0]
    assert torch.equal(first, again) and torch.equal(first, still)


class Text:
    """Pretraining text: one batch, again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch


def test_the_gradient_of_pretraining_text_is_its_own_mean_times_the_coefficient(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: it is divided by the number of answer tokens, so that the mixture depends on how long answers are."""
    policy, reference, value = exact(tokenizer)
    _, answers = rolled(policy, tokenizer, prompts_of(tokenizer, tmp_path))
    rollouts = assess(SETTINGS, policy, reference, value, answers, torch.arange(8.0).double(), 0.1, Cut(8))[0]
    tokens = torch.randint(0, 200, (2, 21), generator=torch.Generator().manual_seed(1))
    text = Batch(
        tokens[:, :-1], tokens[:, 1:], torch.zeros(2, 20, dtype=torch.int64), torch.ones(2, 20, dtype=torch.bool)
    )
    gradients: list[Tensor] = []

    def keep(tuning: Tuning, loss: float) -> float:
        gradients.append(policy.embed.weight.grad.clone())
        tuning.modules.zero_grad()
        return 0.0

    monkeypatch.setattr(Tuning, "update", keep)
    modules = {"policy": policy, "value": value}
    rates = {"policy": 1e-3, "value": 1e-3}
    tuning = Tuning(
        "ppo", tmp_path, modules, policy, tokenizer, OptimizerSettings(), 1,
        learning_rates=rates, checkpoint_every_seconds=1e9, seed=0,
    )  # fmt: skip
    for coefficient, ptx in ((0.0, None), (27.8, Text(text))):
        settings = SETTINGS.model_copy(update={"ptx_coefficient": coefficient, "ptx_rows": 2})
        update(settings, tuning, policy, value, rollouts, ptx, Told())
    mean = summed_loss(policy, text, True) / 40
    [of_text] = torch.autograd.grad(mean, [policy.embed.weight])
    assert torch.allclose(gradients[1] - gradients[0], 27.8 * of_text, atol=1e-9, rtol=0)


def test_the_update_is_the_mean_over_answer_tokens_however_it_is_cut(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a mean of means, in which tokens of short answers weigh more."""
    policy, reference, value = exact(tokenizer)
    _, answers = rolled(policy, tokenizer, prompts_of(tokenizer, tmp_path))
    rollouts = assess(SETTINGS, policy, reference, value, answers, torch.arange(8.0).double(), 0.1, Cut(8))[0]
    kept: list[Tensor] = []

    def keep(tuning: Tuning, loss: float) -> float:
        kept.append(torch.cat([p.grad.flatten() for p in tuning.modules.parameters() if p.grad is not None]))
        tuning.modules.zero_grad()
        return 0.0

    monkeypatch.setattr(Tuning, "update", keep)
    tuning = Tuning(
        "ppo", tmp_path, {"policy": policy, "value": value}, policy, tokenizer, OptimizerSettings(), 1,
        learning_rates={"policy": 1e-3, "value": 1e-3}, checkpoint_every_seconds=1e9, seed=0,
    )  # fmt: skip
    for micro_tokens in (10_000, 1):
        settings = SETTINGS.model_copy(update={"micro_batch_tokens": micro_tokens})
        update(settings, tuning, policy, value, rollouts, None, Told())
    assert torch.allclose(kept[0], kept[1], atol=1e-10, rtol=0)
    # And by hand: the first update's ratio is 1, so the gradient is that of -A log p + the value's error, a token.
    log_probs, values = answer_log_probs(policy, rollouts.answers)[0], value(rollouts.inputs_BT)
    n_tokens = int(rollouts.mask_BT.sum())
    policy_loss = -(rollouts.advantages_BT * log_probs)[rollouts.mask_BT].sum() / n_tokens
    value_loss = 0.5 * (values - rollouts.returns_BT)[rollouts.mask_BT].square().sum() / n_tokens
    trained = [p for p in tuning.modules.parameters() if p.requires_grad]
    by_hand = torch.autograd.grad(policy_loss + value_loss, trained, allow_unused=True)
    assert torch.allclose(kept[0], torch.cat([g.flatten() for g in by_hand if g is not None]), atol=1e-10, rtol=0)


def test_the_reward_rises_when_it_can(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The sign of everything at once: 40 small steps against a reward model with random weights raise its score."""
    base, reward = models
    settings = SETTINGS.model_copy(
        update={"steps": 30, "rollouts": 32, "kl_coefficient": 0.0, "truncated_reward": -3.0}
    )
    ppo(settings, base, reward, [write_prompts(tmp_path / "prompts.jsonl")], None, 7, tmp_path / "ppo")
    rewards = [row["reward"] for row in read_metrics(tmp_path / "ppo" / "metrics.jsonl")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


def test_the_value_network_of_a_reward_that_reads_likelihood_begins_fitted_and_learns_on_every_core(
    models: tuple[Path, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The bugs: values that begin as the reward's head, which was made for whole answers; weights of a likelihood that
    no value reads, for which a core finds no gradient and the stage ends."""
    rewarder = ScalarModel(load_model(models[0])[0], reads_likelihood=True)
    assert rewarder.likelihood_F is not None
    with torch.no_grad():
        rewarder.weight_D.normal_(std=3, generator=torch.Generator().manual_seed(0))
        rewarder.likelihood_F.fill_(5.0)
        rewarder.bias.fill_(60)
    save_scalar_model(rewarder, tokenizer, tmp_path / "reward")
    settings = SETTINGS.model_copy(update={"steps": 1})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prompts = [write_prompts(tmp_path / "prompts.jsonl")]
        ppo(settings, models[0], tmp_path / "reward", prompts, None, 7, tmp_path / "stage")
    finally:
        torch.set_num_threads(before)
    [row] = read_metrics(tmp_path / "stage" / "metrics.jsonl")
    assert row["explained_variance"] > -0.5 and row["reward"] > 10


def test_an_adaptive_coefficient_follows_its_target(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, reward = models
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    for target, direction in ((1e-6, 1), (1e6, -1)):
        settings = SETTINGS.model_copy(update={"kl_target": target, "kl_horizon": 8.0})
        ppo(settings, base, reward, [prompts], None, 7, tmp_path / str(target))
        told = [row["kl_coefficient"] for row in read_metrics(tmp_path / str(target) / "metrics.jsonl")]
        # A row has the coefficient that its rewards were made with. KL is 0 at first: down by the most it may, a fifth.
        assert told[:2] == pytest.approx([0.05, 0.05 * 0.8])
        assert (told[-1] - told[1]) * direction > 0


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    items = [{"n": n} for n in range(10)]
    drawn = [item["n"] for step in range(5) for item in draw_prompts(items, 4, step, seed=1)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
