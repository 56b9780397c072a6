"""The questions of docs/compatibility.md, asked of a pipeline that `vqcompress.quantize` made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

import vqcompress
from tests.architectures import tiny_pipelines as _tiny
from vqcompress.bundling import write_bundle
from vqcompress.layers import VQConv2d, VQLinear, vq_layers
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import settings_for
from vqcompress.quantizers.layer_error import relative_error

pytestmark = pytest.mark.slow

BITS = 2.5
CALIBRATION = {"count": 2, "steps": 2, "height": 16, "width": 16, "batch_size": 2}
RECIPE: dict[str, Any] = {"method": "trellis", "bits": BITS, "budget": "layer", "settings": {"state_bits": 8}}
COMPONENTS = ["unet", "text_encoder"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A dense tiny SDXL."""
    folder = tmp_path_factory.mktemp("source") / "tiny"
    _tiny.sdxl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compressed(source, tmp_path_factory) -> tuple[Path, Path]:
    """The compressed folder, and the folder with what calibration recorded."""
    root = tmp_path_factory.mktemp("compressed")
    options = {"calibration": CALIBRATION, "components": COMPONENTS, "calibration_folder": root / "kept"}
    return vqcompress.quantize(str(source), root / "vq", **RECIPE, **options), root / "kept"


@pytest.mark.today("bits")
def test_a_fractional_budget_counts_everything_that_is_stored(compressed):
    found = vqcompress.inspect(compressed[0])
    unet = found["components"]["unet"]
    assert BITS - 0.5 < unet["bits_per_weight"] <= BITS
    assert unet["packed_bytes"] == sum(row["bytes"] for row in unet["layers"]) + unet["shared_codebook_bytes"]


@pytest.mark.today("conv", "vector codes")
def test_convolutions_have_vector_codes_too(compressed):
    layers = vq_layers(vqcompress.load(compressed[0]).unet)
    kinds = {type(layer) for layer in layers.values()}
    assert kinds == {VQLinear, VQConv2d}
    assert {layer.spec.format for layer in layers.values()} == {"trellis"}


@pytest.mark.today("calibrated")
def test_codes_are_better_than_without_data_on_the_recorded_inputs(source, compressed):
    dense = DiffusionPipeline.from_pretrained(source, use_safetensors=True).unet
    packed = vq_layers(vqcompress.load(compressed[0]).unet)
    settings = settings_for("trellis", RECIPE["settings"])
    gains = []
    for path in sorted((compressed[1] / "unet.moments").glob("*.safetensors"))[:4]:
        name = next(layer for layer in packed if path.stem.endswith(layer) or layer in path.stem)
        moment = SecondMoment.from_state_dict(load_file(path))
        weight = dense.get_submodule(name).weight.detach()
        plain = vqcompress.quantize_weight(weight, None, method="trellis", bits=BITS, settings=settings).decode()
        errors = [relative_error(weight, decoded, moment) for decoded in (packed[name].dense_weight(), plain)]
        gains.append(errors[1] / errors[0])
    assert len(gains) == 4
    assert torch.tensor(gains).log().mean() > 0.1


@pytest.mark.today("text encoders", "save + from_pretrained", "single file")
def test_plain_diffusers_opens_folder_and_file(compressed, tmp_path):
    pipeline = StableDiffusionXLPipeline.from_pretrained(compressed[0], use_safetensors=True)
    assert all(vq_layers(getattr(pipeline, name)) for name in COMPONENTS)
    pipeline.save_pretrained(tmp_path / "again")
    single = StableDiffusionXLPipeline.from_single_file(str(write_bundle(compressed[0], tmp_path / "one.safetensors")))
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "again", use_safetensors=True)
    images = [
        each(
            "a cat", num_inference_steps=1, height=16, width=16, output_type="latent", generator=torch.manual_seed(0)
        ).images
        for each in (pipeline, single, again)
    ]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_the_card_is_valid_and_says_what_it_is(compressed):
    from huggingface_hub import ModelCard

    card = ModelCard.load(compressed[0] / "README.md")
    assert card.data.library_name == "diffusers"
    assert "vqcompress" in card.data.tags
    for sentence in ("import vqcompress", "bits a weight", "bytes on disk", "method: trellis"):
        assert sentence in card.text, sentence
