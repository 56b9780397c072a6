"""`vqcompress inspect` says which kernel serves each layer, and why."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from vqcompress.cli.main import main
from vqcompress.kernels import KERNELS, choose_kernel, decode_case, kernel_choice, product_case


@pytest.fixture(scope="module")
def inspected(compressed_folder):
    def run(*options: str) -> str:
        result = CliRunner().invoke(main, ["inspect", str(compressed_folder), *options])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_json_names_a_kernel_for_every_packed_layer(inspected):
    found = json.loads(inspected("--json"))
    assert found["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    names = {kernel.name for kernel in KERNELS}
    for component, part in found["components"].items():
        uses = found["kernels"][component]
        assert len(uses) == part["packed_layers"]
        for use in uses.values():
            assert use["few rows"]["kernel"] in names
            assert use["many rows"]["why"]


def test_people_read_why(inspected):
    text = inspected("--layers")
    assert "    1 sample on " in text
    assert "    1024 samples on " in text
    if not torch.cuda.is_available():
        assert "not used: triton_decode: no GPU" in text or "not installed" in text


@pytest.mark.parametrize("shape", [(24, 40), (8, 5, 3, 3)])
def test_the_choice_is_the_one_that_is_made(shape, random_weight):
    weight = random_weight("trellis", shape)
    for samples in (1, 2, 40):
        cpu = decode_case(torch.device("cpu"), torch.float32)
        chosen = choose_kernel(weight.spec, shape, product_case(torch.zeros(samples, 40)) if len(shape) == 2 else cpu)
        choice = kernel_choice(weight.spec, shape, samples)
        assert choice.name == chosen.name
        assert list(choice.refused) == [kernel.name for kernel in KERNELS[: KERNELS.index(chosen)]]
