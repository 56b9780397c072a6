"""Dense tensors take 16 bits on disk where that loses nothing."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcompress.storage_dtype import narrow_folder, narrowest_dtype

THIRD = torch.tensor([1 / 3])


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 2.0**15), (torch.bfloat16, 2.0**20)])
def test_the_type_that_the_original_had_comes_back(tmp_path, dtype, large):
    tensors = {
        "weight": THIRD.to(dtype).float(),
        "large": torch.tensor([large]),
        "codes": torch.tensor([3], dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    narrow_folder(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert (stored["weight"].dtype, stored["codes"].dtype) == (dtype, torch.int8)
    assert all(torch.equal(stored[name].float(), tensor.float()) for name, tensor in tensors.items())


def test_nothing_is_lost_where_no_16_bit_type_holds_all(tmp_path):
    tensors = {"half": THIRD.half().float(), "brain": torch.tensor([2.0**20])}
    save_file(tensors, tmp_path / "model.safetensors")
    narrow_folder(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_the_narrowest_type_that_holds_all():
    assert narrowest_dtype([THIRD]) == torch.float32
    assert narrowest_dtype([torch.tensor([2.0**20])]) == torch.bfloat16
