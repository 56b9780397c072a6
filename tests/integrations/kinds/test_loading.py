"""A DiT and a text encoder load, save, cast and refuse as the UNet of the other files does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcompress.errors import CheckpointError
from vqcompress.layers import vq_layers


@pytest.mark.feature("`save_pretrained` writes the same format back")
def test_saving_again_writes_the_same(kind, packed, folder, tmp_path):
    type(packed).from_pretrained(folder, **{kind.dtype_option: torch.bfloat16}).save_pretrained(tmp_path / "again")
    one, two = (load_file(path / f"{kind.file}.safetensors") for path in (folder, tmp_path / "again"))
    assert one.keys() == two.keys()
    keys = [key for key in one if one[key].dtype == torch.int8 or key.endswith(("scale", "codebooks", "book"))]
    assert len(keys) > 20
    assert all(one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in keys)


@pytest.mark.feature("shards")
def test_shards(kind, packed, tmp_path):
    packed.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(kind.run(type(packed).from_pretrained(tmp_path)), kind.run(packed))


@pytest.mark.feature("`device_map`")
@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
def test_device_maps(device_map, kind, packed, folder):
    assert torch.equal(kind.run(type(packed).from_pretrained(folder, device_map=device_map)), kind.run(packed))


@pytest.mark.feature("disk offload")
def test_disk_offload(kind, packed, folder, tmp_path):
    device_map = kind.device_map(packed)
    loaded = type(packed).from_pretrained(folder, device_map=device_map, offload_folder=str(tmp_path / "disk"))
    assert next(iter(vq_layers(loaded).values())).weight.device.type in ("meta", "cpu")
    assert any(layer.weight.device.type == "meta" for layer in vq_layers(loaded).values())
    assert torch.equal(kind.run(loaded, torch.float32), kind.run(packed))


@pytest.mark.feature("`pipe.to(dtype)`")
def test_casting_keeps_packed_weights(kind, packed, folder, exact):
    loaded = type(packed).from_pretrained(folder).to(torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert exact(loaded, packed)
    assert torch.isfinite(kind.run(loaded)).all()


@pytest.mark.feature("`dequantize()`")
def test_dequantizing_in_memory(kind, packed, folder):
    dense = type(packed).from_pretrained(folder)
    dense = dense.dequantize() or dense
    assert not vq_layers(dense)
    torch.testing.assert_close(kind.run(dense), kind.run(packed))


@pytest.mark.feature("missing tensors are refused")
@pytest.mark.parametrize("lost", [".scale", ".weight", "vq_shared.book"])
def test_missing_tensors_are_refused(lost, kind, packed, folder):
    tensors = load_file(folder / f"{kind.file}.safetensors")
    del tensors[
        next(key for key in tensors if key.endswith(lost) and (tensors[key].dtype == torch.int8 or lost != ".weight"))
    ]
    save_file(tensors, folder / f"{kind.file}.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        type(packed).from_pretrained(folder)


@pytest.mark.feature("newer formats are refused")
@pytest.mark.parametrize(
    ("change", "message"), [({"format_version": 2}, "update vqcompress"), ({"surprise": 1}, "surprise")]
)
def test_newer_configs_are_refused(change, message, packed, folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        type(packed).from_pretrained(folder)
