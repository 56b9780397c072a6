"""Networks within their files' size are built, larger ones are refused as they are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from vqcompress.errors import CheckpointError
from vqcompress.network_size import SPARE_ELEMENTS, NetworkSize, at_most

VOCABULARY, WIDTH = 262_144, 64  # 17 million numbers, four times what is spared, and nearly all of the network


def tied_network(layers: int = 1) -> nn.Module:
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


def test_a_head_that_is_tied_to_a_large_embedding_counts_once() -> None:
    """A file holds such an embedding once, the network makes it twice and then ties it, as Gemma 3 270M's."""
    with torch.device("meta"):
        found = {name: tensor.shape for name, tensor in tied_network().named_parameters()}
        numbers = [shape.numel() for shape in found.values()]
        with at_most(NetworkSize(len(numbers), sum(numbers), VOCABULARY), "config.json"):
            tied_network()


def test_a_network_of_more_weights_is_refused() -> None:
    size = NetworkSize(8, VOCABULARY * WIDTH // 2 - SPARE_ELEMENTS, VOCABULARY)
    with torch.device("meta"), at_most(size, "config.json"), pytest.raises(CheckpointError, match="of more weights"):
        tied_network()


def test_replacing_a_tensor_again_and_again_counts_the_last_one() -> None:
    module = nn.Linear(8, 8, bias=False)
    with at_most(NetworkSize(1, 64, 8), "config.json"):
        for _ in range(2000):
            module.weight = nn.Parameter(torch.empty(8, 4096, device="meta"))
        with pytest.raises(CheckpointError, match="of more weights"):
            module.weight = nn.Parameter(torch.empty(8, 1 << 20, device="meta"))
