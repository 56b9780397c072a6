"""The table of methods, and that a method is one file and one row."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.patched_package import PatchedPackage
from vqcompress.methods import DEFAULT_METHOD, METHODS
from vqcompress.quantizers import quantizer_of
from vqcompress.recipe import Recipe

TOY = """
from dataclasses import dataclass

from vqcompress.quantizers.quantizer import Quantizer
from vqcompress.quantizers.scalar_grid import scalar_spec, search_grid
import torch


@dataclass(frozen=True)
class ToySettings:
    group_size: int = 32


def quantize_toy(weight, second_moment, settings, bits, seed):
    spec = scalar_spec(bits, settings.group_size)
    columns = weight.t().float()
    grid = search_grid(columns, spec, columns.new_ones(len(columns)))
    return spec, grid.tensors(torch.stack([grid.encode(j, column) for j, column in enumerate(columns)]))


TOY = Quantizer(quantize_toy, ToySettings)
"""
ROW = """\
    Method(
        "toy", "scalar", "vqcompress.quantizers.toy:TOY", "a toy", whole_bits=True, calibrated=False, baseline=True
    ),
"""
AFTER_ALL_ROWS = ")\n\nSCALAR_FORMAT"
USE = """
import click, torch
from pathlib import Path
from vqcompress.cli.quantize import quantize
from vqcompress.errors import RecipeError
from vqcompress.peers import PEERS
from vqcompress.quantizers import quantize_weight, settings_for
from vqcompress.recipe import Recipe
from vqcompress.reports.candidate import Candidate
from vqcompress.reports.palette import STYLES
from vqcompress.reports.verdicts import verdicts

recipe = Recipe(model="m", method="toy", bits=4, settings={"group_size": 16})
assert not recipe.shares_budget
try:
    Recipe.parse({"model": "m", "method": "toy", "bits": 3.5})
    raise AssertionError("a toy code has whole bits")
except RecipeError as error:
    assert "toy codes have a whole number of bits" in str(error)
weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
packed = quantize_weight(weight, method="toy", bits=4, settings=settings_for("toy", {"group_size": 16}))
assert (packed.decode() - weight).square().mean() < 0.02
with click.Context(quantize) as context:
    assert "toy" in {o.name: o for o in quantize.params}["method"].type.choices
    assert "toy: a toy" in " ".join(quantize.get_help(context).split())
candidate = Candidate("toy", Path("folder"), "toy", "mixed")
assert STYLES["toy"].dashed and STYLES["toy-mixed"].dashed
peers = {peer.curve for peer in PEERS.values()}
peers |= {f"{curve}-mixed" for curve in peers}
own = [style.marker for curve, style in STYLES.items() if curve not in peers]
assert len(set(own)) == len(own)
print("used")
"""


def test_a_method_is_one_file_and_one_row(tmp_path: Path) -> None:
    patched = PatchedPackage(tmp_path, files={"quantizers/toy.py": TOY}, lines={"methods.py": (AFTER_ALL_ROWS, ROW)})
    assert patched.run(USE) == "used"


@pytest.mark.parametrize("name", METHODS)
def test_traits_agree_with_the_function(name: str) -> None:
    quantizer = quantizer_of(name)
    arguments = inspect.signature(quantizer.quantize).parameters
    assert METHODS[name].output_feedback == ("output_moment" in arguments)
    assert (quantizer.learn_codebooks is not None) == ("shared_codebooks" in arguments)
    assert METHODS[name].name == name


def test_vector_codes_that_are_no_baseline_share_a_budget() -> None:
    sharing = {name for name in METHODS if Recipe(model="m", method=name).shares_budget}
    assert sharing == {"trellis", "additive"}
    assert Recipe(model="m").method == DEFAULT_METHOD == "trellis"
