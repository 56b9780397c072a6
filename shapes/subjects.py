"""The three models of the world: what is trained, on what, and the folder it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from vqcompress.shapes import DEFAULT_GUIDANCE
from vqcompress.shapes.answer_tokens import set_answer_tokens
from vqcompress.shapes.dataset import build_latent_set, training_captions
from vqcompress.shapes.denoiser_training import Denoiser, DenoiserTraining
from vqcompress.shapes.flow_training import FlowTraining
from vqcompress.shapes.folder import save_class_pipeline, save_pipeline, save_transformer_pipeline
from vqcompress.shapes.layout import LayoutReader
from vqcompress.shapes.networks import build_mixture, build_scheduler, build_transformer
from vqcompress.shapes.schedule import Schedule
from vqcompress.shapes.singles import CLASSES, build_labelled_set
from vqcompress.shapes.training_run import TrainingRun
from vqcompress.shapes.transformer_denoiser import TransformerDenoiser

if TYPE_CHECKING:
    from vqcompress.shapes.train import Workshop

FIT_CAPTIONS = 2_000


class Subject(Protocol):
    """How one of the models is made."""

    def build(self, shop: Workshop) -> torch.nn.Module:
        """The untrained model, with the shop's text encoders where it reads captions."""

    def training(self, model: torch.nn.Module, shop: Workshop, scenes: int, schedule: Schedule) -> TrainingRun:
        """Its training on ``scenes`` scenes."""

    def save(self, model: Any, shop: Workshop) -> None:
        """Write the pipeline folder."""


class UNetSubject:
    """`shapes`: SDXL's form."""

    def build(self, shop: Workshop) -> torch.nn.Module:
        return shop.model

    def training(self, model, shop: Workshop, scenes: int, schedule: Schedule) -> TrainingRun:
        data = build_latent_set(scenes, shop.seed + 2, shop.code, shop.tokenizer)
        alphas = build_scheduler().alphas_cumprod
        return DenoiserTraining(model, data, alphas, schedule, shop.seed, self.reader(model))

    def reader(self, model) -> LayoutReader | None:
        """What asks a transformer for the layout while it learns; none here."""
        return None

    def save(self, model: Denoiser, shop: Workshop) -> None:
        encoders = model.text_encoder, model.text_encoder_2
        save_pipeline(shop.out, shop.vae, model.unet, encoders, shop.tokenizer, build_scheduler())


class TransformerSubject(UNetSubject):
    """`shapes-dit`: PixArt's form, trained as the UNet is."""

    def build(self, shop: Workshop) -> torch.nn.Module:
        model = TransformerDenoiser(build_transformer(), shop.model.text_encoder, shop.model.text_encoder_2)
        captions = training_captions(FIT_CAPTIONS, shop.seed + 4)
        set_answer_tokens(model.transformer, model.text_encoder_2, shop.tokenizer, captions)
        return model

    def reader(self, model: TransformerDenoiser) -> LayoutReader:
        network = model.transformer
        return LayoutReader(network.transformer_blocks[network.config["num_layers"] // 2 - 1], network.inner_dim)

    def save(self, model: TransformerDenoiser, shop: Workshop) -> None:
        encoders = model.text_encoder, model.text_encoder_2
        save_transformer_pipeline(shop.out, shop.vae, model.transformer, encoders, shop.tokenizer, build_scheduler())


class MixtureSubject:
    """`shapes-moe`: DiT-MoE's form, single objects by their class."""

    def build(self, shop: Workshop) -> torch.nn.Module:
        return build_mixture()

    def training(self, model, shop: Workshop, scenes: int, schedule: Schedule) -> TrainingRun:
        return FlowTraining(model, build_labelled_set(scenes, shop.seed + 2, shop.code), schedule, shop.seed)

    def save(self, model: torch.nn.Module, shop: Workshop) -> None:
        save_class_pipeline(shop.out, shop.vae, model, CLASSES, DEFAULT_GUIDANCE)


SUBJECTS: dict[str, Subject] = {"unet": UNetSubject(), "dit": TransformerSubject(), "moe": MixtureSubject()}
