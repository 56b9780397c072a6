"""Record the second moments of a component's inputs, or find what an earlier try recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vqcompress.calibration.record import record_moments
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.shrinkage import expert_key, is_undersampled, shrunk_moment
from vqcompress.stages.run import Run


def record_component(run: Run, component: str, layers: list[str]) -> dict[str, str]:
    """Record second moments on disk. Returns layer -> key of its group: layers with one input share a moment."""
    on_disk = run.recordings.done(run.moments_of(component))
    groups = {layer: key for layer, key in recorded_groups(run, component).items() if key in on_disk}
    missing = [layer for layer in layers if layer not in groups]
    if not missing:
        return groups
    recorded = record_moments(
        run.calibration_run(),
        component,
        missing,
        run.recording_limits(),
        progress=lambda done, total, what: run.progress(f"calibrate {component}", done, total, what),
        workers=run.workers,
    )
    keep_recorded(run, component, recorded)
    run.workers.barrier()
    return recorded_groups(run, component)


def keep_recorded(run: Run, component: str, recorded: Iterable[tuple[list[str], SecondMoment]]) -> None:
    """Write moments to disk as they come, each under its first layer's name."""
    stage = run.moments_of(component)
    for names, moments in recorded:
        run.recordings.put(stage, names[0], moments.to("cpu").state_dict())
        run.recordings.put_json(f"{stage}.layers", names[0], {"layers": names, "used_rows": moments.used})


def recorded_groups(run: Run, component: str) -> dict[str, str]:
    """Layer -> key of its group, of all that has been recorded."""
    keys = sorted(run.recordings.done(f"{run.moments_of(component)}.layers"))
    return {layer: key for key in keys for layer in recorded_group(run, component, key)["layers"]}


def recorded_group(run: Run, component: str, key: str) -> dict[str, Any]:
    """``{"layers": names of layers with one input, "used_rows": how many of its samples were multiplied}``"""
    return run.recordings.load_json(f"{run.moments_of(component)}.layers", key)


def moment_of(run: Run, component: str, key: str | None) -> SecondMoment | None:
    """The second moment of a group, or None where no sample was seen or none is needed: white inputs.

    It is where the run factors moments, unless it has no room there.
    """
    if key is None:
        return None
    moments = _recorded_moments(run, component, key)
    moments = moments.to(run.factoring_device(moments.columns, len(moments.values)))
    others = _other_experts(run, component, key, moments.device) if is_undersampled(moments) else []
    return shrunk_moment(moments, others)


def _recorded_moments(run: Run, component: str, key: str) -> SecondMoment:
    return SecondMoment.from_state_dict(run.recordings.load(run.moments_of(component), key))


def _other_experts(run: Run, component: str, key: str, device: torch.device) -> list[SecondMoment]:
    """What the same layer of all experts saw, this one included, on ``device``."""
    wanted, keys = expert_key(key), sorted(run.recordings.done(run.moments_of(component)))
    experts = (_recorded_moments(run, component, each) for each in keys if wanted and expert_key(each) == wanted)
    return [expert.to(device) for expert in experts]
