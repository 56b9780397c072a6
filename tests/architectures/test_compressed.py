"""The main job on every family: quantize a folder, generate from the result, get back what was packed, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline

from vqcompress import compression
from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.checkpoint import read_layer_table
from vqcompress.cli.main import main
from vqcompress.layers import vq_layers
from vqcompress.sampling_config import SamplingConfig

# Their own default sizes are far above what a test can draw, and `generate` has no other.
LARGE_BY_DEFAULT = ("LuminaTextPipeline", "FluxPipeline", "WanPipeline", "HunyuanDiTPipeline")
VECTOR = {"method": "trellis", "settings": {"state_bits": 8}}
# A UNet's many convolutions take the trellis seconds, even here; the embedded model shows the two together.
SCALAR = {"method": "gptq"}
CALIBRATION = {"count": 1, "batch_size": 1}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[DiffusionPipeline]:
    """What `quantize` had in memory when it wrote the folder."""
    seen: list[DiffusionPipeline] = []
    save = compression.save_pipeline

    def keep(pipeline: DiffusionPipeline, *arguments: Any, **options: Any) -> Path:
        seen.append(pipeline)
        return save(pipeline, *arguments, **options)

    monkeypatch.setattr(compression, "save_pipeline", keep)
    return seen


def sizes(pipeline: DiffusionPipeline) -> dict[str, int]:
    if type(pipeline).__name__ not in LARGE_BY_DEFAULT:
        return {}
    side = 32 if type(pipeline).__name__ == "WanPipeline" else 16
    return {"height": side, "width": side}


def steps(pipeline: DiffusionPipeline) -> int:
    """The fewest steps: diffusers takes one step of PixArt-alpha for a distilled model, with another scheduler."""
    return 2 if type(pipeline).__name__ == "PixArtAlphaPipeline" else 1


def in_fresh_memory(pipeline: DiffusionPipeline) -> None:
    """Copy all weights: products round by where a mapped file's tensors happen to lie, on some processors."""
    for module in pipeline.components.values():
        for tensor in module.parameters() if isinstance(module, torch.nn.Module) else ():
            tensor.data = tensor.data.clone()


def latents(pipeline: DiffusionPipeline) -> torch.Tensor:
    in_fresh_memory(pipeline)
    family = architecture_of(pipeline)
    prompt = "7" if family.prompt_set == "imagenet" else "a red cat"
    small = SamplingConfig(steps(pipeline), **sizes(pipeline))
    return family.sample(pipeline, [prompt], seeds=[3], sampling=small, output_type="latent")


def test_quantize_then_generate(any_family: DiffusionPipeline, packed: list[DiffusionPipeline], tmp_path: Path) -> None:
    family = architecture_of(any_family)
    matrices = {
        name.removesuffix(".weight")
        for name, p in getattr(any_family, family.denoiser).named_parameters()
        if p.ndim > 1
    }
    any_family.save_pretrained(tmp_path / "model")
    count = steps(any_family)
    recipe = (SCALAR if family.denoiser == "unet" else VECTOR) | {
        "calibration": CALIBRATION | {"steps": count} | sizes(any_family)
    }
    prompt = "7" if family.prompt_set == "imagenet" else "a red cat"
    (tmp_path / "prompts.txt").write_text(prompt)
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": str(tmp_path / "model"), **recipe}))
    out = tmp_path / "out"
    run(
        "quantize",
        tmp_path / "model",
        "-o",
        out,
        "--recipe",
        tmp_path / "recipe.yaml",
        "--prompts",
        tmp_path / "prompts.txt",
    )
    opened = open_pipeline(out)
    config = json.loads((out / family.denoiser / "config.json").read_text())["quantization_config"]
    listed = [*config["layers"], *config.get("dense", {}), *config.get("kept", {})]
    assert len(listed) == len(set(listed))
    assert set(listed) == matrices
    assert all({**config.get("dense", {}), **config.get("kept", {})}.values())
    assert {record.layer for record in read_layer_table(out)} == matrices - config["kept"].keys()
    before, after = (vq_layers(getattr(each, family.denoiser)) for each in (packed[0], opened))
    assert before.keys() == after.keys() == config["layers"].keys()
    assert all(layer.dense_weight().equal(after[name].dense_weight()) for name, layer in before.items())
    assert torch.equal(latents(opened), latents(packed[0]))
    if not sizes(any_family):
        run("generate", out, prompt, "--steps", str(count), "-o", tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 0
