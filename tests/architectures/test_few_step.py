"""Few-step models are told by scheduler, the denoiser's config, or a file's metadata; never by a folder's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
)

from tests.architectures import tiny_pipelines
from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.architectures.few_step import is_few_step

TRAILING = {"timestep_spacing": "trailing"}
FEW = [
    (LCMScheduler, {}),
    (TCDScheduler, {}),
    (EulerDiscreteScheduler, TRAILING),  # SD-Turbo, SDXL-Lightning
    (EulerAncestralDiscreteScheduler, TRAILING),  # SDXL-Turbo
    (DDIMScheduler, TRAILING),  # Hyper-SD
]
MANY = [
    (EulerDiscreteScheduler, {}),
    (EulerAncestralDiscreteScheduler, {}),  # a sampler that users choose for any model
    (DDIMScheduler, TRAILING | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    (EulerDiscreteScheduler, TRAILING | {"prediction_type": "v_prediction"}),
]


def defaults(make: str, scheduler: type, config: dict) -> tuple[int, float]:
    pipeline = tiny_pipelines.TINY[make]()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **config)
    found = architecture_of(pipeline).defaults
    return found.steps, found.guidance


@pytest.mark.parametrize("make", ["sd15", "sdxl"])
def test_schedulers(make: str) -> None:
    usual = {"sd15": (50, 7.5), "sdxl": (50, 5.0)}[make]
    assert [defaults(make, *row) for row in FEW] == [(4, 0.0)] * len(FEW)
    assert [defaults(make, *row) for row in MANY] == [usual] * len(MANY)


def test_a_folders_name_says_nothing(tmp_path: Path) -> None:
    tiny_pipelines.sdxl().save_pretrained(tmp_path / "sdxl-turbo-lightning")
    assert architecture_of(open_pipeline(tmp_path / "sdxl-turbo-lightning")).defaults.steps == 50
    turbo = tiny_pipelines.sdxl()
    turbo.scheduler = EulerAncestralDiscreteScheduler.from_config(turbo.scheduler.config, **TRAILING)
    turbo.save_pretrained(tmp_path / "my-model")
    assert architecture_of(open_pipeline(tmp_path / "my-model")).defaults.steps == 4


def test_embedded_guidance_is_given() -> None:
    pipeline = tiny_pipelines.sd15()
    config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    pipeline.register_modules(unet=UNet2DConditionModel(**config | {"time_cond_proj_dim": 16}))
    assert architecture_of(pipeline).defaults.guidance == 7.5
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    found = architecture_of(pipeline)
    assert (found.defaults.steps, found.defaults.guidance) == (4, 8.0)
    assert found.sample(pipeline, ["a"], seeds=[0], output_type="latent").isfinite().all()


def test_schnell_is_flux_without_guidance_embedding() -> None:
    dev = tiny_pipelines.flux()
    schnell = tiny_pipelines.flux()
    config = {**schnell.transformer.config, "guidance_embeds": False}
    schnell.register_modules(transformer=type(schnell.transformer).from_config(config))
    schnell.default_sample_size = 8
    assert architecture_of(dev).defaults.steps > 8
    assert (architecture_of(schnell).defaults.steps, architecture_of(schnell).defaults.guidance) == (4, 0.0)


@pytest.mark.parametrize(
    ("title", "few"),
    [
        ("DreamShaper XL Lightning", True),
        ("model_lcm_v2", True),
        ("Hyper-SDXL 4 steps", True),
        ("Hyper Realism", False),
    ],
)
def test_metadata(title: str, few: bool) -> None:
    assert is_few_step({"modelspec.title": title}) is few
    assert not is_few_step({"modelspec.description": title})
