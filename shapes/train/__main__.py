"""`python -m vqcompress.shapes.train --out DIR`: train an embedded model from scratch, from one seed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from vqcompress.shapes.train.dataset import tokenize, training_captions, training_images
from vqcompress.shapes.train.decoder import reconstruction_psnr, train_decoder
from vqcompress.shapes.train.model_configs import MODEL_CONFIGS, ModelConfig
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.text_encoders import (
    CaptionClassifier,
    attribute_accuracy,
    train_text_encoders,
)
from vqcompress.shapes.train.trainer import LOG_EVERY, Log, Trainer
from vqcompress.shapes.train.workspace import Workspace

DECODER_IMAGES, TEXT_CAPTIONS = 60_000, 40_000


def run_decoder_stage(workspace: Workspace, steps: int) -> None:
    """Train the decoder and keep it in the work folder."""
    from safetensors.torch import save_file

    images = training_images(DECODER_IMAGES, workspace.seed + 1, workspace.world)
    schedule = Schedule(peak=1.5e-3, warmup=100, steps=steps)
    train_decoder(workspace.vae, images, workspace.code, schedule, workspace.seed, _log("decoder", schedule))
    save_file(workspace.vae.decoder.state_dict(), workspace.work / "decoder.safetensors")
    unseen = training_images(500, workspace.seed + 9, workspace.world)
    click.echo(f"decoder: {reconstruction_psnr(workspace.vae, unseen):.2f} dB on fresh scenes")


def run_text_stage(workspace: Workspace, steps: int) -> None:
    """Train the text encoders and keep them in the work folder."""
    from safetensors.torch import save_file

    encoders = workspace.model.text_encoder, workspace.model.text_encoder_2
    classifier = CaptionClassifier(*encoders, workspace.world.attributes)
    schedule = Schedule(peak=1e-3, warmup=100, steps=steps)
    data = _classified(workspace, training_captions(TEXT_CAPTIONS, workspace.seed + 3, workspace.world))
    train_text_encoders(classifier, *data, schedule, workspace.seed, _log("text", schedule))
    save_file(torch.nn.ModuleList(encoders).state_dict(), workspace.work / "text.safetensors")
    accuracy = attribute_accuracy(classifier, *_classified(workspace, workspace.world.monitor_captions(500)))
    click.echo(f"text: all attributes right in {accuracy:.1%} of unseen captions")


def run_denoiser_stage(
    workspace: Workspace, config: ModelConfig, schedule: Schedule, scenes: int, snapshot_minutes: float, renew: bool
) -> None:
    """Train the denoiser, with checkpoints and exports on the way, and export the average at the end."""
    workspace.load_text_encoders()
    model = config.build(workspace)
    plain = copy.deepcopy(model)
    trainer = config.trainer(_prepare_for_training(model), workspace, scenes, schedule)
    click.echo(f"{scenes} scenes encoded")
    checkpoint = workspace.work / "denoiser.pt"
    if checkpoint.exists():
        trainer.restore(checkpoint, keep_clock=not renew)

    def export() -> None:
        _export(workspace, config, trainer.averaged(plain))

    snapshot = _Snapshot(trainer, checkpoint, export, 60 * snapshot_minutes)
    trainer.run(_log("denoiser", schedule), LOG_EVERY, snapshot)
    trainer.save(checkpoint)
    export()


class _Snapshot:
    """Save a checkpoint and export the model, at most once per ``interval`` seconds."""

    def __init__(self, trainer: Trainer, checkpoint: Path, export: Callable[[], None], interval: float) -> None:
        self.trainer, self.checkpoint, self.export, self.interval = trainer, checkpoint, export, interval
        self.last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last >= self.interval:
            self.trainer.save(self.checkpoint)
            self.export()
            self.last = time.monotonic()


def _export(workspace: Workspace, config: ModelConfig, model: torch.nn.Module) -> None:
    """Write the pipeline folder with ``model``'s weights."""
    workspace.load_decoder()
    config.save(model, workspace)


def _prepare_for_training(model: torch.nn.Module) -> torch.nn.Module:
    """Freeze the text encoders, as SDXL does; use plain attention, whose backward is much faster on a few tokens."""
    from diffusers.models.attention_processor import AttnProcessor

    for part in model.children():
        if hasattr(part, "set_attn_processor"):
            part.set_attn_processor(AttnProcessor())
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")
            part.requires_grad_(False)
    return model


def _classified(workspace: Workspace, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [n, t] and attributes int64 [n, attributes] of captions."""
    attributes = torch.tensor([workspace.world.attributes_of(text) for text in captions])
    return tokenize(workspace.tokenizer, captions), attributes


def _log(stage: str, schedule: Schedule) -> Log:
    def log(step: int, loss: float) -> None:
        click.echo(f"{stage} step {step} {schedule.spent / 60:.1f} min {schedule.progress:.1%} loss {loss:.5f}")

    return log


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Pipeline folder to write.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of checkpoints to resume from [OUT.work].")
@click.option("--model", type=click.Choice(list(MODEL_CONFIGS)), default="unet", show_default=True)
@click.option(
    "--parts", type=click.Path(path_type=Path), help="Work folder whose text encoders and decoder to use [WORK]."
)
@click.option("--stage", type=click.Choice(["all", "text", "decoder", "denoiser", "untrained"]), default="all")
@click.option("--text-steps", default=1000, show_default=True)
@click.option("--decoder-steps", default=1330, show_default=True)
@click.option("--steps", default=8000, show_default=True, help="Denoiser steps per cycle of the learning rate.")
@click.option(
    "--cycles", default=2, show_default=True, help="Number of cycles; more than before extends a finished run."
)
@click.option("--until", type=int, help="Stop at this step; without it, a run stopped so continues to the end.")
@click.option("--minutes", type=float, help="Length of a cycle in minutes, in place of --steps.")
@click.option("--scenes", default=150_000, show_default=True, help="Training scenes held in memory.")
@click.option("--rate", default=1e-3, show_default=True, help="Peak learning rate of the denoiser.")
@click.option("--snapshot-minutes", default=10.0, show_default=True)
@click.option("--renew", is_flag=True, help="Start a new schedule from the last checkpoint's weights.")
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    out, work, model, parts, stage, text_steps, decoder_steps, steps, cycles, until, minutes, scenes, rate,
    snapshot_minutes, renew, threads, seed,
):  # fmt: skip
    """Train an embedded model and write it as a diffusers folder."""
    torch.set_num_threads(threads)
    config = MODEL_CONFIGS[model]
    workspace = Workspace(out, work or out.with_name(out.name + ".work"), seed, parts, config.world)
    if stage == "untrained":
        _export(workspace, config, config.build(workspace))
    if stage in ("all", "text"):
        run_text_stage(workspace, text_steps)
    if stage in ("all", "decoder"):
        run_decoder_stage(workspace, decoder_steps)
    if stage in ("all", "denoiser"):
        length = {"seconds": 60 * minutes} if minutes else {"steps": steps}
        schedule = Schedule(rate, cycles=cycles, until=until, **length)
        run_denoiser_stage(workspace, config, schedule, scenes, snapshot_minutes, renew)


if __name__ == "__main__":
    main()
