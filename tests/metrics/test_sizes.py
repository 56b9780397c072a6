import json

import pytest
import torch
from safetensors.torch import save_file

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, ScalarSpec, spec_to_dict
from vqcompress.matrix_view import stored_shape
from vqcompress.metrics import folder_bytes, layer_bits, stored_bits, weight_bytes

SHAPES = {"down.conv": (8, 4, 3, 3), "mid.linear": (16, 16)}
SPECS = {
    "down.conv": ScalarSpec(bits=4, group_size=36),
    "mid.linear": AdditiveSpec(
        dimension=8, code_bits=8, codebooks=1, min_rate=1, rate_bits=0, codebook="small", row_scales=True, code_bytes=32
    ),
}


def matrix(name: str) -> tuple[int, int]:
    rows, *rest = SHAPES[name]
    return rows, int(torch.tensor(rest).prod())


def write_component(folder, *, files: int = 1):
    tensors = {"vq_shared.small": torch.zeros(1, 256, 8, dtype=torch.float16), "down.conv.bias": torch.zeros(8)}
    for name, spec in SPECS.items():
        for key, (shape, dtype) in spec.tensor_shapes(*matrix(name)).items():
            shape = stored_shape(len(SHAPES[name]), shape) if key == "weight" else shape
            tensors[f"{name}.{key}"] = torch.zeros(shape, dtype=dtype)
    folder.mkdir()
    keys = sorted(tensors)
    for part in range(files):
        save_file({key: tensors[key] for key in keys[part::files]}, folder / f"model-{part}.safetensors")
    layers = {name: {**spec_to_dict(spec), "shape": list(SHAPES[name])} for name, spec in SPECS.items()}
    config = {"quant_method": "vqcompress", "format_version": 1, "layers": layers, "shared": {"small": [1, 256, 8]}}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_bits_count_everything_the_layers_decode_from(tmp_path, files):
    bits = stored_bits(write_component(tmp_path / "unet", files=files))
    scalar = 36 * 4 + 1 * 8 * 2 + 1 * 4  # codes, one group's scales, one group's zeros
    vector = 32 + 16 * 2  # codes, row scales
    assert bits["quantized_bytes"] == scalar + vector + 256 * 8 * 2
    assert bits["quantized_weights"] == 8 * 36 + 16 * 16
    assert bits["bits_per_weight"] == pytest.approx(8 * bits["quantized_bytes"] / bits["quantized_weights"])


def test_layer_bits_leave_shared_codebooks_out(tmp_path):
    bits = layer_bits(write_component(tmp_path / "unet"))
    assert bits == pytest.approx({"down.conv": 8 * 164 / 288, "mid.linear": 8 * 64 / 256})


def test_bytes_are_those_on_disk(tmp_path):
    unet = write_component(tmp_path / "unet", files=2)
    on_disk = sum(path.stat().st_size for path in unet.glob("*.safetensors"))
    assert weight_bytes(unet) == on_disk
    assert folder_bytes(tmp_path) == on_disk + (unet / "config.json").stat().st_size


def test_a_second_precision_is_not_counted_twice(tmp_path):
    save_file({"a": torch.zeros(8)}, tmp_path / "model.safetensors")
    alone = weight_bytes(tmp_path)
    save_file({"a": torch.zeros(8).half()}, tmp_path / "model.fp16.safetensors")
    assert weight_bytes(tmp_path) == alone


def test_folders_that_cannot_be_counted_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no safetensors file"):
        weight_bytes(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no layers quantized"):
        stored_bits(tmp_path)
