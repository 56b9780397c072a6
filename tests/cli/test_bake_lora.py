"""`vqcompress bake-lora`: the same network as with the LoRA active, written dense or packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.architectures import tiny_pipelines
from vqcompress.architectures.lora_baking import ScaledLora
from vqcompress.cli.main import main
from vqcompress.layers import vq_layers

TARGETS = {"unet": ["to_q", "conv1"], "text_encoder": ["q_proj"], "transformer": ["to_q", "to_out.0"]}


def lora(pipeline: Any, parts: tuple[str, ...], path: Path, seed: int) -> Path:
    """A LoRA file for ``parts`` of the pipeline, as trainers write them."""
    state, generator = {}, torch.Generator().manual_seed(seed)
    for part in parts:
        network = getattr(pipeline, part)
        network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS[part], init_lora_weights=False))
        for key, value in get_peft_model_state_dict(network, save_embedding_layers=False).items():
            state[f"{part}.{key}"] = 0.1 * torch.randn(value.shape, generator=generator)
    save_file(state, path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["bake-lora", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["bake-lora", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    last = result.output.strip().splitlines()[-1]  # below diffusers' progress bars
    assert last.startswith("vqcompress: ")
    return last


@pytest.fixture(params=["sdxl", "flux"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model's folder and two LoRAs for it."""
    make = tiny_pipelines.TINY[request.param]
    make().save_pretrained(tmp_path / "model")
    parts = ("unet", "text_encoder") if request.param == "sdxl" else ("transformer", "text_encoder")
    one, two = (lora(make(), parts, tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    return tmp_path / "model", one, two


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_the_same_as_active_adapters(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, one, two = case
    assert "2 LoRAs" in run(model, f"{one}:0.5", two, "-o", tmp_path / "out", "--dtype", "float32")
    baked, active = (DiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "out", model))
    active.load_lora_weights(str(one.parent), weight_name=one.name, adapter_name="one")
    active.load_lora_weights(str(two.parent), weight_name=two.name, adapter_name="two")
    active.set_adapters(["one", "two"], [0.5, 1.0])
    assert all("_name_or_path" not in path.read_text() for path in (tmp_path / "out").rglob("*.json"))
    options = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent"}
    drawn = [
        pipeline("a", generator=torch.Generator().manual_seed(0), **options).images for pipeline in (baked, active)
    ]
    torch.testing.assert_close(*drawn, rtol=1e-3, atol=1e-4)
    plain = DiffusionPipeline.from_pretrained(model)("a", generator=torch.Generator().manual_seed(0), **options).images
    assert not torch.allclose(drawn[0], plain, atol=1e-3)


def test_baked_and_quantized_in_one_command(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, one, _ = case
    run(model, one, "-o", tmp_path / "dense", "--dtype", "float32")
    assert "4 bits" in run(model, one, "-o", tmp_path / "packed", "--bits", 4, "--method", "rtn")
    dense, packed = (DiffusionPipeline.from_pretrained(tmp_path / name) for name in ("dense", "packed"))
    part = "unet" if hasattr(dense, "unet") else "transformer"
    layers = vq_layers(getattr(packed, part))
    assert layers
    for name, layer in layers.items():
        weight = getattr(dense, part).get_submodule(name).weight.detach()
        assert float((layer.dense_weight() - weight).norm() / weight.norm()) < 0.2, name


def test_mistakes_are_one_line(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, one, _ = case
    out = tmp_path / "out"
    assert "a scale, such as" in refusal(model, f"{one}:strong", "-o", out)
    assert "there is no file" in refusal(model, tmp_path / "no.safetensors", "-o", out)
    save_file({"other.thing": torch.zeros(2, 2)}, tmp_path / "not.safetensors")
    refusal(model, tmp_path / "not.safetensors", "-o", out)
    (tmp_path / "old.bin").write_bytes(b"x")
    assert "no .safetensors file" in refusal(model, tmp_path / "old.bin", "-o", out)
    assert "--bits" in refusal(model, one, "-o", out, "--method", "rtn")
    assert not out.exists()


def test_a_lora_for_another_model_is_refused(tmp_path: Path) -> None:
    tiny_pipelines.sd15().save_pretrained(tmp_path / "model")
    path = lora(tiny_pipelines.sdxl(), ("unet",), tmp_path / "sdxl.safetensors", 1)
    refusal(tmp_path / "model", path, "-o", tmp_path / "out")


def test_pixart_has_no_loader(tmp_path: Path) -> None:
    tiny_pipelines.pixart().save_pretrained(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "no LoRA loader for a PixArtAlphaPipeline" in refusal(
        tmp_path / "model", tmp_path / "x.safetensors", "-o", tmp_path / "o"
    )


def test_paths_may_have_colons(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert ScaledLora.parse(str(tmp_path / "a:b")) == ScaledLora(str(tmp_path / "a:b"))
    assert ScaledLora.parse(f"{tmp_path / 'a:b'}:0.5") == ScaledLora(str(tmp_path / "a:b"), 0.5)
    assert ScaledLora.parse("owner/name") == ScaledLora("owner/name")
