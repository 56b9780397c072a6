"""Loading never holds a dense copy of packed weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import T5Config, T5EncoderModel

LOAD = """
import resource, sys
import torch, vqcompress, {library}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
kind = {library}.{name}
before = peak()
model = kind.from_pretrained(sys.argv[1])
print(peak() - before)
"""


def _unet() -> nn.Module:
    return UNet2DConditionModel(
        block_out_channels=(32, 1024), layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, mid_block_type=None,
    )  # fmt: skip


def _pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        sample_size=8, num_layers=1, num_attention_heads=16, attention_head_dim=72, cross_attention_dim=1152,
        caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip


def _t5() -> nn.Module:
    return T5EncoderModel(T5Config(d_model=2048, d_kv=64, d_ff=2560, num_layers=1, num_heads=32, vocab_size=100))


RESIDENT = """
import sys
import torch, vqcompress, diffusers
def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])
from diffusers import UNet2DConditionModel
from vqcompress import layers
before = anonymous()
model = UNet2DConditionModel.from_pretrained(sys.argv[1])
print(anonymous() - before + sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loaded_model_takes_little_more_than_its_bytes_on_disk(pack_component, tmp_path):
    """Its parameters, mapped from the file or copied, and all that loading has allocated beside them."""
    with torch.device("meta"):
        model = _unet()
    pack_component(model, ("conv_in", "conv_out"))
    _fill(model)
    model.save_pretrained(tmp_path)
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    result = subprocess.run([sys.executable, "-c", RESIDENT, tmp_path], capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) < 1.15 * on_disk


@pytest.mark.slow
@pytest.mark.feature("loading never holds a dense copy (peak memory)")
@pytest.mark.parametrize("kind", ["UNet", "DiT", "text encoder"])
def test_peak_memory_of_loading(kind: str, pack_component, tmp_path):
    make: Callable[[], nn.Module] = {"UNet": _unet, "DiT": _pixart, "text encoder": _t5}[kind]
    with torch.device("meta"):
        model = make()
    dense_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    pack_component(model, ("pos_embed.proj", "proj_out", "conv_in", "conv_out"))
    _fill(model)
    model.save_pretrained(tmp_path)
    library = "transformers" if kind == "text encoder" else "diffusers"
    code = LOAD.format(library=library, name=type(model).__name__)
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert dense_bytes > 100e6
    assert int(result.stdout.split()[-1]) < 0.5 * dense_bytes


def _fill(model: nn.Module) -> None:
    """Zeros for whatever is still on the meta device."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type == "meta":
            module, _, key = name.rpartition(".")
            value = torch.zeros(tensor.shape, dtype=tensor.dtype)
            owner = model.get_submodule(module)
            setattr(owner, key, nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value)
    if isinstance(model, T5EncoderModel):
        model.encoder.embed_tokens = model.shared
