"""SwiGLU's gate with its gradient written out, against the same operations one by one."""

import pytest
import torch
import torch.nn.functional as F

from talaria.model.swiglu import swiglu


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talaria.model.swiglu.MIN_ELEMENTS", 0)


def by_operations(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_operations_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(3, 7, 20)).to(dtype).requires_grad_()
    g = torch.randn(3, 7, 10).to(dtype)
    got, want = swiglu(x), by_operations(x)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (got, want)))


def test_the_written_out_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, x)


def test_nothing_but_its_input_is_kept_for_the_backward() -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(5, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        swiglu(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
