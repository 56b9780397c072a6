"""`vqcompress push`: what arrives on the Hub is a sound folder with a card that the Hub accepts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard

import vqcompress
from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.fuzz.folders import honest_folders
from vqcompress.cli.main import main
from vqcompress.errors import CheckpointError, RecipeError, VQCompressError
from vqcompress.pushing import _body, _front_matter, _licence, _pipeline_tag

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
TABLE = "| variant | bits |\n| :--- | ---: |\n| original | – |\n"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest_folders(tmp_path_factory.mktemp("honest"), tiny_pipeline())["whole"]


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return shutil.copytree(honest, tmp_path / "packed")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    home = tmp_path / "report"
    home.mkdir()
    (home / "grid.png").write_bytes(b"\x89PNG a picture")
    (home / "report.md").write_text(f"# x\n\n{TABLE}\nSize and error are the denoiser's.\n\n| another | table |\n")
    return home


class Hub:
    """Takes commits and writes them to a folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.made = home, dict[str, Any]()

    def __call__(self) -> Hub:
        return self

    def create_repo(self, name: str, **options: Any) -> None:
        self.made = {"name": name, **options}

    def create_commit(self, name: str, operations: list[Any], commit_message: str) -> None:
        assert name == self.made["name"]
        for operation in operations:
            path = self.home / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            given = operation.path_or_fileobj
            path.write_bytes(given if isinstance(given, bytes) else Path(given).read_bytes())


def test_what_arrives_is_sound_and_its_card_is_complete(
    folder: Path, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, before = Hub(tmp_path / "hub"), {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    pushed = vqcompress.push(folder, "me/small-vq3", report=report, base=SDXL, private=True)
    assert hub.made == {"name": "me/small-vq3", "private": True, "exist_ok": True}
    assert vqcompress.verify(hub.home) == []
    sent = {str(path.relative_to(hub.home)): path.stat().st_size for path in hub.home.rglob("*") if path.is_file()}
    assert sent == pushed.files
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    card = ModelCard((hub.home / "README.md").read_text())
    assert (card.data.license, card.data.base_model, card.data.pipeline_tag) == ("openrail++", SDXL, "text-to-image")
    assert card.data.library_name == "diffusers"
    assert {"vqcompress", "quantized"} <= set(card.data.tags)
    assert 'from_pretrained("me/small-vq3", torch_dtype=torch.bfloat16)' in card.text
    assert "pip install vqcompress" in card.text
    assert TABLE in card.text
    assert "another" not in card.text
    assert str(tmp_path) not in card.content
    again = vqcompress.push(hub.home, "you/other", report=report, dry_run=True).card
    assert 'from_pretrained("you/other"' in again
    assert again.count("## Measured") == 1
    opened = vqcompress.load(hub.home)
    assert type(opened).__name__ == "StableDiffusionPipeline"


def test_a_dry_run_sends_nothing_and_shows_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    options = ("push", str(folder), "me/x", "--base", SDXL, "--license", "mit", "--dry-run", "--json")
    said = json.loads(CliRunner().invoke(main, options).stdout)
    assert said["sent"] is False
    assert said["url"] == "https://huggingface.co/me/x"
    assert yaml.safe_load(said["card"].split("---")[1])["license"] == "mit"
    assert said["files"]["unet/diffusion_pytorch_model.safetensors"] > 1000


def test_a_licence_that_is_given_replaces_that_of_a_card(folder: Path) -> None:
    """A folder that was downloaded has the card that it was sent with."""
    card = folder / "README.md"
    matter = {"license": "other", "license_name": "x", "license_link": "https://example.org", "base_model": SDXL}
    card.write_text(f"---\n{yaml.safe_dump(matter)}---\n# Old\n")
    assert "license_name" not in _front_matter(folder, None, None)
    assert _front_matter(folder, None, None)["license"] == "openrail++"
    assert _front_matter(folder, None, "mit")["license"] == "mit"


def test_a_card_without_front_matter_is_sent_whole(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine\n\nabove\n\n---\nbetween\n\n---\nbelow\n")
    body = _body(folder)
    assert all(word in body for word in ("above", "between", "below"))


def test_front_matter_that_is_no_yaml_is_one_line(folder: Path) -> None:
    (folder / "README.md").write_text("---\n: [\n---\n# x\n")
    with pytest.raises(CheckpointError, match=r"README\.md .* no YAML"):
        _front_matter(folder, SDXL, None)


def test_what_the_card_needs_is_asked_for(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(RecipeError, match="give --base"):
        _front_matter(bare, None, None)
    with pytest.raises(RecipeError, match="give --license"):
        vqcompress.push(folder, "me/x", base="someone/model", dry_run=True)
    for name in ("me", "me/x/y", "/x", "me/", "a b/c"):
        with pytest.raises(RecipeError, match="give owner/name"):
            vqcompress.push(folder, name, base=SDXL, dry_run=True)
    (folder / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not sound"):
        vqcompress.push(folder, "me/x", base=SDXL, dry_run=True)


def test_what_the_hub_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Hub):
        def create_repo(self, name: str, **options: Any) -> None:
            raise OSError("401 Client Error.\nInvalid username or password.")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing(folder))
    with pytest.raises(VQCompressError, match=r"^me/x was not sent: 401 Client Error\.; `hf auth login`") as caught:
        vqcompress.push(folder, "me/x", base=SDXL)
    assert "\n" not in str(caught.value)
    result = CliRunner().invoke(main, ["push", str(folder), "me/x", "--base", SDXL])
    assert result.exit_code != 0


def test_licences_that_the_hub_has_no_word_for_are_named_and_linked() -> None:
    assert _licence("black-forest-labs/FLUX.1-dev", None) == {
        "license": "other", "license_name": "flux.1-dev", "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev"
    }  # fmt: skip
    assert _licence("black-forest-labs/FLUX.1-schnell", None) == {"license": "apache-2.0"}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("StableDiffusionPipeline", "text-to-image"),
        ("StableDiffusionXLImg2ImgPipeline", "image-to-image"),
        ("StableDiffusionUpscalePipeline", "image-to-image"),
        ("FluxKontextPipeline", "image-to-image"),
        ("FluxControlPipeline", "image-to-image"),
        ("QwenImageEditPipeline", "image-to-image"),
        ("DiTPipeline", "unconditional-image-generation"),
        ("WanPipeline", "text-to-video"),
        ("WanImageToVideoPipeline", "image-to-video"),
        ("StableVideoDiffusionPipeline", "image-to-video"),
        ("WanVideoToVideoPipeline", "video-to-video"),
    ],
)
def test_the_hub_is_told_what_the_pipeline_does(name: str, word: str, tmp_path: Path) -> None:
    """The words of https://huggingface.co/tasks."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert _pipeline_tag(tmp_path) == word


@pytest.mark.parametrize("tags", ["", "tags: art\n", "tags: [3, {a: b}, art]\n", "tags:\n"])
def test_tags_of_a_strange_card_are_those_that_are_words(tags: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    (tmp_path / "README.md").write_text(f"---\n{tags}base_model: a/b\n---\n# x\n")
    expected = ["art", "quantized", "vqcompress"] if "[" in tags else ["quantized", "vqcompress"]
    assert _front_matter(tmp_path, None, "mit")["tags"] == expected
