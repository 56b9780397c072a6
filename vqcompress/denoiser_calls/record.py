"""Keep a sample of the denoiser's calls along real trajectories: for metrics and for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.call import call_arguments, check_latents, first_output, timestep_of
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.progress import StageProgress
from vqcompress.tensor_tree import to_device

Listener = Callable[[dict[str, Any], Tensor], None]


class TeacherCall(TypedDict):
    """One denoiser call on the CPU.

    ``kwargs`` are its arguments by name, nested as they were, without ``return_dict``: call ``denoiser(**kwargs)``.
    ``output`` is what it returned; ``timestep`` float32, one value or one per sample.
    """

    kwargs: dict[str, Any]
    output: Tensor
    timestep: Tensor


def record_teacher(
    run: SamplingRun, *, count: int, trajectory: int | None = None, progress: StageProgress | None = None
) -> list[TeacherCall]:
    """``count`` denoiser calls (or all, if there are fewer), spread evenly over the steps and chosen by ``run.seed``.

    A call holds ``run.batch_size`` prompts in both guidance halves. Batches without a chosen call are not sampled.
    ``trajectory`` is how often the denoiser is called for one batch, where `trajectory_length` has already found that
    out. Raises `CalibrationError` for a ``count`` below 1, and when sampling never calls the denoiser.
    """
    if count < 1:
        raise CalibrationError(f"at least one denoiser call must be kept, got {count}")
    calls = trajectory_length(run) if trajectory is None else trajectory
    if not calls:
        raise CalibrationError(f"sampling never called {run.denoiser}; it has nothing to record")
    chosen = choose_calls(run.batches, calls, count, run.seed)
    kept: list[TeacherCall] = []
    for done, (batch, positions) in enumerate(sorted(chosen.items())):
        with listening(run, _keep_at(positions, kept)):
            run.batch(batch)
        if progress:
            progress(done + 1, len(chosen), "denoiser calls")
    return kept


def trajectory_length(run: SamplingRun) -> int:
    """How often the denoiser is called to sample one batch: some samplers call it more than once a step."""
    calls = 0

    def count(arguments: dict[str, Any], output: Tensor) -> None:
        nonlocal calls
        calls += 1

    with listening(run, count):
        run.first_prompt()
    return calls


def choose_calls(batches: int, calls: int, count: int, seed: int) -> dict[int, set[int]]:
    """Batch -> positions in its trajectory: ``count`` cells of the ``batches x calls`` grid, as even over positions
    as possible."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randperm(batches, generator=generator).tolist() for _ in range(calls)]
    chosen: dict[int, set[int]] = {}
    remaining = min(count, batches * calls)
    for round_ in range(batches):
        for position in _spread(calls, min(remaining, calls), generator):
            chosen.setdefault(columns[position][round_], set()).add(position)
            remaining -= 1
    return chosen


def _spread(calls: int, count: int, generator: torch.Generator) -> list[int]:
    """``count`` of ``calls`` positions, one at random from each of ``count`` equal stretches."""
    edges = [index * calls // count for index in range(count + 1)] if count else [0]
    return [int(torch.randint(low, high, (1,), generator=generator)) for low, high in pairwise(edges)]


def _keep_at(positions: set[int], kept: list[TeacherCall]) -> Listener:
    position = -1

    def keep(arguments: dict[str, Any], output: Tensor) -> None:
        nonlocal position
        position += 1
        if position in positions:
            arguments.pop("return_dict", None)
            kwargs, on_cpu = to_device((arguments, output), "cpu", copy=True)
            kept.append(TeacherCall(kwargs=kwargs, output=on_cpu, timestep=timestep_of(arguments)))

    return keep


@contextmanager
def listening(run: SamplingRun, listener: Listener) -> Iterator[None]:
    """Show ``listener`` the arguments by name and the output of every call of the denoiser inside the block.

    Raises `CalibrationError` when the sampler gives it latents that are not finite.
    """
    number = 0

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal number
        number += 1
        arguments = call_arguments(module, args, kwargs)
        check_latents(run.denoiser, number, arguments)
        listener(arguments, first_output(output))

    denoiser = run.architecture.module(run.pipeline, run.denoiser)
    handle = denoiser.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
