"""Whole pipelines: a DiT's as well as a UNet's, loaded, offloaded by component, quantized while loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline, PipelineQuantizationConfig

from tests.architectures import tiny_pipelines as _tiny
from vqcompress.checkpoint import inspect, save_pipeline
from vqcompress.cli.main import main
from vqcompress.layers import make_dense, vq_layers


def picture(pipeline) -> np.ndarray:
    """What a class-conditional pipeline draws from one seed."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "generator": torch.manual_seed(0), "output_type": "np"}
    return pipeline([7], **options).images


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A compressed DiT pipeline in a folder, and what it drew before it was saved."""
    pipeline = _tiny.dit()
    pipeline.transformer.eval()  # it drops labels while it trains
    plans = [name for name, _ in pipeline.transformer.named_modules() if name.startswith("transformer_blocks.")]
    from vqcompress.layers import swap
    from vqcompress.matrix_view import is_quantizable
    from vqcompress.quantizers import quantize_weight

    layers = {name: pipeline.transformer.get_submodule(name) for name in plans}
    weights = {name: layer.weight.detach() for name, layer in layers.items() if is_quantizable(layer)}
    swap(pipeline.transformer, {name: quantize_weight(w, method="rtn", bits=4) for name, w in weights.items()})
    folder = save_pipeline(pipeline, tmp_path_factory.mktemp("dit") / "vq", recipe={"model": "tiny"})
    return folder, picture(pipeline)


@pytest.mark.feature("`DiffusionPipeline.from_pretrained`, bit for bit", "DiT")
def test_a_dit_pipeline_comes_back_bit_for_bit(dit):
    folder, drawn = dit
    loaded = DiffusionPipeline.from_pretrained(folder)
    assert len(vq_layers(loaded.transformer)) > 10
    assert np.array_equal(picture(loaded), drawn)


@pytest.mark.feature("model CPU offload", "DiT")
def test_a_dit_offloaded_by_component(dit):
    pipeline = DiffusionPipeline.from_pretrained(dit[0])
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(picture(pipeline), dit[1])


@pytest.mark.feature("model CPU offload", "UNet", "text encoder")
def test_offloaded_by_component(compressed_pipeline, draw):
    expected = draw(compressed_pipeline)
    compressed_pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(draw(compressed_pipeline), expected)


@pytest.mark.feature("`modules_to_not_convert`", "DiT")
@pytest.mark.feature("`PipelineQuantizationConfig`, data-free while loading", "DiT")
def test_a_transformer_is_packed_while_loading(tmp_path):
    _tiny.dit().save_pretrained(tmp_path / "dense")
    config = PipelineQuantizationConfig(
        quant_backend="vqcompress",
        quant_kwargs={"bits": 4, "method": "rtn", "modules_to_not_convert": ["attn1.to_q"]},
        components_to_quantize=["transformer"],
    )
    packed = DiffusionPipeline.from_pretrained(tmp_path / "dense", quantization_config=config).transformer
    assert len(vq_layers(packed)) > 4
    assert not [name for name in vq_layers(packed) if "attn1.to_q" in name or name in ("pos_embed.proj", "proj_out")]
    assert any("attn1.to_k" in name for name in vq_layers(packed))
    packed.save_pretrained(tmp_path / "packed")
    again = type(packed).from_pretrained(tmp_path / "packed")
    assert all(torch.equal(vq_layers(again)[name].weight, layer.weight) for name, layer in vq_layers(packed).items())


@pytest.mark.feature("smaller in memory", "UNet", "text encoder")
def test_memory_footprint(compressed_pipeline):
    assert _shrunk(compressed_pipeline.unet) < 0.6
    assert _shrunk(compressed_pipeline.text_encoder) < 0.95  # mostly its embeddings, this small


@pytest.mark.feature("smaller in memory", "DiT")
def test_memory_footprint_of_a_transformer(dit):
    assert _shrunk(DiffusionPipeline.from_pretrained(dit[0]).transformer) < 0.7


def _shrunk(component) -> float:
    """Bytes in memory over those of the dense component, which it becomes."""
    before = component.get_memory_footprint()
    make_dense(component)
    return before / component.get_memory_footprint()


def test_a_t5_is_calibrated_with_the_transformer_it_feeds(tmp_path):
    """``--components``; only the transformer is compressed when nobody asks for more."""
    _tiny.pixart().save_pretrained(tmp_path / "dense")
    options = ["--method", "gptq", "--bits", "4", "--count", "2", "--steps", "2", "--json"]
    for name, asked in (("both", ["--components", "transformer,text_encoder"]), ("one", [])):
        arguments = ["quantize", str(tmp_path / "dense"), "-o", str(tmp_path / name), *options, *asked]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert inspect(tmp_path / "both")["components"].keys() == {"transformer", "text_encoder"}
    assert inspect(tmp_path / "one")["components"].keys() == {"transformer"}
    records = json.loads((tmp_path / "both" / "vqcompress_layers.json").read_text())
    rows = {record["component"]: record["rows"] for record in records}
    assert rows["text_encoder"]
    assert rows["transformer"]
    card = (tmp_path / "both" / "README.md").read_text()
    assert "SHA-256" in card
    assert "| text_encoder |" in card
