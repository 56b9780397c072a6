"""Loading never holds a dense copy of packed weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel

LOAD = """
import resource, sys
import torch, vqcompress
from diffusers import UNet2DConditionModel
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
unet = UNet2DConditionModel.from_pretrained(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.feature("loading never holds a dense copy (peak memory)", "UNet")
def test_peak_memory_of_loading(pack_component, tmp_path):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 1024),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type=None,
        )
    dense_bytes = 4 * sum(parameter.numel() for parameter in unet.parameters())
    pack_component(unet)
    dense = [name for name, parameter in unet.named_parameters() if parameter.device.type == "meta"]
    for name in dense:
        module, _, key = name.rpartition(".")
        value = torch.zeros(unet.get_parameter(name).shape)
        setattr(unet.get_submodule(module), key, torch.nn.Parameter(value))
    unet.save_pretrained(tmp_path)
    result = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, check=True)
    assert dense_bytes > 150e6
    assert int(result.stdout.split()[-1]) < 0.5 * dense_bytes
