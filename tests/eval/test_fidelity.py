"""Two models on the same held-out text, and the command that prints it."""

import math

import pytest
import torch
import torch.nn.functional as F
from command_line import talaria
from random_weights import random_model

from talaria.errors import UserError
from talaria.eval.fidelity import batches_of_text, compare_models
from talaria.infer.load import load
from talaria.model.checkpoint import save_model
from talaria.model.quantized_linear import Int4Linear
from talaria.model.shape import ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

TEXT = "The ferry leaves at nine. 渡船九点开。 " * 12


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT] * 5, TokenizerSettings(vocab_size=300))


def model_of(tokenizer, seed):
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=64, n_heads=2, context=32)
    return random_model(shape, seed).eval()


def test_figures_are_those_of_the_definitions(tokenizer, tmp_path):
    (tmp_path / "held-out.txt").write_text(TEXT, encoding="utf-8")
    first, second = model_of(tokenizer, 0), model_of(tokenizer, 1)
    ids = torch.tensor(tokenizer.prompt_prefix_ids + tokenizer.encode(TEXT))[:71]
    logits = [
        torch.cat([model(ids[None, start : min(start + 32, 70)])[0] for start in (0, 32, 64)]).detach().double()
        for model in (first, second)
    ]
    found = compare_models(first, second, batches_of_text(tmp_path / "held-out.txt", tokenizer, 32, 70))
    assert found.n_tokens == 70
    assert found.reference_loss == pytest.approx(F.cross_entropy(logits[0], ids[1:]).item(), rel=1e-5)
    assert found.candidate_loss == pytest.approx(F.cross_entropy(logits[1], ids[1:]).item(), rel=1e-5)
    p, q = (part.log_softmax(-1) for part in logits)
    assert found.divergence == pytest.approx(F.kl_div(q, p, log_target=True, reduction="batchmean").item(), rel=1e-4)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    same = compare_models(first, first, batches_of_text(tmp_path / "held-out.txt", tokenizer, 32, 70))
    assert (same.divergence, same.agreement, same.loss_change) == (0.0, 1.0, 0.0)


def test_an_empty_text_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="nothing to measure"):
        model = model_of(tokenizer, 0)
        compare_models(model, model, batches_of_text(tmp_path / "a.txt", tokenizer, 32, 70))


def test_the_command_prints_both_losses_and_writes_a_folder_that_opens(tokenizer, tmp_path, capsys):
    save_model(model_of(tokenizer, 0), tokenizer, tmp_path / "model")
    (tmp_path / "held-out.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["quantize", tmp_path / "model", "--text", tmp_path / "held-out.txt"]
    assert not talaria(*arguments)
    assert "held-out loss" in capsys.readouterr().out and not (tmp_path / "small").exists()
    assert not talaria(*arguments, "--output", tmp_path / "small")
    assert isinstance(load(tmp_path / "small", compiled=False).trunk.blocks[0].feed_forward.up, Int4Linear)
    assert math.isfinite(load(tmp_path / "small").loglikelihood([("The", " ferry")])[0].log_prob)
    assert talaria(*arguments, "--output", tmp_path / "small") == 1
    assert talaria("quantize", tmp_path / "model") == 1
    assert "--text" in capsys.readouterr().err
    assert talaria(*arguments, "--to", "int3") == 2
