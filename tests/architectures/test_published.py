"""The table of published models: sizes are the networks', every name leads somewhere, nothing is allocated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from vqcompress.architectures import ALIASES, open_pipeline
from vqcompress.architectures import opening as opening_module
from vqcompress.architectures.published import PUBLISHED, published, synonyms
from vqcompress.architectures.published_skeleton import published_skeleton
from vqcompress.embedded import EMBEDDED
from vqcompress.errors import ArchitectureError
from vqcompress.models.hub_pipelines import HUB_PIPELINES
from vqcompress.models.linfusion import LinearAttention, LinFusionUNet2DConditionModel
from vqcompress.models.presets import PRESETS, SYNONYMS

# The largest is counted by the test of its estimate; sizes that differ in their patches alone are counted once.
COUNTED = [n for n in PRESETS if n != "dit-moe-g-16e2a" and not n.endswith(("-4", "-8"))]


def test_presets_and_aliases_are_one_table() -> None:
    assert PUBLISHED.keys() == PRESETS.keys() | HUB_PIPELINES.keys()
    assert not PRESETS.keys() & HUB_PIPELINES.keys()
    assert {name for name, row in PUBLISHED.items() if row.hub} == ALIASES.keys() - SYNONYMS.keys() - EMBEDDED.keys()
    assert published("dit-moe-b") == ("dit-moe-b-8e2a", PUBLISHED["dit-moe-b-8e2a"])
    assert synonyms("dit-moe-b-8e2a") == ("dit-moe-b",)
    assert published("dit-moe-q") is None


@pytest.mark.parametrize("name", COUNTED)
def test_sizes(name: str) -> None:
    found = published_skeleton(name)
    architecture, shell = found.architecture, found.pipeline
    denoiser = getattr(shell, architecture.denoiser)
    assert sum(p.numel() for p in denoiser.parameters()) == PUBLISHED[name].parameters
    assert all(p.is_meta for p in denoiser.parameters())
    plans = architecture.layers(shell, architecture.denoiser)
    matrices = {n.removesuffix(".weight") for n, p in denoiser.named_parameters() if p.ndim > 1}
    assert {plan.name for plan in plans} == matrices
    packed = sum(torch.Size(plan.shape).numel() for plan in plans if plan.reason is None)
    assert packed > 0.8 * PUBLISHED[name].parameters


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit-moe-b", "vqcompress convert dit-moe-b-8e2a WEIGHTS"),
        ("mdt-v2", r"mdt_xl2_v2_ckpt\.pt"),
        ("sit-l-2", "no weights of sit-l-2 were published"),
    ],
)
def test_names_without_a_folder_say_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        open_pipeline(name)


def test_unknown_skeleton() -> None:
    with pytest.raises(ArchitectureError, match="vqcompress presets"):
        published_skeleton("sdxxl")


def test_linfusion_is_mounted_on_its_base(
    sdxl: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdxl.save_pretrained(tmp_path / "base")
    adapter = LinFusionUNet2DConditionModel.from_config(sdxl.unet.config)
    modules = [dict(entry) for entry in adapter.config["linfusion_modules"]]
    names = {entry["module_name"]: number for number, entry in enumerate(modules)}
    weights = {
        f"{number}.{rest}": tensor.contiguous()
        for module, number in names.items()
        for rest, tensor in adapter.get_submodule(module).state_dict().items()
    }
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "config.json").write_text(json.dumps({"modules_list": modules}))
    save_file(weights, tmp_path / "adapter" / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(opening_module, "cached_or_downloaded", lambda repo: tmp_path / "base")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(tmp_path / "adapter" / file))
    opened = open_pipeline("linfusion-sdxl")
    mounted = {name: part for name, part in opened.unet.named_modules() if isinstance(part, LinearAttention)}
    assert mounted.keys() == names.keys()
    name = next(iter(names))
    assert opened.unet.get_submodule(name).to_q.weight.equal(adapter.get_submodule(name).to_q.weight)
