"""Official files become diffusers folders; files with code, or without weights, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from vqcompress.errors import ArchitectureError
from vqcompress.models.conversion import convert_official, read_official
from vqcompress.models.dit import DiT
from vqcompress.models.pipeline_parts import PipelineParts
from vqcompress.models.pixart import PixArt, name_map
from vqcompress.models.presets import Preset

TINY = {"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
TEXT = {"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "caption_channels": 8, "model_max_length": 4}


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(0)
    return DiT(**TINY).eval()


@pytest.mark.parametrize("wrapper", ["ema", "model", "state_dict", None])
def test_wrapped_and_bare(tmp_path: Path, network: DiT, wrapper: str | None) -> None:
    state = network.state_dict()
    torch.save({wrapper: state, "opt": {"step": 3}} if wrapper else state, tmp_path / "official.pt")
    read = read_official(tmp_path / "official.pt")
    assert read.keys() == state.keys()


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "both.pt")
    assert read_official(tmp_path / "both.pt")["a"] == 1


def test_folder_gives_the_same_estimates(tmp_path: Path, network: DiT) -> None:
    save_file(network.state_dict(), tmp_path / "official.safetensors")
    folder = convert_official(
        Preset("dit", TINY),
        tmp_path / "official.safetensors",
        tmp_path / "dit",
        parts=PipelineParts(id2label={2: "hen"}),
    )
    opened = DiffusionPipeline.from_pretrained(folder)
    x, t, y = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.tensor([2])
    assert opened.transformer(x, t, y).equal(network(x, t, y))
    assert opened.labels == {"hen": 2}


class Surprise:
    """Something that is no tensor."""


@pytest.mark.parametrize("content", [Surprise(), {"ema": Surprise()}, {"ema": {"step": 3}}, [1, 2], {}])
def test_anything_but_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ArchitectureError, match=r"odd\.pt"):
        read_official(tmp_path / "odd.pt")


@pytest.mark.parametrize("name", ["missing.pt", "weights.onnx", "broken.safetensors", "broken.pth"])
def test_unusable_files(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ArchitectureError, match=name.replace(".", r"\.")):
        read_official(tmp_path / name)


def test_text_models_need_more_than_a_denoiser(tmp_path: Path) -> None:
    own = PixArt(**TEXT).state_dict()
    state = {name: torch.cat([own[part] for part in parts]) for name, parts in name_map(1, sizes=False).items()}
    save_file(state, tmp_path / "text.safetensors")
    with pytest.raises(ArchitectureError, match="conditioned on text"):
        convert_official(Preset("pixart", TEXT), tmp_path / "text.safetensors", tmp_path / "out")
