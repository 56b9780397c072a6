"""Open a folder before it is published, and compare one call of its denoiser with that of the pipeline in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.architectures import VAE, Pipeline
from vqcompress.checkpoint.loading import load
from vqcompress.denoiser_calls.call import call_arguments, first_output
from vqcompress.denoiser_calls.call_tensors import flatten
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CheckpointError
from vqcompress.placement import Placement, place

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference relative to the largest value. Kernels round differently by where in memory tensors lie."""
EXACT = 1e-4
TENSOR_CORES = 5e-3  # which an accelerator uses for float32 convolutions, with 10 bits of mantissa


class _Seen(BaseException):
    """Ends a sampling run after its first call. Not an Exception, so that no pipeline swallows it."""


def check_reopens(
    run: SamplingRun, folder: Path, components: Collection[str] = (), placement: Placement | None = None
) -> None:
    """Raise `CheckpointError` unless ``folder`` opens and samples like ``run.pipeline``, from which it was written.

    Both sample the first prompt up to the first call of each denoiser. Its arguments show that tokenizers, text
    encoders and scheduler came back, its output that the denoiser did. If the VAE is among the ``components`` that were
    quantized, both decode what this pipeline gives its own. ``placement`` is where ``run.pipeline`` computes, by
    default where it is.
    """
    network = run.architecture.module(run.pipeline, run.architecture.denoiser)
    placement = placement or Placement.of(network)
    opened = load(folder, dtype=_widest_dtype(network))
    place(opened, placement, gradients=True)  # weights wait as those of the run do
    exact = EXACT if placement.on_host else TENSOR_CORES
    for denoiser in run.architecture.denoisers:
        here = replace(run, component=denoiser)
        _compare(denoiser, _first_call(here), _first_call(replace(here, pipeline=opened)), exact)
    if VAE in components and not (gap := _decoding_gap(run, opened)) <= TOLERANCE.get(_widest_dtype(network), exact):
        raise _different(f"an image that {VAE} decodes differs by {gap:.2g}")


def _compare(denoiser: str, before: dict[str, Tensor], after: dict[str, Tensor], exact: float) -> None:
    if before.keys() != after.keys():
        raise _different(f"{denoiser} is given {', '.join(sorted(before.keys() ^ after.keys()))} only once")
    for name, value in before.items():
        if not (difference := _difference(value, after[name])) <= TOLERANCE.get(value.dtype, exact):  # NaN is above too
            raise _different(f"{name} of the first call of {denoiser} differs by {difference:.2g}")


def _decoding_gap(run: SamplingRun, opened: Pipeline) -> float:
    vae, seen = run.architecture.module(run.pipeline, VAE), []

    def note(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise _Seen

    vae.decode = note  # type: ignore[assignment]
    try:
        replace(run, autoencode=True).probe()
    except _Seen:
        pass
    finally:
        del vae.decode
    if not seen:
        return 0.0
    args, kwargs = seen[0]
    with torch.no_grad():
        one, other = (part.decode(*args, **kwargs) for part in (vae, run.architecture.module(opened, VAE)))  # type: ignore[operator]
    return _difference(first_output(one), first_output(other))


def _widest_dtype(network: nn.Module) -> torch.dtype:
    """That which it computes in: weights of single layers may be held in fewer bits."""
    found = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return max(found, key=lambda dtype: (dtype.itemsize, dtype == torch.bfloat16))


def _first_call(run: SamplingRun) -> dict[str, Tensor]:
    """Floating-point arguments and output of the denoiser's first call; nothing if it is not called."""
    network: nn.Module = run.architecture.module(run.pipeline, run.denoiser)
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = {**flatten(call_arguments(module, args, kwargs)), "the output": first_output(output)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        seen.update({name: value.detach() for name, value in tensors.items() if value.is_floating_point()})
        raise _Seen

    handle = network.register_forward_hook(note, with_kwargs=True)
    try:
        run.probe()
    except _Seen:
        pass
    finally:
        handle.remove()
    return seen


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    one, other = one.float(), other.to(one.device).float()
    if torch.equal(one, other):  # masks with infinity among them
        return 0.0
    largest, gap = float(one.abs().max()), float((one - other).abs().max())
    return gap / largest if largest else gap


def _different(what: str) -> CheckpointError:
    return CheckpointError(
        f"the folder that was written does not sample like the pipeline in memory ({what}), so it is not published; "
        "run the same command again, and report this with the recipe if it stays so"
    )
