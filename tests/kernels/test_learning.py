"""Gradients of everything continuous in a packed layer, against finite differences and against the reference
decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcompress.kernels import ConvGeometry, conv2d, linear, reference
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.matrix_view import matrix_shape

CASES = {
    "trellis": {"state_bits": 8, "min_rate": 0, "rate_bits": 2},
    "trellis one scale": {"state_bits": 12, "min_rate": 1, "rate_bits": 2, "row_scales": False},
    "trellis learned tables": {"state_bits": 8, "min_rate": 1, "rate_bits": 2},
    "additive": {"dimension": 4, "code_bits": 3, "min_rate": 0, "rate_bits": 2},
    "additive shared": {"dimension": 8, "code_bits": 8, "shared": "book", "row_scales": False},
    "scalar": {"bits": 3, "group_size": 8},
    "scalar packed scales": {"bits": 3, "group_size": 8, "scale_bits": 6},
}


@pytest.fixture
def packed(random_weight):
    """``packed(case, shape) -> (QuantizedWeight, its tensors with float32 quantization parameters that learn)``."""

    def make(case: str, shape: tuple[int, ...]):
        weight = random_weight(case.split()[0], shape, **CASES[case])
        if "tables" in case:
            spec = replace(weight.spec, codebook="tables", codebook_rates=(2, 3))
            tables = torch.randn(spec.codebook_shape, generator=torch.Generator().manual_seed(3)).half()
            weight = replace(weight, spec=spec, shared={"codebooks": tables})
        tensors = {**weight.tensors, **weight.shared}
        return weight, {n: t.float().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}

    return make


def run(weight, tensors, x, bias):
    if len(weight.shape) == 4:
        return conv2d(x, weight.spec, weight.shape, tensors, bias, ConvGeometry(padding=(1, 1)))
    return linear(x, weight.spec, weight.shape, tensors, bias)


@pytest.mark.parametrize("shape", [(21, 16), (9, 3, 3, 3)])
@pytest.mark.parametrize("case", CASES)
def test_every_learnable_tensor_has_the_gradient_of_finite_differences(packed, case, shape):
    weight, tensors = packed(case, shape)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((4, 3, 5, 5) if len(shape) == 4 else (6, 16), generator=generator).requires_grad_()
    bias = torch.randn(shape[0], generator=generator).requires_grad_()
    probe = torch.randn(run(weight, tensors, x, bias).shape, generator=generator)
    learning = {"x": x, "bias": bias, **{name: t for name, t in tensors.items() if t.requires_grad}}

    def loss() -> torch.Tensor:
        return (run(weight, tensors, x, bias).double() * probe.double()).sum()

    loss().backward()
    for name, tensor in learning.items():
        direction = torch.randn(tensor.shape, generator=generator)
        step = 2.0**-6 * float(tensor.detach().abs().mean())
        with torch.no_grad():  # the output is linear in each tensor alone, so a large step is exact but for rounding
            tensor += step * direction
            above = loss()
            tensor -= 2 * step * direction
            below = loss()
            tensor += step * direction
        expected = float((above - below) / (2 * step))
        assert float((tensor.grad * direction).sum()) == pytest.approx(expected, rel=2e-3, abs=2e-3), name


@pytest.mark.parametrize("case", CASES)
def test_compiled_gradients_are_those_of_the_reference(packed, case):
    weight, tensors = packed(case, (37, 24))
    rows, columns = matrix_shape(weight.shape)
    grad = torch.randn(columns, rows, generator=torch.Generator().manual_seed(2))
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    compiled = cpu.parameter_gradients(weight.spec, weight.shape, tensors, grad)
    expected = reference.parameter_gradients(weight.spec, weight.shape, tensors, grad)
    assert compiled.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_learns_alone_gives_the_same_output_and_gradient(packed, dtype):
    weight, tensors = packed("trellis", (24, 40))
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    alone = run(weight, tensors, x, None)
    alone.float().square().sum().backward()
    gradient, tensors["scale"].grad = tensors["scale"].grad, None
    together = torch.nn.functional.linear(x, weight.spec.decode_transposed(24, 40, tensors).t().to(dtype))
    together.float().square().sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(alone, together, **tolerance)
    scale = float(gradient.abs().mean())
    torch.testing.assert_close(gradient / scale, tensors["scale"].grad / scale, **tolerance)


def test_float16_never_multiplies_with_unscaled_weights(packed):
    weight, tensors = packed("trellis", (24, 40))
    x = torch.full((1, 40), 6e4, dtype=torch.float16)
    with torch.no_grad():
        tensors["scale"].fill_(2.0**-14)
    assert torch.isfinite(run(weight, tensors, x, None)).all()


@pytest.mark.parametrize("case", ["trellis", "trellis learned tables", "additive"])
def test_learning_keeps_no_dense_weight_for_the_backward_pass(packed, case):
    weight, tensors = packed(case, (24, 40))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        run(weight, tensors, torch.randn(3, 40, requires_grad=True), None)
    assert saved
    assert not {(24, 40), (40, 24)} & set(saved)
