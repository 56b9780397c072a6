"""Text encoders load and save through transformers alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import vqcompress  # noqa: F401
from vqcompress.errors import CheckpointError
from vqcompress.layers import swap, vq_layers

IDS = torch.arange(8)[None]
LEVEL = "text_model."  # of names in CLIP's text model, until transformers 5.6


def _clip(kind):
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"vocab_size": 100, "max_position_embeddings": 16, "projection_dim": 24}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return kind(CLIPTextConfig(**config, **sizes, **tokens))


def _t5():
    return T5EncoderModel(
        T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, feed_forward_proj="gated-gelu")
    )


MODELS = {
    "clip": lambda: _clip(CLIPTextModel),
    "clip_projection": lambda: _clip(CLIPTextModelWithProjection),
    "t5": _t5,
}


@pytest.fixture(params=MODELS)
def packed(request, pack_component):
    """A text encoder with every Linear packed."""
    torch.manual_seed(0)
    return pack_component(MODELS[request.param]().eval())


def _run(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).last_hidden_state


@pytest.mark.feature("float32, float16, bfloat16", "text encoder")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loaded_equals_saved(dtype, packed, tmp_path):
    packed.save_pretrained(tmp_path)
    loaded = type(packed).from_pretrained(tmp_path, dtype=dtype)
    for name, layer in vq_layers(packed).items():
        assert torch.equal(vq_layers(loaded)[name].dense_weight(), layer.dense_weight()), name
    if dtype == torch.float32:
        assert torch.equal(_run(loaded), _run(packed))
    assert torch.isfinite(_run(loaded)).all()
    assert loaded.dtype == dtype
    frozen = [p for layer in vq_layers(loaded).values() for n, p in layer.named_parameters() if n != "bias"]
    assert not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.feature("`save_pretrained` writes the same format back", "text encoder")
def test_saving_again_writes_the_same(packed, tmp_path):
    packed.save_pretrained(tmp_path / "one")
    type(packed).from_pretrained(tmp_path / "one", dtype=torch.bfloat16).save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    keys = [key for key in one if one[key].dtype == torch.int8 or key.endswith(("scale", "codebooks", "book"))]
    assert len(keys) > 20
    assert all(one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in keys)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_activations_of_t5_stay_floating(pack_component):
    # T5 casts activations to `wo.weight.dtype` unless that is torch.int8.
    torch.manual_seed(0)
    dense = _t5().eval()
    packed = pack_component(dense)
    weights = {f"{name}.weight": layer.dense_weight() for name, layer in vq_layers(packed).items()}
    weight_sharing_copy = _t5().eval()
    weight_sharing_copy.load_state_dict({**dict(packed.state_dict()), **weights}, strict=False)
    torch.testing.assert_close(_run(packed), _run(weight_sharing_copy))


@pytest.mark.feature("missing tensors are refused", "text encoder")
def test_missing_tensors_are_refused(packed, tmp_path):
    packed.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in tensors if key.endswith(".scale"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        type(packed).from_pretrained(tmp_path)


def test_names_of_older_transformers_are_understood(pack_component, tmp_path):
    torch.manual_seed(0)
    packed = pack_component(_clip(CLIPTextModel).eval())
    packed.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    layers = {name.removeprefix(LEVEL): entry for name, entry in config["quantization_config"]["layers"].items()}
    config["quantization_config"]["layers"] = {f"{LEVEL}{name}": entry for name, entry in layers.items()}
    path.write_text(json.dumps(config))
    state = {key.removeprefix(LEVEL): tensor for key, tensor in packed.state_dict().items()}
    tensors = {f"{LEVEL}{key}" if "vq_" not in key else key: tensor for key, tensor in state.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(_run(CLIPTextModel.from_pretrained(tmp_path)), _run(packed))


@pytest.mark.feature("disk offload", "text encoder")
def test_disk_offload(packed, tmp_path):
    packed.save_pretrained(tmp_path / "model")
    leaves = {name: module for name, module in packed.named_modules() if not list(module.children())}
    away = {name for name in leaves if name in vq_layers(packed)} | {"vq_shared"}
    device_map = {name: "disk" if name in away else "cpu" for name in leaves}
    loaded = type(packed).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    assert torch.equal(_run(loaded), _run(packed))


def test_shared_codebooks_may_be_absent(tmp_path, random_weight):
    torch.manual_seed(0)
    model = _clip(CLIPTextModel).eval()
    name = next(name for name, _ in model.named_modules() if name.endswith("encoder.layers.0.mlp.fc1"))
    swap(model, {name: random_weight("trellis", (64, 32))})
    model.save_pretrained(tmp_path)
    assert set(vq_layers(CLIPTextModel.from_pretrained(tmp_path))) == {name}
