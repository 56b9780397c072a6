"""Every tuner of PEFT on packed layers: the same as on dense layers with the same weights, or refused beforehand."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from vqcompress.errors import UnsupportedError
from vqcompress.integrations.peft_tuners import WORKING, is_linear_only
from vqcompress.layers import swap, vq_layers

LINEAR, CONV = ["a", "b"], ["c"]
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "OFT": {"oft_block_size": 8, "r": 0},
    "BOFT": {"boft_block_size": 4},
    "FOURIERFT": {"n_frequency": 50},
    "WAVEFT": {"n_frequency": 50},
    "C3A": {"block_size": 8},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "topk": 2},
    "IA3": {"feedforward_modules": []},
    "ROAD": {"group_size": 16},
    "POLY": {"n_tasks": 2, "n_skills": 2, "n_splits": 2},
}
ELSEWHERE = (  # no modules of the network are targets
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"),
    *("XLORA", "SHADOW"),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.tanh(self.a(x))).reshape(-1, 8, 2, 2)).flatten(1)


def config_of(kind: Any, targets: list[str], **more: Any) -> Any:
    made = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = inspect.signature(made).parameters
    ranks = {name: 4 for name in ("r", "rank") if name in fields}
    return made(target_modules=targets, **ranks | SETTINGS.get(name_of(kind), {}) | more)


def name_of(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return net.eval()


@pytest.fixture
def nets(random_weight) -> tuple[Net, Net]:
    """A dense net, and a packed one with the same weights."""
    torch.manual_seed(1)
    dense = Net()
    packed = copy.deepcopy(dense)
    shapes = {"a": (32, 32), "b": (32, 32), "c": (8, 8, 3, 3)}
    swap(packed, {name: random_weight("trellis", shape) for name, shape in shapes.items()})
    for name, layer in vq_layers(packed).items():
        dense.get_submodule(name).weight.data = layer.dense_weight()
    return dense, packed


def wrapped(net: nn.Module, config: Any) -> nn.Module:
    torch.manual_seed(3)
    return randomized(get_peft_model(net, config))


KINDS = sorted((kind for kind in PEFT_TYPE_TO_TUNER_MAPPING if name_of(kind) not in ELSEWHERE), key=name_of)
CASES = [(kind, targets, {}) for kind in KINDS for targets in (LINEAR, CONV)]
CASES += [
    (kind, targets, {"use_dora": True}) for kind in KINDS if name_of(kind) == "LORA" for targets in (LINEAR, CONV)
]


@pytest.mark.filterwarnings("ignore")  # PEFT warns about settings that these small layers need
@pytest.mark.feature(
    "DoRA, LoHa, LoKr, IA3, OFT, BOFT, VeRA, HRA and 20 more tuners of PEFT, or refused beforehand", "DiT"
)
@pytest.mark.parametrize(("kind", "targets", "more"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_as_on_dense_layers_or_refused(nets, kind: Any, targets: list[str], more: dict[str, Any]) -> None:
    dense, packed = nets
    works = name_of(kind) in WORKING and not (targets is CONV and is_linear_only(name_of(kind)))
    try:
        reference = wrapped(dense, config_of(kind, targets, **more))
    except Exception as error:  # noqa: BLE001 - whatever PEFT says of a layer that this tuner is not for
        pytest.skip(f"PEFT itself: {error}")
    x, layers = torch.randn(3, 32), {name: id(layer) for name, layer in vq_layers(packed).items()}
    codes = {name: layer._parameters["weight"].clone() for name, layer in vq_layers(packed).items()}
    bare = packed(x)
    if not works:
        with pytest.raises(UnsupportedError, match="packed"):
            get_peft_model(packed, config_of(kind, targets, **more))
        assert packed(x).equal(bare)
        assert list(vq_layers(packed)) == ["a", "b", "c"]
        assert not getattr(packed, "peft_config", None)
        return
    adapted = wrapped(packed, config_of(kind, targets, **more))
    ours, theirs = adapted(x), reference(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, bare, atol=1e-4)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = [{n: p.grad for n, p in net.named_parameters() if p.requires_grad} for net in (adapted, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    with pytest.raises(UnsupportedError, match="codes"):
        adapted.merge_adapter()
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(x), bare)
    assert adapted.unload() is packed
    assert packed(x).equal(bare)
    assert {name: id(layer) for name, layer in vq_layers(packed).items()} == layers
    assert all(layer._parameters["weight"].equal(codes[name]) for name, layer in vq_layers(packed).items())


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_change_the_base_weights_are_refused(nets, start: str) -> None:
    x = torch.randn(3, 32)
    bare = nets[1](x)
    with pytest.raises(UnsupportedError, match=r"init_lora_weights.*packed.*'gaussian'"):
        get_peft_model(nets[1], LoraConfig(r=2, target_modules=["a"], init_lora_weights=start))
    assert nets[1](x).equal(bare)
    get_peft_model(nets[1], LoraConfig(r=2, target_modules=["a"], init_lora_weights="gaussian"))


@pytest.mark.skipif("target_parameters" not in inspect.signature(LoraConfig).parameters, reason="PEFT before 0.17")
def test_a_lora_on_codes_as_parameters_is_refused(nets) -> None:
    with pytest.raises(UnsupportedError, match="target_modules"):
        get_peft_model(nets[1], LoraConfig(r=2, target_modules=[], target_parameters=["a.weight"]))


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_a_tuner_that_does_not_fit_packed_layers_may_take_dense_ones(nets) -> None:
    from peft import LNTuningConfig

    net = nn.ModuleDict({"packed": nets[1], "norm": nn.LayerNorm(4)})
    get_peft_model(net, LNTuningConfig(target_modules=["norm"]))
    with pytest.raises(UnsupportedError, match="LN_TUNING"):
        get_peft_model(nn.ModuleDict({"packed": nets[1]}), LNTuningConfig(target_modules=["a"]))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_a_refused_adapter_leaves_no_note_on_the_model(make_tiny_unet, pack_component, tmp_path) -> None:
    from peft import LNTuningConfig

    unet = pack_component(make_tiny_unet())
    with pytest.raises(UnsupportedError):
        unet.add_adapter(LNTuningConfig(target_modules=["to_q"]))
    assert not unet._hf_peft_config_loaded
    unet.save_pretrained(tmp_path / "unet")
    assert vq_layers(type(unet).from_pretrained(tmp_path / "unet"))
