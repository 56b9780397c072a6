"""Official weights become folders that quantize takes: labels, text, adapters; and the line that a mistake gets."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from vqcompress.architectures import open_pipeline
from vqcompress.cli.main import main
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.next_dit import NextDiT
from vqcompress.models.pixart import PixArt, name_map
from vqcompress.models.pt_dit import PTDiT

LABELLED = {"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "num_classes": 12, "num_experts": 4}
NEXT = {"dim": 48, "n_layers": 1, "n_heads": 4, "multiple_of": 16, "cap_feat_dim": 32}
PIXART = {"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "caption_channels": 32}
PT_DIT = {
    "num_heads": 2, "head_dim": 24, "num_layers": 1, "cross_attention_dim": 48, "caption_channels": 32,
    "compress_ratios": (1, 2, 2), "proxy_compress_ratios": (1, 2, 2), "sample_size": 8,
}  # fmt: skip


def call(*arguments: str | Path):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def converted(tmp_path: Path, family: str, weights: Path, config: dict, *more: str | Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    result = call("convert", family, weights, "-o", out, "--config", tmp_path / "config.json", *more)
    assert result.exit_code == 0, result.output
    assert "ready for `vqcompress quantize" in result.stdout
    return out


@pytest.fixture
def parts(tmp_path: Path) -> tuple[str | Path, ...]:
    """Text encoder and VAE, laid out as in a pipeline's folder."""
    torch.manual_seed(0)
    folder, pieces = tmp_path / "parts", ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)
    tokenizer.save_pretrained(folder / "tokenizer")
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), **blocks, latent_channels=4, norm_num_groups=4).save_pretrained(
        folder / "vae"
    )
    return "--text-encoder", folder, "--vae", folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels(tmp_path: Path, parts: tuple, dtype: torch.dtype) -> None:
    network = DiTMoE(**LABELLED).to(dtype)
    torch.save({"ema": network.state_dict(), "opt": {"step": 3}}, tmp_path / "weights.pt")
    out = converted(tmp_path, "dit_moe", tmp_path / "weights.pt", LABELLED, *parts[2:])
    opened = open_pipeline(out, dtype=dtype)
    assert opened.transformer.state_dict().keys() == network.state_dict().keys()
    assert all(opened.transformer.state_dict()[name].equal(tensor) for name, tensor in network.state_dict().items())
    assert opened.vae is not None
    stored = DiffusionPipeline.from_pretrained(out).transformer
    assert stored.config["num_experts"] == 4


def test_text(tmp_path: Path, parts: tuple) -> None:
    for family, network, config in (
        ("next_dit", NextDiT(**NEXT), NEXT),
        ("pt_dit", PTDiT(**PT_DIT), PT_DIT),
    ):
        where = tmp_path / family
        where.mkdir()
        save_file(network.state_dict(), where / "weights.safetensors")
        opened = open_pipeline(converted(where, family, where / "weights.safetensors", config, *parts))
        assert opened.text_encoder.config.d_model == 32
        assert all(opened.transformer.state_dict()[name].equal(t) for name, t in network.state_dict().items())


def test_pixart_becomes_diffusers_own_pipeline(tmp_path: Path, parts: tuple) -> None:
    own = PixArt(**PIXART).state_dict()
    state = {name: torch.cat([own[part] for part in group]) for name, group in name_map(1, sizes=False).items()}
    save_file(state, tmp_path / "weights.safetensors")
    opened = open_pipeline(converted(tmp_path, "pixart", tmp_path / "weights.safetensors", PIXART, *parts))
    assert type(opened).__name__ == "PixArtAlphaPipeline"
    assert opened.transformer.state_dict()["proj_out.weight"].equal(own["transformer.proj_out.weight"])


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("sdxxl", (), "no published configuration is called 'sdxxl'"),
        ("diffit-image", (), "nothing to convert"),
        ("sdxl", (), "nothing to convert"),
        ("linfusion-sdxl", (), "--base"),
        ("next_dit", (), "--text-encoder and --vae"),
        ("dit_moe", (), "do not fit DiTMoE"),
        ("next_dit", ("--vae", "empty"), "cannot be read as a diffusers AutoencoderKL"),
        ("next_dit", ("--text-encoder", "empty"), "cannot be read as a transformers model"),
        ("next_dit", ("--config", "weights.safetensors"), "cannot be read as JSON"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, more: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(LABELLED if name == "dit_moe" else NEXT))
    save_file(NextDiT(**NEXT).state_dict(), tmp_path / "weights.safetensors")
    options = [
        "--config",
        str(tmp_path / "config.json"),
        *(each if each[0] == "-" else str(tmp_path / each) for each in more),
    ]
    result = call("convert", name, tmp_path / "weights.safetensors", "-o", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
