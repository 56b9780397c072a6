"""Folders appear complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys

import pytest
import yaml
from safetensors import SafetensorError

from vqcompress.checkpoint import MANIFEST_NAME, RECIPE_NAME, save_pipeline
from vqcompress.checkpoint.publication import publish
from vqcompress.disk import exchange, held
from vqcompress.errors import CheckpointError


def test_folder_holds_recipe_card_and_manifest(compressed_folder):
    assert yaml.safe_load((compressed_folder / RECIPE_NAME).read_text()) == {"model": "tests/tiny", "bits": 3.0}
    manifest = json.loads((compressed_folder / MANIFEST_NAME).read_text())
    files = {p.relative_to(compressed_folder).as_posix() for p in compressed_folder.rglob("*") if p.is_file()}
    assert set(manifest) == files - {MANIFEST_NAME}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert not list(compressed_folder.parent.glob(".*"))


def test_card_is_valid_for_the_hub(compressed_folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(compressed_folder / "README.md")
    assert card.data.base_model == "tests/tiny"
    assert card.data.library_name == "diffusers"
    assert "import vqcompress" in card.text


def test_nothing_is_left_after_an_error(tmp_path):
    class Broken:
        @property
        def components(self):
            return {}

        def save_pretrained(self, folder, **options):
            (folder / "half").write_text("written")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_pipeline(Broken(), tmp_path / "out", recipe={})
    assert not list(tmp_path.iterdir())


def test_existing_folders_are_kept(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="--overwrite"), publish(folder):
        pass
    with pytest.raises(CheckpointError, match="no pipeline"), publish(folder, overwrite=True):
        pass
    assert (folder / "mine.txt").read_text() == "precious"


def test_replacing_is_one_step_where_the_system_can(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "file").write_text("one")
    assert exchange(one, other) == (sys.platform == "linux")
    assert [path.name for path in other.iterdir()] == (["file"] if sys.platform == "linux" else [])
    assert not exchange(one, tmp_path / "nowhere")


REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES]


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_what_the_disk_refuses_is_one_line_and_changes_nothing(compressed_folder, tmp_path, number, kind):
    """safetensors names the number in its message only."""
    folder = tmp_path / "out"
    shutil.copytree(compressed_folder, folder)
    before = (folder / MANIFEST_NAME).read_bytes()
    error = OSError(number, os.strerror(number)) if kind is OSError else SafetensorError(f"… (os error {number})")

    def write() -> None:
        with publish(folder, overwrite=True) as partial:
            (partial / "half").write_text("written")
            raise error

    with pytest.raises(CheckpointError, match=r"cannot be written: .*; .*, then run the same command again") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert (folder / MANIFEST_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_all_files_have_the_modes_of_new_ones(compressed_pipeline, tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = save_pipeline(compressed_pipeline, tmp_path / "out", recipe={})
    finally:
        os.umask(before)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [folder, *folder.rglob("*")]}
    assert modes == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}


@pytest.mark.parametrize("at_once", [True, False])
def test_overwriting_replaces_a_pipeline(compressed_folder, tmp_path, monkeypatch, at_once):
    if not at_once:  # what the system answers
        monkeypatch.setattr("vqcompress.checkpoint.publication.exchange", lambda *_: False)
    folder = tmp_path / "out"
    shutil.copytree(compressed_folder, folder)
    with publish(folder, overwrite=True) as partial:
        (partial / "model_index.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["model_index.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_saving_twice_gives_the_same_bytes(compressed_folder, compressed_pipeline, tmp_path):
    again = save_pipeline(compressed_pipeline, tmp_path / "compressed", recipe={"model": "tests/tiny", "bits": 3.0})
    manifests = [json.loads((folder / MANIFEST_NAME).read_text()) for folder in (compressed_folder, again)]
    assert manifests[0] == manifests[1]


DEAD = 2**22 + 1  # beyond what Linux numbers processes up to


def test_what_a_killed_process_left_is_cleared(tmp_path):
    """Also under the number of a process that lives: numbers come again. What a living process holds stays."""
    (tmp_path / f".out.{DEAD}.partial").mkdir()
    (tmp_path / f".out.{os.getppid()}.partial").mkdir()
    in_use = tmp_path / f".out.{DEAD + 1}.partial"
    in_use.mkdir()
    with held(in_use), publish(tmp_path / "out") as partial:
        (partial / "file").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [in_use.name, "out"]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path):
    old = tmp_path / f".out.{DEAD}.old.partial"
    old.mkdir()
    (old / "model_index.json").write_text("{}")
    with pytest.raises(OSError, match="disk full"), publish(tmp_path / "out", overwrite=True):
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model_index.json").read_text() == "{}"


def test_tokenizers_are_stored_without_traces_of_their_last_call(compressed_pipeline, tmp_path):
    save_pipeline(compressed_pipeline, tmp_path / "before", recipe={})
    compressed_pipeline.tokenizer(["a cat"], padding="max_length", truncation=True, max_length=7)
    save_pipeline(compressed_pipeline, tmp_path / "after", recipe={})
    files = sorted((tmp_path / "before" / "tokenizer").iterdir())
    assert [path.read_bytes() for path in files] == [
        (tmp_path / "after" / "tokenizer" / path.name).read_bytes() for path in files
    ]
