"""What `verify` may take: wall-clock time, and memory that does not grow with the weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tests.fuzz.cases import refresh_manifest
from tests.fuzz.folders import honest_folders
from vqcompress.checkpoint import MANIFEST_NAME, load, verify
from vqcompress.checkpoint.verification import allowed_seconds
from vqcompress.cli.main import main
from vqcompress.errors import CheckpointError
from vqcompress.safetensors_header import NO_HEADER, stored_header
from vqcompress.time_limit import check_time, within
from vqcompress.working_memory import return_freed_memory

TEXT_ENCODER = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return honest_folders(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def folder(honest: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(honest["whole"], tmp_path / "copy")


def make_hole(folder: Path, name: str, length: int) -> None:
    """Let a file say that it has ``length`` bytes, and the manifest with it."""
    os.truncate(folder / name, length)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest[name]["bytes"] = length
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["whole", "shards", "bundle"])
def test_the_time_is_limited(honest: dict[str, Path], name: str) -> None:
    (problem,) = verify(honest[name], seconds=0)
    assert problem.startswith("not looked through within 0 s")
    assert verify(honest[name], seconds=600) == []
    ended = CliRunner().invoke(main, ["verify", str(honest[name]), "--seconds", "0", "--json"])
    assert ended.exit_code == 2
    assert json.loads(ended.stdout)["problems"] == [problem]


def test_the_time_allowed_goes_with_the_length_and_ends_somewhere(tmp_path: Path) -> None:
    for length, seconds in ((0, 60), (10**9, 160), (1 << 42, 3600)):
        with (tmp_path / "file").open("wb") as file:
            file.truncate(length)
        assert allowed_seconds(tmp_path / "file") == allowed_seconds(tmp_path) == seconds


def test_the_innermost_limit_holds() -> None:
    check_time()
    with within(600):
        with within(-1), pytest.raises(CheckpointError):
            check_time()
        check_time()


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "README.md", TEXT_ENCODER, "vae/config.json"])
@pytest.mark.parametrize("length", [1 << 36, 1 << 42])
def test_a_file_that_is_mostly_a_hole_is_not_read_to_its_end(folder: Path, name: str, length: int) -> None:
    make_hole(folder, name, length)
    start = time.monotonic()
    problems = verify(folder)
    assert problems
    assert re.search(rf"{name}:? has ({length}|more than \d+) bytes", problems[0])
    with pytest.raises(CheckpointError):
        load(folder)
    if name != "README.md":  # which no library reads
        with pytest.raises(CheckpointError):
            DiffusionPipeline.from_pretrained(folder)
    assert time.monotonic() - start < 60  # reading 64 GiB of zeros takes longer, and 4 TiB an hour


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and fork")
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """Half a gigabyte of weights, of which a few blocks are in memory at a time."""
    save_file({"a": torch.zeros(1 << 27, dtype=torch.float16), "b": torch.ones(1 << 26)}, tmp_path / "x.safetensors")
    assert growth_of(lambda: verify(tmp_path / "x.safetensors")) < 64 << 20
    assert growth_of(hold_memory) > 64 << 20  # it would be seen


def hold_memory() -> None:
    """80 MiB, for long enough to be seen on a busy machine too."""
    held = bytearray(b"x" * (80 << 20))
    time.sleep(0.5)
    assert held


def growth_of(work: Callable[[], object]) -> int:
    """Bytes by which a process that does ``work`` grows, without what it maps of files."""
    return_freed_memory()  # or the work takes what earlier tests have freed, and nothing grows
    starts, start = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads that the parent has are not in the child, and it would wait for them
            os.read(starts, 1)
            work()
        finally:
            os._exit(0)
    seen, end = [anonymous_bytes(child)], time.monotonic() + 300
    os.write(start, b"x")
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen.append(anonymous_bytes(child))
        time.sleep(0.001)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("it does not end")
    os.close(starts)
    os.close(start)
    return max(seen) - seen[0]


def anonymous_bytes(process: int) -> int:
    """0 for one that has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def test_weight_files_that_no_loader_finds(honest: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(honest["shards"], tmp_path / "copy")
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    refresh_manifest(folder)
    assert any("by which they are found" in problem for problem in verify(folder))


def test_the_length_by_the_header(honest: dict[str, Path], tmp_path: Path) -> None:
    path = honest["whole"] / TEXT_ENCODER
    assert stored_header(path)[1] == path.stat().st_size
    (tmp_path / "none").write_bytes(b"\0" * 100)
    assert stored_header(tmp_path / "none") == (NO_HEADER, None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_what_libraries_cannot_read_is_not_sound(folder: Path, name: str, encoding: str) -> None:
    """They open JSON as UTF-8, and refuse a byte order mark."""
    (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    refresh_manifest(folder)
    assert any(name in problem for problem in verify(folder))
    with pytest.raises((CheckpointError, OSError, ValueError)):
        DiffusionPipeline.from_pretrained(folder)


def test_a_component_that_is_named_and_missing(folder: Path) -> None:
    (folder / "scheduler").rename(folder / "schedulеr")  # the last e is Cyrillic
    refresh_manifest(folder)
    assert any(problem.startswith("scheduler: is named in model_index.json") for problem in verify(folder))
