"""Which layers of a denoiser touch latents, time or the output, told by following one of its calls.

What an argument is shows over a trajectory: latents change from step to step, text stays. So a pipeline first runs two
steps, in which each denoiser runs once and repeats its output afterwards. Then the recorded call is followed through
the layers. A layer outside of the blocks stays dense if it reads latents that no block has worked on, if it sees one
row for each image (time, guidance, sizes, pooled text), or if it runs after the last block.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP
from vqcompress.architectures.traced_call import LayerRead, Marks, TracedCall, trace
from vqcompress.errors import VQCompressError
from vqcompress.tensor_tree import tensors_in, to_device

TIMES = re.compile(r"^(timesteps?|t|r|time|timestep_\w+|\w+_timestep|sigmas?|guidance\w*)$")
TOKEN_NAMES = re.compile(
    r"^(?!.*latent).*(encoder_hidden_states|text|txt|context|prompt|cap_|caption|clip|llm|image_embed|input_ids)"
)
NOT_REACHED = "no call of the denoiser reaches it"
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    VQCompressError,
)
"""What pipelines raise when they are called in a way that does not suit them."""


@dataclass
class SeenCalls:
    """The calls of one denoiser in a run: the arguments of all, by name, and the output of the first."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    output: Any = None


def trace_denoisers(denoisers: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, TracedCall]:
    """Component -> its first call in ``run``, followed through the layers.

    ``run`` samples a few steps; what it raises ends it. Denoisers that it does not call are left out.
    """
    with torch.no_grad(), seen_calls(denoisers) as seen:
        try:
            run()
        except REFUSALS:  # what was called so far is all that is wanted; a repeated output may not fit another call
            if not any(found.calls for found in seen.values()):
                raise
    with torch.no_grad():
        return {name: _followed(denoisers[name], found) for name, found in seen.items() if found.calls}


@contextmanager
def seen_calls(denoisers: Mapping[str, nn.Module]) -> Iterator[dict[str, SeenCalls]]:
    """Note the calls of ``denoisers`` inside the block. Each runs once and then repeats its first output."""
    seen = {name: SeenCalls() for name in denoisers}
    before = {name: vars(denoiser).get("forward") for name, denoiser in denoisers.items()}
    for name, denoiser in denoisers.items():
        denoiser.forward = _once(denoiser, seen[name])  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for name, denoiser in denoisers.items():
            del denoiser.forward
            if before[name] is not None:
                denoiser.forward = before[name]


def _once(denoiser: nn.Module, seen: SeenCalls) -> Callable[..., Any]:
    forward = denoiser.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = to_device((args, kwargs), _device(denoiser), copy=True)
        seen.calls.append(named_arguments(forward, args, kwargs))
        if len(seen.calls) == 1:
            seen.arguments = args, kwargs
            seen.output = forward(*args, **kwargs)
        return seen.output

    run.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # pipelines look for parameters in it
    return run


def _device(denoiser: nn.Module) -> torch.device:
    return next(denoiser.parameters()).device


def named_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, in the order of the signature; what is None is left out."""
    bound = inspect.signature(forward).bind(*args, **kwargs).arguments
    return {name: value for name, value in bound.items() if value is not None}


def _followed(denoiser: nn.Module, seen: SeenCalls) -> TracedCall:
    args, kwargs = seen.arguments
    latents = seen.calls[0][_latents(seen.calls[0])]
    return trace(denoiser, argument_kinds(seen.calls), len(latents), lambda: denoiser(*args, **kwargs))


def _latents(call: dict[str, Any]) -> str:
    """The name of what is being denoised: the first argument with tensors."""
    return next(name for name, value in call.items() if any(True for _ in tensors_in(value)))


def argument_kinds(calls: list[dict[str, Any]]) -> list[tuple[Tensor, Marks]]:
    """The tensors of the first of these calls, whose arguments have names, with their marks.

    The first tensor is what is being denoised. Text is told by its name: a call without the prompt may come between
    two with it. Others with rows are further latents (sound beside video) if they change from step to step, and images
    where they have the dimensions of one; other tokens stay. Whatever has one row for each entry of the batch is a
    vector, and so are positions.
    """
    kinds: list[tuple[Tensor, Marks]] = []
    first = _latents(calls[0])
    for name, value in calls[0].items():
        stays = _stays(calls, name)
        listed = isinstance(value, list | tuple)
        kinds += [(tensor, _kind(name, tensor, listed, name == first, stays)) for tensor in tensors_in(value)]
    return kinds


def _kind(name: str, tensor: Tensor, listed: bool, first: bool, stays: bool | None) -> Marks:
    if TIMES.match(name) or tensor.ndim < 2:
        return Marks.VECTORS
    if first:
        return Marks.LATENTS
    if not tensor.is_floating_point():
        return Marks.TOKENS if name == "input_ids" else Marks.VECTORS
    if tensor.ndim == 2 and not listed:
        return Marks.VECTORS
    if TOKEN_NAMES.search(name):
        return Marks.TOKENS
    return Marks.TOKENS if stays and tensor.ndim == 3 else Marks.LATENTS


def _stays(calls: list[dict[str, Any]], name: str) -> bool | None:
    """Whether the argument has one value at two timesteps; None if no two calls tell."""
    first = calls[0]
    later = [call for call in calls[1:] if _differs(_time(first), _time(call))]
    return any(not _differs(first[name], call.get(name)) for call in later) if later else None


def _time(call: dict[str, Any]) -> Any:
    return next((value for name, value in call.items() if TIMES.match(name)), None)


def _differs(one: Any, other: Any) -> bool:
    ours, theirs = list(tensors_in(one)), list(tensors_in(other))
    if not ours or len(ours) != len(theirs):
        return bool(ours or theirs or one != other)
    return not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def why_dense(traced: TracedCall, layer: str) -> str | None:
    """Why a layer outside of the blocks stays dense; None for one that is quantized, and for all inside of blocks."""
    if traced.around(layer):
        return None
    read = traced.layers.get(layer)
    return NOT_REACHED if read is None else _outside(traced, read)


def _is_a_vector(traced: TracedCall, read: LayerRead) -> bool:
    """One row for each image. What blocks have made of latents may be as small as that in a small call."""
    return read.rows <= traced.batch and not (read.marks & Marks.LATENTS and read.marks & Marks.BLOCK)


def _outside(traced: TracedCall, read: LayerRead) -> str | None:
    if read.place >= traced.last_block:
        return FINAL if read.marks & Marks.LATENTS else ONE_SAMPLE_PER_TIMESTEP
    if not read.marks & (Marks.LATENTS | Marks.TOKENS) or _is_a_vector(traced, read):
        return ONE_SAMPLE_PER_TIMESTEP
    if read.marks & Marks.LATENTS and not read.marks & Marks.BLOCK:
        return LATENT_INPUT
    return None
