from __future__ import annotations

import pytest
import torch
from random_weights import random_model

from talaria.model.shape import ModelShape
from talaria.tokens.batches import Batch
from talaria.train.optim import make_optimizers
from talaria.train.precision import dtype_name, training_dtype
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, optimisation_step

SHAPE = ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=2, context=32, qk_norm=True)
CPU = torch.device("cpu")


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_what_the_processor_multiplies_fast(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able, "amx_bf16": False})
    assert training_dtype("auto", CPU) == (torch.bfloat16 if able else torch.float32)
    for name in ("float32", "bfloat16"):
        assert dtype_name(training_dtype(name, CPU)) == name


def losses(dtype: torch.dtype, name: str) -> list[float]:
    model = random_model(SHAPE, seed=0)
    optimizers = make_optimizers(model, OptimizerSettings(name=name), 3e-3, dtype)  # type: ignore[arg-type]
    tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(32) // 10).expand(4, -1)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], documents, torch.ones(4, 32, dtype=torch.bool))
    state = StepState()
    values = [
        optimisation_step(
            model,
            optimizers,
            batch,
            state,
            micro_rows=2,
            rate_share=1.0,
            max_grad_norm=1.0,
            document_attention=True,
            dtype=dtype,
        ).loss
        for _ in range(12)
    ]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return values


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_bfloat16_products_learn_as_float32_ones(name: str) -> None:
    low, full = losses(torch.bfloat16, name), losses(torch.float32, name)
    assert low != full
    assert full[-1] < full[0] - 0.5
    assert low == pytest.approx(full, rel=0.01)
