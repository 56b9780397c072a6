"""Peak memory of the host while a large transformer is quantized without calibration, layer by layer.

``python benchmarks/host_memory.py --work FOLDER --blocks 2`` writes a pipeline with FLUX's transformer (19 + 38 blocks,
11.9 billion weights, 24 GB in bfloat16; ``--blocks`` trims both kinds) in shards, with random weights and small text
encoders, quantizes it with ``rtn`` and the same bits in every layer, and prints what the process held: all of it, and
what was its own, not pages of the model's file, which the system takes back when it needs them.
"""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import nn

SHARD_BYTES = 1_000_000_000
WEIGHTS = "diffusion_pytorch_model"


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work folder.")
@click.option("--blocks", type=int, help="Double blocks; twice as many single ones [default: 19, and 38].")
@click.option("--bits", default=4, show_default=True)
def main(work: Path, blocks: int | None, bits: int) -> None:
    import vqcompress

    weights = make_pipeline(work / "dense", blocks)
    with held() as peak:
        start = time.perf_counter()
        vqcompress.quantize(
            str(work / "dense"), work / "packed", overwrite=True, method="rtn", bits=bits, budget="layer", device="cpu",
            calibration={"prompts": "shapes", "count": 1, "steps": 1, "height": 64, "width": 64},
        )  # fmt: skip
    found = {"weights": weights, "seconds": round(time.perf_counter() - start), **peak}
    click.echo(json.dumps(found))


@contextmanager
def held() -> Iterator[dict[str, float]]:
    """Largest resident memory of this process inside the block, in GB: its own, and with pages of files."""
    found, done = {"own_gb": 0.0, "resident_gb": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            own = int(status["RssAnon"].split()[0]) * 1024 / 1e9
            found["own_gb"] = max(found["own_gb"], own)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found["resident_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def make_pipeline(folder: Path, blocks: int | None) -> int:
    """Write the pipeline unless it is there; the number of its transformer's weights."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    from vqcompress.embedded import EMBEDDED

    sizes: dict[str, Any] = {} if blocks is None else {"num_layers": blocks, "num_single_layers": 2 * blocks}
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True, **sizes)
    count = sum(p.numel() for p in transformer.parameters())
    if (folder / "model_index.json").is_file():
        return count
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED["shapes"].path / "tokenizer")
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    second = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=64)
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=768, projection_dim=768, num_hidden_layers=1,
        num_attention_heads=12, max_position_embeddings=tokenizer.model_max_length, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    t5 = T5Config(vocab_size=len(second), d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(16,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, norm_num_groups=4, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = (scheduler, vae, CLIPTextModel(clip), tokenizer, T5EncoderModel(t5), second)
    FluxPipeline(*parts, None).save_pretrained(folder)  # type: ignore[arg-type]
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"transformer": ["diffusers", "FluxTransformer2DModel"]})
    )
    _write(transformer, folder / "transformer")
    return count


def _write(network: Any, folder: Path) -> None:
    """Shards of random weights, each drawn from one pool at another place: drawing them all takes longer."""
    network.save_config(folder)
    pool = torch.randn(1 << 28, generator=torch.Generator().manual_seed(0)).bfloat16()
    shards: list[dict[str, nn.Parameter]] = [{}]
    for name, parameter in network.named_parameters():
        if shards[-1] and 2 * sum(p.numel() for p in shards[-1].values()) + 2 * parameter.numel() > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = parameter
    weight_map, at = {}, 0
    for number, shard in enumerate(shards, 1):
        file, tensors = f"{WEIGHTS}-{number:05}-of-{len(shards):05}.safetensors", {}
        for name, parameter in shard.items():
            at = (at + 9973) % (len(pool) - parameter.numel())
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            tensors[name] = (scale * pool[at : at + parameter.numel()]).reshape(parameter.shape)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = 2 * sum(p.numel() for p in network.parameters())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(text)


if __name__ == "__main__":
    main()
