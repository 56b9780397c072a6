"""Other spellings of names, Hub ids of named models, and what a mistake may have meant."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from diffusers import DiffusionPipeline

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.architectures.known_names import known_name, perhaps_meant, sampled_as_published, suggestions
from vqcompress.architectures.published import PUBLISHED, coded_weights
from vqcompress.architectures.published_skeleton import published_skeleton
from vqcompress.cli.main import main
from vqcompress.errors import ArchitectureError
from vqcompress.models.hub_pipelines import HUB_PIPELINES
from vqcompress.sampling_config import ResolvedSampling

NAMES = {
    "flux-dev", "flux-schnell", "flux-kontext", "flux2-dev", "flux2-klein", "flux3-klein", "sd3-medium", "sd35-large",
    "sd35-medium", "qwen-image", "qwen-image-edit", "z-image-turbo", "wan22-t2v-a14b", "wan22-i2v-a14b",
    "wan22-ti2v-5b", "ltx2", "hunyuan-video-15", "hunyuan-image", "chroma", "sana", "krea2", "pixart-sigma",
    "lumina-image-2", "kolors", "ssd-1b", "sdxl-lightning", "sdxl-refiner", "sdxl-inpaint",
}  # fmt: skip
TABLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "name_table.py"))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("flux.1-dev", "flux-dev"),
        ("FLUX.1-dev", "flux-dev"),
        ("fluxdev", "flux-dev"),
        ("black-forest-labs/FLUX.1-dev", "flux-dev"),
        ("sd3.5-large", "sd35-large"),
        ("stable-diffusion-3.5-large", "sd35-large"),
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "wan22-t2v-a14b"),
        ("wan2.2-i2v-a14b", "wan22-i2v-a14b"),
        ("Qwen-Image", "qwen-image"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("sd1.5", "sd15"),
        ("ltx-2", "ltx2"),
        ("pixart-sigma-xl-2-1024", "pixart-sigma"),
        ("shapes", None),
        ("wan2.2", None),
        ("someone/FLUX.1-dev", None),
    ],
)
def test_other_spellings(model: str, name: str | None) -> None:
    assert known_name(model) == name


def test_a_folder_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fluxdev").mkdir()
    monkeypatch.chdir(tmp_path)
    assert known_name("fluxdev") is None
    assert known_name("flux-dev") == "flux-dev"


def test_runs_by_name_sample_as_the_model_card_says(sdxl: DiffusionPipeline) -> None:
    architecture = architecture_of(sdxl)
    assert sampled_as_published(architecture, "SDXL-Lightning").defaults == ResolvedSampling(4, 0.0, 1024, 1024)
    for other in ("sdxl", "some/folder", sdxl):
        assert sampled_as_published(architecture, other) is architecture


def test_hub_ids_lead_to_the_row_that_opens_them() -> None:
    for name, row in PUBLISHED.items():
        if row.hub and not row.official:
            assert PUBLISHED[known_name(row.hub) or ""].hub == row.hub, name


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("flux-dve", "flux-dev"),
        ("sdxxl", "sdxl"),
        ("wan2.2", "wan22-t2v-a14b"),
        ("qwen-imgae-edit", "qwen-image-edit"),
        ("hunyuan", "hunyuan-video-15"),
        ("sd3.5", "sd35-large"),
        ("chromma", "chroma"),
    ],
)
def test_what_was_perhaps_meant(model: str, meant: str) -> None:
    assert meant in suggestions(model)
    with pytest.raises(ArchitectureError, match=f"did you mean .*{meant}"):
        open_pipeline(model)


def test_nothing_alike_is_not_guessed() -> None:
    assert perhaps_meant("kqvjxz") == ""
    with pytest.raises(ArchitectureError, match="vqcompress presets"):
        open_pipeline("kqvjxz")


def test_all_names_are_listed_within_eighty_columns() -> None:
    text = CliRunner().invoke(main, ["presets"], catch_exceptions=False).stdout
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows.keys() >= NAMES
    assert max(map(len, text.splitlines())) <= 80
    assert "11.9 B" in rows["flux-dev"]
    assert "FLUX.1 [dev] *" in rows["flux-dev"]
    assert "*" not in rows["flux-schnell"]
    assert "4.55 GB" in rows["flux-dev"]  # 11.90 B weights of which 11.85 B are quantized: 0.1 GB + 4.44 GB
    listed = {row["name"]: row for row in json.loads(CliRunner().invoke(main, ["presets", "--json"]).stdout)}
    assert listed["flux2-dev"]["source"] == "Hub: black-forest-labs/FLUX.2-dev"
    assert {name for name in HUB_PIPELINES if not listed[name]["commercial"]} == {
        "flux-dev", "flux-kontext", "flux2-dev", "flux2-klein-9b", "flux3-klein", "sana"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["flux-dev", "wan22-t2v-a14b", "sdxl", "dit-s-2"])
def test_sizes_of_the_list_are_those_of_plans(name: str) -> None:
    assert coded_weights()[name] == pytest.approx(TABLE["quantized_weights"](name), rel=0.02)


def test_the_page_of_models_has_the_table_of_names() -> None:
    assert coded_weights().keys() == PUBLISHED.keys()
    assert TABLE["section"](coded_weights()) in TABLE["PAGE"].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["wan22-t2v-a14b", "FLUX.1-schnell", "black-forest-labs/FLUX.2-klein-4B"])
def test_a_dry_run_needs_neither_weights_nor_network(name: str) -> None:
    arguments = ["quantize", name, "--dry-run", "--method", "gptq", "--budget", "layer"]
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    for word in (f"{name}: ", "at 2 bits", "at 3 bits", "at 4 bits", "peak memory", "encoding", "steps at guidance"):
        assert word in text
    assert ("transformer and transformer_2" in text) == ("wan22" in name)


def test_a_dry_run_says_what_a_run_would_lack() -> None:
    arguments = ["quantize", "flux3-klein", "--dry-run", "--method", "rtn"]
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert "cannot run here" in text
    assert "modular pipeline" in text
    assert published_skeleton("flux-dev").obstacle is None


def test_a_dry_run_plans_text_encoders_and_the_autoencoder() -> None:
    arguments = ["quantize", "flux-dev", "--dry-run", "--method", "rtn", "--json", "--components", "text_encoder_2,vae"]
    found = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    assert found["weights"] == 4_762_310_656 + 83_819_683
    assert found["quantized_weights"] > 0.95 * found["weights"]
    assert {"decoder.conv_in", "decoder.conv_out", "encoder.conv_in", "encoder.conv_out"} < found["kept"].keys()
