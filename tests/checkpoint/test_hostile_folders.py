"""Folders and bundles that a stranger may have written: refused in a sentence, before anything is built or written."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests.checkpoint.make_old_folders import tiny_pipeline
from tests.fuzz.cases import refresh_manifest
from tests.fuzz.folders import honest_folders
from vqcompress.architectures.folder import open_folder
from vqcompress.bundling import MARK, read_bundle, write_bundle
from vqcompress.checkpoint import check_hashes, load, verify
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.errors import CheckpointError, VQCompressError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> dict[str, Path]:
    return honest_folders(tmp_path_factory.mktemp("honest"), tiny_pipeline())


@pytest.fixture
def folder(honest, tmp_path) -> Path:
    return shutil.copytree(honest["whole"], tmp_path / "copy")


@pytest.fixture
def shards(honest, tmp_path) -> Path:
    return shutil.copytree(honest["shards"], tmp_path / "shards")


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(folder: Path, message: str) -> None:
    """By `verify`, `load` and plain loading, each in one line."""
    problems = verify(folder)
    assert any(message in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)
    for opening in (load, DiffusionPipeline.from_pretrained):
        with pytest.raises(CheckpointError) as caught:
            opening(folder)
        assert "\n" not in str(caught.value)


def test_honest_folders_are_sound(honest) -> None:
    assert [verify(path) for path in honest.values()] == [[], [], []]


# Fault by fault: what reads beyond a tensor, and what allocates more than there is.


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_plain_loading_names_the_file_and_the_tensor_of_damaged_rates(folder: Path, component: str) -> None:
    path = next((folder / component).glob("*.safetensors"))
    tensors = load_file(path)
    key = next(key for key in sorted(tensors) if key.endswith(".rates"))
    tensors[key].fill_(-1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{path.name}: {key} ") as caught:
        DiffusionPipeline.from_pretrained(folder)
    assert component in str(caught.value)


def _layer(folder: Path, form: str) -> str:
    layers = json.loads((folder / "unet/config.json").read_text())["quantization_config"]["layers"]
    return next(name for name, entry in layers.items() if entry["format"] == form)


@pytest.mark.parametrize(
    ("form", "field", "value"),
    [
        ("trellis", "min_rate", -1),
        ("trellis", "min_rate", 2**33 + 3),
        ("trellis", "rate_bits", 40),
        ("trellis", "code_bytes", 64 << 30),
        ("additive", "code_bits", 2**53),
        ("scalar", "group_size", -1),
        ("scalar", "group_size", 2**41),
        ("scalar", "bits", 1000),
        ("scalar", "bits", True),
        ("scalar", "shape", [2**32, 2**32]),
    ],
)
def test_fields_of_a_layer(folder: Path, form: str, field: str, value: Any) -> None:
    layer = _layer(folder, form)

    def change(config: Any) -> None:
        config["quantization_config"]["layers"][layer][field] = value

    edit(folder / "unet/config.json", change)
    refresh_manifest(folder)
    refused(folder, layer)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "layers_per_block", 65535),
        ("unet", "out_channels", 2**32),
        ("unet", "block_out_channels", [2**20]),
        ("unet", "transformer_layers_per_block", 65535),
        ("text_encoder", "num_hidden_layers", 65535),
        ("text_encoder", "vocab_size", 2**40),
    ],
)
def test_a_config_cannot_ask_for_more_than_its_files_hold(folder: Path, component: str, key: str, value: Any) -> None:
    edit(folder / component / "config.json", lambda config: config.update({key: value}))
    refresh_manifest(folder)
    start = time.perf_counter()
    refused(folder, f"{component}")
    assert time.perf_counter() - start < 60


def test_layers_cannot_stand_for_more_weights_than_their_bytes_mean(folder: Path) -> None:
    """A trellis layer whose columns all have rate 0 takes no bytes, whatever its size."""

    def change(config: Any) -> None:
        entry = {"format": "trellis", "state_bits": 8, "min_rate": 0, "rate_bits": 0, "tail": 0.0, "row_scales": False}
        config["quantization_config"]["layers"]["conv_in"] = {**entry, "code_bytes": 0, "shape": [2**18, 2**18]}

    edit(folder / "unet/config.json", change)
    refresh_manifest(folder)
    refused(folder, "bytes are stored")


def test_no_network_is_built_from_a_config_that_the_manifest_does_not_vouch_for(folder: Path, monkeypatch) -> None:
    def build(*args: Any, **options: Any) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(UNet2DConditionModel, "from_config", build)
    edit(folder / "unet/config.json", lambda config: config.update({"layers_per_block": 65535}))
    assert any("unet/config.json: has" in problem for problem in verify(folder))


# Files that are none


@pytest.mark.parametrize(
    "name", [UNET, "unet/config.json", "vqcompress_manifest.json", "model_index.json", "README.md"]
)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "loop"])
def test_pipes_devices_and_loops_are_not_opened(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(path.name if kind == "loop" else kind)
    refused(folder, "regular file")
    with pytest.raises(CheckpointError):
        write_bundle(folder, folder.parent / "one.safetensors")


@pytest.mark.parametrize(
    ("begins", "size", "said"),
    [
        (b"", 1 << 36, "bytes with no header"),  # a hole of 64 GiB
        (b"", 0, "0 bytes with no header"),
        (b"version https://git-lfs.github.com/spec/v1", 130, "a Git LFS pointer"),
        ((1 << 40).to_bytes(8, "little"), 1 << 20, "bytes with no header"),
    ],
    ids=["hole", "empty", "LFS", "long header"],
)
def test_dense_weights_without_a_header_are_not_mapped(folder: Path, begins: bytes, size: int, said: str) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(begins)
    os.truncate(path, size)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} holds no safetensors but .*{said}"):
        DiffusionPipeline.from_pretrained(folder)


def test_dense_weights_that_go_on_as_a_hole_are_not_mapped(folder: Path) -> None:
    os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 1 << 36)
    with pytest.raises(CheckpointError, match="has 68719476736 bytes, its header says"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", UNET])
def test_a_header_of_spaces_is_not_read(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    spaces = b" " * (40 << 20)
    begins = (length + len(spaces)).to_bytes(8, "little")
    (folder / name).write_bytes(begins + data[8 : 8 + length] + spaces + data[8 + length :])
    write_manifest(folder)
    refused(folder, "header")
    with pytest.raises(CheckpointError):
        write_bundle(folder, folder.parent / "one.safetensors")


@pytest.mark.parametrize("change", ["gone", "that of the dense network"])
def test_codes_without_their_description(folder: Path, change: str) -> None:
    """Whoever copies configs of the original over a packed folder is told, not left with sizes that do not fit."""
    config = folder / "unet" / "config.json"
    if change == "gone":
        config.unlink()
    else:
        edit(config, lambda entries: entries.pop("quantization_config"))
    write_manifest(folder)
    refused(folder, "the packed weights beside it")


def test_a_dense_component_larger_than_its_files(folder: Path) -> None:
    edit(folder / "vae" / "config.json", lambda entries: entries.update(latent_channels=65535))
    with pytest.raises(CheckpointError, match=r"vae/config\.json describes"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_config_with_half_of_a_surrogate_pair(folder: Path) -> None:
    edit(folder / "vae" / "config.json", lambda entries: entries.update({"\ud800": 1}))
    write_manifest(folder)
    assert any("surrogate" in problem for problem in verify(folder))
    with pytest.raises(CheckpointError, match="surrogate"):
        load(folder)


@pytest.mark.parametrize("listed", [-0.0, [], None, {"a": 1}, {"a": ["b"]}])
def test_an_index_that_lists_nothing(shards: Path, listed: Any) -> None:
    edit(
        shards / "unet" / "diffusion_pytorch_model.safetensors.index.json",
        lambda index: index.update(weight_map=listed),
    )
    refused(shards, "has no weight_map")


def test_a_word_with_a_number_beyond_all_vocabularies(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    edit(path, lambda entries: entries["model"]["vocab"].update({"word": 2147483648}))
    write_manifest(folder)
    assert any("numbers a word 2147483648" in problem for problem in verify(folder))
    with pytest.raises(CheckpointError, match="numbers a word"):
        load(folder)


def test_a_text_like_a_number_is_none(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    edit(path, lambda entries: entries["model"]["vocab"].update({'a": 123456789': 99, "123456789": 98}))
    write_manifest(folder)
    assert verify(folder) == []


def test_code_in_the_folder_is_not_run_and_said(folder: Path) -> None:
    code = f"import os; os.mkdir({str(folder.parent / 'was run')!r})\nclass Evil: pass\n"
    for place in (folder / "evil.py", folder / "unet" / "evil.py"):
        place.write_text(code)
    edit(folder / "model_index.json", lambda index: index.update(_class_name=["evil", "Evil"]))
    write_manifest(folder)
    assert any("a pipeline class in code of its own" in problem for problem in verify(folder))
    edit(folder / "model_index.json", lambda index: index.update(unet=["evil", "Evil"], _class_name="SanaPipeline"))
    write_manifest(folder)
    assert any("names a class in code of its own, evil.py" in problem for problem in verify(folder))
    with pytest.raises(CheckpointError, match="in code of its own"):
        load(folder)
    assert not (folder.parent / "was run").exists()


@pytest.mark.parametrize("kind", ["DiffusionPipeline", "StableDiffusionXLPipeline", "AutoPipelineForText2Image"])
@pytest.mark.parametrize("link", ["", ".", ".."])
def test_a_pipeline_that_is_a_part_of_itself(folder: Path, kind: str, link: str) -> None:
    edit(folder / "model_index.json", lambda index: index.update(safety_checker=["diffusers", kind]))
    if link:
        (folder / "safety_checker").symlink_to(link)
    write_manifest(folder)
    refused(folder, "which would open")


@pytest.mark.parametrize("steps", [10**6, 65_536_000, 1e300])
def test_a_scheduler_of_any_number_of_timesteps(folder: Path, steps: float) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", lambda entries: entries.update(num_train_timesteps=steps))
    write_manifest(folder)
    refused(folder, "num_train_timesteps")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", [UNET, "vae/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_a_file_that_cannot_be_read(folder: Path, name: str) -> None:
    """A disk that fails: the first page of a process's memory is a regular file that gives an I/O error."""
    (folder / name).unlink()
    (folder / name).symlink_to("/proc/self/mem")
    refused(folder, "cannot be read: Input/output error")
    with pytest.raises(CheckpointError):
        write_bundle(folder, folder.parent / "one.safetensors")


@pytest.mark.parametrize("text", ["[" * 200000, '{"a": ' + "9" * 5000 + "}", "[]", "", '{"a": 1}', " " * (1 << 25)])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "vqcompress_manifest.json").write_text(text)
    assert "cannot be read" in verify(folder)[0]
    assert len(verify(folder)) == 1


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("../out", {"sha256": "0" * 64, "bytes": 1}, "outside"),
        ("a\0b", {"sha256": "0" * 64, "bytes": 1}, "NUL"),
        ("x" * 300, {"sha256": "0" * 64, "bytes": 1}, "too long"),
        ("README.md", {"sha256": "0" * 64, "bytes": True}, "no hash and length"),
        ("README.md", {"sha256": 7, "bytes": 1}, "no hash and length"),
        ("README.md", [], "no hash and length"),
    ],
)
def test_entries_of_a_manifest(folder: Path, name: str, entry: Any, message: str) -> None:
    edit(folder / "vqcompress_manifest.json", lambda manifest: manifest.update({name: entry}))
    assert message in verify(folder)[0]


def test_files_that_the_manifest_does_not_list(folder: Path) -> None:
    edit(folder / "vqcompress_manifest.json", lambda manifest: manifest.pop("unet/config.json"))
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {}}')
    (folder / "notes.md").write_text("a reader's own")
    problems = verify(folder)
    assert "unet/config.json: is not in the manifest" in problems
    assert "unet/diffusion_pytorch_model.safetensors.index.json: is not in the manifest" in problems
    assert not any("notes" in problem for problem in problems)


def test_an_index_that_lists_other_tensors_than_its_files_have(shards: Path) -> None:
    index = next((shards / "unet").glob("*.index.json"))
    edit(index, lambda data: data["weight_map"].pop(next(iter(data["weight_map"]))))
    refresh_manifest(shards)
    refused(shards, "does not list")
    edit(index, lambda data: data["weight_map"].update({"x": "../../../etc/passwd"}))
    refresh_manifest(shards)
    refused(shards, "outside")


@pytest.mark.parametrize("entry", [[[[]]], [], [None, None, None], [{}, "a"], "", 7, ["diffusers", "../x"]])
def test_entries_of_the_pipeline_s_index(folder: Path, honest, tmp_path, entry: Any) -> None:
    """Whatever diffusers makes of them: no failure is ours."""
    edit(folder / "model_index.json", lambda index: index.update({"image_encoder": entry, "unet": entry}))
    refresh_manifest(folder)
    verify(folder)
    bundle = write_bundle(folder, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="0 parts that are a UNet2DConditionModel"):
        UNet2DConditionModel.from_single_file(bundle)
    with pytest.raises(VQCompressError):
        open_folder(folder, torch.float32)


def test_dense_tensors_must_be_those_of_the_network(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    tensors["conv_out.bias"] = tensors["conv_out.bias"][:-1].clone()
    del tensors["conv_in.weight"]
    save_file(tensors, folder / UNET, metadata={"format": "pt"})
    refresh_manifest(folder)
    problems = verify(folder)
    assert any("unet/conv_out.bias: is (3,)" in problem for problem in problems)
    assert any("unet/conv_in.weight: is missing" in problem for problem in problems)


# Bundles


def rewrite(path: Path, change) -> Path:
    """The bundle with its table of contents changed."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    contents = json.loads(header["__metadata__"][MARK])
    change(contents)
    header["__metadata__"][MARK] = json.dumps(contents)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def _copies(contents: Any) -> None:
    contents["weights"] += [{**contents["weights"][0], "name": f"unet/{i}.safetensors"} for i in range(1000)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_copies, "within another file's"),
        (lambda c: c["weights"][0].update(start=-8), "within another file's"),
        (lambda c: c["weights"][-1].update(length=1 << 40), "not that of"),
        (lambda c: c["weights"][0].update(length="8"), "no name, header, start and length"),
        (lambda c: c["weights"][0].update(start=True), "no name, header, start and length"),
        (lambda c: c["weights"][0].pop("header"), "no name, header, start and length"),
        (lambda c: c["weights"][0].update(header="{"), "is not that of"),
        (lambda c: c["weights"][0].update(name="../x.safetensors"), "outside"),
        (lambda c: c["weights"][0].update(name=c["weights"][1]["name"]), "one name"),
        (lambda c: c["weights"][0].update(name="unet"), "a file and a folder"),
        (lambda c: c["texts"].update({"/etc/cron.d/x": ""}), "outside"),
        (lambda c: c["texts"].update({"unet/config.json": 7}), "texts are no texts"),
        (lambda c: c["texts"].update({"unet/config.json": "\ud800"}), "surrogate"),
        (lambda c: c.update(version=True), "no version"),
        (lambda c: c.update(weights={}), "no name, header, start and length"),
    ],
)
def test_bundles_are_refused_before_anything_is_written(honest, tmp_path, change, message: str) -> None:
    path = rewrite(Path(shutil.copyfile(honest["bundle"], tmp_path / "b.safetensors")), change)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        read_bundle(path)
    assert any(message in problem for problem in verify(path))
    with pytest.raises(CheckpointError, match=message):
        StableDiffusionPipeline.from_single_file(path)
    assert set(tmp_path.rglob("*")) == before


def test_hashes_are_checked_without_extracting(honest, tmp_path) -> None:
    check_hashes(honest["bundle"])
    check_hashes(tmp_path / "no-such-model")
    path = Path(shutil.copyfile(honest["bundle"], tmp_path / "b.safetensors"))
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        check_hashes(path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(path)
    assert torch.is_tensor(next(load(path, checked=False).unet.parameters()))


def test_a_single_file_that_is_no_bundle(tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")]).half()}, path)
    assert verify(path) == ["one.safetensors/b: holds values that are not finite"]
    path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read" in verify(path)[0]
    assert "neither a folder nor a file" in verify(tmp_path / "nothing")[0]
