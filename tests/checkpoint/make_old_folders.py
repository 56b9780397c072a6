"""Write `old_folders.tar.xz`: compressed folders that later releases must load bit for bit, and what they must get.

The archive was written by this repository at commit d585e95 and must stay: run by later code, this script would only
show that the code reads what it writes itself. In a checkout of that commit: ``python make_old_folders.py ARCHIVE``.
"""

from __future__ import annotations

import hashlib
import json
import string
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import vqcompress
from vqcompress.bundling import write_bundle
from vqcompress.layers import vq_layers

KEEP = {r"^conv_in$": "reads the latents", r"ff\.net\.2$": "kept for comparison"}
CALIBRATION = {"prompts": "general", "count": 1, "steps": 2, "guidance": 2.0, "height": 8, "width": 8}
SHARED = {"bits": 4.0, "budget": "layer", "components": ["unet", "text_encoder"], "calibration": CALIBRATION}
TRELLIS = {"method": "trellis", **SHARED, "components": ["unet"]}
ADDITIVE = {"code_bits": 4, "dimension": 4, "rounds": 1, "beam": 2}
RECIPES: dict[str, dict[str, Any]] = {
    "trellis_rotation": {**TRELLIS, "settings": {"state_bits": 8, "rotation": True, "polish": 0}},
    "trellis_gains": {
        **TRELLIS,
        "keep": KEEP,
        "settings": {"state_bits": 8, "gains": True, "polish": 1, "row_scales": True},
    },
    "additive_shared": {"method": "additive", **SHARED, "settings": {**ADDITIVE, "gains": True, "polish": 1}},
    "additive_own": {
        "method": "additive",
        **SHARED,
        "shared_codebooks": False,
        "settings": {**ADDITIVE, "gains": False},
    },
    "kmeans": {"method": "kmeans", **SHARED, "settings": {"code_bits": 4, "dimension": 4}},
    "gptq": {"method": "gptq", **SHARED},
}


def tiny_pipeline() -> StableDiffusionPipeline:
    """Stable Diffusion in a few thousand weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        time_embedding_dim=16,
        cross_attention_dim=16,
        attention_head_dim=8,
        use_linear_projection=True,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=56,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, layers_per_block=1).eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=CLIPTokenizer(vocabulary, merges=[], model_max_length=16),
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for tensor in part.state_dict().values():
            tensor.copy_(tensor.half() if tensor.is_floating_point() else tensor)  # so that folders hold float16
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sha256(tensor: Tensor) -> str:
    """Of the tensor's bytes."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def decoded(pipeline: Any) -> dict[str, str]:
    """The SHA-256 of each packed layer's weight, decoded to float32."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        f"{component}.{name}": sha256(layer.dense_weight().float())
        for component, module in modules.items()
        for name, layer in vq_layers(module).items()
    }


def output(pipeline: Any) -> list[float]:
    """The UNet's output on fixed inputs, of which the states come from the text encoder."""
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        states = pipeline.text_encoder(torch.arange(16).unsqueeze(0))[0]
        return pipeline.unet(sample, 3, states).sample.flatten()[::8].tolist()


def expected(pipeline: Any) -> dict[str, Any]:
    """What a later release must get."""
    return {"weights": decoded(pipeline), "output": output(pipeline)}


def write_folders(home: Path) -> None:
    """Write all folders, a bundle of one of them, and ``expected.json``."""
    found = {}
    for name, recipe in RECIPES.items():
        folder = vqcompress.quantize(tiny_pipeline(), home / name, **recipe)
        found[name] = expected(DiffusionPipeline.from_pretrained(folder))
    write_bundle(home / "trellis_gains", home / "bundle.safetensors")
    found["bundle.safetensors"] = found["trellis_gains"]
    (home / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


def main(archive: Path) -> None:
    """Write ``archive``; what the folders have in common takes its place once, which plain folders would not do."""
    with TemporaryDirectory() as home, tarfile.open(archive, "w:xz", preset=9) as packed:
        write_folders(Path(home))
        for path in sorted(Path(home).iterdir()):
            packed.add(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
