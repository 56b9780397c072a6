"""`vqcompress env`: what a bug report needs, from this machine."""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from click.testing import CliRunner

import vqcompress
from vqcompress.cli.main import main
from vqcompress.kernels.table import KERNELS


def test_it_names_versions_devices_and_kernels_as_data() -> None:
    found = vqcompress.env()
    assert found["packages"]["torch"] == version("torch")
    assert [device["device"] for device in found["devices"]][-1] == "cpu"
    assert len(found["devices"]) >= 1 + torch.cuda.device_count()
    names = [kernel.name for kernel in KERNELS]
    for use in found["kernels"].values():
        assert list(use["refused"]) == names[: names.index(use["kernel"])]


def test_people_and_programs_read_the_same() -> None:
    said = CliRunner().invoke(main, ["env"], catch_exceptions=False)
    data = CliRunner().invoke(main, ["env", "--json"], catch_exceptions=False)
    found = json.loads(data.stdout)
    assert f"torch         {found['packages']['torch']}" in said.stdout
    for use in found["kernels"].values():
        assert f"{use['kernel']}: {use['why']}" in said.stdout
    assert all(len(line) <= 120 for line in said.stdout.splitlines())
