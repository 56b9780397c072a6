"""Sources that cannot be compressed as they are: values that are not finite, layers of zeros, samplers that diverge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

import vqcompress
from tests.conftest import tiny_stable_diffusion
from vqcompress.architectures import architecture_of
from vqcompress.architectures.source_weights import component_hashes, scheduler_config, source_files
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import ArchitectureError, CalibrationError
from vqcompress.reports import EvaluationConfig, compare, to_html
from vqcompress.sampling_config import SamplingConfig

CALIBRATION = {"count": 2, "steps": 2, "height": 8, "width": 8, "batch_size": 1}
PLACES = {
    "a bias": "unet.conv_in.bias",
    "a norm": "unet.down_blocks.0.resnets.0.norm1.weight",
    "a matrix that is packed": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "a matrix that stays dense": "unet.conv_out.weight",
    "an embedding": "text_encoder.token_embedding.weight",
    "the decoder": "vae.decoder.conv_out.bias",
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("a\nb c\n")
    return tmp_path / "prompts.txt"


def recipe(prompts: Path, **changes: Any) -> dict[str, Any]:
    return {"method": "rtn", "bits": 4, "calibration": {**CALIBRATION, "prompts": str(prompts)}, **changes}


def tensor_at(pipeline: Any, place: str) -> torch.Tensor:
    """``place`` is a component and the end of a parameter's name, whose beginning depends on the library's version."""
    component, _, name = place.partition(".")
    parameters = getattr(pipeline, component).named_parameters()
    return next(value.data for full, value in parameters if full.endswith(name))


def never(stage: str, *rest: Any) -> None:
    """Progress of a run that may open its model, and no more."""
    assert stage == "open", f"{stage} began"


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_found_before_calibration(
    tmp_path: Path, prompts: Path, place: str, value: float
) -> None:
    pipeline = tiny_stable_diffusion()
    tensor_at(pipeline, place).view(-1)[-1] = value
    pipeline.save_pretrained(tmp_path / "model")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ArchitectureError) as caught:
        vqcompress.quantize(str(tmp_path / "model"), tmp_path / "out", progress=never, **recipe(prompts))
    message = str(caught.value)
    component, _, name = place.partition(".")
    assert "\n" not in message
    assert str(tmp_path / "model" / component) in message
    assert f"{name} of {component} holds NaN or infinity (1 of " in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_buffer_that_is_saved_is_looked_at_too() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, math.nan]))
            self.register_buffer("unsaved", torch.tensor([math.nan]), persistent=False)

    class Pipeline:
        components = {"unet": Network()}  # noqa: RUF012

    with pytest.raises(ArchitectureError, match=r"unet\.scale holds NaN"):
        component_hashes(Pipeline(), [])
    Pipeline.components["unet"].scale[1] = 2.0
    component_hashes(Pipeline(), [])


def test_the_hash_is_of_all_values_and_not_of_their_type(tmp_path: Path) -> None:
    """float16 weights count the same when they are opened in float32, as fine-tuning does."""
    pipeline = tiny_stable_diffusion().to(torch.float16)
    before = component_hashes(pipeline, [])
    assert component_hashes(pipeline.to(torch.float32), []) == before
    weight = tensor_at(pipeline, PLACES["a matrix that stays dense"]).view(-1)
    for index in (0, len(weight) // 2, len(weight) - 1):
        weight[index] += 1
        changed = component_hashes(pipeline, [])
        assert changed["unet"] != before["unet"]
        assert {name: value for name, value in changed.items() if name != "unet"} == {
            name: value for name, value in before.items() if name != "unet"
        }
        weight[index] -= 1
    pipeline.save_pretrained(tmp_path / "model")
    opened = vqcompress.architectures.open_pipeline(tmp_path / "model")
    files = source_files(str(tmp_path / "model"), opened)
    assert {Path(name).parent.name for name, _, _ in files} == {"unet", "vae", "text_encoder"}


def test_a_scheduler_s_infinities_are_values_of_its_configuration() -> None:
    """DPM-Solver clips at -inf unless told otherwise, and JSON has no infinity."""

    class Pipeline:
        scheduler = DPMSolverMultistepScheduler(beta_start=1e-4)

    config = scheduler_config(Pipeline())
    assert (config["class"], config["beta_start"]) == ("DPMSolverMultistepScheduler", 1e-4)
    assert config["lambda_min_clipped"] == "-Infinity"
    json.dumps(config, allow_nan=False)


@pytest.mark.parametrize("method", ["rtn", "gptq", "trellis", "additive"])
@pytest.mark.parametrize("share", ["some layers", "the whole denoiser"])
def test_layers_of_zeros(tmp_path: Path, prompts: Path, method: str, share: str) -> None:
    """As in networks whose last layers start from zero. No loss can be relative to an output of zero."""
    pipeline = tiny_stable_diffusion()
    for name, layer in pipeline.unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and (share != "some layers" or name.endswith(("to_q", "conv1"))):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    small = {"dimension": 4, "code_bits": 4, "codebooks": 4, "beam": 1, "rounds": 1, "coordinate_descent": 0}
    settings = {"trellis": {"state_bits": 8}, "additive": small}.get(method, {})
    layers = {"(up|mid)_block|conv_(in|out)|time_emb": "the way down has every kind of layer"}
    folder = vqcompress.quantize(
        pipeline, tmp_path / "out", **recipe(prompts, method=method, settings=settings, budget="model", ignore=layers)
    )
    zero = vqcompress.load(folder).unet.down_blocks[0].resnets[0].conv1
    weight = zero.dense_weight() if hasattr(zero, "dense_weight") else zero.weight
    assert not weight.any()


class Diverging:
    """Makes latents infinite at a step; what else it is asked, the scheduler answers."""

    def __init__(self, scheduler: Any, at: int) -> None:
        self.step_of, self.at, self.steps = scheduler.step, at, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.steps += 1
        result = self.step_of(*arguments, **options)
        if self.steps >= self.at:
            (result[0] if isinstance(result, tuple) else result.prev_sample).fill_(math.inf)
        return result


@pytest.mark.parametrize("method", ["rtn", "trellis"])
def test_a_scheduler_that_diverges_is_named_with_the_step(tmp_path: Path, prompts: Path, method: str) -> None:
    pipeline = tiny_stable_diffusion()
    steps = {"steps": 4}
    pipeline.scheduler.step = Diverging(pipeline.scheduler, at=3 + 2)  # the first two are a look at which layers run
    options = recipe(prompts, method=method, budget="model", settings={"state_bits": 8} if method == "trellis" else {})
    options["calibration"] = {**options["calibration"], **steps}
    with pytest.raises(
        CalibrationError, match=r"before call 4 of unet \(timestep 1\): the scheduler diverges"
    ) as caught:
        vqcompress.quantize(pipeline, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_a_scheduler_that_diverges_while_calls_are_recorded() -> None:
    pipeline = tiny_stable_diffusion()
    pipeline.scheduler.step = Diverging(pipeline.scheduler, at=1)
    run = SamplingRun(pipeline, architecture_of(pipeline), ("a",), sampling=SamplingConfig(2, height=8, width=8))
    with pytest.raises(CalibrationError, match=r"before call 2 of unet \(timestep 1\)"):
        record_teacher(run, count=2)


@pytest.mark.parametrize("brightness", [-9.0, 0.0, 9.0], ids=["black", "grey", "white"])
def test_a_report_on_images_of_one_colour(
    tmp_path: Path, prompts: Path, brightness: float, make_tiny_pipeline: Callable
) -> None:
    """Nothing can be relative to a variance of zero; every number of the report is finite or left out."""
    pipeline = make_tiny_pipeline()
    nn.init.zeros_(pipeline.vae.decoder.conv_out.weight)
    nn.init.constant_(pipeline.vae.decoder.conv_out.bias, brightness)
    pipeline.save_pretrained(tmp_path / "model")
    folder = vqcompress.quantize(str(tmp_path / "model"), tmp_path / "out", **recipe(prompts))
    config = EvaluationConfig(2, sampling=SamplingConfig(2, height=8, width=8))
    comparison = compare(str(tmp_path / "model"), [folder], prompts=str(prompts), config=config)
    json.dumps(comparison.to_json(), allow_nan=False)
    assert "nan" not in to_html(comparison).lower().replace("finance", "")
