"""The full-size benchmark from end to end on a trimmed model, and again where it was stopped."""

from __future__ import annotations

from safetensors.torch import load_file

import full_size
import scaling_model
from synthetic_pipeline import make_pipeline


def test_every_stage_on_a_trimmed_model(tmp_path):
    settings = full_size.Settings(3.0, 8, 0, 1, 1, 64, 1.0, blocks=1, width=32, tails=True)
    for stage in full_size.STAGES:
        full_size.run_stage(stage, tmp_path, settings)
    found = full_size.report(tmp_path, settings)
    assert set(found["stages"]) == {
        "make",
        "open",
        "calibrate",
        "encode",
        "write",
        "swap and save",
        *full_size.STAGES[2:],
    }
    assert all(taken["peak_bytes"] > 1e8 for taken in found["stages"].values())
    assert found["output"]["finite"]
    assert 0 < found["output"]["relative_squared_error"] < 0.5
    assert found["bytes"]["packed unet"] < 0.4 * found["bytes"]["dense unet"]
    assert f"{found['layers']} layers" in full_size.markdown(found)


def test_synthetic_weights_have_heavy_tails_and_are_made_once(tmp_path):
    def kurtosis(tails: bool) -> float:
        folder = make_pipeline(tmp_path / str(tails), blocks=1, width=32, tails=tails)
        shard = load_file(next(folder.glob("unet/*.safetensors")))
        weight = shard["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"].float()
        weight = weight / weight.square().mean(1, keepdim=True).sqrt()
        return float(weight.pow(4).mean())

    assert 2.8 < kurtosis(tails=False) < 3.2
    assert kurtosis(tails=True) > 4
    made = tmp_path / "True" / "unet" / "config.json"
    before = made.stat().st_mtime_ns
    make_pipeline(tmp_path / "True", blocks=1, width=32)
    assert made.stat().st_mtime_ns == before


def test_the_scaling_model_counts_published_layers():
    speeds = scaling_model.Speeds(4e6, 5e10, 2e10, 3e13, 1e13, 3e14, cores=16)
    layers = scaling_model.layers_of("sdxl")
    assert sum(rows * columns for rows, columns in layers) > 2.5e9
    found = scaling_model.estimate("sdxl", layers, speeds, scaling_model.Calibration(256, 8, 8192))
    few = scaling_model.estimate("sdxl", layers, speeds, scaling_model.Calibration(256, 8, 1024))
    assert few["calibrate_seconds"][1] < 0.5 * found["calibrate_seconds"][1]
    assert found["encode_seconds"][1] > 4 * found["encode_seconds"][8]
    assert found["encode_seconds"][64] >= max(found["encode_seconds"].values()) / 64
    assert found["cores_until_flat"] < 100
