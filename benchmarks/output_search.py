"""What feedback between outputs gains and costs on single layers, by how its search decides.

``python benchmarks/output_search.py`` records second moments of inputs and of outputs' gradients in a trained denoiser,
encodes some of its layers with trellis codes, with and without feedback between outputs, and prints geometric means
over the layers: the error ``tr(G E H Eᵀ)``, which the denoiser's output has of such a layer, and the processor time,
both over those of the same code without feedback between outputs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import geometric_mean

import click
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import architecture_of
from vqcompress.calibration.output_moments import record_output_moments
from vqcompress.calibration.record import RecordingLimits
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.embedded import EMBEDDED
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.recipe import Recipe
from vqcompress.reports.peers import calibration_run, denoiser_moments

SEARCHES = ("decided", "survivors")
CALLS, MEMORY = 16, 2_000_000_000


@dataclass(frozen=True)
class Layer:
    """``weight [out, columns]`` under the second moments of ``inputs`` and of the ``outputs``' gradients."""

    weight: Tensor
    inputs: SecondMoment
    outputs: Tensor

    def coded(self, bits: float, search: str | None) -> tuple[float, float]:
        """Error and processor seconds; ``search`` is `TrellisSettings.output_search`, ``None`` for no feedback."""
        fed = {} if search is None else {"output_moment": self.outputs}
        settings = TrellisSettings(output_search="decided" if search is None else search)  # type: ignore[arg-type]
        begun = time.process_time()
        found = quantize_weight(self.weight, self.inputs, bits=bits, settings=settings, **fed)
        seconds = time.process_time() - begun
        error = found.decode() - self.weight
        return float(((self.inputs @ error.t()) * (error.t() @ self.outputs)).sum(dtype=torch.float64)), seconds


def layers_of(model: str, every: int, count: int) -> dict[str, Layer]:
    """Every so many layers of an embedded model's denoiser, calibrated on ``count`` prompts."""
    pipeline = DiffusionPipeline.from_pretrained(EMBEDDED[model].path, use_safetensors=True)
    architecture = architecture_of(pipeline)
    denoiser = architecture.module(pipeline, architecture.denoiser)
    run = calibration_run(pipeline, architecture, Recipe(model=model, calibration={"count": count, "steps": 10}))
    linear = {name: layer for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear)}
    names = [name for name in linear if "blocks" in name][::every]
    calls = [call["kwargs"] for call in record_teacher(run, count=CALLS)]
    sides = {name: linear[name].out_features for name in names}
    outputs = dict(record_output_moments(denoiser, sides, calls, 0, MEMORY))
    inputs = denoiser_moments(run, names, RecordingLimits().samples_per_call, lambda done, total: None)
    return {
        name: Layer(linear[name].weight.detach().float(), moment, outputs[name])
        for name, moment in inputs
        if moment is not None and outputs[name].trace() > 0
    }


@click.command(help=__doc__)
@click.option("--model", default="shapes-dit", show_default=True, help="An embedded model.")
@click.option("--every", default=7, show_default=True, help="Of how many layers in the blocks one is encoded.")
@click.option("--count", default=32, show_default=True, help="Prompts to calibrate on.")
@click.option("--bits", default="2,3,4", show_default=True, help="Bits a weight, comma-separated.")
def main(model: str, every: int, count: int, bits: str) -> None:
    torch.set_num_threads(1)
    layers = layers_of(model, every, count)
    click.echo(f"{len(layers)} layers of {model}\n\n| bits | search | error | time |\n|---|---|---|---|")
    for budget in map(float, bits.split(",")):
        plain = {name: layer.coded(budget, None) for name, layer in layers.items()}
        for search in SEARCHES:
            next(iter(layers.values())).coded(budget, search)  # compiles
            ratios = [
                tuple(mine / without for mine, without in zip(layer.coded(budget, search), plain[name], strict=True))
                for name, layer in layers.items()
            ]
            error, seconds = map(geometric_mean, zip(*ratios, strict=True))
            click.echo(f"| {budget:g} | {search} | {error:.2f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
