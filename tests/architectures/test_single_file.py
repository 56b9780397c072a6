"""Single files as people have them: whole or only a denoiser, three kinds of names, marks, 8-bit floats with scales."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PNDMScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from tests.architectures import other_pipelines, tiny_pipelines
from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.architectures.denoiser_file import load_denoiser
from vqcompress.architectures.file_header import Entry, FileHeader
from vqcompress.architectures.ldm_names import UNET_PREFIX
from vqcompress.checkpoint.ldm_checkpoint import checkpoint_metadata, ldm_tensors, ldm_unet
from vqcompress.errors import ArchitectureError, UnsupportedError

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def saved(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path, metadata or None)
    return path


def refusal(path: Path, base: Path) -> str:
    with pytest.raises(ArchitectureError) as caught:
        open_pipeline(path, base=base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_pipelines.sdxl(second_width=64)


@pytest.fixture(scope="module")
def base(sdxl: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "sdxl"
    sdxl.save_pretrained(folder)
    return folder


@pytest.fixture
def whole(sdxl: Any) -> dict[str, Tensor]:
    return dict(ldm_tensors(sdxl))


def agree(one: torch.nn.Module, two: torch.nn.Module) -> None:
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    assert [key for key in a if not a[key].equal(b[key])] == []


# --- what a file says of itself ---------------------------------------------------------------------------------------


def test_v_prediction(whole, base: Path, tmp_path: Path) -> None:
    path = saved({**whole, "v_pred": torch.empty(0)}, tmp_path / "v.safetensors")
    scheduler = open_pipeline(path, base=base).scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", False)
    path = saved({**whole, "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, tmp_path / "z.safetensors")
    scheduler = open_pipeline(path, base=base).scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)
    assert scheduler.timestep_spacing == "trailing"


@pytest.mark.parametrize(("word", "kind"), [("v", "v_prediction"), ("epsilon", "epsilon"), ("", "epsilon")])
def test_metadata_counts_where_no_tensor_says_anything(whole, base: Path, tmp_path: Path, word: str, kind: str) -> None:
    path = saved(whole, tmp_path / "m.safetensors", **{"modelspec.prediction_type": word})
    assert open_pipeline(path, base=base).scheduler.config.prediction_type == kind
    path = saved({**whole, "v_pred": torch.empty(0)}, path, **{"modelspec.prediction_type": "epsilon"})
    assert open_pipeline(path, base=base).scheduler.config.prediction_type == "v_prediction"


def test_edm(whole, base: Path, tmp_path: Path) -> None:
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.25]), torch.tensor([4.0, 5.0, 6.0, 7.5])
    opened = open_pipeline(saved({**whole, "edm_mean": mean, "edm_std": std}, tmp_path / "e.safetensors"), base=base)
    assert type(opened.scheduler) is EDMDPMSolverMultistepScheduler
    assert opened.vae.config.latents_mean == mean.tolist()
    assert opened.vae.config.latents_std == std.tolist()
    assert opened.vae.config.scaling_factor == 0.5
    latents = architecture_of(opened).sample(opened, ["a"], seeds=[0], output_type="latent")
    assert latents.isfinite().all()


def test_edm_v_prediction(whole, base: Path, tmp_path: Path) -> None:
    path = saved({**whole, "edm_vpred.sigma_max": torch.tensor(90.0)}, tmp_path / "e.safetensors")
    opened = open_pipeline(path, base=base)
    assert type(opened.scheduler) is EDMEulerScheduler
    config = opened.scheduler.config
    assert (config.sigma_min, config.sigma_max, config.prediction_type) == (0.002, 90.0, "v_prediction")


@pytest.mark.parametrize(
    "marks", [(), ("v_pred",), ("v_pred", "ztsnr"), ("edm_mean", "edm_std"), ("edm_vpred.sigma_max",)]
)
def test_marks_are_written_as_they_were_read(whole, base: Path, tmp_path: Path, marks: tuple[str, ...]) -> None:
    numbers = {"edm_mean": torch.rand(4), "edm_std": torch.rand(4), "edm_vpred.sigma_max": torch.tensor(77.0)}
    given = {name: numbers.get(name, torch.empty(0)) for name in marks}
    opened = open_pipeline(saved({**whole, **given}, tmp_path / "a.safetensors"), base=base)
    written = ldm_tensors(opened)
    assert {name: written[name].tolist() for name in given} == {name: tensor.tolist() for name, tensor in given.items()}
    extra = written.keys() - whole.keys() - given.keys()
    assert extra == ({"edm_vpred.sigma_min"} if "edm_vpred.sigma_max" in marks else set())
    again = saved(written, tmp_path / "b.safetensors", **checkpoint_metadata(opened, torch.float32))
    assert dict(open_pipeline(again, base=base).scheduler.config) == dict(opened.scheduler.config)


def test_a_prediction_without_a_mark_is_not_written(sdxl) -> None:
    before = sdxl.scheduler
    try:
        sdxl.scheduler = type(before).from_config(before.config, prediction_type="sample")
        with pytest.raises(UnsupportedError, match="predicts 'sample'"):
            ldm_tensors(sdxl)
    finally:
        sdxl.scheduler = before


def test_few_steps_by_metadata(whole, base: Path, tmp_path: Path) -> None:
    path = saved(whole, tmp_path / "m.safetensors", **{"modelspec.title": "Something XL Lightning 4 steps"})
    assert architecture_of(open_pipeline(path, base=base)).defaults.steps == 4


def test_few_steps_by_metadata_where_the_base_has_a_slow_sampler(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    pipeline.save_pretrained(tmp_path / "base")
    path = saved(ldm_tensors(pipeline), tmp_path / "m.safetensors", **{"modelspec.title": "LCM Dreams"})
    opened = open_pipeline(path, base=tmp_path / "base")
    assert architecture_of(opened).defaults.steps == 4
    plain = saved(ldm_tensors(pipeline), tmp_path / "p.safetensors")
    assert type(open_pipeline(plain, base=tmp_path / "base").scheduler) is PNDMScheduler


# --- weights with scales ----------------------------------------------------------------------------------------------


def scaled(tensors: dict[str, Tensor], name: str = "scale_weight", per_output: bool = False) -> dict[str, Tensor]:
    """The denoiser's matrices as 8-bit floats and scales."""
    out = {}
    for key, value in tensors.items():
        if not (key.startswith(UNET_PREFIX) and key.endswith(".weight") and value.ndim in (2, 4)):
            out[key] = value
            continue
        largest = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True) if per_output else value.abs().max()
        scale = (largest / 448).float()
        out[key] = (value / scale).to(torch.float8_e4m3fn)
        out[f"{key.removesuffix('weight')}{name}"] = scale.flatten() if per_output else scale
        out[f"{key.removesuffix('weight')}scale_input"] = torch.tensor(7.0)
    return out


@pytest.mark.parametrize("per_output", [False, True])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scales_are_applied(sdxl, whole, base: Path, tmp_path: Path, name: str, per_output: bool) -> None:
    tensors = scaled(whole, name, per_output) | {f"{UNET_PREFIX}scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn)}
    opened = open_pipeline(saved(tensors, tmp_path / "s.safetensors"), base=base)
    for layer, weight in sdxl.unet.state_dict().items():
        found = opened.unet.state_dict()[layer]
        bound = (
            2**-4 * weight.abs() + weight.abs().max() * 2**-9 / 448 + 1e-12
        )  # half a step of 3 bits, or the smallest
        assert bool(((found - weight).abs() <= bound).all()), layer
    agree(opened.text_encoder, sdxl.text_encoder)
    agree(opened.vae, sdxl.vae)


def test_plain_eight_bit_floats_are_read_as_they_are(sdxl, whole, base: Path, tmp_path: Path) -> None:
    tensors = {
        key: value.to(torch.float8_e4m3fn) if key.startswith(UNET_PREFIX) and value.ndim == 2 else value
        for key, value in whole.items()
    }
    opened = open_pipeline(saved(tensors, tmp_path / "f.safetensors"), base=base)
    expected = sdxl.unet.get_submodule(LAYER).weight.to(torch.float8_e4m3fn).float()
    assert opened.unet.get_submodule(LAYER).weight.equal(expected)


def mark(form: str) -> Tensor:
    return torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)


KEY = f"{UNET_PREFIX}middle_block.1.transformer_blocks.0.attn1.to_q"
OTHER_FORMATS: list[tuple[Callable[[Tensor], dict[str, Tensor]], str]] = [
    (lambda w: {f"{KEY}.weight": w.to(torch.int8)}, "I8 numbers"),
    (lambda w: {f"{KEY}.weight": w.to(torch.float8_e4m3fn), f"{KEY}.comfy_quant": mark("nvfp4")}, "nvfp4"),
    (
        lambda w: {f"{KEY}.weight": w.to(torch.float8_e4m3fn), f"{KEY}.scale_weight": torch.ones(5)},
        r"scale of shape \(5,\)",
    ),
    (lambda w: {f"{KEY}.weight": w, f"{KEY}.scale_weight": torch.ones(1)}, "scale of shape"),
    (lambda w: {f"{KEY}.weight": w, f"{KEY}x.scale_weight": torch.ones(1)}, "is missing"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_FORMATS)
def test_other_formats_are_refused(whole, base: Path, tmp_path: Path, change, message: str) -> None:
    tensors = whole | {f"{UNET_PREFIX}out.2.scale_input": torch.tensor(1.0)} | change(whole[f"{KEY}.weight"])
    with pytest.raises(ArchitectureError, match=message):
        open_pipeline(saved(tensors, tmp_path / "q.safetensors"), base=base)


def test_a_format_that_is_read_may_be_marked(whole, sdxl, base: Path, tmp_path: Path) -> None:
    tensors = scaled(whole) | {f"{KEY}.comfy_quant": mark("float8_e4m3fn")}
    found = open_pipeline(saved(tensors, tmp_path / "q.safetensors"), base=base).unet.get_submodule(LAYER).weight
    torch.testing.assert_close(found, sdxl.unet.get_submodule(LAYER).weight, rtol=0.07, atol=1e-3)


# --- names ------------------------------------------------------------------------------------------------------------


def test_unknown_names_in_the_denoiser_are_refused(whole, base: Path, tmp_path: Path) -> None:
    tensors = whole | {f"{UNET_PREFIX}input_blocks.1.1.ip_adapter.weight": torch.ones(2, 2)}
    assert "input_blocks.1.1.ip_adapter.weight" in refusal(saved(tensors, tmp_path / "u.safetensors"), base)
    outside = whole | {"model_ema.decay": torch.ones(1), "alphas_cumprod": torch.ones(4)}
    open_pipeline(saved(outside, tmp_path / "o.safetensors"), base=base)


@pytest.mark.parametrize("part", ["first_stage_model.", "conditioner.embedders.0.", "model.diffusion_model."])
def test_a_missing_part_is_named(whole, base: Path, tmp_path: Path, part: str) -> None:
    tensors = {key: value for key, value in whole.items() if not key.startswith(part)}
    assert part in refusal(saved(tensors, tmp_path / "p.safetensors"), base)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", UNET_PREFIX])
@pytest.mark.parametrize("original", [True, False])
def test_a_unet_alone(sdxl, base: Path, tmp_path: Path, prefix: str, original: bool) -> None:
    unet = tiny_pipelines.sdxl(second_width=64).unet
    with torch.no_grad():
        unet.get_submodule(LAYER).weight.mul_(2)
    state = unet.state_dict()
    named = {k.removeprefix(UNET_PREFIX): v for k, v in ldm_unet(state, unet.config).items()} if original else state
    path = saved({f"{prefix}{key}": value for key, value in named.items()}, tmp_path / "unet.safetensors")
    opened = open_pipeline(path, base=base)
    agree(opened.unet, unet)
    agree(opened.vae, sdxl.vae)
    assert not opened.unet.training
    missing = {
        f"{prefix}{key}": value for key, value in named.items() if not key.endswith(("out.2.bias", "conv_out.bias"))
    }
    assert "missing: conv_out.bias" in refusal(saved(missing, path), base)


def test_sd15_and_its_unet_alone(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.sd15()
    pipeline.save_pretrained(tmp_path / "base")
    unet = {**pipeline.unet.state_dict(), "v_pred": torch.empty(0)}
    opened = open_pipeline(saved(unet, tmp_path / "unet.safetensors"), base=tmp_path / "base")
    agree(opened.unet, pipeline.unet)
    assert opened.scheduler.config.prediction_type == "v_prediction"


def test_the_base_needs_no_denoiser_weights(base: Path, sdxl, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "rest")
    (tmp_path / "rest" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    path = saved(sdxl.unet.half().state_dict(), tmp_path / "unet.safetensors")
    sdxl.unet.float()
    opened = open_pipeline(path, base=tmp_path / "rest", narrow=True)
    assert opened.unet.dtype == torch.float16
    assert opened.vae.dtype == torch.float32


def z_image() -> ZImagePipeline:
    torch.manual_seed(8)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[4, 4, 8], axes_lens=[64, 32, 32],
    )  # fmt: skip
    encoder = Qwen3Model(
        Qwen3Config(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=64, head_dim=8,
        )
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(), vae, encoder, tiny_pipelines.clip_tokenizer(), transformer)


def original_z_image(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the published file has them: one matrix for query, key and value."""
    words = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.", "norm_k": "k_norm"}
    words |= {"norm_q": "q_norm", ".attention.to_out.0.": ".attention.out."}
    named = {}
    for key, tensor in state.items():
        if ".attention.to_q." in key:
            parts = [state[key.replace("to_q", f"to_{part}")] for part in "qkv"]
            named[key.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            for ours, original in words.items():
                key = key.replace(ours, original)
            named[key] = tensor
    return named


@pytest.mark.parametrize("original", [True, False])
def test_z_image(tmp_path: Path, original: bool) -> None:
    pipeline = z_image()
    pipeline.save_pretrained(tmp_path / "base")
    state = pipeline.transformer.state_dict()
    named = {UNET_PREFIX + key: value for key, value in (original_z_image(state) if original else state).items()}
    path = saved(named, tmp_path / "z.safetensors")
    agree(open_pipeline(path, base=tmp_path / "base").transformer, pipeline.transformer)
    text = refusal(saved(named | {f"{UNET_PREFIX}layers.0.lora_a.weight": torch.ones(1, 1)}, path), tmp_path / "base")
    assert "no place for: layers.0.lora_a.weight" in text
    other = z_image()
    config = {**other.transformer.config, "n_layers": 2}
    other.register_modules(transformer=type(other.transformer).from_config(config))
    other.save_pretrained(tmp_path / "deeper")
    assert "missing: layers.1." in refusal(saved(named, path), tmp_path / "deeper")


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_transformers_with_diffusers_names(tmp_path: Path, name: str) -> None:
    pipeline = other_pipelines.wan() if name == "wan" else tiny_pipelines.TINY[name]()
    pipeline.save_pretrained(tmp_path / "base")
    path = saved(pipeline.transformer.state_dict(), tmp_path / "t.safetensors")
    opened = open_pipeline(path, base=tmp_path / "base")
    assert type(opened) is type(pipeline)
    agree(opened.transformer, pipeline.transformer)


def flux_names(config: dict[str, int], width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of FLUX.1's published file, of fewer blocks (arXiv 2506.15742, the authors' inference code)."""
    named: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        named[f"{name}.weight"], named[f"{name}.bias"] = (out, into), (out,)

    for name, into in (("time_in", 256), ("guidance_in", 256), ("vector_in", config["pooled_projection_dim"])):
        linear(f"{name}.in_layer", width, into)
        linear(f"{name}.out_layer", width, width)
    linear("txt_in", width, config["joint_attention_dim"])
    linear("img_in", width, config["in_channels"])
    for side in ("img", "txt"):
        linear(f"double_blocks.0.{side}_mod.lin", 6 * width, width)
        linear(f"double_blocks.0.{side}_attn.qkv", 3 * width, width)
        linear(f"double_blocks.0.{side}_attn.proj", width, width)
        linear(f"double_blocks.0.{side}_mlp.0", 4 * width, width)
        linear(f"double_blocks.0.{side}_mlp.2", width, 4 * width)
        for part in ("query", "key"):
            named[f"double_blocks.0.{side}_attn.norm.{part}_norm.scale"] = (128,)
    linear("single_blocks.0.linear1", 7 * width, width)
    linear("single_blocks.0.linear2", width, 5 * width)
    linear("single_blocks.0.modulation.lin", 3 * width, width)
    for part in ("query", "key"):
        named[f"single_blocks.0.norm.{part}_norm.scale"] = (128,)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    linear("final_layer.linear", config["in_channels"], width)
    return named


def test_flux_with_original_names_at_full_width(tmp_path: Path) -> None:
    """diffusers' conversion knows FLUX's width only, so this is on the meta device."""
    sizes = {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True, **sizes)
    network.save_config(tmp_path / "base" / "transformer")
    (tmp_path / "base" / "model_index.json").write_text('{"transformer": ["diffusers", "FluxTransformer2DModel"]}')
    shapes = {f"{UNET_PREFIX}{name}": shape for name, shape in flux_names(sizes, 3072).items()}

    class OnMeta(FileHeader):
        def tensors(self, names):
            return {name: torch.empty(self.entries[name].shape, device="meta") for name in names}

    header = OnMeta(tmp_path / "f.safetensors", {name: Entry("F32", shape) for name, shape in shapes.items()}, {})
    loaded = load_denoiser(header, str(tmp_path / "base"), "transformer", None, torch.bfloat16)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == expected
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}


def test_text_encoders_of_equal_width_have_no_original_layout() -> None:
    with pytest.raises(UnsupportedError, match=r"both text encoders of this pipeline are 32 wide.*diffusers layout"):
        ldm_tensors(tiny_pipelines.sdxl())
