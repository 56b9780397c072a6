"""What fine-tuning gains: the same codes before and after, on prompts that neither calibration nor training saw.

``python benchmarks/finetune.py [FOLDER…] [--reference FOLDER…] [--stages blocks full] [--preset fast]
[--set KEY=VALUE…]``

Without FOLDERs, `shapes` is compressed to 2 and 3 bits (trellis codes, the same bits in every layer) and, as
references, to 4 bits with GPTQ and to 2 and 3 bits with output feedback; what lies in ``--out`` already is not made
again. Each row is a variant after one stage (``none``, ``blocks``, ``full`` after ``blocks``, or
``whole``: the whole denoiser alone): the denoiser's relative output error on the original's own inputs, of both
branches and of the guided output; PSNR of images with the original's under the same seeds, over all pixels, and its
mean and median over images; the share of images that show their caption; bits per quantized weight with everything
stored counted; and processor seconds. One JSON line a row on stderr while it runs, then the table in
Markdown on stdout. Nothing is written to FOLDERs.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

import vqcompress
from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.checkpoint import load
from vqcompress.denoiser_calls.call import first_output
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.finetuning import (
    DistillationData,
    Teacher,
    TuningContext,
    plan_requantization,
    record_distillation,
    requantize_before_blocks,
    tune_blocks,
    tune_whole,
)
from vqcompress.layers import SHARED_NAME, swap, vq_layers
from vqcompress.metrics import denoiser_error, image_fidelity
from vqcompress.recipe import Calibration, Recipe, Training
from vqcompress.reports.pictures import to_picture
from vqcompress.reports.replay import replay
from vqcompress.run_store import RunStore
from vqcompress.shapes.judge import judge
from vqcompress.shapes.scenes import held_out_captions

SEED, BATCH, GUIDANCE = 1000, 16, 3.0
VARIANTS: dict[str, dict[str, Any]] = {
    "trellis-2": {"bits": 2, "budget": "layer"},
    "trellis-3": {"bits": 3, "budget": "layer"},
}
REFERENCES: dict[str, dict[str, Any]] = {
    "gptq-4": {"bits": 4, "method": "gptq"},
    "trellis-2-outputs": {"bits": 2, "budget": "layer", "output_feedback": True},
    "trellis-3-outputs": {"bits": 3, "budget": "layer", "output_feedback": True},
}
COLUMNS = (
    "variant",
    "stage",
    "bits",
    "error",
    "guided error",
    "PSNR, dB",
    "mean",
    "median",
    "caption accuracy",
    "seconds",
)


class Examination:
    """The original's images and denoiser calls on held-out captions."""

    def __init__(self, images: int) -> None:
        self.pipeline: Any = open_pipeline("shapes")
        self.pipeline.unet.requires_grad_(False)
        self.dense = self.pipeline.unet
        self.architecture = architecture_of(self.pipeline)
        self.captions = held_out_captions(images)
        self.images = self.draw()
        prompts = self.captions[:BATCH]
        run = SamplingRun(self.pipeline, self.architecture, tuple(prompts), SEED, batch_size=BATCH)
        self.calls = record_teacher(run, count=10)

    def draw(self) -> torch.Tensor:
        """Images ``[n, 3, 32, 32]``, image ``i`` from seed ``SEED + i``."""
        made = []
        for at in range(0, len(self.captions), BATCH):
            part = self.captions[at : at + BATCH]
            seeds = range(SEED + at, SEED + at + len(part))
            made.append(self.architecture.sample(self.pipeline, part, seeds=seeds, output_type="pt"))
        return torch.cat(made)

    def grade(self, unet: nn.Module) -> dict[str, float]:
        """All that a row says of a denoiser."""
        self.pipeline.unet = unet
        images = self.draw()
        self.pipeline.unet = self.dense
        fidelity = image_fidelity(images, self.images)
        each = peak_signal_noise_ratio(images, self.images, data_range=1.0, dim=(1, 2, 3), reduction="none")
        return {
            "bits": round(bits_per_weight(unet), 3),
            "error": denoiser_error(replay(unet, self.calls, lambda done, total: None).by_timestep),
            "guided": self.guided_error(unet),
            "psnr": round(fidelity["psnr"], 2),
            "mean": round(float(each.mean()), 2),
            "median": round(fidelity["psnr_median"], 2),
            "right": round(self.right(images), 3),
        }

    @torch.inference_mode()
    def guided_error(self, unet: nn.Module) -> float:
        """Relative squared error of what the sampler makes of the two branches, on the original's inputs."""
        pairs = [(guided(first_output(unet(**call["kwargs"]))), guided(call["output"])) for call in self.calls]
        error, signal = sum(energy(ours - theirs) for ours, theirs in pairs), sum(energy(theirs) for _, theirs in pairs)
        return error / signal

    def right(self, images: torch.Tensor) -> float:
        """Share of images that show all that their caption says."""
        pairs = zip(images, self.captions, strict=True)
        return sum(judge(to_picture(image), caption)["all"] for image, caption in pairs) / len(images)


def guided(output: Tensor) -> Tensor:
    """``[2 n, …]``, without and with the caption -> ``[n, …]``."""
    without, captioned = output.chunk(2)
    return without + GUIDANCE * (captioned - without)


def energy(tensor: Tensor) -> float:
    """Sum of squares."""
    return float(tensor.double().square().sum())


def bits_per_weight(unet: nn.Module) -> float:
    """Of the packed layers, everything stored counted."""
    layers = vq_layers(unet)
    stored = sum(layer.quantized_weight().nbytes for layer in layers.values())
    stored += sum(p.nbytes for p in getattr(unet, SHARED_NAME, nn.Module()).parameters())
    return 8 * stored / sum(torch.Size(layer.dense_shape).numel() for layer in layers.values())


def compressed(folder: Path, recipe: dict[str, Any], calibration: Path) -> Path:
    """`shapes` by ``recipe``, unless it is there already."""
    if not folder.exists():
        vqcompress.quantize("shapes", folder, calibration_folder=calibration, **recipe)
    return folder


class Bench:
    """Tunes variants and writes down what comes out."""

    def __init__(self, out: Path, images: int, training: Training, stages: list[str]) -> None:
        self.out, self.stages = out, stages
        self.recipe = Recipe(model="shapes", training=training)
        self.examination = Examination(images)
        self.rows: list[dict[str, Any]] = []
        self.note(variant="original", right=self.examination.right(self.examination.images))

    def note(self, **row: Any) -> None:
        """One row, printed at once."""
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    def distillation(self, store: RunStore) -> DistillationData:
        """What all variants learn from."""
        bench, prompts = self.examination, load_prompts("shapes").prompts
        used = choose_diverse(prompts, Calibration().count, 0)
        return record_distillation(Teacher(bench.pipeline, bench.architecture, prompts, used), self.recipe, store)

    def grade(self, folder: Path) -> nn.Module:
        """A folder as it is."""
        unet: nn.Module = load(folder).unet
        self.note(variant=folder.name, stage="none", **self.examination.grade(unet))
        return unet

    def run(self, name: str, start: nn.Module, distillation: DistillationData) -> None:
        """One row for each stage. Blocks are tuned once, in a folder of their own, and found there by ``full``."""
        seconds = 0.0
        settings = self.recipe.training.model_dump(mode="json")
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        with RunStore(self.out / f"{name}-{digest}", {"training": settings}) as own:
            for stage in self.stages:
                clock = time.process_time()
                unet = self.tuned(stage, start, distillation, own)
                taken = time.process_time() - clock
                seconds = taken + (seconds if stage == "full" else 0.0)
                self.note(variant=name, stage=stage, **self.examination.grade(unet), seconds=round(seconds, 1))

    def tuned(self, stage: str, start: nn.Module, distillation: DistillationData, store: RunStore) -> nn.Module:
        """The denoiser after ``stage``; ``start`` is the packed one."""
        unet, bench = copy.deepcopy(start), self.examination
        context = TuningContext.of(bench.pipeline, bench.architecture, self.recipe, distillation, store)
        if stage in ("blocks", "full"):
            unet = copy.deepcopy(bench.dense)
            quantized = {name: layer.quantized_weight() for name, layer in vq_layers(start).items()}
            tune_blocks(unet, requantize_before_blocks(unet, quantized, context), context)
            swap(unet, {})
        if stage in ("full", "whole"):
            with TemporaryDirectory() as folder, RunStore(folder, {}) as fresh:  # so that all of it is timed
                context = replace(context, store=fresh)
                tune_whole(unet, context, plan_requantization(unet, lambda: bench.dense, context))
        return unet


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in rows:
        shares = (f"{row[key]:.2%}" if key in row else "–" for key in ("error", "guided"))
        plain = (f"{row[key]:.2f}" if key in row else "–" for key in ("psnr", "mean", "median"))
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "–"
        bits = f"{row['bits']:.3f}" if "bits" in row else "–"
        lines.append((row["variant"], row.get("stage", "–"), bits, *shares, *plain, f"{row['right']:.0%}", seconds))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--reference", type=Path, nargs="*", default=[], help="folders to grade as they are")
    parser.add_argument("--stages", nargs="+", choices=["blocks", "full", "whole"], default=["blocks", "full"])
    parser.add_argument("--preset", choices=["fast", "default", "best"], default="fast")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe's training")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/finetune"))
    given = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in given.set)}
    given.out.mkdir(parents=True, exist_ok=True)
    folders, references = given.folders, given.reference
    if not folders:
        kept = given.out / "calibration"
        references = [compressed(given.out / name, recipe, kept) for name, recipe in REFERENCES.items()] + references
        folders = [compressed(given.out / name, recipe, kept) for name, recipe in VARIANTS.items()]
    bench = Bench(given.out, given.images, Training(preset=given.preset, **changes), given.stages)
    for folder in references:
        bench.grade(folder)
    with RunStore(given.out / "distillation", {}) as store:
        distillation = bench.distillation(store)
        for folder in folders:
            bench.run(folder.name, bench.grade(folder), distillation)
    print(table(bench.rows))


if __name__ == "__main__":
    main()
