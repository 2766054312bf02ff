"""The linear layer that trains through oneDNN against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from talaria.model.linear import MIN_ROWS, Linear, onednn_is_faster, product

ROWS = MIN_ROWS + 3


def build(bias: bool, dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40, bias=bias, dtype=dtype)


def count_onednn_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    calls: list[torch.Size] = []
    operator = torch.ops.mkldnn._linear_pointwise

    def counted(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        calls.append(x.shape)
        y: torch.Tensor = operator(x, *arguments)
        return y

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return calls


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(ROWS,), (2, ROWS), (3, 1, ROWS)])
def test_output_and_gradients_are_those_of_a_plain_linear_layer(
    monkeypatch: pytest.MonkeyPatch, leading: tuple[int, ...], bias: bool
) -> None:
    layer = build(bias)
    x = torch.randn(*leading, 24, requires_grad=True)
    g = torch.randn(*leading, 40)
    inputs = [x, *layer.parameters()]
    calls = count_onednn_calls(monkeypatch)
    y = layer(x)
    gradients = torch.autograd.grad(y, inputs, g)
    assert len(calls) == 2, "the output and its input's gradient"
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.linear(*exact)
    # A sum of n fp32 products is off by n roundings at most: 24 and 40 of them, and as many as rows for the weight.
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients, torch.autograd.grad(expected, exact, g.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-4)
    assert all(torch.equal(a, b) for a, b in zip(gradients, torch.autograd.grad(layer(x), inputs, g), strict=True))


def test_the_written_out_gradient_is_the_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN has no fp64, in which alone finite differences are sharp: the same formulas run on torch's own products.
    monkeypatch.setattr("talaria.model.linear.onednn_is_faster", lambda x, weight: True)
    monkeypatch.setattr("talaria.model.linear.product", F.linear)
    layer = build(True, torch.float64)
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    assert "_Linear" in type(layer(x).grad_fn).__name__

    def of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)
        return y

    assert torch.autograd.gradcheck(of, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(frozen: str) -> None:
    layer = build(False)
    x = torch.randn(ROWS, 24, requires_grad=frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    layer(x).square().sum().backward()
    assert (x.grad is None, layer.weight.grad is None) == (frozen == "input", frozen == "weight")


def test_strided_and_expanded_tensors_are_read_as_they_stand() -> None:
    layer = build(False)
    x = torch.randn(24, ROWS).t().requires_grad_()
    layer(x).sum().backward()  # the gradient of a sum is one number, expanded
    assert x.grad is not None and layer.weight.grad is not None
    torch.testing.assert_close(layer(x), F.linear(x.contiguous(), layer.weight), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(ROWS, 24), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(40, 24), rtol=1e-5, atol=2e-4)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own switch warns about Intel GPUs
def test_few_rows_other_types_and_inference_keep_torchs_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(ROWS, 24), torch.randn(40, 24)
    assert onednn_is_faster(x, weight)
    assert not onednn_is_faster(x[: MIN_ROWS - 1], weight)
    assert not onednn_is_faster(x.double(), weight.double())
    assert not onednn_is_faster(x.bfloat16(), weight)
    assert not onednn_is_faster(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn_is_faster(x, weight)
    calls = count_onednn_calls(monkeypatch)
    with torch.no_grad():
        build(False)(x)
    assert calls == []


def test_a_second_derivative_is_refused_not_wrong() -> None:
    layer = build(False)
    x = torch.randn(ROWS, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_it_is_torchs_own_and_keeps_no_copy_of_the_weight(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    monkeypatch.setattr("talaria.model.linear.MIN_CAST_WEIGHTS", 24 * 40)
    layer = build(bias)
    plain = torch.nn.Linear(24, 40, bias=bias)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, ROWS, 24, requires_grad=True)
    g = torch.randn(2, ROWS, 40)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    results = []
    for module in (layer, plain):
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
        if module is layer:
            assert [(t.shape, t.dtype) for t in kept] == [(x.shape, torch.bfloat16), ((40, 24), torch.float32)]
            assert kept[1].data_ptr() == layer.weight.data_ptr(), "the weight itself"
        results.append([y, *torch.autograd.grad(y, [x, *module.parameters()], g.to(y.dtype))])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)
