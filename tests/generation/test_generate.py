"""`vqcompress generate` against diffusers' own pipelines: the same pixels for the same request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline, SanaVideoPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image

import vqcompress
from tests.architectures import tiny_pipelines
from tests.architectures.other_pipelines import wan
from tests.cli.test_bake_lora import lora
from vqcompress.cli.main import main
from vqcompress.errors import RecipeError, UnsupportedError
from vqcompress.generation.call_checks import draws_video
from vqcompress.generation.given_image import fitting_size
from vqcompress.sampling_config import ResolvedSampling

PROMPT, SIZE = "a cat", {"height": 16, "width": 24}


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["generate", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["generate", *map(str, arguments), "--json"])
    assert result.exit_code == 2, result.output
    assert not result.stdout
    return result.stderr


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "secret" / "tiny-sdxl"
    tiny_pipelines.sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_negative_prompt_and_a_size_are_those_of_diffusers(sdxl: Path, tmp_path: Path) -> None:
    asked = ("--steps", 2, "--guidance", 4, "--height", 16, "--width", 24, "--seed", 3)
    run(sdxl, PROMPT, "--negative-prompt", "a dog", *asked, "-o", tmp_path / "one.png")
    pipeline = DiffusionPipeline.from_pretrained(sdxl)
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, **SIZE}
    alike = pipeline(PROMPT, negative_prompt="a dog", generator=seeded(3), **options).images[0]
    plain = pipeline(PROMPT, generator=seeded(3), **options).images[0]
    with Image.open(tmp_path / "one.png") as written:
        assert written.tobytes() == alike.tobytes()
    assert alike.tobytes() != plain.tobytes()


def test_a_png_says_what_it_was_made_from_and_not_where(sdxl: Path, tmp_path: Path) -> None:
    style = lora(tiny_pipelines.sdxl(), ("unet",), tmp_path / "style.safetensors", 1)
    few = ("--steps", 1, "--guidance", 4, "--lora", f"{style}:0.5", "--negative-prompt", "a dög")
    run(sdxl, PROMPT, *few, "-o", tmp_path / "one.png", "--seed", 9)
    with Image.open(tmp_path / "one.png") as image:
        text = image.text
    assert json.loads(text["vqcompress"]) == {
        "version": vqcompress.__version__, "model": "tiny-sdxl", "steps": 1, "guidance": 4.0,
        "negative_prompt": "a dög", "loras": [{"name": "style.safetensors", "scale": 0.5}],
        "images": [{"prompt": PROMPT, "seed": 9}],
    }  # fmt: skip
    lines = text["parameters"].splitlines()
    assert lines[:2] == [PROMPT, "Negative prompt: a dög"]
    assert lines[2].startswith("Steps: 1, CFG scale: 4, Seed: 9, Size: 16x16, Model: tiny-sdxl, Version: vqcompress ")
    assert b"secret" not in (tmp_path / "one.png").read_bytes()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")  # diffusers' own way below
def test_loras_with_scales_are_those_of_diffusers(sdxl: Path, tmp_path: Path) -> None:
    paths = [lora(tiny_pipelines.sdxl(), ("unet",), tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    with_loras = vqcompress.generate(sdxl, PROMPT, steps=1, seeds=1, loras=[f"{paths[0]}:0.25", str(paths[1])])
    pipeline = DiffusionPipeline.from_pretrained(sdxl)
    for number, path in enumerate(paths):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{number}")
    pipeline.set_adapters(["a0", "a1"], [0.25, 1.0])
    expected = pipeline(PROMPT, num_inference_steps=1, generator=seeded(1), height=16, width=16).images[0]
    assert with_loras[0].tobytes() == expected.tobytes()


def test_a_text_pipeline_starts_from_an_image_as_diffusers_would(sdxl: Path, photo: Path, tmp_path: Path) -> None:
    run(sdxl, PROMPT, "--image", photo, "--strength", 0.5, "--steps", 2, "--guidance", 4, "-o", tmp_path / "one.png")
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(sdxl)
    with Image.open(photo) as image:
        options = {"image": image.convert("RGB"), "strength": 0.5, "guidance_scale": 4.0, "num_inference_steps": 4}
        expected = pipeline(PROMPT, generator=seeded(0), **options).images[0]
    with Image.open(tmp_path / "one.png") as written:
        assert written.tobytes() == expected.tobytes()


def test_a_large_image_is_made_as_large_as_the_model_draws() -> None:
    usual = ResolvedSampling(50, 5.0, 1024, 1024)
    assert fitting_size(Image.new("L", (4000, 3000)), usual, None, None) == (880, 1168)  # the same shape, less area
    assert fitting_size(Image.new("L", (640, 500)), usual, None, None) == (496, 640)
    assert fitting_size(Image.new("L", (640, 500)), usual, 512, None) == (512, 640)


def test_a_folder_gets_a_file_for_each_image(sdxl: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n\na bird\n")
    few = ("--prompt-file", tmp_path / "prompts.txt", "--steps", 1, "--seed", 5, "-o", tmp_path / "out")
    record = run(sdxl, PROMPT, *few)
    assert [(each["prompt"], each["seed"]) for each in record["images"]] == [(PROMPT, 5), ("a dog", 6), ("a bird", 7)]
    names = [Path(each["file"]).name for each in record["images"]]
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    alone = vqcompress.generate(sdxl, "a dog", steps=1, seeds=6)[0]
    with Image.open(tmp_path / "out" / names[1]) as written:
        assert written.tobytes() == alone.tobytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves its pipe open
def test_a_video_is_a_gif_or_an_mp4(tmp_path: Path) -> None:
    wan().save_pretrained(tmp_path / "wan")
    few = (tmp_path / "wan", PROMPT, "--steps", 1, "--height", 16, "--width", 16, "--frames", 5)
    run(*few, "--fps", 10, "-o", tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as clip:
        assert (clip.n_frames, clip.size, clip.info["duration"]) == (5, (16, 16), 100)
    assert "one video" in refusal(*few, "--images", 2, "-o", tmp_path / "two.gif")
    imageio = pytest.importorskip("imageio")
    pytest.importorskip("imageio_ffmpeg")
    run(*few, "-o", tmp_path / "clip.mp4")
    with imageio.get_reader(tmp_path / "clip.mp4") as reader:
        assert (reader.count_frames(), reader.get_meta_data()["fps"]) == (5, 16.0)
        assert reader.get_data(0).shape == (16, 16, 3)


def test_frames_have_other_names_too() -> None:
    assert draws_video(SanaVideoPipeline)  # its argument is `frames`
    assert not draws_video(StableDiffusionXLImg2ImgPipeline)


def test_what_a_pipeline_cannot_do_is_refused_before_it_draws(sdxl: Path, photo: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "one.png")
    assert "no number of frames" in refusal(sdxl, PROMPT, "--frames", 5, *out)
    assert "images, not videos" in refusal(sdxl, PROMPT, "-o", tmp_path / "clip.gif")
    assert "--fps" in refusal(sdxl, PROMPT, "--fps", 5, *out)
    assert "no effect" in refusal(sdxl, PROMPT, "--negative-prompt", "a dog", "--guidance", 1, *out)
    assert "no mask" in refusal(sdxl, PROMPT, "--image", photo, "--mask", photo, *out)
    tiny_pipelines.flux().save_pretrained(tmp_path / "flux")
    assert "no effect" in refusal(tmp_path / "flux", PROMPT, "--negative-prompt", "a dog", *out)
    tiny_pipelines.pixart().save_pretrained(tmp_path / "pixart")
    assert "text alone" in refusal(tmp_path / "pixart", PROMPT, "--image", photo, *out)
    tiny_pipelines.dit().save_pretrained(tmp_path / "dit")
    assert "no size" in refusal(tmp_path / "dit", "cat", "--height", 16, *out)
    style = lora(tiny_pipelines.flux(), ("transformer",), tmp_path / "flux.safetensors", 1)
    assert "flux.safetensors" in refusal(sdxl, PROMPT, "--lora", style, *out)
    assert not (tmp_path / "one.png").exists()


def test_an_edit_pipeline_asks_for_its_image(sdxl: Path) -> None:
    editing = StableDiffusionXLImg2ImgPipeline.from_pretrained(sdxl)
    with pytest.raises(RecipeError, match="works on an image"):
        vqcompress.generate(editing, PROMPT, steps=1)


def test_prompts_are_texts(sdxl: Path) -> None:
    for wrong in ([], [""], [3], ["a", "  "]):
        with pytest.raises(RecipeError, match="prompt"):
            vqcompress.generate(sdxl, wrong)
    with pytest.raises(RecipeError, match="as many seeds"):
        vqcompress.generate(sdxl, ["a", "b"], seeds=[1])


def test_a_prompt_that_is_cut_is_told(sdxl: Path, caplog: pytest.LogCaptureFixture) -> None:
    vqcompress.generate(sdxl, "cat " * 100, steps=1)
    assert "the rest is left out" in caplog.text
    caplog.clear()
    vqcompress.generate(sdxl, PROMPT, steps=1)
    assert not caplog.records


def test_an_image_that_no_pipeline_takes_is_unsupported(photo: Path) -> None:
    with pytest.raises(UnsupportedError, match="image-to-image"):
        vqcompress.generate(tiny_pipelines.pixart(), PROMPT, image=photo, steps=1)
