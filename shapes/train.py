"""`python -m vqcompress.shapes.train --out DIR`: an embedded model, from nothing and one seed."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import click
import torch

from vqcompress.shapes.autoencoder import PatchCode, build_autoencoder, fit_patch_code, set_encoder
from vqcompress.shapes.dataset import tokenize, training_captions, training_images
from vqcompress.shapes.decoder_training import reconstruction_psnr, train_decoder
from vqcompress.shapes.denoiser_training import Denoiser
from vqcompress.shapes.networks import build_text_encoders, build_unet
from vqcompress.shapes.scenes import monitor_captions
from vqcompress.shapes.schedule import Schedule
from vqcompress.shapes.subjects import SUBJECTS
from vqcompress.shapes.text_training import Reader, answers, reading_accuracy, train_text
from vqcompress.shapes.tokenizer import build_tokenizer
from vqcompress.shapes.training_run import TrainingRun

FIT_IMAGES, DECODER_IMAGES, VOCABULARY_CAPTIONS, TEXT_CAPTIONS = 8_000, 60_000, 5_000, 40_000
TELL_EVERY = 100


class Workshop:
    """What the stages share, rebuilt from the seed at every start: code, tokenizer, untrained networks.

    Text encoders and decoder are the same for every subject: ``parts`` is the work folder that has them.
    """

    def __init__(self, out: Path, work: Path, seed: int, subject: str = "unet", parts: Path | None = None) -> None:
        torch.manual_seed(seed)
        self.out, self.work, self.seed, self.parts = out, work, seed, parts or work
        work.mkdir(parents=True, exist_ok=True)
        self.code: PatchCode = fit_patch_code(training_images(FIT_IMAGES, seed))
        self.tokenizer = build_tokenizer(training_captions(VOCABULARY_CAPTIONS, seed))
        self.vae = build_autoencoder().eval()
        set_encoder(self.vae, self.code)
        self.model = Denoiser(build_unet(), *build_text_encoders(self.tokenizer))
        self.subject = SUBJECTS[subject]

    def load_decoder(self) -> None:
        """Take the trained decoder, if there is one yet."""
        from safetensors.torch import load_file

        path = self.parts / "decoder.safetensors"
        if path.exists():
            self.vae.decoder.load_state_dict(load_file(path))

    def load_text(self) -> None:
        """Take the trained text encoders."""
        from safetensors.torch import load_file

        encoders = torch.nn.ModuleList([self.model.text_encoder, self.model.text_encoder_2])
        encoders.load_state_dict(load_file(self.parts / "text.safetensors"))

    def export(self, model: torch.nn.Module) -> None:
        """Write the pipeline folder with `model`'s weights."""
        self.load_decoder()
        self.subject.save(model, self)


def run_decoder_stage(shop: Workshop, steps: int) -> None:
    """Train the decoder and keep it in the work folder."""
    from safetensors.torch import save_file

    images = training_images(DECODER_IMAGES, shop.seed + 1)
    schedule = Schedule(peak=1.5e-3, warmup=100, steps=steps)
    train_decoder(shop.vae, images, shop.code, schedule, shop.seed, _teller("decoder", schedule))
    save_file(shop.vae.decoder.state_dict(), shop.work / "decoder.safetensors")
    click.echo(f"decoder: {reconstruction_psnr(shop.vae, training_images(500, shop.seed + 9)):.2f} dB on fresh scenes")


def run_text_stage(shop: Workshop, steps: int) -> None:
    """Teach the text encoders to read captions and keep them in the work folder."""
    from safetensors.torch import save_file

    encoders = shop.model.text_encoder, shop.model.text_encoder_2
    reader = Reader(*encoders)
    schedule = Schedule(peak=1e-3, warmup=100, steps=steps)
    train_text(
        reader,
        *_reading(shop, training_captions(TEXT_CAPTIONS, shop.seed + 3)),
        schedule,
        shop.seed,
        _teller("text", schedule),
    )
    save_file(torch.nn.ModuleList(encoders).state_dict(), shop.work / "text.safetensors")
    unseen = _reading(shop, monitor_captions(500))
    click.echo(f"text: {reading_accuracy(reader, *unseen):.1%} of unseen captions read without a mistake")


def run_denoiser_stage(shop: Workshop, schedule: Schedule, scenes: int, snapshot_minutes: float, renew: bool) -> None:
    """Train the denoiser, checkpoint and export along the way, export the average at the end."""
    shop.load_text()
    model = shop.subject.build(shop)
    plain = copy.deepcopy(model)
    training = shop.subject.training(_prepare_for_training(model), shop, scenes, schedule)
    click.echo(f"{scenes} scenes coded")
    checkpoint = shop.work / "denoiser.pt"
    if checkpoint.exists():
        training.restore(checkpoint, keep_clock=not renew)
    pause = _Pause(training, checkpoint, lambda: shop.export(training.averaged(plain)), 60 * snapshot_minutes)
    training.run(_teller("denoiser", schedule), TELL_EVERY, pause)
    training.save(checkpoint)
    shop.export(training.averaged(plain))


class _Pause:
    """Checkpoint and snapshot at most once per `interval` seconds."""

    def __init__(self, training: TrainingRun, checkpoint: Path, export, interval: float) -> None:
        self.training, self.checkpoint, self.export, self.interval = training, checkpoint, export, interval
        self.last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.last >= self.interval:
            self.training.save(self.checkpoint)
            self.export()
            self.last = time.monotonic()


def _prepare_for_training(model: torch.nn.Module) -> torch.nn.Module:
    """Text encoders frozen, as SDXL's are; plain attention, whose backward is many times faster on a few tokens."""
    from diffusers.models.attention_processor import AttnProcessor

    for part in model.children():
        if hasattr(part, "set_attn_processor"):
            part.set_attn_processor(AttnProcessor())
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")
            part.requires_grad_(False)
    return model


def _reading(shop: Workshop, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return tokenize(shop.tokenizer, captions), torch.tensor([answers(text) for text in captions])


def _teller(stage: str, schedule: Schedule):
    def tell(step: int, loss: float) -> None:
        click.echo(f"{stage} step {step} {schedule.spent / 60:.1f} min {schedule.progress:.1%} loss {loss:.5f}")

    return tell


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Pipeline folder to write.")
@click.option("--work", type=click.Path(path_type=Path), help="Checkpoints [OUT.work]; an unfinished run goes on.")
@click.option("--model", "subject", type=click.Choice(list(SUBJECTS)), default="unet", show_default=True)
@click.option(
    "--parts", type=click.Path(path_type=Path), help="Work folder whose text encoders and decoder to take [WORK]."
)
@click.option("--stage", type=click.Choice(["all", "text", "decoder", "denoiser", "untrained"]), default="all")
@click.option("--text-steps", default=1000, show_default=True)
@click.option("--decoder-steps", default=1330, show_default=True)
@click.option("--steps", default=8000, show_default=True, help="Denoiser steps in a cycle of the learning rate.")
@click.option("--cycles", default=2, show_default=True, help="Cycles; a finished run goes on with one more.")
@click.option("--until", type=int, help="Stop at this step of the cycles; without it, a run stopped so goes on.")
@click.option("--minutes", type=float, help="End each cycle by the clock, in place of --steps.")
@click.option("--scenes", default=150_000, show_default=True, help="Training scenes held in memory.")
@click.option("--rate", default=1e-3, show_default=True, help="Peak learning rate of the denoiser.")
@click.option("--snapshot-minutes", default=10.0, show_default=True)
@click.option("--renew", is_flag=True, help="Start a new schedule from the last checkpoint's weights.")
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    out, work, subject, parts, stage, text_steps, decoder_steps, steps, cycles, until, minutes, scenes, rate,
    snapshot_minutes, renew, threads, seed,
):  # fmt: skip
    """Train an embedded model and write it as a diffusers folder."""
    torch.set_num_threads(threads)
    shop = Workshop(out, work or out.with_name(out.name + ".work"), seed, subject, parts)
    if stage == "untrained":
        shop.export(shop.subject.build(shop))
    if stage in ("all", "text"):
        run_text_stage(shop, text_steps)
    if stage in ("all", "decoder"):
        run_decoder_stage(shop, decoder_steps)
    if stage in ("all", "denoiser"):
        length = {"seconds": 60 * minutes} if minutes else {"steps": steps}
        schedule = Schedule(rate, cycles=cycles, until=until, **length)
        run_denoiser_stage(shop, schedule, scenes, snapshot_minutes, renew)


if __name__ == "__main__":
    main()
