"""Adapters on a packed DiT and a packed text encoder, and gradients through them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from vqcompress.errors import UnsupportedError


@pytest.mark.feature("gradient checkpointing")
def test_gradient_checkpointing_gives_the_same_gradient(kind, packed):
    enable = getattr(packed, "enable_gradient_checkpointing", None) or packed.gradient_checkpointing_enable
    learning = next(p for name, p in packed.named_parameters() if "embed" in name or "shared.weight" in name)
    learning.requires_grad_(True)
    packed.train()
    for module in packed.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gradients = []
    for step in (lambda: None, enable):
        step()
        learning.grad = None
        kind.call(packed, torch.float32, 8).square().sum().backward()
        gradients.append(learning.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.feature("training a LoRA")
def test_training_an_adapter_moves_it_and_nothing_else(kind, packed):
    packed.requires_grad_(False)
    packed.add_adapter(LoraConfig(r=2, target_modules=kind.targets))
    before = {name: p.detach().clone() for name, p in packed.named_parameters()}
    optimizer = torch.optim.SGD([p for p in packed.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = kind.call(packed, torch.float32, 8)[..., 0].square().mean()  # T5 normalizes its whole output
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, p in packed.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora" in name for name in moved)


@pytest.mark.feature("training under autocast, one-dimensional parameters in float32")
def test_training_as_recipes_do(kind, packed, exact):
    before = copy.deepcopy(packed)
    for parameter in packed.requires_grad_(False).parameters():
        if parameter.ndim == 1:  # scales among them
            parameter.data = parameter.data.float()
    assert exact(packed, before)
    packed.add_adapter(LoraConfig(r=2, target_modules=kind.targets, init_lora_weights=False))
    with torch.autocast("cpu", torch.bfloat16):
        output = kind.call(packed, torch.float32, 8)
    output[..., 0].float().square().mean().backward()
    gradients = [parameter.grad for parameter in packed.parameters() if parameter.requires_grad]
    assert len(gradients) > 3
    assert all(torch.isfinite(gradient).all() and gradient.abs().max() > 0 for gradient in gradients)


def _adapters(kind: Any, packed: Any) -> None:
    """Two adapters whose products are not zero."""
    for name in ("one", "two"):
        config = LoraConfig(r=2, target_modules=kind.targets, init_lora_weights=False)
        packed.add_adapter(config, adapter_name=name)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.feature("several LoRA adapters, switched and disabled without a trace")
def test_adapters_switch_and_leave_without_a_trace(kind, packed):
    bare = kind.run(packed)
    _adapters(kind, packed)
    choose, off = packed.set_adapter, getattr(packed, "disable_adapters", None) or packed.disable_lora
    seen = []
    for names in ("one", "two", ["one", "two"]):
        choose(names)
        seen.append(kind.run(packed))
    assert len({tensor.sum().item() for tensor in (bare, *seen)}) == 4
    off()
    assert torch.equal(kind.run(packed), bare)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.feature("`fuse_lora` is refused, with the alternative")
def test_fusing_an_adapter_is_refused_with_the_way_out(kind, packed):
    _adapters(kind, packed)
    before = kind.run(packed)
    adapted = next(m for name, m in packed.named_modules() if name.endswith(kind.targets[0]) and hasattr(m, "merge"))
    with pytest.raises(UnsupportedError, match="vqcompress dequantize"):
        adapted.merge()
    if hasattr(packed, "fuse_lora"):
        with pytest.raises(UnsupportedError, match="vqcompress dequantize"):
            packed.fuse_lora()
    assert torch.equal(kind.run(packed), before)


@pytest.mark.feature("fusing projections is refused, with the alternative", "DiT")
@pytest.mark.parametrize("kind", ["DiT"], indirect=True)
def test_fusing_projections_is_refused(packed):
    with pytest.raises(UnsupportedError, match="vqcompress dequantize"):
        packed.fuse_qkv_projections()
