"""Weights made of random codes: every format, without a quantizer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

import pytest
import torch
from torch import Tensor

from vqcompress.bitpack import pack, packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.kernels.kernel import triton_interpreter
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialized memory with NaN or the largest integer

Make = Callable[..., QuantizedWeight]


def _integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)


def _scale(rows: int, row_scales: bool, generator: torch.Generator) -> Tensor:
    return (0.02 + 0.02 * torch.rand(rows if row_scales else 1, generator=generator)).half()


def _random_stream(rates: Tensor, symbols: Callable[[int], tuple[int, int]], generator: torch.Generator) -> Tensor:
    blocks = {}
    for rate in torch.unique(rates).tolist():
        count, bits = symbols(rate)
        columns = int((rates == rate).sum())
        blocks[rate] = pack(_integers(1 << bits, (columns, count), generator), bits) if count and bits else None
        if blocks[rate] is None:
            blocks[rate] = torch.zeros(columns, 0, dtype=torch.int8)
    return join_blocks(blocks)


def random_trellis(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    state_bits: int = 12,
    min_rate: int = 2,
    rate_bits: int = 1,
    row_scales: bool = True,
    tail: float = 0.0,
    half_rates: bool = False,
    rates: Tensor | None = None,
) -> QuantizedWeight:
    """Random trellis codes; column ``rates`` as given, or drawn from ``min_rate … min_rate + 2**rate_bits - 1``."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    if rates is None:
        rates = min_rate + _integers(1 << rate_bits, (columns,), generator).long()
    symbols = (lambda rate: (rows * rate // 2, 1)) if half_rates else (lambda rate: (rows, rate))
    codes = _random_stream(rates, symbols, generator)
    spec = TrellisSpec(state_bits, min_rate, rate_bits, tail, row_scales, codes.numel(), half_rates=half_rates)
    tensors = {"weight": codes, "scale": _scale(rows, row_scales, generator)}
    if rate_bits:
        tensors["rates"] = pack_rates(rates, min_rate, rate_bits)
    return QuantizedWeight(spec, tuple(shape), tensors)


def random_additive(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    dimension: int = 8,
    code_bits: int = 8,
    codebooks: int = 3,
    min_rate: int = 2,
    rate_bits: int = 1,
    row_scales: bool = True,
    shared: str | None = None,
) -> QuantizedWeight:
    """Random additive codes; ``shared`` names a codebook of the component (the same for every seed)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    rates = min_rate + _integers(1 << rate_bits, (columns,), generator).long()
    vectors = -(-rows // dimension)
    codes = _random_stream(rates, lambda rate: (vectors * rate, code_bits), generator)
    spec = AdditiveSpec(dimension, code_bits, codebooks, min_rate, rate_bits, shared, row_scales, codes.numel())
    books_generator = torch.Generator().manual_seed(99) if shared else generator
    books = torch.randn(spec.codebook_shape, generator=books_generator).half()
    tensors = {"weight": codes, "scale": _scale(rows, row_scales, generator)}
    if rate_bits:
        tensors["rates"] = pack_rates(rates, min_rate, rate_bits)
    if shared is None:
        tensors["codebooks"] = books
    return QuantizedWeight(spec, tuple(shape), tensors, {"codebooks": books} if shared else {})


def random_scalar(
    shape: tuple[int, ...], *, seed: int = 0, bits: int = 4, group_size: int = 8, scale_bits: int = 16
) -> QuantizedWeight:
    """Random scalar codes."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = matrix_shape(shape)
    spec = ScalarSpec(bits, group_size, scale_bits)
    groups = spec.groups(columns)
    tensors = {
        "weight": pack(_integers(1 << bits, (columns, rows), generator), bits).reshape(1, -1),
        "group_scale": (0.01 + 0.01 * torch.rand(groups, rows, generator=generator)).half(),
        "group_zero": pack(_integers(1 << bits, (groups, rows), generator), bits),
    }
    if spec.packed_scales:
        tensors["group_scale"] = pack(_integers(1 << scale_bits, (groups, rows), generator), scale_bits)
        tensors["scale"] = _scale(rows, True, generator)
    assert tensors["group_zero"].shape == (groups, packed_bytes(rows, bits))
    return QuantizedWeight(spec, tuple(shape), tensors)


MAKERS: dict[str, Make] = {"trellis": random_trellis, "additive": random_additive, "scalar": random_scalar}


@pytest.fixture
def random_weight() -> Make:
    """``random_weight(format, shape, **geometry) -> QuantizedWeight``."""

    def make(name: str, shape: tuple[int, ...], **geometry) -> QuantizedWeight:
        return MAKERS[name](shape, **geometry)

    return make


@pytest.fixture
def check_spec() -> Callable[[QuantizedWeight], FormatSpec]:
    """Assert that a weight's tensors are what its spec lists, and give the spec."""

    def check(weight: QuantizedWeight) -> FormatSpec:
        shapes = weight.spec.tensor_shapes(*matrix_shape(weight.shape))
        assert {name: (tuple(t.shape), t.dtype) for name, t in weight.tensors.items()} == shapes
        return weight.spec

    return check


FEW_LAYERS = {"(down|up)_blocks|conv|(time|add)_emb": "the middle's linear layers show it"}
"""A recipe's ignore rules for runs of a UNet where any layers will do: each costs a tenth of a second or more."""


def tiny_unet():
    """A UNet of two blocks with attention, random weights from one seed."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        use_linear_projection=True,
    ).eval()


def tiny_clip():
    """A CLIP text model of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=100,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def tiny_tokenizer():
    """A CLIP tokenizer that knows letters only."""
    import string

    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters]
    return CLIPTokenizer({token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=16)


def tiny_stable_diffusion():
    """A Stable Diffusion pipeline of tiny random networks."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(2)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=tiny_clip(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_codes_for(component, keep: tuple[str, ...] = ("conv_in", "conv_out")) -> dict[str, QuantizedWeight]:
    """Random codes for every layer that can be packed, the formats in turn, additive codes from one shared codebook."""
    from vqcompress.matrix_view import is_quantizable

    names = [name for name, layer in component.named_modules() if is_quantizable(layer) and name not in keep]
    makers = (random_trellis, lambda shape, seed: random_additive(shape, seed=seed, shared="book"), random_scalar)
    makers += (random_additive,)
    shapes = {name: tuple(component.get_submodule(name).weight.shape) for name in names}
    return {name: makers[i % 4](shapes[name], seed=i) for i, name in enumerate(names)}


def compressed_stable_diffusion():
    """`tiny_stable_diffusion` with unet and text encoder packed."""
    from vqcompress.layers import swap

    pipeline = tiny_stable_diffusion()
    swap(pipeline.unet, random_codes_for(pipeline.unet))
    swap(pipeline.text_encoder, random_codes_for(pipeline.text_encoder))
    return pipeline


def run_unet(unet, dtype: torch.dtype | None = None) -> Tensor:
    """One call with fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    dtype = dtype or unet.dtype
    sample = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    states = torch.randn(2, 5, 32, generator=generator).to(dtype)
    with torch.no_grad():
        return unet(sample, 3, states).sample


def draw(pipeline) -> Tensor:
    """An image of the pipeline with a fixed seed, as a tensor."""
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 8, "width": 8, "output_type": "pt"}
    return pipeline("a cat", generator=generator, **options).images


@pytest.fixture
def compressed_pipeline():
    """A fresh `compressed_stable_diffusion`."""
    return compressed_stable_diffusion()


@pytest.fixture(scope="session")
def compressed_folder(tmp_path_factory):
    """A saved `compressed_stable_diffusion`; read only, copy it before changing anything."""
    from vqcompress.checkpoint import save_pipeline

    folder = tmp_path_factory.mktemp("saved") / "compressed"
    return save_pipeline(compressed_stable_diffusion(), folder, recipe={"model": "tests/tiny", "bits": 3.0})


@pytest.fixture(name="run_unet")
def run_unet_fixture():
    """`run_unet`."""
    return run_unet


@pytest.fixture(name="draw")
def draw_fixture():
    """`draw`."""
    return draw


@pytest.fixture
def pack_component():
    """``pack_component(component, keep)`` packs every layer it can with random codes, in place, and gives it back."""
    from vqcompress.layers import swap

    def pack(component, keep: tuple[str, ...] = ("conv_in", "conv_out")):
        swap(component, random_codes_for(component, keep))
        return component

    return pack


@pytest.fixture
def make_tiny_unet():
    """`tiny_unet`."""
    return tiny_unet


@pytest.fixture(scope="session")
def make_tiny_pipeline():
    """`tiny_stable_diffusion`."""
    return tiny_stable_diffusion


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL pipeline on disk, to read from only."""
    from tests.architectures import tiny_pipelines as tiny

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source") / "tiny"
    tiny.TINY["sdxl"]().save_pretrained(folder)
    return folder


@pytest.fixture
def interpreted():
    """Triton kernels run, slowly, on CPU tensors while this fixture lives; the kernel table then chooses them."""
    pytest.importorskip("triton")
    with triton_interpreter():
        yield
