"""What each layer's error costs: the denoiser's output in single calls, and the images at the ends of trajectories."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vqcompress.calibration.importance import layer_importance
from vqcompress.calibration.trajectory_importance import trajectory_costs
from vqcompress.denoiser_calls.sampler_steps import record_trajectory
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.quantizers.bit_allocation import joint_importance
from vqcompress.quantizers.coded_noise import coded_noise, column_errors
from vqcompress.quantizers.scales import mean_energy
from vqcompress.stages.layer_costs import costed_layers
from vqcompress.stages.output_recording import teacher_calls
from vqcompress.stages.run import Run

PROMPTS = 8  # trajectories that are followed back
DRAWS = 32  # errors of one output
REFERENCE_BITS = 3.0  # at which errors are drawn: recordings serve runs of other widths too


def importance_of_layers(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, float]:
    """Layer -> what its error costs. ``layers`` are all of the component's: they are estimated together.

    Equal for parts that are no denoisers. ``groups`` are those of `stages.recording.record_component`.
    """
    if component not in run.architecture.denoisers:
        return dict.fromkeys(layers, 1.0)
    return run.main_process_first(lambda: _importance(run, component, layers, groups))


def _importance(run: Run, component: str, layers: list[str], groups: dict[str, str]) -> dict[str, float]:
    output = run.recordings.load_or_make_json(
        f"{component}.importance", "all", lambda: _output_importance(run, component, layers)
    )
    drawn: dict[str, Tensor] = {}

    def draw() -> dict[str, float]:
        left = {}
        for layer, errors, cost in drawn_errors(run, component, layers, groups, DRAWS):
            drawn[layer], left[layer] = errors, cost
        return left

    left = run.recordings.load_or_make_json(_stage(component), "errors", draw)
    sampling, found = run.calibration_run(PROMPTS, component), []

    def along(index: int) -> dict[str, float]:
        if not drawn:
            draw()
        return _along(run.component(component), sampling, index, drawn)

    for index in range(len(sampling.prompts)):
        cost = run.recordings.load_or_make_json(_stage(component), str(index), partial(along, index))
        run.progress(f"trajectories {component}", index + 1, len(sampling.prompts), "" if cost else "sampler not read")
        found.append(cost)
    return joint_importance(output, [cost for cost in found if cost], left)


def _stage(component: str) -> str:
    return f"{component}.trajectories"


def _output_importance(run: Run, component: str, layers: list[str]) -> dict[str, float]:
    return layer_importance(
        run.component(component),
        layers,
        teacher_calls(run, component),
        seed=run.recipe.seed,
        progress=lambda done, total, what: run.progress(f"importance {component}", done, total, what),
    )


def _along(network: nn.Module, sampling: SamplingRun, index: int, drawn: dict[str, Tensor]) -> dict[str, float]:
    """What each layer's error costs the image of prompt ``index``; empty where the sampler cannot be read."""
    trajectory = record_trajectory(sampling, index)
    return {} if trajectory is None else trajectory_costs(network, trajectory, drawn, sampling.seed + index)


def drawn_errors(
    run: Run, component: str, layers: list[str], groups: dict[str, str], count: int | None = None, salt: str = ""
) -> Iterator[tuple[str, Tensor, float]]:
    """Each layer with errors ``[count, …]`` as its reference bits leave them, for all of its outputs where ``count`` is
    None, and the expected cost ``tr(E H Eᵀ)`` of errors of all outputs. Another ``salt`` gives independent errors."""
    for layer in costed_layers(run, component, layers, groups, mean_energy):
        errors, outputs = column_errors(layer.cost, REFERENCE_BITS), layer.cost.outputs
        generator = torch.Generator().manual_seed((run.recipe.seed << 32) | zlib.crc32((salt + layer.name).encode()))
        drawn = coded_noise(layer.feedback, errors, count or outputs, generator)
        shape = run.shape(component, layer.name)[1:]
        yield layer.name, drawn.reshape(len(drawn), *shape), outputs * float(errors.sum())
