"""Tensor-parallel shards: cut like the trainer cuts, join, and get the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.conversion import convert_official
from vqcompress.models.flag_dit import LargeDiT
from vqcompress.models.presets import Preset
from vqcompress.models.shards import join_shards, read_shards, shard_files

CONFIG = {"dim": 48, "n_layers": 1, "n_heads": 4, "multiple_of": 16, "num_classes": 10, "qk_norm": True}
BY_ROWS = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "adaLN_modulation.1.weight")
BY_COLUMNS = ("wo.weight", "w2.weight", "embedding_table.weight")


def cut(weights: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in weights.items():
        if name.endswith((*BY_ROWS, "adaLN_modulation.1.bias")):
            pieces = tensor.chunk(count, 0)
        elif name.endswith(BY_COLUMNS):
            pieces = tensor.chunk(count, 1)
        else:
            pieces = [tensor] * count
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece.contiguous()
    return shards


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return LargeDiT(**CONFIG).state_dict()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_cut_and_joined_is_the_same(weights: dict[str, Tensor], count: int) -> None:
    joined = join_shards(cut(weights, count), {name: t.shape for name, t in weights.items()})
    assert joined.keys() == weights.keys()
    assert all(joined[name].equal(tensor) for name, tensor in weights.items())
    from_official("large_dit", CONFIG, joined)


def test_folder_prefers_averaged_weights(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for rank, shard in enumerate(cut(weights, 2)):
        save_file(shard, tmp_path / f"consolidated_ema.0{rank}-of-02.safetensors")
        save_file(
            {name: tensor + 1 for name, tensor in shard.items()}, tmp_path / f"consolidated.0{rank}-of-02.safetensors"
        )
    joined = read_shards(tmp_path, {name: t.shape for name, t in weights.items()}, load_file)
    assert all(joined[name].equal(tensor) for name, tensor in weights.items())


def test_sharded_folder_converts(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "official").mkdir()
    for rank, shard in enumerate(cut(weights, 2)):
        torch.save(shard, tmp_path / "official" / f"consolidated.0{rank}-of-02.pth")
    folder = convert_official(Preset("large_dit", CONFIG), tmp_path / "official", tmp_path / "large-dit")
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(stored[name].equal(tensor) for name, tensor in weights.items())


def test_missing_shard_and_misfit_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "consolidated.00-of-02.pth").touch()
    with pytest.raises(ArchitectureError, match=r"has shards \[0\]"):
        shard_files(tmp_path)
    shards, shapes = cut(weights, 2), {name: t.shape for name, t in weights.items()}
    shapes["layers.0.attention.wq.weight"] = torch.Size([48, 50])
    with pytest.raises(ArchitectureError, match=r"pieces of layers\.0\.attention\.wq\.weight"):
        join_shards(shards, shapes)
    del shards[1]["final_layer.linear.bias"]
    with pytest.raises(ArchitectureError, match=r"not in every shard: final_layer\.linear\.bias"):
        join_shards(shards, shapes)
