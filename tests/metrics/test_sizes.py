import pytest
import torch
from safetensors.torch import save_file

from vqcompress.errors import CheckpointError
from vqcompress.metrics import pipeline_bytes, weight_bytes


def write_pipeline(folder, *, shards: int = 1):
    unet = folder / "unet"
    unet.mkdir(parents=True)
    for part in range(shards):
        save_file({f"w{part}": torch.zeros(64)}, unet / f"model-{part + 1:05}-of-{shards:05}.safetensors")
    (unet / "config.json").write_text("{}")
    (folder / "model_index.json").write_text("{}")
    return unet


@pytest.mark.parametrize("shards", [1, 3])
def test_bytes_are_those_on_disk(tmp_path, shards):
    unet = write_pipeline(tmp_path, shards=shards)
    on_disk = sum(path.stat().st_size for path in unet.glob("*.safetensors"))
    assert on_disk > shards * 256
    assert weight_bytes(unet) == on_disk
    assert pipeline_bytes(tmp_path) == on_disk + 4


def test_what_is_not_read_is_not_counted(tmp_path):
    unet = write_pipeline(tmp_path)
    needed, alone = pipeline_bytes(tmp_path), weight_bytes(unet)
    save_file({"a": torch.zeros(8).half()}, unet / "model.fp16.safetensors")
    (unet / "model.onnx").write_bytes(b"x" * 99)
    (tmp_path / "picture.png").write_bytes(b"x" * 99)
    assert (pipeline_bytes(tmp_path), weight_bytes(unet)) == (needed, alone)


def test_a_lone_half_precision_file_counts(tmp_path):
    save_file({"a": torch.zeros(8).half()}, tmp_path / "model.fp16.safetensors")
    assert weight_bytes(tmp_path) == (tmp_path / "model.fp16.safetensors").stat().st_size


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no safetensors file"):
        weight_bytes(tmp_path)
