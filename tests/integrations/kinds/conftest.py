"""How a UNet, a DiT and a text encoder are made, run, trained and offloaded in the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from vqcompress.layers import vq_layers

KEPT = ("pos_embed.proj", "proj_out")


def _sd3(layers: int = 2) -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8, num_layers=layers, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
    ).eval()  # fmt: skip


def _t5(layers: int = 2) -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": layers, "num_heads": 4, "vocab_size": 100}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


def _call_sd3(model: nn.Module, dtype: torch.dtype, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(2, *shape, generator=generator).to(dtype) for shape in ((4, size, size), (5, 32)))
    pooled = torch.randn(2, 32, generator=generator).to(dtype)
    return model(sample, text, pooled, torch.tensor([3, 3])).sample


def _call_t5(model: nn.Module, dtype: torch.dtype, size: int) -> Tensor:
    return model(torch.arange(2 * size).reshape(2, size) % 100).last_hidden_state


@dataclass(frozen=True)
class Kind:
    """How to make a component of this kind and how to run it; ``file`` is what its weights are saved as."""

    make: Callable[..., nn.Module]
    call: Callable[[nn.Module, torch.dtype, int], Tensor]
    targets: list[str]
    file: str
    dtype_option: str

    def device_map(self, model: nn.Module) -> dict[str, str]:
        """The packed layers of a text encoder on disk, all blocks of a transformer."""
        if self.call is _call_t5:
            leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
            return {
                name: "disk" if hasattr(module, "spec") or name == "vq_shared" else "cpu"
                for name, module in leaves.items()
            }
        away = ("transformer_blocks", "vq_shared")
        return {name: "disk" if name in away else "cpu" for name, _ in model.named_children()}

    def run(self, model: Any, dtype: torch.dtype | None = None, size: int = 8) -> Tensor:
        with torch.no_grad():
            return self.call(model, dtype or model.dtype, size)


KINDS = {
    "DiT": Kind(_sd3, _call_sd3, ["to_q", "to_out.0"], "diffusion_pytorch_model", "torch_dtype"),
    "text encoder": Kind(_t5, _call_t5, ["q", "wo"], "model", "dtype"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """The DiT, then the text encoder."""
    return KINDS[request.param]


@pytest.fixture
def make_packed(kind: Kind, pack_component) -> Callable[..., Any]:
    """``make_packed(layers=2)``: a component with every layer packed but its first and last."""
    return lambda layers=2: pack_component(kind.make(layers=layers), KEPT)


@pytest.fixture
def packed(make_packed: Callable[..., Any]) -> Any:
    """One of them."""
    torch.manual_seed(0)
    return make_packed()


@pytest.fixture
def folder(packed: Any, tmp_path: Path) -> Path:
    """``packed``, saved."""
    packed.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def exact() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether all packed weights of two components are the same."""
    return _exact


def _exact(one: nn.Module, two: nn.Module) -> bool:
    a, b = vq_layers(one), vq_layers(two)
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[k].dense_weight(), b[k].dense_weight()) for k in a)
