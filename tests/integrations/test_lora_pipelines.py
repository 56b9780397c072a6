"""LoRA through the loaders of diffusers' pipelines, on packed transformers, UNets and text encoders.

The reference is the same loader on the same pipeline with the packed layers decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    WanPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from tests.architectures import other_pipelines, tiny_pipelines
from vqcompress.errors import UnsupportedError
from vqcompress.layers import make_dense, vq_layers

Call = Callable[[Any], Tensor]
LATENT, TEXT, POOLED = torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 512), torch.linspace(-1, 1, 64)


def shaped(values: Tensor, *shape: int) -> Tensor:
    return values.repeat(8)[: torch.Size(shape).numel()].reshape(shape)


def flux2() -> tuple[Any, Call]:
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    pipeline = Flux2Pipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer)
    return pipeline, lambda model: model(
        hidden_states=shaped(LATENT, 1, 4, 4), encoder_hidden_states=shaped(TEXT, 1, 3, 16),
        timestep=torch.tensor([0.5]), img_ids=torch.zeros(1, 4, 4), txt_ids=torch.zeros(1, 3, 4),
        guidance=torch.tensor([1.0]),
    ).sample  # fmt: skip


def qwen_image() -> tuple[Any, Call]:
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipeline = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer)
    return pipeline, lambda model: model(
        hidden_states=shaped(LATENT, 1, 4, 16), encoder_hidden_states=shaped(TEXT, 1, 3, 16),
        encoder_hidden_states_mask=torch.ones(1, 3, dtype=torch.bool), timestep=torch.tensor([0.5]),
        img_shapes=[(1, 2, 2)],
    ).sample  # fmt: skip


def z_image() -> tuple[Any, Call]:
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 4, 8], axes_lens=[64, 32, 32],
    )  # fmt: skip
    pipeline = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer)
    latent, text = shaped(LATENT, 4, 1, 4, 4), shaped(TEXT, 3, 16)
    return pipeline, lambda model: model([latent], torch.tensor([0.5]), [text])[0][0]


def wan() -> tuple[WanPipeline, Call]:
    latent, text = shaped(LATENT, 1, 16, 1, 4, 4), shaped(TEXT, 1, 3, 32)
    return other_pipelines.wan(), lambda model: model(latent, torch.tensor([5.0]), text).sample


def flux() -> tuple[Any, Call]:
    return tiny_pipelines.flux(), lambda model: model(
        hidden_states=shaped(LATENT, 1, 4, 16), encoder_hidden_states=shaped(TEXT, 1, 3, 32),
        pooled_projections=shaped(POOLED, 1, 32), timestep=torch.tensor([0.5]), img_ids=torch.zeros(4, 3),
        txt_ids=torch.zeros(3, 3), guidance=torch.tensor([1.0]),
    ).sample  # fmt: skip


def sd3() -> tuple[Any, Call]:
    latent, text, pooled = shaped(LATENT, 1, 4, 8, 8), shaped(TEXT, 1, 3, 64), shaped(POOLED, 1, 64)
    return tiny_pipelines.sd3(), lambda model: model(latent, text, pooled, torch.tensor([5.0])).sample


def pixart() -> tuple[Any, Call]:
    latent, text = shaped(LATENT, 1, 4, 8, 8), shaped(TEXT, 1, 3, 32)
    return (
        tiny_pipelines.pixart(),
        lambda model: (
            model(
                latent, text, timestep=torch.tensor([5.0]), added_cond_kwargs={"resolution": None, "aspect_ratio": None}
            ).sample
        ),
    )


def sdxl() -> tuple[Any, Call]:
    added = {"text_embeds": shaped(POOLED, 1, 32), "time_ids": torch.ones(1, 6)}
    latent, text = shaped(LATENT, 1, 4, 8, 8), shaped(TEXT, 1, 3, 64)
    return tiny_pipelines.sdxl(), lambda model: model(latent, 5, text, added_cond_kwargs=added).sample


MODELS = {f.__name__: f for f in (flux, flux2, qwen_image, z_image, wan, sd3, sdxl)}
TARGETS = ["to_q", "to_v", "to_out.0"]
TEXT_TARGETS = {"CLIPTextModel": ["q_proj", "fc1"], "CLIPTextModelWithProjection": ["q_proj", "fc1"]}


def drawn(network: nn.Module, targets: list[str], seed: int) -> dict[str, Tensor]:
    """A LoRA for ``network``, in PEFT's layout, made on a dense copy."""
    dense = copy.deepcopy(network)
    dense.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    state = get_peft_model_state_dict(dense, save_embedding_layers=False)
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.2 * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()}


def load(pipeline: Any, denoiser: str, state: dict[str, Tensor], name: str) -> None:
    pipeline.load_lora_weights({f"{denoiser}.{key}": value for key, value in state.items()}, adapter_name=name)


@pytest.mark.feature("LoRA through the loader of FLUX, FLUX.2, Qwen-Image, Z-Image, Wan, SD3, SDXL", "UNet", "DiT")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_loads_switches_and_leaves_without_a_trace(name: str, pack_component) -> None:
    torch.manual_seed(0)
    pipeline, call = MODELS[name]()
    denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, denoiser).eval()
    one, two = drawn(network, TARGETS, 1), drawn(network, TARGETS, 2)
    pack_component(network, ("conv_in", "conv_out", "proj_out", "pos_embed.proj"))
    reference = copy.deepcopy(pipeline)
    make_dense(getattr(reference, denoiser))
    before = {key: id(layer) for key, layer in vq_layers(network).items()}
    bare = call(network)
    results = []
    for each in (pipeline, reference):
        model = getattr(each, denoiser)
        load(each, denoiser, one, "one")
        found = [call(model)]
        load(each, denoiser, two, "two")
        model.set_adapters(["one", "two"], [0.5, 0.7])
        found.append(call(model))
        model.set_adapters(["one"], [1.0])
        found.append(call(model))
        model.disable_lora()
        found.append(call(model))
        model.enable_lora()
        results.append(found)
    for packed, dense in zip(*results, strict=True):
        torch.testing.assert_close(packed, dense, rtol=1e-3, atol=1e-4)
    first, both, again, disabled = results[0]
    assert again.equal(first)
    assert disabled.equal(bare)
    assert not torch.allclose(first, bare, atol=1e-3)
    assert not torch.allclose(both, first, atol=1e-3)
    pipeline.unload_lora_weights()
    assert call(network).equal(bare)
    assert {key: id(layer) for key, layer in vq_layers(network).items()} == before


@torch.no_grad()
def test_pixart_through_peft(pack_component) -> None:
    """diffusers has no LoRA loader for PixArt: people wrap its transformer in PEFT's model."""
    pipeline, call = pixart()
    packed = pack_component(pipeline.transformer.eval(), ("proj_out", "pos_embed.proj"))
    reference = copy.deepcopy(packed)
    make_dense(reference)
    bare, config = call(packed), LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    models = [get_peft_model(network, config) for network in (packed, reference)]
    generator = torch.Generator().manual_seed(1)
    state = get_peft_model_state_dict(models[0])
    state = {key: 0.2 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    for model in models:
        set_peft_model_state_dict(model, state)
    ours, theirs = map(call, models)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-3)
    with models[0].disable_adapter():
        assert call(models[0]).equal(bare)
    assert call(models[0].unload()).equal(bare)


@pytest.mark.feature("hot-swapping a LoRA", "UNet", "DiT")
@pytest.mark.parametrize("name", ["flux", "sdxl", "z_image"])
@torch.no_grad()
def test_hot_swap(name: str, pack_component) -> None:
    pipeline, call = MODELS[name]()
    denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
    network = getattr(pipeline, denoiser).eval()
    one, two = drawn(network, TARGETS, 1), drawn(network, TARGETS, 2)

    def swapped_and_fresh(pipeline: DiffusionPipeline) -> tuple[Tensor, Tensor]:
        fresh = copy.deepcopy(pipeline)
        load(pipeline, denoiser, one, "style")
        named = {f"{denoiser}.{key}": value for key, value in two.items()}
        pipeline.load_lora_weights(named, adapter_name="style", hotswap=True)
        load(fresh, denoiser, two, "style")
        return call(getattr(pipeline, denoiser)), call(getattr(fresh, denoiser))

    if not torch.allclose(*swapped_and_fresh(copy.deepcopy(pipeline)), atol=1e-4):
        pytest.skip("PEFT itself: on a dense network, too, a swapped LoRA is not the loaded one")
    pack_component(network)
    torch.testing.assert_close(*swapped_and_fresh(pipeline))


@pytest.mark.feature("LoRA through the loader of FLUX, SD3, SDXL", "text encoder")
@pytest.mark.parametrize("name", ["flux", "sd3", "sdxl"])
@torch.no_grad()
def test_adapters_of_text_encoders(name: str, pack_component) -> None:
    pipeline, _ = MODELS[name]()
    encoders = [
        part
        for part in ("text_encoder", "text_encoder_2")
        if type(getattr(pipeline, part, None)).__name__ in TEXT_TARGETS
    ]
    state, before, ids = {}, {}, torch.arange(8)[None]
    for part in encoders:
        encoder = getattr(pipeline, part).eval()
        lora = drawn(encoder, TEXT_TARGETS[type(encoder).__name__], 3)
        state |= {f"{part}.{key}": value for key, value in lora.items()}
        pack_component(encoder)
        before[part] = encoder(ids).last_hidden_state
    reference = copy.deepcopy(pipeline)
    for part in encoders:
        make_dense(getattr(reference, part))
    for each in (pipeline, reference):
        each.load_lora_weights(dict(state), adapter_name="one")
    for part in encoders:
        changed, dense = (getattr(each, part)(ids).last_hidden_state for each in (pipeline, reference))
        torch.testing.assert_close(changed, dense, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(changed, before[part], atol=1e-4), part
    pipeline.unload_lora_weights()
    assert all(getattr(pipeline, part)(ids).last_hidden_state.equal(before[part]) for part in encoders)


def test_a_control_lora_widens_a_dense_layer_and_refuses_a_packed_one(pack_component, tmp_path: Path) -> None:
    """FLUX's Control LoRA has twice the input channels; by default the layer that reads them stays dense."""
    for kept in ((), ("x_embedder",)):
        pipeline, _ = flux()
        lora = drawn(pipeline.transformer, ["to_q"], 1)
        lora |= {"x_embedder.lora_A.weight": torch.randn(4, 32), "x_embedder.lora_B.weight": torch.randn(32, 4)}
        pack_component(pipeline.transformer, ("proj_out", *kept))
        named = {f"transformer.{key}": value for key, value in lora.items()}
        if kept:
            pipeline.load_lora_weights(named)
            assert pipeline.transformer.x_embedder.in_features == 32
        else:
            with pytest.raises(UnsupportedError, match=r"x_embedder with 32 inputs.*cannot be widened.*dequantize"):
                pipeline.load_lora_weights(named)
            assert pipeline.transformer.x_embedder.in_features == 16
