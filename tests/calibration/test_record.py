"""Recorded second moments against a brute-force recording that keeps every input."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from vqcompress.architectures import Architecture, architecture_of
from vqcompress.calibration.record import RecordingLimits, record_moments
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.sampling_config import SamplingConfig

PROMPTS = ("a red square", "two", "b c d")
SEED, SAMPLING = 11, SamplingConfig(steps=3, guidance=4.0)
SETTINGS = {"seed": SEED, "sampling": SAMPLING, "batch_size": 2}


def quantized(pipeline: DiffusionPipeline, component: str | None = None) -> tuple[Architecture, str, list[str]]:
    family = architecture_of(pipeline)
    component = component or family.denoiser
    return family, component, [p.name for p in family.layers(pipeline, component) if p.reason is None]


def recorded(
    pipeline: DiffusionPipeline,
    component: str | None = None,
    limits: RecordingLimits | None = None,
    progress=None,
    **changes,
) -> dict[str, SecondMoment]:
    family, component, layers = quantized(pipeline, component)
    run = SamplingRun(pipeline, family, **{"prompts": PROMPTS, **SETTINGS, **changes})
    groups = list(record_moments(run, component, layers, limits, progress))
    names = [name for members, _ in groups for name in members]
    assert sorted(names) == sorted(layers)
    return {name: moments for members, moments in groups for name in members}


def patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Rows that the convolution multiplies, one output position after another, by shifting the padded image."""
    top, left = conv.padding
    x = nn.functional.pad(x, (left, left, top, top))
    high, wide = conv.kernel_size
    out_h = (x.shape[2] - high) // conv.stride[0] + 1
    out_w = (x.shape[3] - wide) // conv.stride[1] + 1
    taps = [
        x[:, :, i : i + conv.stride[0] * out_h : conv.stride[0], j : j + conv.stride[1] * out_w : conv.stride[1]]
        for i in range(high)
        for j in range(wide)
    ]
    return torch.stack(taps, 2).flatten(1, 2).permute(0, 2, 3, 1).reshape(-1, x.shape[1] * high * wide)


def brute_force(pipeline: DiffusionPipeline, names: list[str]) -> dict[str, tuple[Tensor, int]]:
    """Every input of every layer, all kept, in float64; one prompt at a time."""
    family, component, _ = quantized(pipeline)
    module = getattr(pipeline, component)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str):
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].double()
            kept[name].append(patches(x, layer) if isinstance(layer, nn.Conv2d) else x.flatten(0, -2))

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    for index, prompt in enumerate(PROMPTS):
        seed = SEED + index
        family.sample(pipeline, [prompt], seeds=[seed], sampling=SAMPLING, output_type="latent")
    for handle in handles:
        handle.remove()
    rows = {name: torch.cat(parts) for name, parts in kept.items()}
    return {name: (x.t() @ x / len(x), len(x)) for name, x in rows.items()}


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_moments_of_every_layer(family: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(family)
    found = recorded(pipeline)
    exact = brute_force(pipeline, list(found))
    for name, (second_moment, rows) in exact.items():
        assert found[name].seen == rows, name
        scale = float(second_moment.diagonal().mean())
        torch.testing.assert_close(found[name].dense().double(), second_moment, rtol=2e-3, atol=2e-3 * scale)


def test_every_timestep_and_both_guidance_halves_count(sdxl: DiffusionPipeline) -> None:
    name = "down_blocks.0.resnets.0.conv1"
    pixels = 8 * 8
    assert recorded(sdxl)[name].seen == len(PROMPTS) * 3 * 2 * pixels
    assert recorded(sdxl, sampling=SamplingConfig(3, 1.0))[name].seen == len(PROMPTS) * 3 * pixels


def test_layers_with_one_input_share_one_matrix(sdxl: DiffusionPipeline) -> None:
    found = recorded(sdxl)
    groups: dict[int, list[str]] = {}
    for name, moments in found.items():
        groups.setdefault(id(moments), []).append(name)
    together = [set(names) for names in groups.values() if len(names) > 1]
    block = "mid_block.attentions.0.transformer_blocks.0."
    assert {block + f"attn1.to_{x}" for x in "qkv"} in together
    text = {name for name in found if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert text in together
    assert all(names == text or all(".attn1.to_" in name for name in names) for names in together)


def test_inputs_with_one_vector_an_image_are_recorded_in_folds(dit: DiffusionPipeline) -> None:
    classes = ("goldfish", "hen", "ostrich", "tench")
    found = recorded(dit, prompts=classes, batch_size=1)
    folded = {name for name, moments in found.items() if moments.folds}
    assert folded == {name for name in found if "norm1" in name or "emb" in name}
    assert folded
    together = recorded(dit, prompts=classes, batch_size=len(classes))
    assert not any(moments.folds for moments in together.values())


def test_more_passes_same_moments(sdxl: DiffusionPipeline) -> None:
    calls: list[tuple[int, int, str]] = []
    together = recorded(sdxl, limits=RecordingLimits(samples_per_call=100))
    split = recorded(sdxl, limits=RecordingLimits(6_000_000, 100), progress=lambda *call: calls.append(call))
    assert calls[-1][2].startswith("pass ")
    assert int(calls[-1][2].split()[-1]) > 2
    assert [done for done, _, _ in calls] == list(range(calls[-1][1] + 1))
    for name, moments in together.items():
        assert torch.equal(split[name].dense(), moments.dense()), name
        assert split[name].used == moments.used


def test_same_seed_same_bytes_other_seed_other_bytes(sdxl: DiffusionPipeline) -> None:
    name = "mid_block.resnets.0.conv1"
    one, two, other = (recorded(sdxl, seed=seed)[name].dense() for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_batch_size_only_changes_rounding(sdxl: DiffusionPipeline) -> None:
    name = "up_blocks.1.resnets.1.conv2"
    one, three = (recorded(sdxl, batch_size=size)[name] for size in (1, 3))
    assert one.seen == three.seen
    torch.testing.assert_close(one.dense(), three.dense(), rtol=1e-3, atol=1e-3)


def test_text_encoder_is_run_alone(sdxl: DiffusionPipeline) -> None:
    denoiser_calls: list[int] = []
    handle = sdxl.unet.register_forward_hook(lambda *_: denoiser_calls.append(1))
    found = recorded(sdxl, "text_encoder_2")
    handle.remove()
    assert not denoiser_calls
    tokens = sdxl.tokenizer_2.model_max_length
    assert found["text_model.encoder.layers.0.mlp.fc1"].seen == 2 * len(PROMPTS) * tokens  # prompt and empty prompt


def test_padded_text_is_not_recorded(pixart: DiffusionPipeline, lumina: DiffusionPipeline) -> None:
    for pipeline, name in ((pixart, "transformer_blocks.0.attn2.to_k"), (lumina, "layers.0.attn2.to_k")):
        real = int(pipeline.tokenizer([*PROMPTS, "", "", ""], padding=True, return_tensors="pt").attention_mask.sum())
        assert recorded(pipeline)[name].seen == 3 * real
    real = int(pixart.tokenizer([*PROMPTS, "", "", ""], padding=True, return_tensors="pt").attention_mask.sum())
    assert recorded(pixart, "text_encoder")["encoder.block.0.layer.0.SelfAttention.q"].seen == real


def test_layer_that_never_runs(sdxl: DiffusionPipeline) -> None:
    sdxl.unet.idle = nn.Linear(64, 64)
    try:
        found = recorded(sdxl)
    finally:
        del sdxl.unet.idle
    assert found["idle"].seen == 0
    assert found["idle"].dense().shape == (64, 64)


def test_infinite_activations_name_the_layer(sdxl: DiffusionPipeline) -> None:
    layer = sdxl.unet.mid_block.resnets[0].conv1
    before = layer.bias.data.clone()
    layer.bias.data[3] = float("inf")
    try:
        with pytest.raises(CalibrationError, match=r"unet\.mid_block\.resnets\.0\.conv2 became infinite or NaN"):
            recorded(sdxl)
    finally:
        layer.bias.data.copy_(before)


def test_no_hook_stays_behind(sdxl: DiffusionPipeline) -> None:
    family, component, layers = quantized(sdxl)
    generator = record_moments(SamplingRun(sdxl, family, PROMPTS, **SETTINGS), component, layers)
    next(generator)
    generator.close()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in sdxl.unet.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ()}, "no calibration prompts"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"limits": RecordingLimits(memory_budget=1000)}, "more than the memory budget"),
    ],
)
def test_refusals(sdxl: DiffusionPipeline, options: dict, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        recorded(sdxl, **options)
