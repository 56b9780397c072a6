"""A format that no device's table lists is decoded by its own spec, and a layer's kernel is chosen once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqcompress.bitpack import pack, packed_bytes, unpack
from vqcompress.formats import FORMATS
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, pack_column_scales
from vqcompress.kernels import KERNELS, Case, choose_kernel, product_case
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.kernels.kernel import triton_interpreter
from vqcompress.layers import describe, empty_layers, swap
from vqcompress.quantized_weight import QuantizedWeight

SHAPE = (64, 24)


@dataclass(frozen=True)
class SignSpec:
    """A bit a weight and a scale for each input. Its ``scale`` is not the outputs', as it is in the other formats."""

    format: ClassVar[str] = "sign"
    codebook: ClassVar[None] = None
    codebook_shape: ClassVar[tuple[int, ...]] = ()
    negative: float = -1.0

    def tensor_shapes(self, outputs: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        codes = (1, columns * packed_bytes(outputs, 1))
        return {"weight": (codes, torch.int8), "scale": ((columns,), torch.float16)}

    def decode_transposed(self, outputs: int, columns: int, tensors: Mapping[str, Tensor]) -> Tensor:
        positive = unpack(tensors["weight"].reshape(columns, -1), 1, outputs).bool()
        return torch.where(positive, 1.0, self.negative) * tensors["scale"].float()[:, None]

    def shape_problem(self, outputs: int, columns: int) -> str | None:
        return None

    def content_problem(self, name: str, tensor: Tensor, outputs: int, columns: int) -> str | None:
        return None


@pytest.fixture
def sign_weight(monkeypatch) -> QuantizedWeight:
    """A weight in the toy format, which is registered while this lives, as a line in `vqcompress.formats` would."""
    monkeypatch.setitem(FORMATS, SignSpec.format, SignSpec)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (SHAPE[1], SHAPE[0]), generator=generator)
    scale = (torch.rand(SHAPE[1], generator=generator) + 0.5).half()
    return QuantizedWeight(SignSpec(-0.75), SHAPE, {"weight": pack(bits, 1).reshape(1, -1), "scale": scale})


@pytest.mark.parametrize("samples", [1, 2, 9, 40, None])
@pytest.mark.parametrize("interpreted", [False, True])
def test_kernels_decline_a_format_that_their_table_does_not_list(interpreted, samples, sign_weight):
    case = Case(torch.device("cpu"), torch.float32, samples, interpreted)
    for kernel in KERNELS[:-1]:
        assert kernel.unsupported_reason(sign_weight.spec, SHAPE, case)
    assert choose_kernel(sign_weight.spec, SHAPE, case).name == "reference"
    device = "cpu" if not interpreted else "triton"
    decoder = next(k for k in KERNELS if k.name.startswith(device) and k.multiply is None)
    if "not installed" not in (reason := decoder.unsupported_reason(sign_weight.spec, SHAPE, case)):
        assert "the sign format" in reason


def packed_net(weight: QuantizedWeight) -> nn.Module:
    net = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0])).requires_grad_(False)
    swap(net, {"0": weight})
    return net


@pytest.mark.parametrize("by", ["cpu", "interpreter"])
@pytest.mark.parametrize("samples", [1, 40])
def test_a_packed_layer_of_an_unlisted_format_is_its_specs(by, samples, sign_weight, request):
    if by == "interpreter":
        request.getfixturevalue("interpreted")
    layer = packed_net(sign_weight)[0]
    dense = sign_weight.spec.decode_transposed(*SHAPE, sign_weight.tensors).t()
    assert torch.equal(layer.dense_weight(), dense)
    x = torch.randn(samples, SHAPE[1], generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), F.linear(x, dense, layer.bias))


def test_an_unlisted_format_learns_through_its_spec(sign_weight):
    layer = packed_net(sign_weight)[0]
    layer.scale = nn.Parameter(layer.scale.detach().float())
    x = torch.randn(5, SHAPE[1], generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer(x).square().sum().backward()
    scale, plain = layer.scale.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    dense = sign_weight.spec.decode_transposed(*SHAPE, {**sign_weight.tensors, "scale": scale}).t()
    F.linear(plain, dense, layer.bias).square().sum().backward()
    torch.testing.assert_close(layer.scale.grad, scale.grad)
    torch.testing.assert_close(x.grad, plain.grad)


def test_a_registered_format_is_described_and_made_again(sign_weight):
    net = packed_net(sign_weight)
    description = describe(net)
    assert description["layers"]["0"] == {"format": "sign", "negative": -0.75, "shape": list(SHAPE)}
    with torch.device("meta"):
        other = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0]))
    empty_layers(other, description)
    other.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(other[0].dense_weight(), net[0].dense_weight())


def _decode(values: Tensor, spec: SignSpec, tensors: Mapping[str, Tensor]) -> None:
    columns, outputs = values.shape
    values.copy_(spec.decode_transposed(outputs, columns, tensors))


def _product_blocks(*arguments: object) -> cpu.Blocks:
    return [], ()


def _gradients(spec: SignSpec, tensors: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    return {"scale": torch.zeros_like(tensors["scale"])}


OPERATIONS = cpu.Operations(_decode, lambda spec: 8, _product_blocks, _gradients)


@pytest.fixture
def on_the_cpu(monkeypatch) -> Iterator[None]:
    """The CPU's table lists the toy format, and finds its operations in this module."""
    monkeypatch.setitem(cpu.OPERATIONS, SignSpec, __name__)
    choose_kernel.cache_clear()
    yield
    choose_kernel.cache_clear()


def test_a_line_in_a_devices_table_gives_a_format_a_kernel(sign_weight, on_the_cpu):
    case = Case(torch.device("cpu"), torch.float32)
    kernel = choose_kernel(sign_weight.spec, SHAPE, case)
    assert kernel.name == "cpu_numba"
    dense = sign_weight.spec.decode_transposed(*SHAPE, sign_weight.tensors)
    assert torch.equal(kernel.decode_transposed(sign_weight.spec, SHAPE, sign_weight.tensors), dense)
    gradients = kernel.parameter_gradients(sign_weight.spec, SHAPE, sign_weight.tensors, dense)
    assert not gradients["scale"].any()  # as the toy's operations say, not the reference


@contextmanager
def counted_questions() -> Iterator[list[str]]:
    """The names of all functions that are asked why a kernel cannot serve a case, call by call."""
    asked: list[str] = []

    def note(frame, event, argument) -> None:
        if event == "call" and frame.f_code.co_name in ("unsupported_reason", "product_unsupported_reason"):
            asked.append(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield asked
    finally:
        sys.setprofile(before)


def scaled_weight(random_weight, shape) -> QuantizedWeight:
    """A weight with both transforms around its codes."""
    weight = random_weight("trellis", shape, rate_bits=2, min_rate=1)
    codes = torch.randint(14, (shape[1],), generator=torch.Generator().manual_seed(3))
    spec = replace(weight.spec, column_scales=True, rotation=16)
    return replace(weight, spec=spec, tensors={**weight.tensors, COLUMN_SCALES_ON_DISK: pack_column_scales(codes)})


def test_kernels_are_asked_once(random_weight):
    net = nn.Sequential(nn.Linear(40, 48), nn.Linear(48, 24), nn.Linear(24, 8)).requires_grad_(False)
    swap(
        net,
        {
            "0": scaled_weight(random_weight, (48, 40)),
            "1": random_weight("additive", (24, 48)),
            "2": random_weight("scalar", (8, 24)),
        },
    )

    def step(samples: int) -> None:
        net(torch.randn(samples, 40, requires_grad=True)).square().sum().backward()

    choose_kernel.cache_clear()
    with counted_questions() as first:
        step(5)
    assert first
    with counted_questions() as second:
        step(5)
        step(4)  # of the same bucket
    assert second == []
    net[1].scale = nn.Parameter(net[1].scale.detach().float())
    step(5)
    with counted_questions() as learning:
        step(5)
    assert learning == []
    with counted_questions() as few:
        step(1)
    assert few


def test_the_interpreters_choices_do_not_outlive_it(random_weight):
    pytest.importorskip("triton")
    weight = random_weight("trellis", (64, 20))
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))

    def serving() -> str:
        return choose_kernel(weight.spec, weight.shape, product_case(x)).name

    assert serving() == "cpu_numba"
    with triton_interpreter():
        assert serving() == "triton_multiply"
    assert serving() == "cpu_numba"
