"""Experts in one 3-D parameter: taken apart into layers, coded, and put together again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts
from torch import nn

import vqcompress
from tests.architectures.donors import components
from vqcompress.architectures.layer_plan import plan_layers
from vqcompress.errors import UnsupportedError
from vqcompress.expert_stacks import ExpertStack, restack, unstack
from vqcompress.layers import make_dense, swap, vq_layers
from vqcompress.moments.shrinkage import expert_key
from vqcompress.quantizers import quantize_weight

COUNTS = torch.tensor([3, 0, 5])


def network(grouped: bool = False) -> nn.Module:
    torch.manual_seed(0)
    experts = SwiGLUExperts(hidden_size=32, moe_intermediate_dim=48, num_experts=3, use_grouped_mm=grouped)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    return nn.ModuleDict({"experts": experts})


NAMES = [f"experts.{key}.{number}" for key in ("gate_up_proj", "down_proj") for number in range(3)]


@pytest.mark.parametrize("grouped", [False, True])
def test_layers_of_experts_compute_what_their_stack_does(grouped: bool) -> None:
    model, x = network(grouped), torch.randn(8, 32)
    before = model["experts"](x, COUNTS)
    unstack(model, NAMES)
    assert isinstance(model["experts"].gate_up_proj, ExpertStack)
    torch.testing.assert_close(model["experts"](x, COUNTS), before)


def test_rows_after_the_last_expert_are_zero() -> None:
    model = network()
    unstack(model, NAMES)
    out = model["experts"](torch.randn(10, 32), COUNTS)
    assert not out[8:].any()
    assert out[:8].any(1).all()


def test_a_stack_is_put_together_bit_for_bit() -> None:
    model = network().to(torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    unstack(model, NAMES)
    assert sorted(model.state_dict()) == sorted(f"{name}.weight" for name in NAMES)
    restack(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_only_stacks_with_a_wanted_expert_are_taken_apart() -> None:
    model = network()
    unstack(model, ["experts.down_proj.1"])
    assert isinstance(model["experts"].gate_up_proj, nn.Parameter)
    assert isinstance(model["experts"].down_proj, ExpertStack)


def test_experts_are_planned_one_by_one_taken_apart_or_not() -> None:
    model = network()
    before = plan_layers(model, {r"down_proj\.2": "asked for"})
    unstack(model, NAMES)
    assert plan_layers(model, {r"down_proj\.2": "asked for"}) == before
    assert [plan.name for plan in before] == NAMES
    assert {plan.shape for plan in before} == {(96, 32), (32, 48)}
    assert [plan.name for plan in before if plan.reason] == ["experts.down_proj.2"]


def test_packed_experts_become_the_stack_of_their_decoded_weights() -> None:
    model, x = network(), torch.randn(8, 32)
    original = {name: model["experts"].get_parameter(name.split(".")[1])[int(name[-1])].t() for name in NAMES}
    packed = {name: quantize_weight(original[name].detach(), method="rtn", bits=4.0) for name in NAMES[:-1]}
    swap(model, packed)
    assert vq_layers(model).keys() == packed.keys()
    decoded = {name: layer.dense_weight() for name, layer in vq_layers(model).items()}
    here = model["experts"](x, COUNTS)
    make_dense(model)
    assert model["experts"].gate_up_proj.shape == (3, 32, 96)
    for name, weight in decoded.items():
        assert torch.equal(model["experts"].get_parameter(name.split(".")[1])[int(name[-1])], weight.t())
    assert torch.equal(model["experts"].down_proj[2], original[NAMES[-1]].t())
    torch.testing.assert_close(model["experts"](x, COUNTS), here, rtol=1e-4, atol=1e-4)


def test_other_uses_of_a_packed_expert_are_refused() -> None:
    model = network()
    unstack(model, NAMES)
    stack = model["experts"].gate_up_proj
    with pytest.raises(UnsupportedError, match="only products"):
        torch.add(torch.ones(32, 96), stack[0])
    with pytest.raises(UnsupportedError, match="indexing and grouped_mm"):
        torch.bmm(torch.ones(3, 2, 32), stack)


def test_experts_of_a_stack_share_a_key() -> None:
    assert expert_key("blocks.0.experts.down_proj.3") == "blocks.0.experts.down_proj.*"
    assert expert_key("blocks.0.experts.3.fc1") == "blocks.0.experts.*.fc1"
    assert expert_key("blocks.3.fc1") is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_denoiser_with_stacked_experts_is_coded_saved_opened_and_made_dense_again(tmp_path: Path) -> None:
    from diffusers import NucleusMoEImagePipeline

    parts = components("nucleus")
    pipeline = NucleusMoEImagePipeline(
        **{name: parts[name] for name in ("transformer", "scheduler", "vae", "text_encoder", "processor")}
    )
    pipeline.set_progress_bar_config(disable=True)
    plain = {key: tensor.shape for key, tensor in pipeline.transformer.state_dict().items()}
    settings = {"count": 1, "steps": 1, "batch_size": 1, "height": 32, "width": 32}
    vqcompress.quantize(pipeline, tmp_path / "packed", method="rtn", bits=4.0, calibration=settings, prompts=["a cat"])
    opened = vqcompress.load(tmp_path / "packed")
    here, there = pipeline.transformer.state_dict(), opened.transformer.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    experts = [name for name in vq_layers(opened.transformer) if ".experts." in name]
    assert len(experts) == 2 * 2 * 4  # two blocks with two stacks of four
    vqcompress.dequantize(tmp_path / "packed", tmp_path / "dense", dtype=torch.float32)
    dense = DiffusionPipeline.from_pretrained(tmp_path / "dense").transformer
    assert {key: tensor.shape for key, tensor in dense.state_dict().items()} == plain
    for name in experts:
        stack, _, number = name.rpartition(".")
        assert torch.equal(
            dense.get_parameter(stack)[int(number)], vq_layers(opened.transformer)[name].dense_weight().t()
        )
