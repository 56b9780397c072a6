import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler
from torch import nn

from vqcompress.architectures import architecture_of
from vqcompress.architectures.unet import _rank
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import SamplingConfig


def called_order(unet: nn.Module, run) -> list[str]:
    order: list[str] = []
    kinds = (nn.Linear, nn.Conv2d)
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name) if name not in order else None)
        for name, module in unet.named_modules()
        if isinstance(module, kinds)
    ]
    run()
    for handle in handles:
        handle.remove()
    return order


def test_plan_is_in_execution_order(sdxl: DiffusionPipeline) -> None:
    family = architecture_of(sdxl)
    run = called_order(
        sdxl.unet, lambda: family.sample(sdxl, ["a"], seeds=[0], sampling=SamplingConfig(1), output_type="latent")
    )
    planned = [plan.name for plan in family.layers(sdxl, "unet") if plan.reason is None]
    ran = [name for name in run if name in planned]
    assert [_rank(name) for name in planned] == [_rank(name) for name in ran]


def test_time_layers_and_ends_stay_dense(sdxl: DiffusionPipeline) -> None:
    plans = {plan.name: plan.reason for plan in architecture_of(sdxl).layers(sdxl, "unet")}
    for name in ("conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"):
        assert plans[name]
    assert "timestep" in plans["mid_block.resnets.0.time_emb_proj"]
    kept = {name for name, reason in plans.items() if reason}
    assert all(name.startswith(("conv_", "time_", "add_")) or name.endswith("time_emb_proj") for name in kept)


def test_recipe_can_replace_the_rules(sdxl: DiffusionPipeline) -> None:
    plans = architecture_of(sdxl).layers(sdxl, "unet", ignore={r"^mid_block\.": "for a test"})
    assert {p.name.split(".")[0] for p in plans if p.reason == "for a test"} == {"mid_block"}
    assert {p.name: p.reason for p in plans}["conv_out"] is None
    assert plans == architecture_of(sdxl).layers(sdxl, "unet", ignore=[(r"^mid_block\.", "for a test")])
    assert {p.name: p.reason for p in plans}["time_embedding.linear_1"] is None


def test_text_encoders_are_components(sdxl: DiffusionPipeline) -> None:
    family = architecture_of(sdxl)
    assert family.components == ("unet", "text_encoder", "text_encoder_2", "vae")
    kept = [plan.name for plan in family.layers(sdxl, "text_encoder_2") if plan.reason]
    assert kept[-1] == "text_projection"
    assert all("embedding" in name for name in kept[:-1])


def test_unknown_component(sdxl: DiffusionPipeline) -> None:
    with pytest.raises(ArchitectureError, match=r"no component 'scheduler'.*unet, text_encoder"):
        architecture_of(sdxl).layers(sdxl, "scheduler")


def test_turbo_is_told_by_its_sampler(sdxl: DiffusionPipeline) -> None:
    before = sdxl.scheduler
    try:
        sdxl.scheduler = EulerAncestralDiscreteScheduler.from_config(before.config, timestep_spacing="trailing")
        family = architecture_of(sdxl)
        assert (family.name, family.defaults.steps, family.defaults.guidance) == ("sdxl-turbo", 4, 0.0)
        one, two = (
            family.sample(sdxl, prompts, seeds=seeds, output_type="latent")
            for prompts, seeds in ((["b"], [5]), (["a", "b"], [4, 5]))
        )
        torch.testing.assert_close(one[0], two[1], rtol=1e-3, atol=1e-3)
    finally:
        sdxl.scheduler = before
