"""Screening many tensors at once against the gate that asks one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import random_additive, random_scalar, random_trellis
from tests.fuzz.folders import with_column_scales_and_outliers
from vqcompress.formats.gate import tensor_problem
from vqcompress.formats.screening import Stored, not_cleared
from vqcompress.integrations.stored_tensors import PackedTensorError, StoredTensors
from vqcompress.quantized_weight import QuantizedWeight

SHAPES = ((16, 12), (24, 7), (8, 12), (12, 3, 3, 3))


def component(seed: int) -> dict[str, QuantizedWeight]:
    """Layers of every format, several of each kind of sizes, so that portions hold more than one."""
    made = {}
    for number, shape in enumerate(SHAPES * 3):
        each = {
            "outliers": lambda shape, seed: with_column_scales_and_outliers(shape, seed),
            "trellis": lambda shape, seed: random_trellis(shape, seed=seed, min_rate=2, rate_bits=1 + seed % 2),
            "additive": lambda shape, seed: random_additive(
                shape, seed=seed, dimension=4, code_bits=4, codebooks=2, min_rate=1, rate_bits=1
            ),
            "scalar": lambda shape, seed: random_scalar(shape, bits=3, seed=seed),
        }
        for name, make in each.items():
            if len(shape) == 2 or name != "outliers":
                made[f"blocks.{number}.{name}"] = make(shape, seed + number)
    return made


def tensors(layers: dict[str, QuantizedWeight]) -> dict[str, Stored]:
    return {
        f"{layer}.{name}": Stored(weight.spec, weight.shape, name, tensor)
        for layer, weight in layers.items()
        for name, tensor in weight.state_dict().items()
        if name != "codebooks"
    }


def damaged(tensor: Tensor, draw: random.Random) -> Tensor:
    """The tensor with one byte or two replaced, as a bad download would."""
    data = bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    place = draw.randrange((len(data) + 1) // 2) * 2
    data[place : place + 2] = draw.choice((b"\x00\x7c", b"\xff\xff", b"\x00\xfe", bytes(draw.randbytes(2))))
    raw = np.frombuffer(bytes(data[: tensor.numel() * tensor.element_size()]), np.uint8).copy()
    return torch.from_numpy(raw).view(tensor.dtype).view(tensor.shape)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_not_cleared_holds_all_that_the_gate_refuses(seed: int) -> None:
    draw, stored = random.Random(seed), tensors(component(10 * seed))
    assert list(not_cleared({k: s for k, s in stored.items() if "outlier" not in s.name})) == []
    for key in draw.sample(sorted(stored), len(stored) // 3):
        stored[key] = stored[key]._replace(tensor=damaged(stored[key].tensor, draw))
    refused = {key for key, (spec, shape, name, tensor) in stored.items() if tensor_problem(spec, shape, name, tensor)}
    assert len(refused) > 5
    assert refused <= set(not_cleared(stored))


def test_a_component_is_refused_by_its_damaged_tensor() -> None:
    layers = component(3)
    stored = StoredTensors({name: (weight.spec, weight.shape) for name, weight in layers.items()}, {})
    state = {key: found.tensor for key, found in tensors(layers).items()}
    stored.check_all(state)
    for key in [key for key, found in tensors(layers).items() if found.tensor.dtype == torch.float16]:
        wrong = state[key].clone()
        wrong.view(-1)[-1] = float("nan")
        with pytest.raises(PackedTensorError, match="not finite") as caught:
            stored.check_all({**state, key: wrong})
        assert caught.value.key == key
    with pytest.raises(PackedTensorError, match="the config says"):
        stored.check_all({**state, key: state[key].float()})
