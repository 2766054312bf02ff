"""Weights on a GPU: products of 8 and 4 bits, losses and gradients, beside the CPU's or float64's."""

from __future__ import annotations

import copy

import pytest
import torch
from random_weights import random_model

from talaria.model.quantized import quantize
from talaria.model.quantized_linear import GROUP, INT4_KERNEL_ROWS, Int4Linear, Int8Linear
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.train import losses
from talaria.train.losses import linear_cross_entropy
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, optimisation_step

U = 2.0**-9  # what bfloat16 rounds by
LLAMA = {"norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu", "n_kv_heads": 2, "tie_embeddings": False}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
SHIFTED = {"token_shift": True, "ngram_embeddings": 2}
VARIANTS = pytest.mark.parametrize("variant", [LLAMA, GPT2, SHIFTED], ids=["llama", "gpt2", "shifted"])


def check_product(linear: Int4Linear | Int8Linear, x: torch.Tensor, weight_rounding: float) -> None:
    """Within what bfloat16 rounds input, weight and result by, and fp32 a sum of K terms."""
    weight, x_64 = linear.dequantised().double(), x.bfloat16().double()
    expected, magnitudes = x_64 @ weight.T, x_64.abs() @ weight.abs().T
    bound = 2 * U * expected.abs() + (weight_rounding + x.shape[-1] * 2.0**-23) * magnitudes + 1e-30
    found = linear(x)
    assert found.dtype == x.dtype and found.shape == expected.shape and found.device.type == "cuda"
    assert bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("size", [(576, 64), (100, 96), (64, 32), (40, 4096)], ids=str)
@pytest.mark.parametrize("leading", [(1, 1), (16, 1), (INT4_KERNEL_ROWS, 1), (200, 1), (3, 7), (5,)], ids=str)
def test_products_are_those_of_the_dequantised_integers(size: tuple[int, int], leading: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    (N, K), x = size, torch.randn(*leading, size[1], generator=generator).cuda()
    q_NK = torch.randint(0, 16, (N, K), generator=generator).to(torch.uint8)
    grid = torch.randn(K // GROUP, N, 2, generator=generator).bfloat16()
    int4 = Int4Linear(q_NK.cuda(), grid.cuda())
    assert torch.equal(int4.quantised().cpu(), q_NK)
    assert torch.equal(int4.dequantised().cpu(), Int4Linear(q_NK, grid).dequantised())
    check_product(int4, x, weight_rounding=U)
    check_product(Int8Linear.of(torch.randn(N, K, generator=generator).cuda()), x, weight_rounding=0.0)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_same_weights_are_chosen_as_on_a_cpu(scheme: str) -> None:
    shape = ModelShape(vocab_size=300, n_layers=2, d_model=64, n_heads=4, context=64, **LLAMA)
    model = random_model(shape, deviation=0.1).eval()
    theirs, ours = quantize(copy.deepcopy(model).cuda(), scheme), quantize(model, scheme)
    for (name, here), (_, there) in zip(ours.blocks.named_modules(), theirs.blocks.named_modules(), strict=True):
        if isinstance(here, Int8Linear | Int4Linear):
            # A tie may round otherwise where a mean was summed in another order, and a division be a product.
            weight, other = here.dequantised(), there.dequantised().cpu()
            largest = float(weight.abs().max())
            assert float(((weight - other).abs() > 1e-5 * largest).float().mean()) < 0.02, name
            torch.testing.assert_close(other, weight, rtol=0, atol=0.2 * largest)


def test_losses_and_gradients_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_LOGITS_ON_GPU", 300 * 1000)  # several chunks
    generator = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(1000, 64, generator=generator), torch.randn(1000, 64, generator=generator) * 0.1
    targets = torch.randint(1000, (1000,), generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, table)]
    reference = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    ours = [tensor.cuda().requires_grad_() for tensor in (hidden, table)]
    loss = linear_cross_entropy(*ours, targets.cuda())
    assert float(loss) == pytest.approx(float(reference), rel=1e-6)
    loss.backward()
    reference.backward()
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, rtol=1e-4, atol=1e-5)


def steps_on(device: str, variant: dict, dtype: torch.dtype, optimizer: str) -> list[float]:
    shape = ModelShape(vocab_size=300, n_layers=2, d_model=64, n_heads=4, context=64, **variant)
    model = Transformer(shape, torch.Generator().manual_seed(0)).to(device)
    optimizers = make_optimizers(model, OptimizerSettings(name=optimizer), 1e-2, dtype)
    tokens = torch.randint(300, (6, 65), generator=torch.Generator().manual_seed(1)).to(device)
    documents = (torch.arange(64, device=device) // 20).expand(6, -1)
    mask = torch.ones(6, 64, dtype=torch.bool, device=device)
    mask[0, 5:30] = False
    batch, state = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), documents, mask), StepState()

    def step() -> float:
        return optimisation_step(
            model,
            optimizers,
            batch,
            state,
            micro_rows=4,
            rate_share=1.0,
            max_grad_norm=1.0,
            document_attention=True,
            measure_noise=True,
            dtype=dtype,
        ).loss

    return [step() for _ in range(8)]


@VARIANTS
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_goes_as_on_a_cpu(variant: dict, optimizer: str) -> None:
    here, there = (steps_on(device, variant, torch.float32, optimizer) for device in ("cpu", "cuda"))
    assert here[-1] < here[0] - 0.5
    assert there == pytest.approx(here, rel=2e-3)
    assert there[:2] == pytest.approx(here[:2], rel=1e-5)


@VARIANTS
def test_training_in_bfloat16_stays_near(variant: dict) -> None:
    exact, rounded = (steps_on("cuda", variant, dtype, "adamw") for dtype in (torch.float32, torch.bfloat16))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
