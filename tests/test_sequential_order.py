"""Blocks encoded one after the other, each for what the compressed ones before it give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqcompress
from vqcompress.architectures import architecture_of
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.checkpoint import read_layer_table
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import RecipeError
from vqcompress.layers import vq_layers
from vqcompress.moments.accumulate import MomentAccumulator
from vqcompress.moments.shrinkage import shrunk_moment
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.sampling_config import SamplingConfig

SMALL = SamplingConfig(2, height=16, width=16)
CALIBRATION = {"count": 2, "steps": 2, "height": 16, "width": 16, "batch_size": 2}
RECIPE: dict[str, Any] = {"bits": 2.0, "budget": "layer", "settings": {"state_bits": 8}, "calibration": CALIBRATION}
IN_ORDER = {**RECIPE, "calibration": {**CALIBRATION, "order": "sequential"}}
FIRST, LATER = "down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.1.conv_shortcut"


@pytest.fixture(scope="module")
def in_order(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqcompress.quantize(str(tiny_sdxl), tmp_path_factory.mktemp("in-order") / "out", **IN_ORDER)


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_only_the_first_block_gets_the_originals_inputs(tiny_sdxl: Path, in_order: Path, tmp_path: Path) -> None:
    one_pass = vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **RECIPE)
    ours, theirs = (vq_layers(vqcompress.load(folder).unet) for folder in (in_order, one_pass))
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours[FIRST].weight, theirs[FIRST].weight)
    assert not torch.equal(ours[LATER].weight, theirs[LATER].weight)
    rows = [{record.layer: record.rows for record in read_layer_table(folder)} for folder in (in_order, one_pass)]
    assert rows[0] == rows[1]


def test_a_layers_error_is_that_for_the_inputs_it_will_get(tiny_sdxl: Path, in_order: Path) -> None:
    """The table weights errors by the second moment after the packed blocks, on the original's own calls."""
    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    architecture = architecture_of(pipeline)
    chosen = choose_diverse(load_prompts(architecture.prompt_set).prompts, 2, 0)
    calls = record_teacher(SamplingRun(pipeline, architecture, chosen, 0, SMALL, batch_size=2), count=99)
    packed = vqcompress.load(in_order).unet
    weight = pipeline.unet.get_submodule(LATER).weight.detach()
    decoded = packed.get_submodule(LATER).dense_weight()
    listed = next(record.error for record in read_layer_table(in_order) if record.layer == LATER)

    def error(denoiser: torch.nn.Module) -> float:
        moment = shrunk_moment(moments_of_inputs(denoiser, LATER, calls))
        return relative_error(weight, decoded, moment)

    assert listed == pytest.approx(error(packed), rel=1e-4)
    assert listed != pytest.approx(error(pipeline.unet), rel=1e-3)


def moments_of_inputs(denoiser: torch.nn.Module, layer: str, calls: list[Any]) -> Any:
    """Of a 1x1 convolution."""
    convolution = denoiser.get_submodule(layer)
    accumulator = MomentAccumulator(convolution.in_channels)

    def watch(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        accumulator.add(args[0].movedim(1, -1).flatten(0, -2))

    handle = convolution.register_forward_hook(watch)
    with torch.no_grad():
        for call in calls:
            denoiser(**call["kwargs"])
    handle.remove()
    return accumulator.finish()


def test_a_run_that_stops_inside_a_block_goes_on_to_the_same_bytes(
    tiny_sdxl: Path, in_order: Path, tmp_path: Path
) -> None:
    def stopping(stage: str, done: int, total: int, detail: str) -> None:
        if stage.startswith("encode") and done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", progress=stopping, **IN_ORDER)
    left = tmp_path / "out.partial"
    assert len(list((left / "unet.layers").glob("*.safetensors"))) >= 12
    kept = list((left / "unet.moments-in-order").glob("*.safetensors"))
    assert len(kept) <= 10, "moments of finished blocks stay on disk"
    assert weights(vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **IN_ORDER)) == weights(in_order)


def test_recordings_of_the_original_serve_both_orders(tiny_sdxl: Path, in_order: Path, tmp_path: Path) -> None:
    kept, budgeted = tmp_path / "kept", {"bits": 4.0, "budget": "model"}
    vqcompress.quantize(str(tiny_sdxl), tmp_path / "a", calibration_folder=kept, **{**RECIPE, **budgeted})
    recorded = {path: path.stat().st_mtime_ns for path in (kept / "unet.moments").iterdir()}
    folder = vqcompress.quantize(str(tiny_sdxl), tmp_path / "b", calibration_folder=kept, **{**IN_ORDER, **budgeted})
    assert {path: path.stat().st_mtime_ns for path in (kept / "unet.moments").iterdir()} == recorded
    assert not (kept / "unet.moments-in-order").exists()
    assert vqcompress.inspect(folder)["bits_per_weight"] <= 4.0
    assert vqcompress.verify(folder) == []


def test_several_processes_are_refused(tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="parallel order"):
        vqcompress.quantize(str(tiny_sdxl), tmp_path / "out", **IN_ORDER)
    assert not list(tmp_path.iterdir())
