"""A Stable Diffusion XL pipeline of full size with synthetic weights, written with one shard in memory at a time.

The UNet has the published configuration. Weights are Student's t with 6 degrees of freedom (kurtosis 6), times a
log-normal scale for each output channel (sigma 0.2), scaled to a variance of 1 / inputs, much as trained weights are.
The last layer of each residual branch has a quarter of that variance, so that 2.6 billion random weights do not drown
their input. With ``tails=False`` weights are Gaussian. Text encoders and autoencoder are small but of SDXL's widths and
strides.
"""

from __future__ import annotations

import json
import math
import shutil
import string
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vqcompress.embedded import EMBEDDED
from vqcompress.models.presets import PRESETS

DEGREES = 6  # of freedom of the tails; an even number needs logarithms of uniform numbers only
OUTPUT_SIGMA = 0.2
BRANCH_ENDS = ("to_out.0.weight", "ff.net.2.weight", "conv2.weight", "proj_out.weight")
BRANCH_GAIN = 0.5
SHARD_BYTES = 1_000_000_000
WEIGHTS = "diffusion_pytorch_model"
BYTES, MERGES = 512, 48_894  # of CLIP's tokenizers: each byte within a word and at its end
MADE = "made.json"  # written last: without it the folder is made anew


def make_pipeline(folder: Path, *, blocks: int | None = None, width: int | None = None, tails: bool = True) -> Path:
    """Write the pipeline to ``folder`` unless it is there already, and return the folder.

    ``blocks`` is the most transformer blocks and ResNets in a row, ``width`` the channels at full resolution (a
    multiple of 32). None means SDXL's own.
    """
    wanted = {"blocks": blocks, "width": width, "tails": tails}
    if (folder / MADE).is_file() and json.loads((folder / MADE).read_text()) == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    config = sdxl_config(blocks, width)
    surroundings(config).save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]}))
    _write_unet(config, folder / "unet", tails)
    (folder / MADE).write_text(json.dumps(wanted))
    return folder


def sdxl_config(blocks: int | None = None, width: int | None = None) -> dict[str, Any]:
    """The published configuration of SDXL's UNet, trimmed where asked."""
    config: dict[str, Any] = dict(PRESETS["sdxl"].arguments)
    if blocks is not None:
        config["transformer_layers_per_block"] = [min(blocks, n) for n in config["transformer_layers_per_block"]]
        config["layers_per_block"] = min(blocks, 2)
    if width is not None:
        config["block_out_channels"] = [width, 2 * width, 4 * width]
        # diffusers reads this as the numbers of heads.
        config["attention_head_dim"] = [width // 32, width // 16, width // 8]
        config |= {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 64 + 6 * 256}
    return config


def surroundings(config: Mapping[str, Any], full_size: bool = False) -> Any:
    """Everything but the UNet: SDXL's two text encoders by width, its autoencoder by stride, its scheduler.

    With ``full_size`` text encoders and autoencoder have the published depths and widths as well, and the tokenizers as
    many words and merges.
    """
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    widths = (config["cross_attention_dim"] - pooled, pooled)
    tokenizers = [
        CLIPTokenizer.from_pretrained(EMBEDDED["shapes"].path / name) for name in ("tokenizer", "tokenizer_2")
    ]
    if full_size:
        tokenizers = [_full_vocabulary(tokenizer) for tokenizer in tokenizers]
    sizes = ({"layers": 12, "expansion": 4}, {"layers": 32, "expansion": 4}) if full_size else ({}, {})
    first, second = (_text_config(t, width, **size) for t, width, size in zip(tokenizers, widths, sizes, strict=True))
    channels, resnets = ((128, 256, 512, 512), 2) if full_size else ((32,) * 4, 1)
    vae = AutoencoderKL(
        block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=resnets, norm_num_groups=8,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        vae, CLIPTextModel(first), CLIPTextModelWithProjection(second), *tokenizers, None, scheduler,
        add_watermarker=False,
    )  # fmt: skip


def _full_vocabulary(small: Any) -> Any:
    """CLIP's numbers of words and merges: after the bytes, all pairs and triples of letters, and pairs of pairs."""
    letters = string.ascii_lowercase
    pairs = list(product(letters, letters))
    triples = [("".join(pair), letter) for pair, letter in product(pairs, letters)]
    quadruples = (("".join(first), "".join(second)) for first, second in product(pairs, pairs))
    merges = [*pairs, *triples, *islice(quadruples, MERGES - len(pairs) - len(triples))]
    vocabulary = sorted(small.get_vocab(), key=small.get_vocab().get)[:BYTES]
    words = [*vocabulary, *map("".join, merges), small.bos_token, small.eos_token]
    return type(small)(vocab={word: number for number, word in enumerate(words)}, merges=merges, model_max_length=77)


def _text_config(tokenizer: Any, width: int, layers: int = 2, expansion: int = 2) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=expansion * width, projection_dim=width,
        num_hidden_layers=layers, num_attention_heads=width // 32, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _write_unet(config: Mapping[str, Any], folder: Path, tails: bool) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    folder.mkdir()
    unet.save_config(folder)
    shards = list(_shards(unet))
    total, weight_map = 0, {}
    for number, names in enumerate(shards, 1):
        file = f"{WEIGHTS}-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _parameter(name, unet.get_parameter(name).shape, tails) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _shards(module: nn.Module) -> Iterator[list[str]]:
    """Names of parameters, as many as fit into a shard in float16."""
    names: list[str] = []
    size = 0
    for name, parameter in module.named_parameters():
        if names and size + 2 * parameter.numel() > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * parameter.numel()
    yield names


def _parameter(name: str, shape: torch.Size, tails: bool) -> Tensor:
    """float16, from a generator of its own; vectors are biases and the gains of norms."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return (float(name.endswith("weight")) + 0.05 * torch.randn(shape, generator=generator)).half()
    gain = BRANCH_GAIN if name.endswith(BRANCH_ENDS) else 1.0
    values = torch.randn(shape, generator=generator).flatten(1)
    if tails:
        values *= _tail(values.shape, generator)
        values *= torch.exp(OUTPUT_SIGMA * torch.randn(len(values), 1, generator=generator) - OUTPUT_SIGMA**2)
    return (values * (gain / math.sqrt(values.shape[1]))).half().view(shape)


def _tail(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """``sqrt((ν - 2) / χ²)``, which makes normal numbers Student's; χ² from the product of ν / 2 uniform numbers."""
    product = torch.rand(shape, generator=generator).clamp_(min=1e-12)
    for _ in range(DEGREES // 2 - 1):
        product *= torch.rand(shape, generator=generator).clamp_(min=1e-12)
    return product.log_().mul_(-2 / (DEGREES - 2)).rsqrt_()
