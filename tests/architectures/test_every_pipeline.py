"""Every pipeline class that a donor fits is planned, called, calibrated, quantized, opened again and drawn with.

Without ``--every-pipeline`` or ``--write-models``, a slice of them is planned and called, and one of each kind of
denoiser in it quantized.

What a coded layer reads is checked by other means than the plan's: the pipeline runs with other noise, and the inputs
of the two runs are compared.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import vqcompress
from tests.architectures import models_table
from tests.architectures.every_pipeline import (
    MUST,
    UNDRIVEN,
    UNPUBLISHED,
    a_slice,
    build,
    draw,
    latents,
    pipeline_classes,
    shrunk,
    side,
)
from vqcompress.architectures import Architecture, architecture_of
from vqcompress.architectures.call_inputs import drawn_inputs
from vqcompress.architectures.drawn_images import drawn
from vqcompress.architectures.layer_plan import ONE_SAMPLE_PER_TIMESTEP, LayerPlan
from vqcompress.architectures.roles import NOT_REACHED, REFUSALS
from vqcompress.errors import first_line
from vqcompress.layers import vq_layers

CLASSES = pipeline_classes()
LEAST_DRIVEN = 165  # pipeline classes that a donor fits
SLICE = a_slice(CLASSES)
BLOCKS = 0.95
_quantized: set[tuple[str, ...]] = set()


def first_inputs(
    family: Architecture, pipeline: DiffusionPipeline, component: str, seed: int, images: str
) -> dict[str, Tensor]:
    """Layer -> its input in the first call of the denoiser, in the order in which layers run."""
    module, seen = getattr(pipeline, component), dict[str, Tensor]()

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(name, (args[0] if args else kwargs["input"]).clone())

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                hooks.callback(layer.register_forward_pre_hook(partial(note, name), with_kwargs=True).remove)
        draw(family, pipeline, seed, images)
    return seen


def in_a_list(module: nn.Module, name: str) -> bool:
    """Whether the layer lies in a member of a list, or in the block between two lists."""
    parts = name.split(".")
    parents = (module.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) - 1))
    return any(isinstance(parent, nn.ModuleList) for parent in parents) or parts[0] == "mid_block"


def check_roles(
    family: Architecture, pipeline: DiffusionPipeline, component: str, plans: list[LayerPlan], images: Path
) -> None:
    """Of what lies outside of lists, coded layers get the same input whatever the noise, and none runs last.

    ``images`` is empty; an image in it is what both draws start from, where they need one.
    """
    drawn(0, side(pipeline), side(pipeline)).save(images / "one.png")
    one, other = (first_inputs(family, pipeline, component, seed, str(images)) for seed in (0, 1))
    noisy = {name for name, x in one.items() if x.shape != other[name].shape or not torch.equal(x, other[name])}
    outside = {
        plan.name for plan in plans if plan.reason is None and not in_a_list(getattr(pipeline, component), plan.name)
    }
    assert not outside & noisy, f"{component}: coded layers that read latents"
    assert outside <= one.keys()
    single_rows = {name for name in outside if one[name].numel() // one[name].shape[-1] <= 1}
    assert not single_rows, f"{component}: coded layers that see one row"
    last = list(one)[-1]
    assert last not in {plan.name for plan in plans if plan.reason is None}


def check_structure(family: Architecture, pipeline: DiffusionPipeline, component: str, plans: list[LayerPlan]) -> None:
    """Where there is no pipeline to call, as for a dry run, no layer is coded that the call says stays dense."""
    network = copy.deepcopy(getattr(pipeline, component))
    planned = family.layers(SimpleNamespace(**dict.fromkeys(family.denoisers, network)), component)
    coded = {plan.name for plan in planned if plan.reason is None}
    assert not coded & {plan.name for plan in plans if plan.reason not in (None, NOT_REACHED)}


def blocks_share(module: nn.Module, plans: list[LayerPlan]) -> tuple[float, list[str]]:
    """The share coded of the weights inside of lists, and which of their layers stay dense.

    Embedders of time and what no code fits are not counted: no rule may code them.
    """
    inside = [plan for plan in plans if in_a_list(module, plan.name)]
    able = [p for p in inside if not models_table.is_unfit(p) and p.reason != ONE_SAMPLE_PER_TIMESTEP]
    assert able
    coded = sum(models_table.size(plan) for plan in able if plan.reason is None)
    return coded / sum(map(models_table.size, able)), [plan.name for plan in able if plan.reason is not None]


def quantize_and_reload(family: Architecture, pipeline: DiffusionPipeline, folder: Path) -> None:
    """Calibrate on one prompt, quantize, open again: the same tensors, and the same draw."""
    prompt = "7" if family.name == "dit" else "a cat"
    folder.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
    settings = {"count": 1, "steps": 2, "batch_size": 1, "prompts": str(folder.with_suffix(".txt"))}
    if family.name != "dit":
        settings |= {"height": side(pipeline), "width": side(pipeline)}
    vqcompress.quantize(pipeline, folder, method="gptq", bits=4.0, calibration=settings)
    opened = vqcompress.load(folder)
    for component in family.denoisers:
        here, there = getattr(pipeline, component), getattr(opened, component)
        assert vq_layers(here)
        assert vq_layers(here).keys() == vq_layers(there).keys()
        ours, theirs = here.state_dict(), there.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    shrunk(opened)
    torch.testing.assert_close(latents(draw(family, opened)), latents(draw(family, pipeline)), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pipelines, at sizes that nobody draws
@pytest.mark.parametrize("name", sorted(CLASSES, key=lambda name: name not in MUST))
def test_planned_called_quantized_and_reloaded(
    name: str, tmp_path: Path, models: models_table.Table, every_pipeline: bool
) -> None:
    if not every_pipeline and name not in SLICE:
        pytest.skip("driven with --every-pipeline")
    if name in UNDRIVEN:
        models.leave_out(name, UNDRIVEN[name])
        return
    try:
        pipeline = build(CLASSES[name])
        family = architecture_of(pipeline)
    except REFUSALS as problem:
        if name in MUST:
            raise
        models.leave_out(name, first_line(problem))
        return
    try:
        draw(family, pipeline)
    except REFUSALS as problem:
        if name in MUST:
            raise
        models.leave_out(name, f"its call fails with these components: {first_line(problem)}")
        return
    plans = {component: family.layers(pipeline, component) for component in family.denoisers}
    shares: list[float] = []
    for component, found in plans.items():
        share, dense = blocks_share(getattr(pipeline, component), found)
        assert share >= BLOCKS, dense
        shares.append(share)
        if every_pipeline or models.is_new(pipeline, component):
            check_roles(family, pipeline, component, found, tmp_path)
            check_structure(family, pipeline, component, found)
    why_not = next((why for part, why in UNPUBLISHED.items() if part in name), None)
    inputs = drawn_inputs(pipeline)
    kinds = tuple(type(getattr(pipeline, component)).__name__ for component in family.denoisers)
    if why_not is None and (every_pipeline or (name in MUST and kinds not in _quantized)):
        _quantized.add(kinds)
        quantize_and_reload(family, pipeline, tmp_path / "out")
    models.add(name, pipeline, plans, models_table.Shown(inputs, min(shares), why_not))


def test_lines_of_classes_that_were_not_driven_stay() -> None:
    first, later = models_table.Table(), models_table.Table()
    first.rows = {
        "APipeline": "| APipeline | `unet`: A | 90% | 100% | - | prompt | yes |",
        "BPipeline": "| BPipeline | `b`: B | 1% | 100% | - | x | yes |",
    }
    first.leave_out("CPipeline", "no tiny parts | of it")
    later.leave_out("BPipeline", "its package is gone")
    later.rows = {"CPipeline": "| CPipeline | `c`: C | 5% | 100% | - | prompt | yes |"}
    page = later.markdown(first.markdown())
    assert [line for line in page.splitlines() if "Pipeline |" in line] == [
        first.rows["APipeline"], later.rows["CPipeline"], "| BPipeline | its package is gone |"
    ]  # fmt: skip
    assert "2 classes are driven, 1 are not." in page


def test_enough_classes_are_driven(models: models_table.Table) -> None:
    if len(models.rows) + len(models.left_out) < len(CLASSES):
        pytest.skip("needs the tests of all classes before it: --every-pipeline")
    assert len(models.rows) >= LEAST_DRIVEN
