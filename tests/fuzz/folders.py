"""Honest folders in a few thousand weights, with every format that a layer can be stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel

from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.conftest import random_additive, random_scalar, random_trellis
from vqcompress.bundling import write_bundle
from vqcompress.checkpoint import save_pipeline
from vqcompress.formats import TrellisSpec
from vqcompress.formats.column_scales import COLUMN_SCALES_ON_DISK, pack_column_scales
from vqcompress.formats.outliers import POSITIONS, VALUES
from vqcompress.formats.rotation import rotation_block
from vqcompress.layers import swap
from vqcompress.matrix_view import is_quantizable, matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

Shape = tuple[int, ...]
KEPT = ("conv_in", "conv_out")


def with_column_scales_and_outliers(shape: Shape, seed: int) -> QuantizedWeight:
    """Trellis codes of several rates, with column scales and three outliers."""
    weight = random_trellis(shape, seed=seed, min_rate=1, rate_bits=2, state_bits=10)
    outputs, columns = matrix_shape(shape)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randint(0, 16, (columns,), generator=generator, dtype=torch.uint8)
    positions = torch.randperm(outputs * columns, generator=generator)[:3].sort().values.int()
    more = {
        COLUMN_SCALES_ON_DISK: pack_column_scales(scales),
        VALUES: torch.randn(3, generator=generator).half(),
        POSITIONS: positions,
    }
    return _changed(weight, more, column_scales=True, outliers=3)


def rotated(shape: Shape, seed: int) -> QuantizedWeight:
    """Trellis codes of one rate, with rotated outputs and one scale."""
    weight = random_trellis(shape, seed=seed, min_rate=3, rate_bits=0, row_scales=False, tail=0.0625)
    return _changed(weight, {}, rotation=rotation_block(shape[0]))


def with_learned_tables(shape: Shape, seed: int) -> QuantizedWeight:
    """Trellis codes whose tables for two rates are learned and shared."""
    weight = random_trellis(shape, seed=seed, min_rate=1, rate_bits=1, state_bits=8)
    tables = torch.randn(2, 1 << 8, generator=torch.Generator().manual_seed(98)).half()
    learned = _changed(weight, {}, codebook="tables", codebook_rates=(1, 2))
    return QuantizedWeight(learned.spec, learned.shape, learned.tensors, {"codebooks": tables})


def _changed(weight: QuantizedWeight, more: dict[str, torch.Tensor], **fields: object) -> QuantizedWeight:
    spec = TrellisSpec(**{**vars(weight.spec), **fields})
    return QuantizedWeight(spec, weight.shape, {**weight.tensors, **more})


MAKERS: tuple[Callable[[Shape, int], QuantizedWeight], ...] = (
    lambda shape, seed: random_trellis(shape, seed=seed, min_rate=0, rate_bits=2),
    lambda shape, seed: random_scalar(shape, seed=seed, bits=3),
    lambda shape, seed: random_additive(shape, seed=seed, dimension=4, code_bits=4, shared="book"),
    with_column_scales_and_outliers,
    lambda shape, seed: random_additive(shape, seed=seed, dimension=4, code_bits=4, codebooks=1, min_rate=0),
    rotated,
    with_learned_tables,
    lambda shape, seed: random_scalar(shape, seed=seed, bits=3, group_size=4, scale_bits=5),
    lambda shape, seed: random_scalar(shape, seed=seed, bits=8, group_size=64),
    lambda shape, seed: random_trellis(shape, seed=seed, min_rate=2, rate_bits=2, state_bits=8, half_rates=True),
)


def smaller_pipeline() -> StableDiffusionPipeline:
    """`tiny_pipeline` with what takes its time left out: 22 layers that can be packed, Linear and Conv2d."""
    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    config = dict(pipeline.unet.config)
    unet = UNet2DConditionModel.from_config({**config, "down_block_types": ("AttnDownBlock2D",)})
    one = {f"{end}_block_out_channels": (4,) for end in ("encoder", "decoder")}
    vae = AutoencoderTiny(**one, num_encoder_blocks=(1,), num_decoder_blocks=(1,), latent_channels=4)
    for network in (unet, vae):
        network.half().float()
    parts = {**pipeline.components, "unet": unet.eval(), "vae": vae.eval()}
    smaller = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    smaller.set_progress_bar_config(disable=True)
    return smaller


def honest_folders(home: Path, first: StableDiffusionPipeline | None = None) -> dict[str, Path]:
    """Name -> a folder whole, one in shards with an index, and a bundle, written below ``home``.

    `tiny_pipeline` in shards; the others are ``first``, by default `smaller_pipeline`.
    """
    recipe = {"model": "tests/tiny", "bits": 3.0}
    larger, pipeline = packed(tiny_pipeline()), packed(first or smaller_pipeline())
    folders = {
        "whole": save_pipeline(pipeline, home / "whole", recipe=recipe),
        "shards": save_pipeline(larger, home / "shards", recipe=recipe, max_shard_size="20KB"),
    }
    return {**folders, "bundle": write_bundle(folders["whole"], home / "bundle.safetensors")}


def packed(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """``pipeline`` with random codes in its layers, of each format in turn."""
    for component in (pipeline.unet, pipeline.text_encoder):
        names = [name for name, layer in component.named_modules() if is_quantizable(layer) and name not in KEPT]
        shapes = {name: tuple(component.get_submodule(name).weight.shape) for name in names}
        swap(component, {name: MAKERS[i % len(MAKERS)](shapes[name], i) for i, name in enumerate(names)})
    return pipeline
