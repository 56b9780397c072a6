"""Whole runs on a device that there is not (`pretended`): no operator mixes devices, and the bytes are the CPU's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import vqcompress
from tests.architectures import tiny_pipelines
from tests.placement.pretended import CUDA, pretended_cuda
from vqcompress.denoiser_calls import backward_projection
from vqcompress.placement import Offload, Placement

CALIBRATION = {"count": 2, "steps": 2, "height": 16, "width": 16, "batch_size": 2, "prompts": "shapes"}
DENOISERS, WEIGHTS = ("unet", "transformer"), "diffusion_pytorch_model.safetensors"
FEW = r"(down_blocks|transformer_blocks)\.1\.(.*\.)?(attn2\.to_[kv]|ff\.net\.2|resnets\.0\.conv1)"
RECIPE: dict[str, Any] = {
    "method": "trellis",
    "bits": 4.0,
    "settings": {"state_bits": 8},
    "calibration": CALIBRATION,
    "ignore": {rf"^(?!{FEW}$)": "few layers are quick to encode"},
}
TRAINING = {
    "prompts": 2, "held_out": 1, "steps": 2, "batch_size": 2, "micro_batch": 2, "block_steps": 2, "requantize": 1,
}  # fmt: skip
MODELS = {
    "UNet and two text encoders": (tiny_pipelines.sdxl, {"budget": "layer", "finetune": "blocks"}),
    "DiT": (tiny_pipelines.pixart, {"budget": "model", "finetune": "full"}),
}


@dataclass(frozen=True)
class Walked:
    """A pipeline's folder, the recipe, and what a run on the CPU made of it."""

    model: Path
    recipe: dict[str, Any]
    on_cpu: Path


@pytest.fixture(scope="module", params=MODELS)
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("walk")
    make, changes = MODELS[request.param]
    make().save_pretrained(folder / "dense")
    recipe = {**RECIPE, "training": TRAINING, **changes}
    on_cpu = vqcompress.quantize(str(folder / "dense"), folder / "cpu", device="cpu", **recipe)
    return Walked(folder / "dense", recipe, on_cpu)


def placed(offload: Offload) -> Placement:
    return Placement(CUDA, torch.float32, offload, memory=1 << 30)


def denoiser(folder: Path) -> bytes:
    """The file of its weights. The pretended device parts weights that text encoders tie."""
    return next(path for name in DENOISERS if (path := folder / name / WEIGHTS).is_file()).read_bytes()


@pytest.mark.parametrize("offload", ["none", "group"])
def test_calibrate_encode_swap_and_tune(offload: Offload, walked: Walked, tmp_path: Path) -> None:
    with pretended_cuda():
        made = vqcompress.quantize(str(walked.model), tmp_path / "out", device=placed(offload), **walked.recipe)
    assert denoiser(made) == denoiser(walked.on_cpu)


def test_blocks_of_a_large_denoiser_run_again_for_the_same_bytes(
    walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_projection, "LARGE", 0)
    with pretended_cuda():
        made = vqcompress.quantize(str(walked.model), tmp_path / "out", device=placed("group"), **walked.recipe)
    assert denoiser(made) == denoiser(walked.on_cpu)


@pytest.mark.parametrize("offload", ["none", "model"])
def test_generate(offload: Offload, walked: Walked) -> None:
    drawing = {"steps": 2, "height": 16, "width": 16, "seeds": [5]}
    expected = vqcompress.generate(walked.on_cpu, ["a cat"], device="cpu", **drawing)
    with pretended_cuda():
        drawn = vqcompress.generate(walked.on_cpu, ["a cat"], device=placed(offload), **drawing)
    assert drawn[0].tobytes() == expected[0].tobytes()
