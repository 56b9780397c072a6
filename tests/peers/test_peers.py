"""Other packages' formats: table, refusals and what is stored always; each package's own run where it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqcompress.errors import UnsupportedError, VQCompressError
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers import PEERS, PeerWeight, UnfitForPeerError, peer_named
from vqcompress.peers.gptqmodel import GPTQMODEL
from vqcompress.peers.isolated import WORKERS, Isolated, _worker
from vqcompress.peers.llmcompressor import LLMCOMPRESSOR
from vqcompress.peers.sdnq import SDNQ
from vqcompress.quantizers.layer_error import relative_error

# Bits a weight of 96 rows and 512 columns by each format's own description, and the error of a Gaussian weight that no
# scalar code of so many bits can be below (Shannon's bound) or should be far above.
STORED = {
    "gguf-q2_k": 2.625, "gguf-q3_k": 3.4375, "gguf-q4_k": 4.5, "gguf-q5_k": 5.5, "gguf-q6_k": 6.5625,
    "gguf-q8_0": 8.5, "gguf-q4_0": 4.5, "gguf-iq2_s": 2.5625, "gguf-iq3_xxs": 3.0625, "gguf-iq3_s": 3.4375,
    "gguf-iq4_xs": 4.25, "gguf-iq4_nl": 4.5, "nf4": 4.5, "fp4": 4.5, "hqq-2": 2.5, "hqq-4": 4.5, "hqq-8": 8.5,
    "torchao-int4": 4.25, "torchao-int8": 8 + 16 / 512,
}  # fmt: skip
HERE = [name for name in STORED if PEERS[name].found()]


def weight(rows: int = 96, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / 30


def test_the_names_that_people_ask_for_are_there():
    asked = "gguf-q4_k gguf-q3_k nf4 hqq-3 torchao-int4 sdnq-uint4 llmcompressor-gptq-3 gptqmodel-3"
    assert set(asked.split()) <= PEERS.keys()
    for name, peer in PEERS.items():
        assert peer.name == name
        assert "pip install" in peer.install


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gguf-q4k", "did you mean gguf-q4_k"), ("hqq3", "did you mean hqq-3"), ("zzzzzz", "there are .*gguf-q2_k.*, …")],
)
def test_an_unknown_peer_is_refused_in_one_line_with_near_misses(name, hint):
    with pytest.raises(VQCompressError, match=hint) as refused:
        peer_named(name)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HERE or [pytest.param("", marks=pytest.mark.skip("no peer is installed"))])
def test_bits_are_those_of_the_format_and_the_error_is_that_of_so_many_bits(name):
    made = PEERS[name].quantize(weight())
    assert made.bits_per_weight == STORED[name]
    assert made.dense.shape == (96, 512)
    error = relative_error(weight(), made.dense)
    assert 4.0 ** -STORED[name] < error < 8 * 4.0 ** -STORED[name] + 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gguf-q3_k", "gguf-iq2_s"])
def test_an_importance_matrix_lowers_the_error_of_what_matters(name):
    if not PEERS[name].found():
        pytest.skip(f"not installed: {PEERS[name].install}")
    scales = torch.ones(512)
    scales[::8] = 30.0
    moment = SecondMoment(torch.diag(scales))
    blind, aware = PEERS[name].quantize(weight()), PEERS[name].quantize(weight(), moment)
    assert relative_error(weight(), aware.dense, moment) < 0.8 * relative_error(weight(), blind.dense, moment)


@pytest.mark.filterwarnings("ignore")
def test_short_rows_get_the_format_that_llama_cpp_falls_back_to():
    if not PEERS["gguf-q3_k"].found():
        pytest.skip(f"not installed: {PEERS['gguf-q3_k'].install}")
    fallen = PEERS["gguf-q3_k"].quantize(weight(8, 96))
    assert fallen.bits_per_weight == 4.5  # iq4_nl: 18 bytes for 32 weights
    assert fallen.note.startswith("as iq4_nl")
    assert not PEERS["gguf-q3_k"].quantize(weight(8, 256)).note
    assert PEERS["gguf-q4_k"].quantize(weight(8, 96)).bits_per_weight == 5.5  # q5_0: 22 bytes for 32
    with pytest.raises(UnfitForPeerError, match="100 columns"):
        PEERS["gguf-q4_k"].quantize(weight(8, 100))


@pytest.mark.filterwarnings("ignore")
def test_convolutions_are_quantized_as_matrices():
    if not HERE:
        pytest.skip("no peer is installed")
    kernels = weight(32, 576).reshape(32, 64, 3, 3)
    made = PEERS[HERE[-1]].quantize(kernels)
    assert made.dense.shape == kernels.shape
    assert relative_error(kernels, made.dense) < 0.1


def test_bits_count_everything_stored():
    assert PeerWeight(torch.zeros(4, 8), 14).bits_per_weight == 3.5


ECHO = """
import sys
def quantize(weight, moment, factor):
    print("noise on standard output")
    if weight.shape[1] == 3:
        raise ValueError("three columns are too few")
    if weight.shape[1] == 4:
        sys.exit("out of patience")
    return weight * factor + (0 if moment is None else moment.trace()), 7
"""


@pytest.fixture
def echo(tmp_path: Path) -> Isolated:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    return Isolated(str(script), ("torch",), "VQCOMPRESS_TEST_PYTHON")


def test_a_process_of_its_own_gives_back_what_it_made(echo):
    made = echo.encode(weight(2, 5), None, factor=2.0)
    assert made.nbytes == 7
    assert torch.equal(made.dense, weight(2, 5) * 2)
    again = echo.encode(weight(2, 5), SecondMoment(torch.eye(5)), factor=1.0)
    assert torch.allclose(again.dense, weight(2, 5) + 5)
    assert _worker(echo.python, echo.script).process.poll() is None


def test_its_refusals_and_its_end_are_told_apart(echo):
    with pytest.raises(UnfitForPeerError, match="three columns are too few"):
        echo.encode(weight(2, 3), None, factor=1.0)
    with pytest.raises(UnsupportedError, match="ended while quantizing: out of patience"):
        echo.encode(weight(2, 4), None, factor=1.0)


def test_another_interpreter_is_named_by_the_environment(echo, monkeypatch, tmp_path):
    assert echo.python == sys.executable
    assert "torch " in echo.found()
    monkeypatch.setenv("VQCOMPRESS_TEST_PYTHON", str(tmp_path / "no-such-python"))
    assert echo.found() == ""
    assert "export VQCOMPRESS_TEST_PYTHON=" in echo.install()


def test_make_evidence_gives_every_isolated_package_its_environment():
    """One command makes the published tables: with the environments that the peers' own installation lines ask for."""
    shown = subprocess.run(
        ["make", "--dry-run", "--always-make", "evidence", "RESULT=shapes-dit-peers"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for isolated in (SDNQ, LLMCOMPRESSOR, GPTQMODEL):
        (made,) = (line for line in shown.splitlines() if f"safetensors {' '.join(isolated.packages)}" in line)
        assert f".venv-{isolated.script.removesuffix('.py')}/bin/python -m pip install" in made


def test_workers_import_nothing_of_ours():
    scripts = sorted(WORKERS.glob("*.py"))
    assert {path.stem for path in scripts} >= {"worker", "sdnq", "llmcompressor", "gptqmodel"}
    ours = re.compile("^ *(import|from) vqcompress", re.MULTILINE)
    assert not [path for path in scripts if ours.search(path.read_text())]
