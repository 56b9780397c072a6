"""What fine-tuning gains: the same codes before and after, on prompts that neither calibration nor training saw.

``python benchmarks/finetune.py FOLDER… [--reference GPTQ_FOLDER] [--stages blocks full] [--preset default] [--steps N]``

FOLDERs are compressed variants of `shapes`. Each row is one of them after one stage (``none``, ``blocks``, ``full`` after ``blocks``, or
``whole``: the whole denoiser alone): the denoiser's relative output error on the original's own inputs, PSNR of images with the
original's under the same seeds, the share of images that show their caption, bits a quantized weight with everything
stored counted, and processor seconds. Recordings are kept in ``--out`` and serve all variants. Nothing is written to FOLDERs.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.calibration.prompts import choose_diverse, load_prompts
from vqcompress.calibration.teacher import record_teacher
from vqcompress.checkpoint import load
from vqcompress.finetune import Lessons, record_lessons, tune_blocks, tune_whole
from vqcompress.layers import SHARED_NAME, swap, vq_layers
from vqcompress.metrics import denoiser_error, image_fidelity
from vqcompress.recipe import Calibration, Training
from vqcompress.report.pictures import to_picture
from vqcompress.report.replay import replay
from vqcompress.run_store import RunStore
from vqcompress.shapes.judge import judge
from vqcompress.shapes.scenes import held_out_captions

SEED, BATCH = 1000, 16


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
        self.calls = record_teacher(self.pipeline, self.architecture, prompts, count=10, seed=SEED, batch_size=BATCH)

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
        return {
            "bits": round(bits_per_weight(unet), 3),
            "error": denoiser_error(replay(unet, self.calls, lambda done, total: None)),
            "psnr": round(image_fidelity(images, self.images)["psnr"], 2),
            "right": round(self.right(images), 3),
        }

    def right(self, images: torch.Tensor) -> float:
        """Share of images that show all that their caption says."""
        pairs = zip(images, self.captions, strict=True)
        return sum(judge(to_picture(image), caption)["all"] for image, caption in pairs) / len(images)


def bits_per_weight(unet: nn.Module) -> float:
    """Of the packed layers, everything stored counted."""
    layers = vq_layers(unet)
    stored = sum(layer.quantized_weight().nbytes for layer in layers.values())
    stored += sum(p.nbytes for p in getattr(unet, SHARED_NAME, nn.Module()).parameters())
    return 8 * stored / sum(torch.Size(layer.dense_shape).numel() for layer in layers.values())


def tuned(stage: str, start: nn.Module, dense: nn.Module, lessons: Lessons, store: RunStore, options: dict[str, Any]):
    """The denoiser after ``stage``; ``start`` is the packed one."""
    unet = copy.deepcopy(start)
    if stage in ("blocks", "full"):
        unet = copy.deepcopy(dense)
        quantized = {name: layer.quantized_weight() for name, layer in vq_layers(start).items()}
        tune_blocks(unet, quantized, lessons, store, **options)
        swap(unet, {})
    if stage in ("full", "whole"):
        tune_whole(unet, lessons, store.folder, None, guidance=3.0, **options)
    return unet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, nargs="*", default=[], help="folders to grade as they are")
    parser.add_argument("--stages", nargs="+", choices=["blocks", "full", "whole"], default=["blocks", "full"])
    parser.add_argument("--preset", choices=["fast", "default", "best"], default="default")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe's training")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("out/finetune"))
    given = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in given.set)}
    training = Training(preset=given.preset, **changes)
    bench = Examination(given.images)
    print(json.dumps({"variant": "original", "right": bench.right(bench.images)}), flush=True)
    with RunStore(given.out, {}) as store:
        lessons = _lessons(bench, store, training)
        for folder in given.reference:
            print(json.dumps({"variant": folder.name, **bench.grade(load(folder).unet)}), flush=True)
        for folder in given.folders:
            start: nn.Module = load(folder).unet
            print(json.dumps({"variant": folder.name, **bench.grade(start)}), flush=True)
            _run(bench, folder.name, start, lessons, given, training)


def _run(bench: Examination, name: str, start: nn.Module, lessons: Lessons, given: Any, training: Training) -> None:
    """One row for each stage. Blocks are tuned once, in a folder of their own, and found there by ``full``."""
    seconds = 0.0
    with RunStore(given.out / f"{name}-{training.preset}", {"training": training.model_dump(mode="json")}) as own:
        for stage in given.stages:
            clock = time.process_time()
            unet = tuned(stage, start, bench.dense, lessons, own, {"training": training})
            taken = time.process_time() - clock
            seconds = taken + (seconds if stage == "full" else 0.0)
            row = {"variant": name, "stage": stage, **bench.grade(unet), "seconds": round(seconds, 1)}
            print(json.dumps(row), flush=True)


def _lessons(bench: Examination, store: RunStore, training: Training) -> Lessons:
    prompts = load_prompts("shapes").prompts
    clock = time.process_time()
    lessons = record_lessons(
        bench.pipeline, bench.architecture, prompts, choose_diverse(prompts, Calibration().count, 0), store,
        training=training, calibration=Calibration(), seed=0, progress=lambda *told: None,
    )  # fmt: skip
    print(json.dumps({"lessons": len(lessons.train), "seconds": round(time.process_time() - clock, 1)}), flush=True)
    return lessons


if __name__ == "__main__":
    main()
