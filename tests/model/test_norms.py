"""The written-out gradient of RMSNorm against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from talaria.model.norms import RMSNorm


@pytest.mark.parametrize("shape", [(3, 5, 16), (2, 7), (4, 1, 2, 8)])
def test_gradients_are_autograds(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1], eps=1e-2).double()
    norm.weight.data.normal_()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x), (x, norm.weight)
    )
    torch.testing.assert_close(norm(x), F.rms_norm(x, shape[-1:], norm.weight, 1e-2), rtol=1e-12, atol=1e-12)


def test_a_row_of_zeros_has_finite_output_and_gradient() -> None:
    norm = RMSNorm(8, eps=1e-5)
    norm.weight.data.fill_(1.0)
    x = torch.zeros(2, 8, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
