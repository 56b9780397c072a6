"""Record the output moments of the denoiser's layers, or find what an earlier try recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from vqcompress.calibration.output_moments import record_output_moments
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.matrix_view import matrix_shape
from vqcompress.stages.run import Run

CALLS, PROMPTS = 16, 8  # recorded denoiser calls for the backward passes


def teacher_calls(run: Run, component: str) -> list[dict[str, Any]]:
    """Arguments of calls of the original denoiser ``component``, drawn from trajectories of a few prompts."""
    batch_size = max(1, run.recipe.calibration.batch_size // 4)  # the backward pass keeps activations
    calls = record_teacher(replace(run.calibration_run(PROMPTS, component), batch_size=batch_size), count=CALLS)
    return [call["kwargs"] for call in calls]


def record_outputs(run: Run, component: str, layers: list[str]) -> None:
    """Record output moments of ``layers`` on disk, where the recipe asks for them and ``component`` is a denoiser.

    They go into the run's folder. Together they are as large as the second moments of the inputs.
    """
    if not run.recipe.output_feedback or component not in run.architecture.denoisers:
        return
    stage = _stage(component)
    missing = [layer for layer in layers if layer not in run.store.done(stage)]
    if missing and run.workers.is_main_process:
        sides = {layer: matrix_shape(run.shape(component, layer))[0] for layer in missing}
        recorded = record_output_moments(
            run.component(component),
            sides,
            teacher_calls(run, component),
            seed=run.recipe.seed,
            memory_budget=int(run.recipe.calibration.memory_budget_gb * 1e9),
            progress=lambda done, total, what: run.progress(f"calibrate outputs of {component}", done, total, what),
        )
        for layer, moment in recorded:
            run.store.put(stage, layer, {"outputs": moment})
    run.workers.barrier()


def output_moment_of(run: Run, component: str, layer: str) -> Tensor | None:
    """What `record_outputs` recorded of a layer; None where it had nothing to record."""
    stage = _stage(component)
    if not run.recipe.output_feedback or layer not in run.store.done(stage):
        return None
    return run.store.load(stage, layer)["outputs"]


def _stage(component: str) -> str:
    return f"{component}.outputs"
