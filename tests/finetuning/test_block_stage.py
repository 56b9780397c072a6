"""Block by block: which modules are blocks, in which order, and that each one gets nearer to its dense self."""

from __future__ import annotations

import copy

import pytest
import torch

from vqcompress.denoiser_calls.blocks import execution_order, find_blocks
from vqcompress.finetuning import tune_blocks
from vqcompress.finetuning.block_stage import BLOCKS
from vqcompress.finetuning.learnable import tensors_of
from vqcompress.layers import swap, vq_layers
from vqcompress.run_store import RunStore


def test_the_blocks_of_a_unet_are_its_resnets_and_attentions(dense, quantized):
    blocks = find_blocks(dense, list(quantized))
    assert sorted(layer for layers in blocks.values() for layer in layers) == sorted(quantized)
    assert {"down_blocks.1.resnets.0", "down_blocks.1.attentions.0", "mid_block.attentions.0"} <= blocks.keys()
    assert "down_blocks.1" not in blocks
    assert blocks["down_blocks.0"] == [name for name in quantized if name.startswith("down_blocks.0.")]


def test_the_finest_blocks_hold_no_others_and_run_one_after_the_other(dense, distillation, quantized):
    blocks = find_blocks(dense, list(quantized), finest=True)
    assert sorted(layer for layers in blocks.values() for layer in layers) == sorted(quantized)
    assert {"mid_block.attentions.0.transformer_blocks.0", "mid_block.attentions.0.proj_out"} <= blocks.keys()
    assert not [name for name in blocks for other in blocks if other.startswith(name + ".")]
    kwargs = distillation.train.batch([0]).kwargs
    with torch.no_grad():
        order = execution_order(dense, list(blocks), lambda: dense(**kwargs))
    place = {name: index for index, name in enumerate(order)}
    stack = "mid_block.attentions.0"
    assert place[f"{stack}.proj_in"] < place[f"{stack}.transformer_blocks.0"] < place[f"{stack}.proj_out"]


def test_experts_stay_in_their_block():
    expert = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4), "fc2": torch.nn.Linear(4, 4)})
    block = torch.nn.ModuleDict({"attn": torch.nn.Linear(4, 4), "experts": torch.nn.ModuleList([expert, expert])})
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])})
    layers = ["blocks.0.attn", *(f"blocks.0.experts.{i}.{fc}" for i in range(2) for fc in ("fc1", "fc2"))]
    assert find_blocks(model, layers, finest=True) == {"blocks.0": layers}


def test_the_blocks_of_a_transformer_are_its_blocks():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=4
    )
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = find_blocks(model, layers)
    assert [name for name in blocks if "." in name and len(blocks[name]) > 1] == [
        f"transformer_blocks.{i}" for i in range(3)
    ]


def test_blocks_come_in_the_order_in_which_they_run(dense, distillation, quantized):
    names = list(find_blocks(dense, list(quantized)))
    kwargs = distillation.train.batch([0]).kwargs
    with torch.no_grad():
        order = execution_order(dense, names, lambda: dense(**kwargs))
    place = {name: index for index, name in enumerate(order)}
    assert place["down_blocks.1.resnets.0"] < place["down_blocks.1.attentions.0"] < place["mid_block.resnets.0"]
    assert place["mid_block.resnets.0"] < place["mid_block.attentions.0"] < place["mid_block.resnets.1"]


@pytest.fixture
def tuned(dense, quantized, context, tmp_path):
    """The denoiser with every block tuned, the run's folder, and what was reported of each block."""
    reported: list[str] = []
    with RunStore(tmp_path, {}) as store:
        tune_blocks(dense, quantized, context(store, progress=lambda *step: reported.append(step[3])))
    return dense, tmp_path, reported


def test_blocks_get_nearer_to_their_dense_selves(tuned, teacher, quantized, context, codes_of):
    denoiser, folder, reported = tuned
    changes = [float(words.split()[-1].rstrip("%")) for words in reported]
    assert len(changes) == len(find_blocks(teacher.unet, list(quantized)))
    assert max(changes) <= 0
    assert min(changes) < -5
    plain = copy.deepcopy(teacher.unet)
    swap(plain, quantized)
    assert vq_layers(denoiser).keys() == quantized.keys()
    old, new = codes_of(plain), codes_of(denoiser)
    assert all(torch.equal(old[name], new[name]) for name in old)
    again = copy.deepcopy(teacher.unet)  # a run that was stopped after all blocks takes them from disk
    stamps = {path: path.stat().st_mtime_ns for path in (folder / BLOCKS).iterdir()}
    with RunStore(folder, {}) as store:
        tune_blocks(again, quantized, context(store))
    assert {path: path.stat().st_mtime_ns for path in (folder / BLOCKS).iterdir()} == stamps
    expected = tensors_of(denoiser)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(again).items())
