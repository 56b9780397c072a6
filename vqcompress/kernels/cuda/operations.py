"""Decoding on NVIDIA's GPUs: what to launch is settled at a weight's first call, later ones launch and do no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.kernels import reference
from vqcompress.kernels.cuda.driver import DRIVER, Driver, Prepared
from vqcompress.kernels.cuda.jobs import OUT_TYPES, launches, size_problem
from vqcompress.kernels.first_use import is_host_weight
from vqcompress.kernels.kernel import Case
from vqcompress.kernels.lengths import check_lengths
from vqcompress.kernels.tensor_cache import place_of, refuse_capture
from vqcompress.matrix_view import Shape, matrix_shape


def unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why decoding cannot serve the case, or an empty string; ``spec`` is that of the whole weight."""
    if case.interpreted:
        return "Triton's interpreter replaces the GPU"
    if not isinstance(spec, TrellisSpec | AdditiveSpec | ScalarSpec):
        return f"no CUDA kernel for the {spec.format} format"
    if case.dtype not in OUT_TYPES:
        return f"an output of {case.dtype}"
    return DRIVER.unsupported_reason(case.device) or size_problem(spec, shape)


def decode_transposed(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``Wᵀ [columns, outputs]`` in ``dtype``: the reference's float32 rounded once."""
    return decode_with(DRIVER, spec, shape, tensors, dtype)


def dense_weight(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight of ``shape`` in ``dtype``. A matrix is a transposed view, a filter lies as cuDNN reads it fastest:
    channels last."""
    return laid_out(decode_transposed(spec, shape, tensors, dtype), shape)


def laid_out(transposed: Tensor, shape: Shape) -> Tensor:
    """``Wᵀ [columns, outputs]`` as a weight of ``shape``, a filter channels last."""
    if len(shape) == 2:
        return transposed.t()
    outputs, inputs, height, width = shape
    turned = transposed.view(inputs, height, width, outputs).permute(3, 0, 1, 2)
    return turned.contiguous(memory_format=torch.channels_last)


def decode_with(
    driver: Driver, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Tensor:
    """`decode_transposed` on a device that ``driver`` knows."""
    plan = plan_of(driver, spec, shape, tensors, dtype)
    return plan.launched() if plan.trusted else reference.decode_transposed(spec, shape, tensors, dtype)


def prepare(
    spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Callable[[], Tensor] | None:
    """`dense_weight` for later calls, see `vqcompress.kernels.kernel.Prepare`."""
    return prepare_with(DRIVER, spec, shape, tensors, dtype)


def prepare_with(
    driver: Driver, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> Launching | None:
    """`prepare` on a device that ``driver`` knows; None where its kernels are not to be used."""
    plan = plan_of(driver, spec, shape, tensors, dtype)
    return Launching(plan, shape) if plan.trusted else None


@dataclass
class Plan:
    """Launches that decode one weight to one dtype, for tensors that lie and read as ``places`` say.

    ``held`` has what lies at the addresses, but for the stored tensors, which ``references`` refer to weakly.
    ``streams`` are those that ``held`` is known to be used on: memory that is freed waits for them. It is ``trusted``
    if its kernels decode what the CPU does.
    """

    driver: Driver
    spec: FormatSpec
    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    places: tuple[Any, ...]
    runs: tuple[Prepared, ...]
    held: tuple[Tensor, ...]
    references: tuple[StorageWeakRef, ...]
    streams: set[int]
    trusted: bool = True

    def launched(self) -> Tensor:
        """``Wᵀ [columns, outputs]``, being decoded on the current stream."""
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        address, stream = out.data_ptr(), self.driver.stream(self.device)
        if stream not in self.streams:
            self.driver.use(self.held, self.device)
            self.streams.add(stream)
        for run in self.runs:
            run(stream, address)
        return out

    @property
    def stale(self) -> bool:
        """Whether one of the stored tensors is gone."""
        return any(reference.expired() for reference in self.references)


@dataclass(frozen=True)
class Launching:
    """A function that decodes the weight of ``shape`` by launching ``plan``."""

    plan: Plan
    shape: Shape

    def __call__(self) -> Tensor:
        return laid_out(self.plan.launched(), self.shape)


_PLANS: dict[tuple[Any, ...], Plan] = {}
_LEAST = 64  # plans that are kept without a look at whether they are stale
_sweep_at = _LEAST


def plan_of(driver: Driver, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Plan:
    """The plan of this weight, made at its first call and again when one of its tensors moves or changes.

    Raises `UnsupportedError` if it would have to be made while a CUDA graph is recorded.
    """
    places = tuple(map(place_of, tensors.values()))
    key = (places[0][:2], id(spec), dtype)  # a plan holds its spec, so its id stands for no other
    plan = _PLANS.get(key)
    if plan is None or plan.places != places:
        refuse_capture(tensors["weight"].device)
        _sweep()
        plan = _PLANS[key] = _made(driver, spec, shape, tensors, dtype, places)
    return plan


def _sweep() -> None:
    """Forget stale plans, which hold memory of the device: whenever there may be as many as others."""
    global _sweep_at
    if len(_PLANS) < _sweep_at:
        return
    for key in [key for key, plan in _PLANS.items() if plan.stale]:
        del _PLANS[key]
    _sweep_at = max(_LEAST, 2 * len(_PLANS))


def _made(
    driver: Driver,
    spec: FormatSpec,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    places: tuple[Any, ...],
) -> Plan:
    check_lengths(spec, shape, tensors)
    device = tensors["weight"].device
    stored = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    # Outside inference mode, or what is derived here would be inference tensors for every later call.
    with torch.no_grad(), torch.inference_mode(False):
        made = launches([(spec, shape, {name: tensor.detach() for name, tensor in tensors.items()})], dtype, [0])
        jobs = [torch.from_numpy(launch.jobs.view(np.uint8).copy()).to(device) for launch in made]
        runs = tuple(driver.prepare(launch, own) for launch, own in zip(made, jobs, strict=True))
        driver.finish(device)  # later calls may be on other streams
    derived = [t for launch in made for t in launch.held if t.untyped_storage()._cdata not in stored]
    references = tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values())
    outputs, columns = matrix_shape(shape)
    made_on = {driver.stream(device)}
    held = (*derived, *jobs)
    plan = Plan(driver, spec, (columns, outputs), dtype, device, places, runs, held, references, made_on)
    if driver.verdicts is not None:
        loops = [(device, launch.kernel, rate) for launch in made for rate in launch.jobs["rate"].tolist()]
        names = ", ".join(launch.kernel.symbol for launch in made)
        what = f"a weight of {tuple(shape)} decoded by {names} on {device}"
        plan.trusted = driver.verdicts.trusted(
            loops,
            lambda: is_host_weight(laid_out(plan.launched(), shape), spec, shape, tensors, dtype),
            what,
        )
    return plan
