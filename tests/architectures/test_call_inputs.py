"""What a pipeline's call is given, by its signature."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
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


class OtherVideo:
    """Names of frames that other families use; the steps of its default schedule are not ours."""

    def __call__(
        self, prompt: Any, frames: int = 81, segment_frame_length: int = 77, num_inference_steps: int = 48,
        guidance_scale: float | None = None, guidance_schedule: Any = (7.0,) * 48,
    ) -> None: ...  # fmt: skip


class TwoSteps:
    def __call__(
        self, prompt: Any, num_inference_steps: int = 2, intermediate_timesteps: float | None = 1.3
    ) -> None: ...


class Prior:
    def __call__(self, prompt: Any, output_type: str = "pt") -> None: ...


class EditOfSeveral:
    def __call__(self, prompt: Any, images: Any = None, control_mask: Any = None, image_crf: Any = None) -> None: ...


class VisualClozeLike:
    def __call__(self, task_prompt: Any = None, content_prompt: Any = None, image: Any = None) -> None: ...


class VideoToWorld:
    def __call__(self, prompt: Any, image: Any = None, video: Any = None) -> None: ...


class LayeredEdit:
    """Its VAE reads four channels."""

    vae = SimpleNamespace(config={"input_channels": 4})

    def __call__(self, image: Any = None, prompt: Any = None) -> None: ...


class Rewriting:
    def __call__(self, prompt: Any, enable_prompt_rewrite: bool = True) -> None: ...


class ControlUnion:
    controlnet = SimpleNamespace(config={"num_control_type": 6})

    def __call__(self, prompt: Any, control_image: Any = None, control_mode: Any = None) -> None: ...


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


def test_frames_under_other_names_and_no_schedule_of_another_number_of_steps() -> None:
    arguments = given(OtherVideo())
    assert arguments["frames"] == arguments["segment_frame_length"] == fewest_frames(OtherVideo())
    assert (arguments["guidance_scale"], arguments["guidance_schedule"]) == (2.5, None)
    assert given(TwoSteps())["intermediate_timesteps"] is None
    two = CallInputs(TwoSteps(), ["a"], [], ResolvedSampling(2, 0.0, 16, 16), "latent").arguments()
    assert "intermediate_timesteps" not in two


def test_a_first_stage_returns_tensors_for_the_next() -> None:
    assert given(Prior())["output_type"] == given(Prior(), "pil")["output_type"] == "pt"


def test_several_images_a_mask_beside_a_control_image_and_images_in_context() -> None:
    arguments = given(EditOfSeveral())
    assert [image.size for image in arguments["images"]] == [(24, 16)]
    assert arguments["control_mask"].getpixel((23, 0)) == 255
    assert arguments.get("image_crf", 0) == 0
    rows = given(VisualClozeLike())
    assert rows["task_prompt"] == rows["content_prompt"] == "a"
    assert [[image is None for image in row] for row in rows["image"]] == [[False, False], [False, True]]


def test_a_control_network_of_several_kinds_is_told_which() -> None:
    assert given(ControlUnion())["control_mode"] == 0
    assert "control_mode" not in given(EditOfSeveral())


def test_of_an_image_and_a_video_that_are_both_optional_the_video_is_given() -> None:
    assert set(given(VideoToWorld())) == {"prompt", "video"}


def test_images_have_alpha_where_the_autoencoder_reads_it() -> None:
    assert given(LayeredEdit())["image"].mode == "RGBA"
    assert given(Img2Img())["image"].mode == "RGB"


def test_prompts_are_not_rewritten() -> None:
    assert given(Rewriting())["enable_prompt_rewrite"] is False


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
