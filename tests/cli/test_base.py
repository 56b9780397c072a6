"""`vqcompress quantize FILE --base MODEL`: a denoiser's own file, the rest from another pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tests.architectures import tiny_pipelines
from vqcompress.checkpoint import RECIPE_NAME, load
from vqcompress.cli.main import main
from vqcompress.layers import vq_layers
from vqcompress.recipe import Recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "flux"
    tiny_pipelines.flux().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def denoiser(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another transformer of the same configuration, by itself in a file."""
    transformer = tiny_pipelines.flux().transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.mul_(0.5)
    path = tmp_path_factory.mktemp("file") / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in transformer.state_dict().items()}, path)
    return path


def quantize(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


def test_the_rest_comes_from_the_base(denoiser: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = quantize(denoiser, "--base", base, "-o", out, "--method", "rtn", "--bits", "4", "--budget", "layer")
    assert result.exit_code == 0, result.output
    opened, original = load(out), DiffusionPipeline.from_pretrained(base)
    for part in ("text_encoder", "text_encoder_2", "vae"):
        before, after = (getattr(pipeline, part).state_dict() for pipeline in (original, opened))
        assert all(before[name].equal(after[name]) for name in before)
    name = "transformer_blocks.0.attn.to_q"
    half = 0.5 * original.transformer.get_parameter(f"{name}.weight")
    error = vq_layers(opened.transformer)[name].dense_weight() - half
    assert error.square().sum() < 0.05 * half.square().sum()
    assert Recipe.read(out / RECIPE_NAME).base == str(base)


def test_a_dry_run_takes_a_base_too(denoiser: Path, base: Path) -> None:
    result = quantize(denoiser, "--base", base, "--dry-run", "--method", "rtn")
    assert result.exit_code == 0, result.output
    assert "layers to quantize" in result.stdout


@pytest.mark.parametrize(
    ("model", "named", "says"),
    [
        ("folder", "folder", "is for a model that is a single .safetensors file"),
        ("sdxl", "folder", "is for a model that is a single .safetensors file"),
        ("file", "flux-dve", "base: unknown model 'flux-dve': did you mean flux-dev"),
        ("file", "nowhere/at/all", "base: nowhere/at/all: no such file or folder"),
    ],
)
def test_mistakes(denoiser: Path, base: Path, tmp_path: Path, model: str, named: str, says: str) -> None:
    paths = {"folder": str(base), "file": str(denoiser)}
    result = quantize(paths.get(model, model), "--base", paths.get(named, named), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
