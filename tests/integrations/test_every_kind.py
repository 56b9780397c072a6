"""What the other files show for a UNet, for a DiT and a text encoder too: offloading, casting, copying, training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers import SD3Transformer2DModel
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting, group_offloading
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import T5Config, T5EncoderModel

from vqcompress.errors import CheckpointError, UnsupportedError
from vqcompress.layers import vq_layers

KEPT = ("pos_embed.proj", "proj_out")
NEEDS_NO_ACCELERATOR = pytest.mark.skipif(
    not hasattr(group_offloading, "TorchDeviceBackend") and torch.accelerator.current_accelerator() is None,
    reason="this diffusers offloads groups, of any model, only on machines with an accelerator",
)


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
def packed(kind: Kind, pack_component) -> Any:
    """A component with every layer packed but its first and last."""
    torch.manual_seed(0)
    return pack_component(kind.make(), KEPT)


@pytest.fixture
def folder(packed: Any, tmp_path: Path) -> Path:
    """``packed``, saved."""
    packed.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def exact(one: nn.Module, two: nn.Module) -> bool:
    """Whether all packed weights are the same."""
    a, b = vq_layers(one), vq_layers(two)
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[k].dense_weight(), b[k].dense_weight()) for k in a)


@pytest.mark.feature("`save_pretrained` writes the same format back")
def test_saving_again_writes_the_same(kind, packed, folder, tmp_path):
    type(packed).from_pretrained(folder, **{kind.dtype_option: torch.bfloat16}).save_pretrained(tmp_path / "again")
    one, two = (load_file(path / f"{kind.file}.safetensors") for path in (folder, tmp_path / "again"))
    assert one.keys() == two.keys()
    keys = [key for key in one if one[key].dtype == torch.int8 or key.endswith(("scale", "codebooks", "book"))]
    assert len(keys) > 20
    assert all(one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in keys)


@pytest.mark.feature("shards")
def test_shards(kind, packed, tmp_path):
    packed.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(kind.run(type(packed).from_pretrained(tmp_path)), kind.run(packed))


@pytest.mark.feature("`device_map`")
@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
def test_device_maps(device_map, kind, packed, folder):
    assert torch.equal(kind.run(type(packed).from_pretrained(folder, device_map=device_map)), kind.run(packed))


@pytest.mark.feature("disk offload")
def test_disk_offload(kind, packed, folder, tmp_path):
    device_map = kind.device_map(packed)
    loaded = type(packed).from_pretrained(folder, device_map=device_map, offload_folder=str(tmp_path / "disk"))
    assert next(iter(vq_layers(loaded).values())).weight.device.type in ("meta", "cpu")
    assert any(layer.weight.device.type == "meta" for layer in vq_layers(loaded).values())
    assert torch.equal(kind.run(loaded, torch.float32), kind.run(packed))


@pytest.mark.feature("`pipe.to(dtype)`")
def test_casting_keeps_packed_weights(kind, packed, folder):
    loaded = type(packed).from_pretrained(folder).to(torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert exact(loaded, packed)
    assert torch.isfinite(kind.run(loaded)).all()


@pytest.mark.feature("`dequantize()`")
def test_dequantizing_in_memory(kind, packed, folder):
    dense = type(packed).from_pretrained(folder)
    dense = dense.dequantize() or dense
    assert not vq_layers(dense)
    torch.testing.assert_close(kind.run(dense), kind.run(packed))


@pytest.mark.feature("missing tensors are refused")
@pytest.mark.parametrize("lost", [".scale", ".weight", "vq_shared.book"])
def test_missing_tensors_are_refused(lost, kind, packed, folder):
    tensors = load_file(folder / f"{kind.file}.safetensors")
    del tensors[
        next(key for key in tensors if key.endswith(lost) and (tensors[key].dtype == torch.int8 or lost != ".weight"))
    ]
    save_file(tensors, folder / f"{kind.file}.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        type(packed).from_pretrained(folder)


@pytest.mark.feature("newer formats are refused")
@pytest.mark.parametrize(
    ("change", "message"), [({"format_version": 2}, "update vqcompress"), ({"surprise": 1}, "surprise")]
)
def test_newer_configs_are_refused(change, message, packed, folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        type(packed).from_pretrained(folder)


@pytest.mark.feature("sequential offload")
def test_sequential_offload(kind, packed):
    expected = kind.run(packed)
    cpu_offload(packed, execution_device=torch.device("cpu"))
    assert packed.vq_shared.book.device.type == "meta"
    assert torch.equal(kind.run(packed, torch.float32), expected)
    remove_hook_from_submodules(packed)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload")
def test_group_offload(kind, packed):
    expected, cpu = kind.run(packed), torch.device("cpu")
    apply_group_offloading(packed, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(kind.run(packed, torch.float32), expected)


def _untie(packed: nn.Module) -> None:
    """diffusers writes a tensor that two modules tie once for each, the second time when it has no contents any more."""
    if isinstance(packed, T5EncoderModel):
        packed.encoder.embed_tokens = copy.deepcopy(packed.shared)


def _to_disk(packed: nn.Module, folder: Path) -> None:
    """Between its calls a layer holds memory without contents, so whatever reads it then is wrong."""
    _untie(packed)
    cpu = torch.device("cpu")
    options = {"offload_type": "leaf_level", "offload_to_disk_path": str(folder)}
    apply_group_offloading(packed, onload_device=cpu, offload_device=cpu, **options)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("group offload")
def test_group_offload_to_disk(kind, packed, tmp_path):
    expected = kind.run(packed)
    _to_disk(packed, tmp_path)
    for _ in range(2):
        assert torch.equal(kind.run(packed, torch.float32), expected)


@NEEDS_NO_ACCELERATOR
@pytest.mark.feature("`torch.compile` with group offload")
@pytest.mark.slow
def test_compiled_and_offloaded_by_group(kind, pack_component, tmp_path):
    packed = pack_component(kind.make(layers=1), KEPT)
    expected = kind.run(packed)
    _to_disk(packed, tmp_path)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(packed, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(kind.run(compiled, torch.float32), expected)
    assert counters["stats"]["unique_graphs"] > before
    torch._dynamo.reset()


@pytest.mark.feature("layerwise casting")
def test_layerwise_casting(kind, packed):
    before = copy.deepcopy(packed)
    skip = ["norm", "pos_embed", "embed", "shared"]
    apply_layerwise_casting(packed, torch.bfloat16, torch.float32, skip_modules_pattern=skip)
    assert torch.isfinite(kind.run(packed, torch.float32)).all()
    assert exact(packed, before)


@pytest.mark.feature("`deepcopy`")
def test_deepcopy(kind, packed):
    twin, expected = copy.deepcopy(packed), kind.run(packed)
    packed.vq_shared.book.data.zero_()
    assert torch.equal(kind.run(twin), expected)
    assert not torch.equal(kind.run(packed), expected)


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


@pytest.mark.feature("`torch.compile(fullgraph=True)`, one graph for all resolutions")
@pytest.mark.slow
def test_one_graph_for_all_sizes(kind, pack_component):
    packed = pack_component(kind.make(layers=1), KEPT)
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]  # of the whole process
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 4):
        torch.testing.assert_close(kind.run(compiled, torch.float32, size), kind.run(packed, size=size))
    assert counters["stats"]["unique_graphs"] - before == 1
    torch._dynamo.reset()


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
def test_training_as_recipes_do(kind, packed):
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


def _adapters(kind: Kind, packed: Any) -> None:
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
@pytest.mark.feature("`fuse_lora` is refused with the way out")
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


@pytest.mark.feature("fusing projections is refused with the way out", "DiT")
def test_fusing_projections_is_refused(pack_component):
    with pytest.raises(UnsupportedError, match="vqcompress dequantize"):
        pack_component(_sd3(), KEPT).fuse_qkv_projections()
