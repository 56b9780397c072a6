"""Threads that share a product on the CPU: torch's own, and Python's where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vqcompress.kernels import decode, linear
from vqcompress.kernels.cpu import threads as cpu_threads

SHAPE = (300, 400)  # worth three threads
IN_A_CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch
from synthetic import packed_weight
from vqcompress.kernels import linear

weight, x = packed_weight("trellis", (300, 400)), torch.ones(1, 400)
torch.set_num_threads(2)
before = linear(x, weight.spec, weight.shape, weight.tensors, None)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(not torch.equal(before, linear(x, weight.spec, weight.shape, weight.tensors, None)))
"""


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    cpu_threads._runner.cache_clear()


def results(weight, threads):
    """One sample, two samples and the dense weight."""
    torch.set_num_threads(threads)
    x, packed = torch.randn(2, SHAPE[1], generator=torch.Generator().manual_seed(1)), (weight.spec, weight.shape)
    tensors = {**weight.tensors, **weight.shared}
    products = [linear(x[:rows], *packed, tensors, None) for rows in (1, 2)]
    return [*products, decode(*packed, tensors, torch.float32)]


@pytest.mark.parametrize("name", ["trellis", "additive", "scalar"])
@pytest.mark.parametrize("kind", ["openmp", "pool"])
def test_any_number_of_threads_gives_the_same_bits(kind, name, random_weight, monkeypatch):
    if kind == "pool":
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
        cpu_threads._runner.cache_clear()
    weight = random_weight(name, SHAPE)
    alone = results(weight, 1)
    for threads in (2, 3):
        for one, other in zip(alone, results(weight, threads), strict=True):
            assert torch.equal(one, other)


def test_torchs_threads_are_found_where_torch_has_one():
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        pytest.skip("a torch without OpenMP")
    assert cpu_threads._openmp() is not None


def test_a_small_weight_is_not_worth_a_second_thread(random_weight, monkeypatch):
    def refuse():
        raise AssertionError("threads were woken")

    monkeypatch.setattr(cpu_threads, "_runner", refuse)
    weight = random_weight("trellis", (100, 300))
    torch.set_num_threads(2)
    linear(torch.ones(1, 300), weight.spec, weight.shape, weight.tensors, None)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_child_does_not_wait_for_its_parents_threads(request):
    benchmarks = str(request.config.rootpath / "benchmarks")
    subprocess.run([sys.executable, "-c", IN_A_CHILD, benchmarks], check=True, timeout=120)
