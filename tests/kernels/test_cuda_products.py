"""``multiply.cu`` on this machine under AddressSanitizer, launched as on a GPU: products of few samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from random_weights import Coded, Extras, additive, trellis
from tests.kernels.host_gpu import COMPILER, numbers, run_program
from vqcompress.kernels import Case, reference
from vqcompress.kernels.cuda import products
from vqcompress.kernels.cuda.jobs import JOB, POINTERS
from vqcompress.kernels.cuda.products import FinishName, ProductName, multiply_with, parts_of
from vqcompress.kernels.kernel import Kernel
from vqcompress.kernels.transforms import code_spec, transformed

HALF, BFLOAT = torch.float16, torch.bfloat16
LEARNED = Extras(learned=True, row_scales=False)
CASES: list[tuple[Coded, torch.dtype, tuple[int, ...], bool]] = [
    # outputs that fill no tile, columns that fill no product of sixteen, samples that fill no tile of rows
    (trellis((32, 40), 12, (6, 4, 2)), HALF, (1,), False),
    (trellis((64, 3), 12, (6,)), BFLOAT, (2, 3), True),
    (trellis((96, 77), 12, (0, 2, 4, 6, 8, 10, 12)), HALF, (16,), True),
    (trellis((288, 130), 12, (8, 6)), BFLOAT, (17,), True),
    (trellis((160, 65), 14, (12, 10)), HALF, (33,), True),
    (trellis((64, 33), 14, (8,)), BFLOAT, (64,), False),
    (trellis((320, 17), 16, (6, 2)), HALF, (5, 1), True),
    (trellis((32, 20), 8, (4, 2), LEARNED), BFLOAT, (7,), True),
    (trellis((64, 16), 10, (0,)), HALF, (3,), True),
    (trellis((576, 64), 12, (6,)), HALF, (48,), True),
]


@dataclass
class Noting:
    """A driver that notes what it is to launch."""

    verdicts: Any = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    handle: int = 7

    def function(self, kernel: Any, device: torch.device) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((kernel, *arguments))

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, 0

    def processors(self, device: torch.device) -> int:
        return 3

    def stream(self, device: torch.device) -> int:
        return self.handle

    def use(self, tensors: Any, device: torch.device) -> None:
        self.used.append(self.handle)


@dataclass
class Noted:
    """One product: its launches, what lies at their addresses, and the output's dtype and shape."""

    case: tuple[Coded, torch.dtype, tuple[int, ...], bool]
    x: Tensor
    bias: Tensor | None
    multiply: tuple[Any, ...] | None
    finish: tuple[Any, ...]
    tensors: list[Tensor]

    def expected(self) -> Tensor:
        (spec, shape, tensors), dtype, _, _ = self.case
        scale = tensors["scale"].float().expand(shape[0])
        values = reference.decode_transposed(spec, shape, {**tensors, "scale": torch.ones_like(tensors["scale"])})
        y = (self.x.double() @ values.to(dtype).double()) * scale.double()
        return y if self.bias is None else y + self.bias.double()


def noted(case: tuple[Coded, torch.dtype, tuple[int, ...], bool]) -> Noted:
    (spec, shape, tensors), dtype, samples, has_bias = case
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*samples, shape[1], generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype) if has_bias else None
    gpu = Noting()
    multiply_with(gpu, x, spec, shape, tensors, bias)  # type: ignore[arg-type]
    plan = products.plan_of(gpu, spec, shape, tensors, dtype)  # type: ignore[arg-type]
    multiply, finish = gpu.calls if len(gpu.calls) == 2 else (None, gpu.calls[0])
    return Noted(case, x, bias, multiply, finish, [*tensors.values(), *plan.held])


def given(one: Noted, multiplies: list[ProductName], finishes: list[FinishName]) -> bytes:
    """The launches of a product as ``run_products.h`` reads them."""
    finish, _, finish_grid, finish_threads, _, y, _, scale, bias, _, rows, outputs = one.finish
    jobs, parts, head, stride, tiles = np.zeros(0, JOB), b"", (0, 0, 0, 0), 0, 0
    if one.multiply is not None:
        kernel, _, grid, threads, shared, own, own_parts, _, _, stride, _, _, tiles = one.multiply
        jobs, parts = np.frombuffer(own.numpy().tobytes(), JOB).copy(), own_parts.numpy().tobytes()
        head = (multiplies.index(kernel), grid, threads, shared)
    lying = [one.x.reshape(-1, one.x.shape[-1]), scale, bias, *one.tensors]
    for job in jobs:
        for name in POINTERS:
            if address := int(job[name]):
                job[name] = next(
                    index + 1 << 40 | address - tensor.data_ptr()
                    for index, tensor in enumerate(lying)
                    if tensor is not None and tensor.data_ptr() <= address < tensor.data_ptr() + max(1, tensor.nbytes)
                )
    sizes = (rows, outputs, tiles, stride, len(jobs), len(parts) // 16, y.nbytes, len(lying))
    values = (*head, finishes.index(finish), finish_grid, finish_threads, *sizes)
    return b"".join([numbers(*map(int, values)), *map(tensor_bytes, lying), jobs.tobytes(), parts])


def tensor_bytes(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return numbers(-1)
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return numbers(len(data)) + data


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_products_are_those_of_the_reference(tmp_path: Path) -> None:
    made = [noted(case) for case in CASES]
    multiplies = sorted({one.multiply[0] for one in made if one.multiply is not None}, key=str)
    finishes = sorted({one.finish[0] for one in made}, key=str)
    lists = {"VQ_MULTIPLIES": multiplies, "VQ_FINISHES": finishes}
    text = b"".join([numbers(len(made)), *(given(one, multiplies, finishes) for one in made)])
    found = run_program(tmp_path, [*multiplies, *finishes], lists, "run_products.h", text)
    for one in made:
        (_, shape, _), dtype, samples, _ = one.case
        size = torch.Size(samples).numel() * shape[0] * dtype.itemsize
        data, found = found[:size], found[size:]
        y = torch.frombuffer(bytearray(data), dtype=dtype).view(*samples, shape[0]).double()
        exact = one.expected()
        room = torch.finfo(dtype).eps * exact.abs() + 1e-5 * exact.abs().max()
        assert ((y - exact).abs() <= room).all(), one.case[0][:2]
    assert not found
    assert {name.table for name in multiplies} == {"SHARED_HALF", "GLOBAL_HALF"}
    assert {name.tiles for name in multiplies} == {1, 2, 4}


class Computing(Noting):
    """A driver whose product is computed by torch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def function(self, kernel: Any, device: torch.device) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            self.calls.append((kernel, *arguments))
            if isinstance(kernel, ProductName):
                self.x = arguments[6]
            else:
                y, bias = arguments[4], arguments[7]
                y.copy_(F.linear(self.x.float(), self.weight, None if bias is None else bias.float()).view_as(y))

        return run


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
def test_column_scales_rotation_and_outliers_are_around_it(dtype: torch.dtype) -> None:
    extras = Extras(column_scales=True, outliers=5, rotation=32)
    spec, shape, tensors = trellis((64, 40), 12, (6, 4), extras)
    tensors["gains"][0, :9] = 0  # the smallest
    plain = reference.decode_transposed(code_spec(spec), shape, tensors).t()
    gpu = Computing(plain)
    multiply = lambda *given: multiply_with(gpu, *given)  # noqa: E731  # type: ignore[arg-type]
    none = lambda *_: ""  # noqa: E731
    kernel = transformed(
        Kernel("new", "", none, reference.decode_transposed, reference.parameter_gradients, multiply), spec
    )
    x, bias = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).to(dtype), torch.randn(64).to(dtype)
    assert kernel.multiply is not None
    found = kernel.multiply(x, spec, shape, tensors, bias)
    exact = F.linear(x.float(), reference.decode_transposed(*(spec, shape, tensors)).t(), bias.float())
    assert found.dtype == dtype
    assert gpu.x.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))


def test_a_second_product_makes_no_plan_and_copies_nothing_from_the_host() -> None:
    (spec, shape, tensors), gpu = trellis((64, 40), 12, (6, 4)), Noting()
    x = torch.randn(4, 40).half()
    multiply_with(gpu, x, spec, shape, tensors, None)  # type: ignore[arg-type]
    multiply_with(gpu, x, spec, shape, tensors, None)  # type: ignore[arg-type]
    first, second = gpu.calls[:2], gpu.calls[2:]
    assert [call[0] for call in first] == [call[0] for call in second]
    assert first[0][5] is second[0][5]
    tensors["scale"].add_(1)
    multiply_with(gpu, x, spec, shape, tensors, None)  # type: ignore[arg-type]
    assert gpu.calls[4][5] is not first[0][5]


def test_no_new_scale_is_taken_for_one_that_is_gone() -> None:
    (spec, shape, tensors), gpu = trellis((64, 40), 12, (6, 4)), Noting()
    for number in range(50):
        tensors["scale"] = torch.full((64,), 1.0 + number).half()  # where the one before was, if that may be
        found = products.plan_of(gpu, spec, shape, tensors, HALF)  # type: ignore[arg-type]
        assert torch.equal(found.scale, tensors["scale"].float())


def test_memory_of_a_plan_waits_for_every_stream_that_reads_it() -> None:
    weight, gpu = trellis((64, 40), 12, (6, 4)), Noting()
    for handle in (7, 8, 8, 7, 9):
        gpu.handle = handle
        multiply_with(gpu, torch.zeros(1, 40).half(), *weight, None)  # type: ignore[arg-type]
    assert gpu.used == [8, 9]


def test_parts_are_all_columns_with_bits_once() -> None:
    jobs = np.zeros(3, JOB)
    jobs["columns"], jobs["rate"] = (100, 64, 300), (0, 4, 6)
    for processors in (1, 4, 132):
        parts = parts_of(jobs, (256, 464), processors)
        covered = [(p["job"], c) for p in parts for c in range(p["first"], p["first"] + p["count"])]
        assert sorted(covered) == [(1, c) for c in range(64)] + [(2, c) for c in range(300)]
        assert all(part["count"] for part in parts)
    assert len(parts_of(jobs, (256, 464), 132)) == 1 + 5


@pytest.mark.parametrize(
    ("weight", "samples", "dtype", "reason"),
    [
        (trellis((64, 4), 12, (6,)), 65, HALF, "65 samples"),
        (trellis((64, 4), 12, (6,)), 2, torch.float32, "an input of torch.float32"),
        (trellis((45, 4), 12, (6,)), 2, HALF, "45 outputs"),
        (trellis((64, 4), 12, (5, 6)), 2, HALF, "half-integer rates"),
        (trellis((64, 4), 14, (14,)), 2, HALF, "rates of more than 6 bits"),
        (additive((64, 4), 8, 8, 1), 2, HALF, "no product for the additive format"),
        (trellis((64, 4), 12, (6,)), 2, HALF, "no GPU"),
    ],
)
def test_what_it_does_not_serve_is_said(weight: Coded, samples: int, dtype: torch.dtype, reason: str) -> None:
    case = Case(torch.device("cpu"), dtype, samples)
    assert reason in products.unsupported_reason(weight[0], weight[1], case)
    assert "only products" in products.unsupported_reason(weight[0], weight[1], case._replace(samples=None))
