"""What a pipeline's call is given, by its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vqcompress.architectures.call_inputs import CallInputs, fewest_frames, missing_inputs
from vqcompress.architectures.drawn_images import drawn, images_hash, images_of
from vqcompress.errors import CalibrationError
from vqcompress.sampling_config import ResolvedSampling


class Guided:
    def __call__(
        self, prompt: Any, negative_prompt: Any = None, true_cfg_scale: float = 4.0,
        guidance_scale: float | None = None, num_inference_steps: int = 50,
    ) -> None: ...  # fmt: skip


class Embedded:
    def __call__(
        self, prompt: Any, negative_prompt: Any = None, true_cfg_scale: float = 1.0, guidance_scale: float = 3.5
    ) -> None: ...


class Img2Img:
    def __call__(
        self, prompt: Any, image: Any = None, strength: float = 0.3, num_inference_steps: int = 50
    ) -> None: ...


class Video:
    vae_scale_factor_temporal = 4

    def __call__(self, prompt: Any, num_frames: int = 81) -> None: ...


class Decoder:
    def __call__(self, image_embeds: Any, prompt: Any, image: Any) -> None: ...


def given(pipeline: Any, output_type: Any = "latent", images: str | None = None) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(7)]
    return CallInputs(pipeline, ["a"], generators, ResolvedSampling(6, 2.5, 16, 24, images), output_type).arguments()


def test_true_guidance_gets_a_negative_prompt_and_embedded_guidance_none() -> None:
    assert given(Guided()) == {
        "prompt": ["a"], "negative_prompt": [""], "true_cfg_scale": 2.5, "num_inference_steps": 6
    }  # fmt: skip
    assert given(Embedded()) == {"prompt": ["a"], "guidance_scale": 2.5}


def test_steps_that_start_from_an_image_are_as_many_as_asked_for() -> None:
    arguments = given(Img2Img())
    assert int(arguments["num_inference_steps"] * 0.3) == 6
    assert arguments["image"].size == (24, 16)


def test_videos_are_short_in_calibration_and_as_long_as_usual_for_a_user() -> None:
    assert given(Video())["num_frames"] == fewest_frames(Video()) == 5
    assert "num_frames" not in given(Video(), "pil")


def test_what_nothing_can_give_is_named() -> None:
    assert missing_inputs(Decoder()) == ["image_embeds"]


def test_images_of_a_folder_by_name_and_then_again(tmp_path: Path) -> None:
    for name, grey in (("b.png", 200), ("a.jpg", 10)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / name)
    found = [image.getpixel((0, 0))[0] for image in images_of(str(tmp_path), 3, 1, 4, 6)]
    assert found == [200, 10, 200]
    assert given(Img2Img(), images=str(tmp_path))["image"].getpixel((0, 0)) == (200,) * 3  # prompt 7 of two images
    before = images_hash(str(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert images_hash(str(tmp_path)) != before
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(CalibrationError, match=r"c\.png cannot be read as an image"):
        images_of(str(tmp_path), 3, 0, 4, 4)
    with pytest.raises(CalibrationError, match="has no images"):
        images_of(str(tmp_path / "absent"), 1, 0, 4, 4)


def test_drawn_images_have_more_energy_in_low_frequencies() -> None:
    spectrum = torch.zeros(32, 17)
    for seed in range(8):
        pixels = torch.tensor(list(drawn(seed, 32, 32).convert("L").getdata()), dtype=torch.float32).reshape(32, 32)
        spectrum += torch.fft.rfft2(pixels - pixels.mean()).abs().square()
    assert spectrum[1:3, 1:3].mean() > 20 * spectrum[10:16, 10:16].mean()
    assert drawn(3, 8, 8).tobytes() == drawn(3, 8, 8).tobytes() != drawn(4, 8, 8).tobytes()
