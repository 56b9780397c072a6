"""Kernels with tensors that do not go with their spec: an error before the loop, for every kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.fuzz.folders import MAKERS
from tests.fuzz.guarded import guarded
from vqcompress.errors import CheckpointError
from vqcompress.kernels import decode, linear
from vqcompress.kernels.cpu import operations as cpu
from vqcompress.kernels.kernel import Kernel
from vqcompress.kernels.table import KERNELS
from vqcompress.kernels.transforms import code_spec, transformed

SHAPE = (40, 12)
ON_CPU: list[Kernel] = [kernel for kernel in KERNELS if not kernel.name.startswith(("triton", "cuda"))]


def _tensors(weight) -> dict[str, torch.Tensor]:
    return {name: guarded(tensor) for name, tensor in {**weight.tensors, **weight.shared}.items()}


def _uses(kernel: Kernel, spec, tensors):
    """Decoding, a product and gradients with one kernel, the outermost wrapping included."""
    whole = transformed(kernel, spec)
    yield lambda: whole.decode_transposed(spec, SHAPE, tensors, torch.float32)
    yield lambda: whole.parameter_gradients(spec, SHAPE, tensors, torch.ones(SHAPE[::-1]))
    if kernel.multiply is not None:
        yield lambda: whole.multiply(torch.ones(1, SHAPE[1]), spec, SHAPE, tensors, None)


def _refused(kernel: Kernel, spec, tensors) -> None:
    for use in _uses(kernel, spec, tensors):
        with pytest.raises((CheckpointError, ValueError)):
            use()


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("index", range(len(MAKERS)))
def test_a_tensor_that_is_missing_short_or_of_another_shape_is_refused(index: int, kernel: Kernel) -> None:
    weight = MAKERS[index](SHAPE, index)
    sound = _tensors(weight)
    assert not kernel.unsupported_reason(code_spec(weight.spec), SHAPE, _case(kernel))
    for use in _uses(kernel, weight.spec, sound):
        use()
    for name in sound:
        if name == "outlier_values":  # the spec says how many, and each has its position
            continue
        _refused(kernel, weight.spec, {key: tensor for key, tensor in sound.items() if key != name})
        _refused(kernel, weight.spec, {**sound, name: guarded(sound[name][..., :-1])})
        if name != "weight":
            _refused(kernel, weight.spec, {**sound, name: sound[name][None]})


def _case(kernel: Kernel):
    from vqcompress.kernels.kernel import Case

    return Case(torch.device("cpu"), torch.float32, 1 if kernel.multiply is not None else None)


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda kernel: kernel.name)
def test_rates_that_ask_for_more_codes_than_there_are_are_refused(kernel: Kernel) -> None:
    for make in (MAKERS[0], MAKERS[2]):
        weight = make(SHAPE, 0)
        _refused(kernel, weight.spec, {**_tensors(weight), "rates": torch.full_like(weight.tensors["rates"], -1)})


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda kernel: kernel.name)
def test_a_spec_that_says_other_lengths_is_refused(kernel: Kernel) -> None:
    weight = MAKERS[0](SHAPE, 0)
    for change in (
        {"code_bytes": weight.spec.code_bytes - 1},
        {"row_scales": False},
        {"outliers": 2},
        {"rotation": 16},
    ):
        _refused(kernel, replace(weight.spec, **change), _tensors(weight))


def test_inputs_biases_and_gradients_of_another_width_are_refused() -> None:
    weight = MAKERS[0](SHAPE, 0)
    tensors = _tensors(weight)
    for x, bias in ((torch.ones(1, 11), None), (torch.ones(()), None), (torch.ones(1, 12), torch.ones(39))):
        with pytest.raises(ValueError, match="40x12"):
            cpu.multiply(x, weight.spec, SHAPE, tensors, bias)
    with pytest.raises(ValueError, match="40x12"):
        cpu.parameter_gradients(weight.spec, SHAPE, tensors, torch.ones(11, 40))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("index", range(len(MAKERS)))
def test_loops_write_float32_whatever_the_default_dtype_is(index: int, dtype: torch.dtype) -> None:
    """A library that fails while it builds a model can leave another default behind."""
    weight = MAKERS[index](SHAPE, index)
    tensors, x = _tensors(weight), torch.ones(1, SHAPE[1], dtype=torch.float32)
    expected = weight.decode(), linear(x, weight.spec, SHAPE, tensors, None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = decode(weight.spec, SHAPE, tensors, torch.float32), linear(x, weight.spec, SHAPE, tensors, None)
        assert torch.equal(weight.decode(), expected[0])
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
