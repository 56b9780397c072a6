"""The one command for a rented GPU machine, rehearsed with that machine's packages: no diffusers, no pydantic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gpu_check
import matmul
import sdxl_layers
import unet_step
from gpu_lab import Lab
from gpu_sections import SECTIONS
from gpu_targets import judged
from tests.kernels.bare_environment import make_environment
from vqcompress.matrix_view import is_quantizable

MOST_BYTES = 30e6
NEEDS_MORE = {"SDXL step", "encoding", "DiT step"}
SLOW = 3000  # seconds, on a busy machine


class Rented:
    """A machine of its own: a bare environment and the tree that travels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python, packed = folder, make_environment(folder / "env"), folder / "tree.tar.gz"
        gpu_check.packed_tree(packed)
        self.tree = folder / "tree"
        with tarfile.open(packed) as archive:
            archive.extractall(self.tree, filter="data")

    def check(self, *options: str, fault: str = "") -> tuple[int, dict]:
        """The exit code of a rehearsal, and its ``gpu_check.json``."""
        out = self.folder / "out"
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")
        }
        environment |= {gpu_check.FAULT: fault, "OMP_NUM_THREADS": "1", "HOME": str(self.folder), "XDG_CACHE_HOME": ""}
        script = self.tree / "benchmarks" / "gpu_check.py"
        command = [self.python, script, "--rehearse", "--out", out, *options]
        done = subprocess.run(command, env=environment, cwd=self.folder, timeout=SLOW, capture_output=True, text=True)
        assert (out / "gpu_check.json").is_file(), done.stderr[-3000:]
        return done.returncode, json.loads((out / "gpu_check.json").read_text())


@pytest.fixture(scope="module")
def rented(tmp_path_factory):
    return Rented(tmp_path_factory.mktemp("rented"))


def test_the_tree_that_travels_is_small(rented):
    files = [path for path in rented.tree.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert rented.tree / "vqcompress" / "kernels" / "cuda" / "decode.cu" in files


def test_the_environment_has_no_more_than_that_machine(rented):
    names = ("diffusers", "accelerate", "pydantic", "faiss", "sklearn", "scipy", "peft", "pytest", "vqcompress")
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    found = subprocess.run([rented.python, "-c", code], capture_output=True, text=True, cwd=rented.folder, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_every_section_is_walked_and_a_crash_loses_one(rented):
    code, found = rented.check("--minutes", "60", fault="bandwidth=abort")
    assert code == 1
    assert found["failed"] == {}
    ended = found["ended"]
    assert list(ended) == [section.name for section in SECTIONS]
    assert ended["bandwidth"].startswith("crashed with exit code -6")
    assert {name for name, how in ended.items() if how.startswith("left out")} == NEEDS_MORE
    assert all(how.startswith("done") for name, how in ended.items() if name not in {"bandwidth", *NEEDS_MORE})
    assert found["results"]["bandwidth"].keys() == {"copied bytes a second", "ended"}  # what came before the crash
    assert found["results"]["compile"]["compiles"] == "ok"
    assert {verdict["target"] for verdict in found["targets"] if verdict["met"] is None} >= {"SDXL step, eager"}


@pytest.mark.slow
def test_a_section_that_hangs_is_ended(rented):
    code, found = rented.check("--minutes", "0.5", "--only", "bandwidth", fault="bandwidth=hang")
    assert code == 1
    assert found["ended"]["bandwidth"].startswith("ended after")
    assert "copied bytes a second" in found["results"]["bandwidth"]


def test_sections_that_need_more_packages_are_walked_here(tmp_path):
    options = [option for name in sorted(NEEDS_MORE) for option in ("--only", name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = Path(gpu_check.__file__)
    command = [sys.executable, script, "--rehearse", "--minutes", "60", "--out", tmp_path, *options]
    done = subprocess.run(command, env=environment, timeout=SLOW, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {line["weights"] for line in found["results"]["SDXL step"]["lines"]} == {
        "dense",
        "trellis",
        "trellis, ahead",
    }
    assert found["results"]["encoding"]["encoded weights a second, cpu"] > 0


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "sees no GPU" in result.output


@torch.no_grad()
def test_host_time_is_that_of_products_and_not_of_outputs_that_layers_kept():
    layer, products = matmul.packed_layer("trellis", (64, 32), 3, "cpu", 0), []
    layer.__dict__["_product"] = lambda x, plain=False: products.append(x) or type(layer)._product(layer, x, plain)
    Lab(rehearsal=True).host_seconds(layer, torch.ones(3, 32))
    assert len(products) == 1 + 3


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    gpu_check.append(path, {"section": "smoke", "name": "torch", "value": "2"})
    path.write_text(path.read_text() + '{"section": "smo')
    assert gpu_check.by_section(gpu_check.read(path)) == {"smoke": {"torch": "2"}}


def test_targets_are_judged_from_what_was_measured():
    ratios = {"dense": 1.0, "trellis": 1.2}
    results = {
        "decoding": {"SDXL, trellis": {"seconds": 1.9e-3}, "host, packed call": 9e-6, "host, dense call": 4e-6},
        "products": {
            "640x640, 2048 samples": {"of dense": ratios, "seconds": ratios | {"bitsandbytes NF4": 1.5}},
            "640x640, 2 samples": {"of dense": ratios | {"trellis": 0.5}, "seconds": ratios},
            "ended": "done",
        },
    }
    met = {verdict.target.name: verdict.met for verdict in judged(results)}
    assert met["decode all layers of SDXL, in a graph"] is True
    assert met["linear layers, 2048 samples or more"] is False
    assert met["linear layers, 16 samples or fewer"] is True
    assert met["linear layers, against NF4 and GGUF"] is True
    assert met["host time of a packed call beyond a dense one"] is True
    assert met["convolutions"] is None
    assert met["SDXL step, eager"] is None


def test_the_shapes_of_sdxl_are_those_of_its_network():
    with torch.device("meta"):
        network = unet_step.sdxl(False)
    layers = [m for name, m in network.named_modules() if is_quantizable(m) and name not in ("conv_in", "conv_out")]
    assert Counter(tuple(layer.weight.shape) for layer in layers) == Counter(sdxl_layers.shapes())
