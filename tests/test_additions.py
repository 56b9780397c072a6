"""Each row of CONTRIBUTING's table: a file and an entry add one, in a copy of the package.

Methods: `tests/test_methods.py`.
"""

from __future__ import annotations

from pathlib import Path

from tests.patched_package import ROOT, PatchedPackage

ARCHITECTURE = """
from vqcompress.architectures.architecture import Architecture
from vqcompress.sampling_config import ResolvedSampling


class ToyArchitecture(Architecture):
    ignore = {r"^first$": "it reads the latents"}

    @classmethod
    def supports(cls, pipeline):
        return hasattr(pipeline, "toy_denoiser")

    @classmethod
    def of(cls, pipeline):
        return cls("toy", "toy_denoiser", ("toy_denoiser",), ResolvedSampling(3, 1.0, 16, 16))
"""
USE_ARCHITECTURE = """
from types import SimpleNamespace
from torch import nn
from vqcompress.architectures import architecture_of

denoiser = nn.Module()
denoiser.first, denoiser.second = nn.Linear(64, 64), nn.Linear(64, 64)
pipeline = SimpleNamespace(toy_denoiser=denoiser, transformer=denoiser)
family = architecture_of(pipeline)
plans = family.layers(pipeline, "toy_denoiser")
assert [plan.name for plan in plans] == ["first", "second"]
assert "it reads the latents" in repr(plans[0]) and "it reads the latents" not in repr(plans[1])
print(family.name)
"""

FORMAT = '''
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class SignSpec:
    """A sign for each weight, all of one magnitude."""

    format: ClassVar[str] = "sign"
    magnitude: float = 1.0

    @property
    def codebook(self):
        return None

    @property
    def codebook_shape(self):
        return ()

    def tensor_shapes(self, outputs, columns):
        return {"weight": ((1, outputs * columns), torch.int8)}

    def decode_transposed(self, outputs, columns, tensors):
        return tensors["weight"].reshape(columns, outputs).float() * self.magnitude

    def shape_problem(self, outputs, columns):
        return None

    def content_problem(self, name, tensor, outputs, columns):
        return None
'''
FORMAT_LINE = "from vqcompress.formats.sign import SignSpec\n"
USE_FORMAT = """
import torch
from torch import nn
from vqcompress.formats import FORMATS, spec_from_dict, spec_to_dict
from vqcompress.formats.sign import SignSpec
from vqcompress.kernels import kernel_choice
from vqcompress.layers import swap
from vqcompress.quantized_weight import QuantizedWeight

spec = spec_from_dict({"format": "sign", "magnitude": 0.5})
assert spec_to_dict(spec) == {"format": "sign", "magnitude": 0.5}
signs = torch.randint(0, 2, (1, 24 * 40), dtype=torch.int8) * 2 - 1
model = nn.Sequential(nn.Linear(40, 24))
bias = model[0].bias.detach().clone()
swap(model, {"0": QuantizedWeight(spec, (24, 40), {"weight": signs})})
dense = signs.reshape(40, 24).float().t() * 0.5
for samples in (1, 64):
    x = torch.randn(samples, 40)
    torch.testing.assert_close(model(x), x @ dense.t() + bias)
assert kernel_choice(spec, (24, 40), 1).name == "reference"
print("served")
"""

KERNEL = """
import torch
from vqcompress.kernels import reference
from vqcompress.kernels.kernel import Kernel


def decode_transposed(spec, shape, tensors, dtype=torch.float32):
    return torch.full((shape[1], shape[0]), 7.0, dtype=dtype)


SEVENS = Kernel("sevens", "a toy", lambda spec, shape, case: "", decode_transposed, reference.parameter_gradients)
"""
USE_KERNEL = """
import torch
from torch import nn
from vqcompress.layers import swap
from vqcompress.quantizers import quantize_weight

model = nn.Sequential(nn.Linear(64, 32, bias=False))
swap(model, {"0": quantize_weight(model[0].weight.detach(), method="rtn", bits=4)})
assert torch.equal(model(torch.ones(8, 64)), torch.full((8, 32), 448.0))
print("served")
"""

METRIC = """
from vqcompress.metrics.image_metric import ImageMetric


def largest(images, originals):
    return float((images - originals).abs().max())


LARGEST = ImageMetric("largest", largest, "largest", "of 1", 2)
"""
USE_METRIC = """
import json, pathlib, sys
import torch
from vqcompress.metrics import image_fidelity

sys.path.insert(0, {tests!r})
from tests.reports.conftest import make_comparison
from dataclasses import replace
from vqcompress.reports.comparison import Comparison
from vqcompress.reports.markdown import to_markdown

images = torch.rand(2, 3, 16, 16)
found = image_fidelity((images + 0.25).clamp(0, 2), images)
assert abs(found["largest"] - 0.25) < 1e-6
comparison = make_comparison()
variants = tuple(replace(v, image_metrics={{**v.image_metrics, "largest": 0.25}}) for v in comparison.variants)
comparison = replace(comparison, variants=variants)
text = json.dumps(comparison.to_json())
assert '"largest": 0.25' in text
assert Comparison.from_json(json.loads(text)) == comparison
assert "largest" in to_markdown(comparison) and "0.25" in to_markdown(comparison)
print("measured")
"""


def test_an_architecture(tmp_path: Path) -> None:
    family = [
        ("from vqcompress.architectures.unet ", "from vqcompress.architectures.toy import ToyArchitecture\n"),
        ("    UNetArchitecture,\n", "    ToyArchitecture,\n"),
    ]
    patched = PatchedPackage(
        tmp_path, files={"architectures/toy.py": ARCHITECTURE}, lines={"architectures/families.py": family}
    )
    assert patched.run(USE_ARCHITECTURE) == "toy"


def test_a_format(tmp_path: Path) -> None:
    listed = [("from vqcompress.formats.trellis ", FORMAT_LINE), ("TrellisSpec)}", "SignSpec, ")]
    patched = PatchedPackage(tmp_path, files={"formats/sign.py": FORMAT}, lines={"formats/__init__.py": listed})
    assert patched.run(USE_FORMAT) == "served"


def test_a_kernel(tmp_path: Path) -> None:
    listed = [
        ("from vqcompress.kernels.transforms ", "from vqcompress.kernels.sevens import SEVENS\n"),
        ("    Kernel(\n", "    SEVENS,\n"),
    ]
    patched = PatchedPackage(tmp_path, files={"kernels/sevens.py": KERNEL}, lines={"kernels/table.py": listed})
    assert patched.run(USE_KERNEL) == "served"


def test_a_metric_of_images(tmp_path: Path) -> None:
    listed = [
        ("from vqcompress.metrics.psnr ", "from vqcompress.metrics.largest import LARGEST\n"),
        ("FEATURE_DISTANCE)\n", "LARGEST, "),
    ]
    patched = PatchedPackage(
        tmp_path, files={"metrics/largest.py": METRIC}, lines={"metrics/image_fidelity.py": listed}
    )
    assert patched.run(USE_METRIC.format(tests=str(ROOT))) == "measured"


NETWORK = """
from torch import nn


def toy_from_official(config, state_dict):
    network = nn.Linear(**config)
    network.load_state_dict(state_dict)
    return network
"""
USE_NETWORK = """
import torch
from vqcompress.models import from_official

state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
network = from_official("toy", {"in_features": 3, "out_features": 2}, state)
assert not network.training
print(network(torch.ones(1, 3)).tolist())
"""

SUBCOMMAND = """
import click


@click.command()
@click.argument("name")
def greet(name):
    \"\"\"Greet NAME.\"\"\"
    click.echo(f"good day, {name}")
"""
USE_SUBCOMMAND = """
from click.testing import CliRunner
from vqcompress.cli.main import main

listed = CliRunner().invoke(main, ["--help"]).output
assert "Greet somebody." in listed
print(CliRunner().invoke(main, ["greet", "reader"]).output)
"""

USE_PROMPTS = """
from vqcompress.calibration.prompts import load_prompts

print(*load_prompts("toy").prompts, sep="; ")
"""


def test_a_network(tmp_path: Path) -> None:
    entry = ('    "dit": ', '    "toy": "vqcompress.models.toy:toy_from_official",\n')
    patched = PatchedPackage(tmp_path, files={"models/toy.py": NETWORK}, lines={"models/__init__.py": entry})
    assert patched.run(USE_NETWORK) == "[[3.0, 3.0]]"


def test_a_subcommand(tmp_path: Path) -> None:
    entry = ('    "verify": ', '    "greet": "Greet somebody.",\n')
    patched = PatchedPackage(tmp_path, files={"cli/greet.py": SUBCOMMAND}, lines={"cli/main.py": entry})
    assert patched.run(USE_SUBCOMMAND) == "good day, reader"


def test_a_prompt_set(tmp_path: Path) -> None:
    """Its row in the README is held by tests/calib_prompts."""
    patched = PatchedPackage(tmp_path, files={"calib_prompts/toy.txt": "a red kite\na blue boat\n"}, lines={})
    assert patched.run(USE_PROMPTS) == "a red kite; a blue boat"
