"""The reward model: what it is trained on, and what is said of its quality."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_alignment import tiny_policy, tiny_tokenizer, write_comparisons, write_models
from torch import Tensor

from talaria.errors import UserError
from talaria.feedback.store import FeedbackStore
from talaria.model.checkpoint import load_model
from talaria.model.scalar import ScalarModel, load_scalar_model, save_scalar_model
from talaria.run import read_metrics
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.answers import end_states, over_ids, pad_answers, read_scored, score, what_is_scored
from talaria.train.policy_losses import ranking_loss
from talaria.train.reward import (
    Compared,
    all_that_is_scored,
    as_answers,
    as_micro_batches,
    fit_head,
    pairs_of,
    read_compared,
    train_reward,
)
from talaria.train.reward_quality import _accuracy, _calibration, _strange, distances, measure_quality
from talaria.train.settings import OptimizerSettings, RewardSettings

SETTINGS = RewardSettings(
    epochs=12, batch_prompts=8, validation_share=0.25, optimizer=OptimizerSettings(learning_rate=3e-3, weight_decay=0.0)
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward stage's folder, beside its base `sft` and its `feedback.db`."""
    folder = tmp_path_factory.mktemp("reward")
    write_models(folder, tokenizer)
    database = write_comparisons(folder / "feedback.db", 60)
    train_reward(SETTINGS, folder / "sft", [database], 7, folder / "stage")
    return folder


def test_all_pairs_of_a_prompt_are_one_element_and_every_answer_is_read_once(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The bug: a row for each pair, with which an answer of four is read three times and soon known by heart."""
    store = FeedbackStore(tmp_path / "f.db")
    for messages in ([{"role": "user", "content": "sea"}], [{"role": "user", "content": "land"}]):
        prompt = store.append_prompt(messages)
        a, b, c, again = (store.append_answer(prompt, text, model="m") for text in ("one", "two", "three", "one"))
        store.append_comparison(prompt, [[b], [a, c]], annotator="ann")
        store.append_comparison(prompt, [[c], [again]], annotator="bob")
    store.close()
    [training], [held_out], dropped = read_compared([tmp_path / "f.db"], tokenizer, 64, 0.5, seed=0)
    assert dropped == 0
    for prompt in (training, held_out):
        assert prompt.texts == ["two", "one", "three"]
        assert prompt.pairs == [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.5), (2, 1, 1.0)]
        assert len(as_answers([prompt]).inputs_BT) == 3


def test_no_prompt_is_on_both_sides_of_the_split_whoever_compared_it_and_wherever(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    databases = [write_comparisons(tmp_path / "a.db"), write_comparisons(tmp_path / "b.db")]
    training, held_out, _ = read_compared(databases, tokenizer, 64, 0.25, seed=0)
    sides = [{repr(prompt.messages) for prompt in side} for side in (training, held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40 and len(sides[1]) == 10


def test_conversations_longer_than_the_context_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = FeedbackStore(tmp_path / "f.db")
    for words in (1, 2, 3, 60):
        prompt = store.append_prompt([{"role": "user", "content": "sea " * words}])
        ids = [store.append_answer(prompt, text, model="m") for text in ("one", "two")]
        store.append_comparison(prompt, [[ids[0]], [ids[1]]], annotator="ann")
    store.close()
    training, held_out, dropped = read_compared([tmp_path / "f.db"], tokenizer, 64, 0.3, seed=0)
    assert (len(training), len(held_out), dropped) == (2, 1, 1)
    with pytest.raises(UserError, match="0 prompts with comparisons that can be read"):
        read_compared([tmp_path / "f.db"], tokenizer, 4, 0.3, seed=0)


def test_what_a_prompt_was_put_aside_for_is_honoured(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = FeedbackStore(tmp_path / "f.db")
    for number, split in enumerate(["train", "test", "validation", "train", None, None]):
        _compare(store, [{"role": "user", "content": f"sea {number}"}], split)
    store.close()
    training, held_out, _ = read_compared([tmp_path / "f.db"], tokenizer, 64, 0.5, seed=0)
    names = [{prompt.messages[0]["content"] for prompt in side} for side in (training, held_out)]
    assert {"sea 0", "sea 3"} <= names[0] and "sea 2" in names[1] and "sea 1" not in names[0] | names[1]
    assert len(names[0]) == 3 and len(names[1]) == 2


def test_turns_of_one_conversation_and_messages_in_another_order_of_keys_are_on_one_side(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """The bug: prompts told apart by their repr, so that half of the held-out ones had been trained on."""
    stores = [FeedbackStore(tmp_path / "a.db"), FeedbackStore(tmp_path / "b.db")]
    for number in range(20):
        _compare(stores[0], [{"role": "user", "content": f"sea {number}"}])
        longer = [f"sea {number}", "land", "and"]
        roles = ["user", "assistant", "user"]
        turns = [{"content": text, "role": role} for role, text in zip(roles, longer, strict=True)]
        _compare(stores[1], turns)
        _compare(stores[1], turns[:1])
    for store in stores:
        store.close()
    training, held_out, _ = read_compared([tmp_path / "a.db", tmp_path / "b.db"], tokenizer, 64, 0.25, seed=0)
    begins = [{prompt.messages[0]["content"] for prompt in side} for side in (training, held_out)]
    assert not begins[0] & begins[1] and len(begins[0]) == 15 and len(begins[1]) == 5
    assert len(training) == 30 and all(len(prompt.texts) == 2 for prompt in training)


def test_one_answer_too_long_costs_its_own_pairs_and_two_criteria_are_two_prompts(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    store = FeedbackStore(tmp_path / "f.db")
    for number in range(4):
        prompt = store.append_prompt([{"role": "user", "content": f"sea {number}"}])
        ids = [store.append_answer(prompt, text, model="m") for text in ("one", "two", "land " * 90)]
        store.append_comparison(prompt, [[ids[2]], [ids[0]], [ids[1]]], annotator="ann", criterion="helpful")
        store.append_comparison(prompt, [[ids[1]], [ids[0]]], annotator="ann", criterion="harmless")
    store.close()
    training, held_out, dropped = read_compared([tmp_path / "f.db"], tokenizer, 64, 0.25, seed=0)
    assert dropped == 0 and (len(training), len(held_out)) == (6, 2)
    pairs = {prompt.objective: [(prompt.texts[i], prompt.texts[j]) for i, j, _ in prompt.pairs] for prompt in held_out}
    assert pairs == {"helpful": [("one", "two")], "harmless": [("two", "one")]}


def test_a_try_that_began_with_other_comparisons_does_not_go_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_models(tmp_path, tokenizer)
    database = write_comparisons(tmp_path / "feedback.db", 12)
    settings = SETTINGS.model_copy(update={"epochs": 1, "checkpoint_every_seconds": 1e-9})
    train_reward(settings, tmp_path / "sft", [database], 7, tmp_path / "stage")
    store = FeedbackStore(database)
    for number in range(6):
        _compare(store, [{"role": "user", "content": f"land {number}"}])
    store.close()
    with pytest.raises(UserError, match="the comparisons changed since this stage began"):
        train_reward(settings, tmp_path / "sft", [database], 7, tmp_path / "stage")


def test_micro_batches_hold_every_prompt_once_within_their_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    training, _, _ = read_compared([write_comparisons(tmp_path / "f.db")], tokenizer, 64, 0.25, seed=0)
    for most, cores in ((64, 1), (128, 2), (10_000, 3), (1, 1)):
        pieces = as_micro_batches(training, most, cores)
        assert sorted(id(prompt) for piece in pieces for prompt in piece) == sorted(map(id, training))
        assert len(pieces) >= cores
        for piece in pieces:
            assert len(piece) == 1 or as_answers(piece).inputs_BT.numel() <= most


def test_pieces_of_eight_prompts_are_for_cpus_alone(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, _, _ = read_compared([write_comparisons(tmp_path / "f.db")], tokenizer, 64, 0.25, seed=0)
    for device, longest in (("cpu", 8), ("cuda", len(training))):
        monkeypatch.setattr("talaria.train.reward.default_device", lambda device=device: torch.device(device))
        assert max(map(len, as_micro_batches(training, 1_000_000, 1))) == longest > 7


def test_after_training_no_more_tokens_are_read_at_a_time_than_in_it(tokenizer: Tokenizer) -> None:
    """The bug: 64 rows, whatever the setting, which for a large model is all of the memory."""
    draw = random.Random(0)
    ids = [([5] * draw.randint(1, 20), [draw.randint(3, 200) for _ in range(draw.randint(1, 20))]) for _ in range(50)]
    trunk, read = tiny_policy(tokenizer), []
    states = over_ids(lambda answers: end_states(trunk, answers), ids, 100_000)
    hidden = trunk.hidden
    trunk.hidden = lambda tokens_BT: read.append(tokens_BT.numel()) or hidden(tokens_BT)  # type: ignore
    bounded = over_ids(lambda answers: end_states(trunk, answers), ids, 60)
    assert torch.allclose(bounded, states, atol=1e-5, rtol=0)
    assert max(read) <= 60 and len(read) < 50
    assert torch.allclose(states[7], end_states(trunk, pad_answers([ids[7][0]], [ids[7][1]]))[0], atol=1e-5, rtol=0)


def test_products_may_be_bfloat16_and_rows_short(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_models(tmp_path, tokenizer)
    database = write_comparisons(tmp_path / "feedback.db", 24)
    told = {}
    for dtype, context in (("float32", None), ("bfloat16", None), ("float32", 16)):
        folder = tmp_path / f"{dtype}-{context}"
        settings = SETTINGS.model_copy(update={"epochs": 1, "dtype": dtype, "context": context})
        train_reward(settings, tmp_path / "sft", [database], 7, folder)
        loss = read_metrics(folder / "metrics.jsonl")[0]["train_loss"]
        told[dtype, context] = loss, json.loads((folder / "training.json").read_text())["pairs"]
    assert 0 < abs(told["bfloat16", None][0] - told["float32", None][0]) < 0.02
    assert 0 < told["float32", 16][1] < told["float32", None][1]


def test_scores_are_whole_floats_where_products_are_bfloat16(tokenizer: Tokenizer) -> None:
    """The bug: rewards on bfloat16's grid, with ties between answers that differ, and a quality told of those."""
    rows = pad_answers([[5, 6]] * 40, [[7 + n, 2] for n in range(40)])
    for reads in (False, True):
        model = ScalarModel(tiny_policy(tokenizer), torch.Generator().manual_seed(0), reads_likelihood=reads)
        with torch.no_grad():
            model.weight_D.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
            model.bias.fill_(3)
            if model.likelihood_F is not None:
                model.likelihood_F.fill_(0.3)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            scores_B = score(model, rows)
        assert scores_B.dtype == torch.float32 and not torch.equal(scores_B, scores_B.bfloat16().float())
        assert len(set(scores_B.tolist())) == 40


def test_strange_conversations_fit_the_context_and_are_nobodys_own(tokenizer: Tokenizer) -> None:
    """The bugs: a long question with another one's long answer ended the stage after its training; and an answer to
    the same prompt, or of the same words, was called strange."""
    long, short = [5] * 40, [6] * 3
    held_out = [
        Compared([], texts=["a", "b"], ids=[(long, short), (long, short)]),
        Compared([], texts=["c", "a"], ids=[(short, long), (short, short)]),
    ]
    assert _strange(held_out, 64) == [(short, short), (short, short)]
    assert _strange(held_out[:1], 64) == []


def _compare(store: FeedbackStore, messages: list[dict[str, str]], split: str | None = None) -> None:
    prompt = store.append_prompt(messages, split=split)
    ids = [store.append_answer(prompt, text, model="m") for text in ("one", "two")]
    store.append_comparison(prompt, [[ids[0]], [ids[1]]], annotator="ann")


def test_it_learns_what_is_preferred_and_its_mean_is_zero(trained: Path, tokenizer: Tokenizer) -> None:
    quality = json.loads((trained / "stage" / "reward.json").read_text())
    assert quality["together"]["interval"][0] > 0.7  # held-out prompts; chance is one half
    model, _ = load_scalar_model(trained / "stage" / "reward_model")
    training, held_out, _ = read_compared([trained / "feedback.db"], tokenizer, 64, 0.25, seed=7)
    assert abs(float(score(model, as_answers(training)).detach().mean())) < 1e-5
    margins = [
        float(scores[i] - scores[j]) > 0
        for prompt in held_out
        for scores in [score(model, as_answers([prompt])).detach()]
        for i, j, share in prompt.pairs
        if share != 0.5
    ]
    assert quality["together"]["accuracy"] == pytest.approx(sum(margins) / len(margins))
    assert quality["together"]["pairs"] == len(margins)


def test_the_loss_of_a_batch_is_the_mean_over_prompts_of_equation_one(trained: Path, tokenizer: Tokenizer) -> None:
    base = load_model(trained / "sft", torch.float64)[0]
    model = ScalarModel(base, torch.Generator().manual_seed(0))
    training, _, _ = read_compared([trained / "feedback.db"], tokenizer, 64, 0.25, seed=7)
    prompts = training[:5]
    scores_N = score(model, as_answers(prompts)).detach()
    alone = [score(model, as_answers([prompt])).detach() for prompt in prompts]
    assert torch.allclose(scores_N, torch.cat(alone), atol=1e-10, rtol=0)
    for prompt, scores_K in zip(prompts, alone, strict=True):
        by_hand = [
            -share * torch.sigmoid(scores_K[i] - scores_K[j]).log()
            - (1 - share) * torch.sigmoid(scores_K[j] - scores_K[i]).log()
            for i, j, share in prompt.pairs
        ]
        assert float(ranking_loss(scores_K, *pairs_of(prompt, scores_K.device))) == pytest.approx(
            float(sum(by_hand)) / len(prompt.pairs), abs=1e-12
        )


def test_what_is_saved_scores_as_what_was_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = ScalarModel(tiny_policy(tokenizer), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.bias.fill_(-1.5)
    save_scalar_model(model, tokenizer, tmp_path / "model")
    loaded, _ = load_scalar_model(tmp_path / "model")
    answers = pad_answers([[5, 6]], [[7, 2]])
    assert torch.equal(score(model, answers), score(loaded, answers))
    (tmp_path / "model" / "scalar_head.safetensors").unlink()
    with pytest.raises(UserError, match="no reward model here"):
        load_scalar_model(tmp_path / "model")


def test_likelihood_is_of_the_answer_alone_and_of_its_own_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bugs: the prompt's or the padding's tokens in it, a token early or late, the end token left out; and a model
    that forgets on disk that it reads it."""
    model = ScalarModel(tiny_policy(tokenizer).double(), torch.Generator().manual_seed(0), reads_likelihood=True)
    assert model.likelihood_F is not None
    with torch.no_grad():
        model.weight_D.normal_(generator=torch.Generator().manual_seed(1))
        model.likelihood_F.copy_(torch.tensor([0.7, 0.4, -0.2, 0.3, 0.9], dtype=torch.float64))
    rows = [([5, 6], [7, 2, 9]), ([5, 6, 8, 11, 3], [10]), ([4], [12, 13, 14, 15, 16, 2])]
    scores_B = score(model, pad_answers(*zip(*rows, strict=True)))
    for (prompt, answer), told in zip(rows, scores_B, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        hidden = model.trunk.hidden(ids)[0]
        places = range(len(prompt), len(prompt) + len(answer))
        own = [float(torch.log_softmax(model.trunk.head(hidden[t - 1]), dim=-1)[ids[0, t]]) for t in places]
        by_hand = float(model.read(hidden[-1])) + 0.7 * sum(own) / len(own) + 0.4 * min(own) - 0.02 * len(own)
        by_hand += 0.3 * math.exp(min(own)) + 0.9 * math.exp(sum(own))
        assert float(told) == pytest.approx(by_hand, abs=1e-10)
    save_scalar_model(model, tokenizer, tmp_path / "model")
    loaded, _ = load_scalar_model(tmp_path / "model", torch.float64)
    assert torch.allclose(score(loaded, pad_answers(*zip(*rows, strict=True))), scores_B, atol=1e-5, rtol=0)


def test_a_score_that_reads_likelihood_is_fitted_first_and_then_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The bugs: a head that begins by chance; weights of the likelihood or the trunk left out of training."""
    write_models(tmp_path, tokenizer)
    database = write_comparisons(tmp_path / "feedback.db", 40)
    training, held_out, _ = read_compared([database], tokenizer, 64, 0.25, seed=7)
    fitted = ScalarModel(load_model(tmp_path / "sft")[0], reads_likelihood=True)
    fit_head(fitted, training, all_that_is_scored(fitted, training, 4096))
    quality = measure_quality(fitted, all_that_is_scored(fitted, training, 4096), held_out, 4096)
    assert fitted.likelihood_F is not None and quality["together"]["accuracy"] > 0.7
    for epochs in (0, 1):
        settings = SETTINGS.model_copy(update={"epochs": epochs, "reads_likelihood": True})
        train_reward(settings, tmp_path / "sft", [database], 7, tmp_path / f"stage-{epochs}")
        model, _ = load_scalar_model(tmp_path / f"stage-{epochs}" / "reward_model")
        assert model.likelihood_F is not None
        assert ((model.likelihood_F - fitted.likelihood_F).abs() > 1e-4).any() == bool(epochs)
        assert torch.equal(model.trunk.head_weight(), fitted.trunk.head_weight()) == (epochs == 0)
        assert abs(float(read_scored(model, all_that_is_scored(model, training, 4096)).mean())) < 1e-5


def test_the_fitted_head_is_the_minimum_of_the_ranking_loss(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The bug: pairs that point at another prompt's answers, once prompts have different numbers of them."""
    write_models(tmp_path, tokenizer)
    training, _, _ = read_compared([write_comparisons(tmp_path / "f.db", 40)], tokenizer, 64, 0.25, seed=7)
    for prompt in training[::2]:
        prompt.texts, prompt.ids = prompt.texts[:2], prompt.ids[:2]
        prompt.pairs = [pair for pair in prompt.pairs if max(pair[:2]) < 2]
    model = ScalarModel(load_model(tmp_path / "sft", torch.float64)[0], reads_likelihood=True)
    fit_head(model, training, all_that_is_scored(model, training, 4096), ridge=1e-3)
    assert model.likelihood_F is not None
    weights = [model.weight_D, model.likelihood_F]

    def loss() -> Tensor:
        scores = [score(model, as_answers([prompt])) for prompt in training]
        pairs = [ranking_loss(s, *pairs_of(p, s.device)) * len(p.pairs) for s, p in zip(scores, training, strict=True)]
        return torch.stack(pairs).sum() / sum(len(prompt.pairs) for prompt in training)

    scored = torch.cat([what_is_scored(model, as_answers([prompt])) for prompt in training])
    deviation = scored.std(dim=0).detach().clamp_min(1e-2)
    penalty = 1e-3 * (torch.cat([weight.flatten() for weight in weights]) * deviation).square().sum()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss() + penalty, weights)])
    assert float((gradient / deviation).abs().max()) < 1e-4


def test_accuracy_counts_decided_pairs_and_its_interval_is_over_prompts() -> None:
    rows = [(0, "helpful", 1.0, 1.0), (0, "helpful", -0.5, 1.0), (1, "helpful", -2.0, 0.0), (1, "helpful", 0.1, 0.5)]
    told = _accuracy(rows)
    assert (told["accuracy"], told["pairs"], told["ties"], told["prompts"]) == (2 / 3, 3, 1, 2)
    # A prompt with many pairs is one draw: a thousand copies of its pairs make the interval no narrower.
    few = _accuracy([(n, "helpful", 1.0 if n % 2 else -1.0, 1.0) for n in range(20)])["interval"]
    many = _accuracy([(n, "helpful", 1.0 if n % 2 else -1.0, 1.0) for n in range(20) for _ in range(50)])["interval"]
    assert few == many and few[1] - few[0] > 0.3


def test_calibration_of_a_model_that_tells_the_truth_has_no_error_and_of_a_boaster_has_one() -> None:
    draw = np.random.default_rng(0)
    margins = draw.normal(0, 1.5, 40_000)
    chosen = draw.random(40_000) < 1 / (1 + np.exp(-margins))
    honest = _calibration([(0, "helpful", float(m), float(c)) for m, c in zip(margins, chosen, strict=True)])
    boaster = _calibration([(0, "helpful", float(3 * m), float(c)) for m, c in zip(margins, chosen, strict=True)])
    assert honest["error"] < 0.012 and boaster["error"] > 0.1
    assert sum(point["pairs"] for point in honest["curve"]) == 40_000
    assert _calibration([(0, "helpful", 0.0, 1.0)])["error"] == 0, "equal scores tell one half"


def test_the_distance_is_mahalanobis_over_the_width() -> None:
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    x, mean = torch.tensor([[3.0, -1.0]], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert float(distances(x, mean, precision)) == pytest.approx((2 * 4 + 2 * 0.5 * 2 * -2 + 4) / 2, abs=1e-12)
