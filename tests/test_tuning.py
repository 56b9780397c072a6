"""From a model on disk to a tuned folder, in one command and in two: it loads, and is closer to its original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vqcompress.checkpoint import load, verify
from vqcompress.cli.main import main
from vqcompress.compression import quantize
from vqcompress.errors import CheckpointError, RecipeError, VQCompressError
from vqcompress.finetuning.whole_stage import STATES
from vqcompress.tuning import finetune

TRAINING = {"prompts": 4, "held_out": 2, "steps": 8, "batch_size": 4, "rate": 0.05, "block_steps": 2, "requantize": 2}
WORDS = "a cat\ntwo dogs\na red hat\nthe sea\nan old tree\nrain\na ship\nsome sand\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory, make_tiny_pipeline) -> Path:
    """A tiny Stable Diffusion on disk, float16."""
    folder = tmp_path_factory.mktemp("original") / "model"
    make_tiny_pipeline().to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    """A recipe of seconds."""
    words = tmp_path_factory.mktemp("prompts") / "words.txt"
    words.write_text(WORDS)
    calibration = {
        "prompts": str(words),
        "count": 2,
        "steps": 2,
        "guidance": 2.0,
        "height": 16,
        "width": 16,
        "batch_size": 2,
    }
    return {"method": "rtn", "bits": 2, "training": TRAINING, "calibration": calibration}


@pytest.fixture(scope="module")
def untuned(original, options, tmp_path_factory) -> Path:
    """Compressed, not fine-tuned."""
    return quantize(str(original), tmp_path_factory.mktemp("untuned") / "out", **options)


@pytest.fixture(scope="module")
def tuned(untuned, original, options, tmp_path_factory):
    """`untuned` after `finetune`, and the outcome."""
    output = tmp_path_factory.mktemp("tuned") / "out"
    return finetune(untuned, output, model=str(original), prompts=options["calibration"]["prompts"])


def test_a_folder_learns_and_stays_an_ordinary_folder(untuned, tuned):
    folder = outcome = tuned
    assert outcome.after < outcome.before
    assert verify(folder) == []
    size = {path: (path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for path in (untuned, folder)}
    assert size[folder] == pytest.approx(size[untuned], rel=0.01)
    assert not list(folder.parent.glob("*.partial"))
    again = load(untuned).unet.state_dict(), load(folder).unet.state_dict()
    codes = [name for name, tensor in again[0].items() if tensor.dtype == torch.int8]
    changed = {name.rpartition(".")[0] for name in codes if not torch.equal(again[0][name], again[1][name])}
    assert 0 < len(changed) <= TRAINING["requantize"] < len(codes)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_narrow_loads_agree_with_float32(tuned, run_unet, dtype, tolerance):
    wide, narrow = load(tuned).unet, load(tuned, torch_dtype=dtype).unet
    expected = run_unet(wide)
    difference = (run_unet(narrow).float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert float(difference) < tolerance


def test_quantize_fine_tunes_on_the_way(original, options, tmp_path):
    reported = []
    folder = quantize(
        str(original),
        tmp_path / "out",
        finetune="full",
        progress=lambda stage, *rest: reported.append(stage),
        **options,
    )
    assert {"record teacher.train", "fine-tune blocks", "requantize", "fine-tune"} <= set(reported)
    assert verify(folder) == []
    assert "finetune: full" in (folder / "vqcompress_recipe.yaml").read_text()
    with pytest.raises(RecipeError, match="denoiser"):
        quantize(str(original), tmp_path / "no", finetune="full", components=("text_encoder",), **options)


def test_the_command_line(untuned, original, options, tmp_path):
    sources = ["--model", str(original), "--prompts", options["calibration"]["prompts"]]
    asked = CliRunner().invoke(main, ["finetune", str(untuned), "--dry-run", "--json", *sources])
    assert asked.exit_code == 0, asked.output
    expected = json.loads(asked.stdout)
    assert expected["learning"] > 1000
    assert all(expected[key] > 0 for key in ("peak_memory_bytes", "disk_bytes", "record_seconds", "train_seconds"))
    target = tmp_path / "cli"
    done = CliRunner().invoke(main, ["finetune", str(untuned), "-o", str(target), "--steps", "2", "--json", *sources])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["held_out_error"]["steps"] == 2
    assert not (target / STATES).exists()
    for left_out, hint in ((sources[2:], "--model"), (sources[:2], "--prompts")):  # a folder names no local files
        refused = CliRunner().invoke(main, ["finetune", str(untuned), "-o", str(tmp_path / "x"), *left_out])
        assert refused.exit_code == 2
        assert hint in refused.stderr.splitlines()[-1]
    wrong = CliRunner().invoke(main, ["finetune", str(tmp_path), "-o", str(tmp_path / "x")])
    assert wrong.exit_code == 2
    assert "no vqcompress_recipe.yaml" in wrong.output


def test_an_existing_output_is_not_replaced_unasked(untuned, tuned, original, options):
    with pytest.raises(CheckpointError, match="overwrite"):
        finetune(untuned, tuned, model=str(original), prompts=options["calibration"]["prompts"])


def test_another_model_is_refused_before_it_is_recorded(untuned, tmp_path):
    told = []
    with pytest.raises(VQCompressError, match="made from another model than shapes-moe"):
        finetune(
            untuned, tmp_path / "x", model="shapes-moe", prompts="general", progress=lambda *step: told.append(step)
        )
    assert {stage for stage, *_ in told} == {"open original"}
