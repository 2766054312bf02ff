"""Filters and draws against their definitions."""

from __future__ import annotations

import pytest
import torch

from talaria.errors import UsageError, UserError
from talaria.infer.contract import Sampling, row_seed
from talaria.infer.sampling import Penalties, choose_tokens, draw_uniforms

LOGITS_V = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()


def frequencies(sampling: Sampling, n: int = 20000) -> torch.Tensor:
    tokens_B, _ = choose_tokens(LOGITS_V.expand(n, -1), sampling, draw_uniforms(0, n))
    return torch.bincount(tokens_B, minlength=5) / n


def test_sampled_frequencies_are_the_softmax():
    # Standard error of a frequency is at most 0.0036 at n = 20000; five of them.
    assert frequencies(Sampling()).tolist() == pytest.approx(LOGITS_V.exp().tolist(), abs=0.018)
    hot = (LOGITS_V / 2).softmax(-1)
    assert frequencies(Sampling(temperature=2.0)).tolist() == pytest.approx(hot.tolist(), abs=0.018)


def test_top_k_and_top_p_renormalise_what_they_keep():
    assert frequencies(Sampling(top_k=2)).tolist() == pytest.approx([0.625, 0.375, 0, 0, 0], abs=0.018)
    # 0.5 + 0.3 reaches 0.75, so two tokens stay; with 0.85 the third stays as well.
    assert frequencies(Sampling(top_p=0.75)).tolist() == pytest.approx([0.625, 0.375, 0, 0, 0], abs=0.018)
    kept = [0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9, 0, 0]
    assert frequencies(Sampling(top_p=0.85)).tolist() == pytest.approx(kept, abs=0.018)
    assert frequencies(Sampling(top_p=1e-9)).tolist() == [1, 0, 0, 0, 0]
    assert frequencies(Sampling(top_k=100)).tolist() == frequencies(Sampling()).tolist()


def test_top_p_over_a_wide_vocabulary_is_what_a_full_sort_gives():
    """Flat rows need more tokens than the short list holds; peaked rows beside them must not notice."""
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(64, 3000, generator=generator) * torch.linspace(0.1, 8, 64)[:, None]
    uniforms_B = draw_uniforms(1, 64)
    tokens_B, _ = choose_tokens(logits_BV, Sampling(top_p=0.9), uniforms_B)
    for row in range(64):
        probs, ids = logits_BV[row].double().softmax(-1).sort(descending=True)
        kept = int((probs.cumsum(-1) < 0.9).sum()) + 1
        edges = probs[:kept].cumsum(-1) / probs[:kept].sum()
        at = int((edges <= uniforms_B[row]).sum())
        assert int(tokens_B[row]) in ids[max(0, at - 1) : at + 2].tolist()
        alone, _ = choose_tokens(logits_BV[row : row + 1], Sampling(top_p=0.9), uniforms_B[row : row + 1])
        assert alone.tolist() == [int(tokens_B[row])]


def test_a_token_of_probability_zero_is_never_drawn():
    """Rounding at the end of the cumulative sum must not pick a masked token."""
    logits_BV = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    uniforms_B = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_p=0.9999), Sampling(top_k=4)):
        tokens_B, log_probs_B = choose_tokens(logits_BV, sampling, uniforms_B)
        assert set(tokens_B.tolist()) <= {0, 2}
        assert log_probs_B.tolist() == pytest.approx([-0.6931] * 3, abs=1e-3)


def test_rounding_draws_no_masked_token_of_a_large_vocabulary():
    """The bug: a stretch of tokens whose weights vanish beside the sum before them gave its first, masked or not."""
    logits_BV = torch.zeros(400, 49_152) - 11.0
    logits_BV[:, 5] = 10.8
    logits_BV[:, ::64] = -torch.inf
    uniforms_B = 1 - torch.arange(1, 401) * 2.0**-24
    for sampling in (Sampling(), Sampling(temperature=0.9), Sampling(min_p=1e-12)):
        tokens_B, _ = choose_tokens(logits_BV, sampling, uniforms_B)
        assert bool((tokens_B % 64 != 0).all())
        assert len(set(tokens_B.tolist())) > 10


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 10}])
def test_very_low_temperature_is_greedy_not_nan(temperature, filters):
    logits_BV = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) * 100
    sampling = Sampling(temperature=temperature, **filters)
    tokens_B, _ = choose_tokens(logits_BV, sampling, draw_uniforms(0, 64))
    assert tokens_B.tolist() == logits_BV.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_is_named_not_sampled(bad):
    logits_BV = torch.zeros(2, 8)
    logits_BV[1, 3] = bad
    with pytest.raises(UserError, match="logits are not finite"):
        choose_tokens(logits_BV, Sampling(), draw_uniforms(0, 2))


def test_draws_depend_on_the_seed_alone():
    assert draw_uniforms(7, 10).tolist() == draw_uniforms(7, 50)[:10].tolist()
    assert draw_uniforms(7, 10).tolist() != draw_uniforms(8, 10).tolist()
    assert draw_uniforms(None, 10).tolist() != draw_uniforms(None, 10).tolist()
    assert row_seed(5, 0) == 5
    assert len({row_seed(seed, index) for seed in range(20) for index in range(50)}) == 1000


def test_min_p_keeps_what_is_probable_enough_beside_the_best():
    assert frequencies(Sampling(min_p=0.5)).tolist() == pytest.approx([0.625, 0.375, 0, 0, 0], abs=0.018)
    kept = [0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9, 0, 0]
    assert frequencies(Sampling(min_p=0.15)).tolist() == pytest.approx(kept, abs=0.018)
    assert frequencies(Sampling(min_p=1.0)).tolist() == [1, 0, 0, 0, 0]
    both = Sampling(min_p=0.15, top_k=2)
    assert frequencies(both).tolist() == pytest.approx([0.625, 0.375, 0, 0, 0], abs=0.018)


def reference_penalties(logits: list[float], prompt: list[int], answer: list[int], sampling: Sampling) -> list[float]:
    """The definitions, token by token (Hugging Face's repetition penalty, OpenAI's presence and frequency)."""
    changed = list(logits)
    for token in range(len(logits)):
        if token in prompt or token in answer:
            factor = sampling.repetition_penalty
            changed[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        if token in answer:
            changed[token] -= sampling.presence_penalty
        changed[token] -= sampling.frequency_penalty * answer.count(token)
        changed[token] += sampling.logit_bias.get(token, 0.0)
    return changed


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 0.7},
        {"frequency_penalty": -0.4},
        {"repetition_penalty": 1.3},
        {"logit_bias": {3: 2.5, 4: -float("inf")}},
        {"presence_penalty": 1.0, "frequency_penalty": 0.3, "repetition_penalty": 0.8, "logit_bias": {0: -1.0}},
    ],
)
def test_penalties_and_biases_are_their_definitions(options):
    sampling, prompt, answer = Sampling(**options), [1, 2, 2], [2, 3, 3, 3]
    logits_V = torch.tensor([1.0, 2.0, -1.5, 0.5, -0.25, 3.0])
    penalties = Penalties(sampling, prompt, 6, torch.device("cpu"))
    for token in answer:
        penalties.count(token)
    expected = reference_penalties(logits_V.tolist(), prompt, answer, sampling)
    assert penalties.apply(logits_V).tolist() == pytest.approx(expected, abs=1e-6)
    # In a batch they act on their own row alone, and leave the log-probabilities to the raw model.
    greedy = Sampling(temperature=0, **options)
    rows = torch.stack([logits_V, logits_V])
    tokens_B, log_probs_B = choose_tokens(rows, [greedy, Sampling(temperature=0)], None, None, [penalties, None])
    assert tokens_B.tolist() == [max(range(6), key=expected.__getitem__), 5]
    assert log_probs_B.tolist() == pytest.approx(logits_V.log_softmax(-1)[tokens_B].tolist(), abs=1e-6)


def test_a_penalty_that_bars_everything_is_named():
    sampling = Sampling(logit_bias={0: -float("inf"), 1: -float("inf")})
    with pytest.raises(UserError, match="bars every token"):
        Penalties(sampling, [0], 2, torch.device("cpu"))
    three = Penalties(sampling, [0], 3, torch.device("cpu"))
    tokens_B, _ = choose_tokens(torch.zeros(1, 3), [sampling], draw_uniforms(0, 1), None, [three])
    assert tokens_B.tolist() == [2]


def test_rows_that_sample_in_different_ways_choose_as_if_alone():
    logits_BV = torch.randn(12, 50, generator=torch.Generator().manual_seed(3)) * 3
    ways = [Sampling(temperature=0), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.6), Sampling()]
    ways = [ways[row % 5] for row in range(12)]
    uniforms_B = draw_uniforms(2, 12).float()
    tokens_B, log_probs_B = choose_tokens(logits_BV, ways, uniforms_B)
    for row in range(12):
        token, log_prob = choose_tokens(logits_BV[row : row + 1], ways[row], uniforms_B[row : row + 1])
        assert token.tolist() == [int(tokens_B[row])]
        assert log_prob.tolist() == pytest.approx([float(log_probs_B[row])], abs=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"min_p": 1.1},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {-1: 1.0}},
        {"top_logprobs": -1},
    ],
)
def test_options_without_a_meaning_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling(**bad)
