"""The benchmark scripts run from end to end on toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import column_scales
import matmul
import unet_step
from synthetic import FORMATS, packed_weight

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_matmul(monkeypatch):
    monkeypatch.setattr(matmul, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(matmul, "_clock_seconds", lambda work: [call() for call in work] and 1e-3)
    report = matmul.benchmark([(64, 32)], [1, 3], list(matmul.FORMATS), 3, torch.float32, "cpu", warm=True)
    products = [line for line in report["lines"] if line["what"] == "product"]
    assert {(line["candidate"], line["samples"]) for line in products} >= {("dense", 1), ("trellis", 3), ("scalar", 1)}
    assert {line["kernel"] for line in products if line["candidate"] == "trellis"} == {"cpu_row", "cpu_numba"}
    sizes = {line["candidate"]: line["bytes"] for line in products}
    assert sizes["dense"] == 64 * 32 * 4
    assert sizes["trellis"] < sizes["dense"] / 6
    assert "| 64x32 | 1 | dense |" in matmul.markdown(report)
    assert matmul.parse_shapes("square,64x32") == [(1280, 1280), (64, 32)]


def test_matmul_times_products_and_not_outputs_that_layers_kept(monkeypatch):
    monkeypatch.setattr(matmul, "_clock_seconds", lambda work: [call() for call in work * 5] and 1e-3)
    layer, products = matmul.packed_layer("trellis", (64, 32), 3, "cpu", 0), []
    layer.__dict__["_product"] = lambda x, plain=False: products.append(x) or type(layer)._product(layer, x, plain)
    with torch.no_grad():
        matmul.product_lines((64, 32), torch.ones(3, 32), {"trellis": [layer]}, 1e9)
    assert len(products) == 1 + 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each load runs in a fork")
def test_loading(tmp_path):
    """In a process of its own, as it forks and this one may have threads."""
    numbers = tmp_path / "numbers.json"
    command = [sys.executable, BENCHMARKS / "loading.py", "--blocks", "1", "--width", "32", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--dtypes", "float32", "--json", numbers]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, env=environment, check=True)
    (table,) = json.loads(numbers.read_text())
    assert table["packed_bytes"] < table["dense_bytes"] / 2
    for kind in ("dense", "packed"):
        figures = table[kind]
        calls = figures["first_cpu"] - figures["second_cpu"]
        assert figures["ready_cpu"] == pytest.approx(figures["load_cpu"] + calls)
        assert figures["load_peak"] <= figures["ready_peak"]
        assert not hasattr(os, "posix_fadvise") or 0 < figures["cold_load_wall"] < figures["cold_first_wall"]
    assert "| until ready, CPU s |" in run.stdout


def test_column_scales():
    header, _, apart, mixed = column_scales.table(10.0, [3.0], column_scales.Size(128, 64, 512))
    assert header.startswith("| layer | bits | trellis, plain | column scales |")
    for line in (apart, mixed):
        _, _, _, plain, scaled, *_ = line.split("|")
        assert float(scaled) < float(plain) / 2


def test_whole_network_step():
    lines = unet_step.benchmark(["dit"], ["trellis"], 3, False, True, "cpu")
    assert [line["weights"] for line in lines] == ["dense", "trellis", "trellis, ahead"]
    assert lines[1]["bytes_saved"] > 0
    assert "| dit | trellis | eager |" in unet_step.markdown(lines)


def test_synthetic_weights_are_what_their_spec_says(check_spec):
    for name in FORMATS:
        weight = packed_weight(name, (40, 7, 3, 3), 3)
        check_spec(weight)
        assert torch.isfinite(weight.decode()).all()
        assert torch.equal(weight.decode(), packed_weight(name, (40, 7, 3, 3), 3).decode())
