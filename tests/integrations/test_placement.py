"""Where loaded tensors lie: images do not hang on the offset at which a file holds a dense weight."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from vqcompress.cache_line import CACHE_LINE, COPIED_BYTES, on_cache_line
from vqcompress.errors import CheckpointError
from vqcompress.integrations.diffusers_quantizer import gc_disabled, place
from vqcompress.layers import vq_layers

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def shifted(compressed_pipeline, tmp_path):
    """The UNet's folder, and a function that moves all tensors in its file by a number of bytes."""
    compressed_pipeline.unet.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)

    def shift(by: int):
        save_file(
            {key: t.clone() for key, t in tensors.items()},
            tmp_path / WEIGHTS,
            metadata={"format": "pt", "by": "-" * by},
        )
        return tmp_path

    return shift


def test_images_do_not_hang_on_offsets(shifted, compressed_pipeline, run_unet):
    expected = run_unet(compressed_pipeline.unet)
    begins = set()
    for by in range(0, CACHE_LINE, 24):
        folder = shifted(by)
        begins.add(int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little") % CACHE_LINE)
        unet = UNet2DConditionModel.from_pretrained(folder)
        packed = {id(p) for layer in vq_layers(unet).values() for n, p in layer.named_parameters() if n != "bias"}
        packed |= {id(book) for book in unet.vq_shared.parameters()}
        dense = [parameter for parameter in unet.parameters() if id(parameter) not in packed]
        assert all(parameter.data_ptr() % CACHE_LINE == 0 for parameter in dense)
        assert torch.equal(run_unet(unet), expected)
    assert len(begins) == 3


def test_only_what_is_small_and_begins_within_a_line_is_copied():
    memory = torch.zeros(COPIED_BYTES // 4 + 32)
    begin = next(i for i in range(16) if memory[i:].data_ptr() % CACHE_LINE == 0)
    for moved, values in ((False, memory[begin : begin + 8]), (True, memory[begin + 1 : begin + 9])):
        home = on_cache_line(values)
        assert (home.data_ptr() != values.data_ptr()) == moved
        assert torch.equal(home, values)
    large = memory[begin + 1 : begin + 2 + COPIED_BYTES // 4]
    assert on_cache_line(large).data_ptr() == large.data_ptr()


def test_parameters_stay_trainable_and_codes_do_not_become_so():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    place(model[0], "weight", torch.zeros(2))
    place(model[0], "running_mean", torch.full((2,), 3.0))
    assert model[0].weight.requires_grad
    assert torch.equal(model[0].running_mean, torch.full((2,), 3.0))
    assert "running_mean" not in dict(model[0].named_parameters())
    place(model[0], "weight", torch.zeros(2, dtype=torch.int8))
    assert not model[0].weight.requires_grad


def test_a_tensor_of_another_shape_is_refused(shifted):
    folder = shifted(0)
    tensors = load_file(folder / WEIGHTS)
    scale = next(key for key in tensors if key.endswith(".scale"))
    save_file({**tensors, scale: tensors[scale][:-1].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{WEIGHTS.split('/')[-1]}: {scale} is float16"):
        UNet2DConditionModel.from_pretrained(folder)


def test_no_two_layers_hold_one_parameter(shifted):
    unet = UNet2DConditionModel.from_pretrained(shifted(0))
    held = [
        parameter for module in unet.modules() for parameter in module._parameters.values() if parameter is not None
    ]
    assert len({id(parameter) for parameter in held}) == len(held)
    assert not any(parameter.is_meta for parameter in held)


def test_modules_that_stay_in_float32_do(shifted, monkeypatch, compressed_pipeline):
    monkeypatch.setattr(UNet2DConditionModel, "_keep_in_fp32_modules", ["conv_out"])
    unet = UNet2DConditionModel.from_pretrained(shifted(0), torch_dtype=torch.float16)
    assert unet.conv_out.weight.dtype == torch.float32
    assert torch.equal(unet.conv_out.weight, compressed_pipeline.unet.conv_out.weight.float())
    assert unet.conv_in.weight.dtype == torch.float16


def fail_while_the_collector_rests():
    with gc_disabled():
        assert not gc.isenabled()
        raise ZeroDivisionError


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was(on):
    was_on = gc.isenabled()
    try:
        gc.enable() if on else gc.disable()
        with pytest.raises(ZeroDivisionError):
            fail_while_the_collector_rests()
        assert gc.isenabled() == on
    finally:
        gc.enable() if was_on else gc.disable()
