"""The models: how each is built, on what it is trained, and the pipeline folder it is saved as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vqcompress.embedded import EMBEDDED
from vqcompress.shapes.classes import CLASSES
from vqcompress.shapes.train.attribute_tokens import set_attribute_tokens
from vqcompress.shapes.train.dataset import build_captioned_latents, build_labeled_latents, training_captions
from vqcompress.shapes.train.denoiser import DenoiserTrainer, TransformerDenoiser, UNetDenoiser
from vqcompress.shapes.train.flow import FlowTrainer
from vqcompress.shapes.train.layout import LayoutHead
from vqcompress.shapes.train.networks import build_mixture, build_scheduler, build_transformer
from vqcompress.shapes.train.saving import save_class_pipeline, save_pipeline, save_transformer_pipeline
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Trainer
from vqcompress.shapes.train.workspace import Workspace
from vqcompress.shapes.train.world import POSTERS_WORLD, SHAPES_WORLD, World


class ModelConfig(Protocol):
    """How one of the models is made."""

    @property
    def world(self) -> World:
        """The scenes it is made from."""

    def build(self, workspace: Workspace) -> torch.nn.Module:
        """The untrained model, with the workspace's text encoders where it reads captions."""

    def trainer(self, model: torch.nn.Module, workspace: Workspace, scenes: int, schedule: Schedule) -> Trainer:
        """The trainer of ``model`` on ``scenes`` scenes."""

    def save(self, model: Any, workspace: Workspace) -> None:
        """Write the pipeline folder."""


class UNetConfig:
    """`shapes`: SDXL's form."""

    world: World = SHAPES_WORLD

    def build(self, workspace: Workspace) -> torch.nn.Module:
        return workspace.model

    def trainer(self, model, workspace: Workspace, scenes: int, schedule: Schedule) -> Trainer:
        data = build_captioned_latents(scenes, workspace.seed + 2, workspace.code, workspace.tokenizer, self.world)
        alphas = build_scheduler().alphas_cumprod
        return DenoiserTrainer(model, data, alphas, schedule, workspace.seed, self.head(model), self.world.curriculum)

    def head(self, model) -> LayoutHead | None:
        """The layout head that the model is trained with; none here."""
        return None

    def save(self, model: UNetDenoiser, workspace: Workspace) -> None:
        encoders = model.text_encoder, model.text_encoder_2
        save_pipeline(workspace.out, workspace.vae, model.unet, encoders, workspace.tokenizer, build_scheduler())


class PosterConfig(UNetConfig):
    """`posters`: SDXL's form, and its proportions of weights to places."""

    world: World = POSTERS_WORLD

    def head(self, model: UNetDenoiser) -> LayoutHead:
        middle = model.unet.mid_block.attentions[0]
        return LayoutHead(middle.transformer_blocks[-1], middle.inner_dim, self.world.layout_classes)


@dataclass(frozen=True)
class TransformerConfig(UNetConfig):
    """`shapes-dit`: PixArt's form, trained like the UNet. Attribute tokens are fitted on ``captions`` captions."""

    network: Callable[[], torch.nn.Module] = build_transformer
    captions: int = 2_000

    def build(self, workspace: Workspace) -> torch.nn.Module:
        encoders = workspace.model.text_encoder, workspace.model.text_encoder_2
        model = TransformerDenoiser(self.network(), *encoders)
        captions = training_captions(self.captions, workspace.seed + 4)
        set_attribute_tokens(model.transformer, model.text_encoder_2, workspace.tokenizer, captions)
        return model

    def head(self, model: TransformerDenoiser) -> LayoutHead:
        network = model.transformer
        return LayoutHead(network.transformer_blocks[network.config["num_layers"] // 2 - 1], network.inner_dim)

    def save(self, model: TransformerDenoiser, workspace: Workspace) -> None:
        encoders = model.text_encoder, model.text_encoder_2
        save_transformer_pipeline(
            workspace.out, workspace.vae, model.transformer, encoders, workspace.tokenizer, build_scheduler()
        )


@dataclass(frozen=True)
class MixtureConfig:
    """`shapes-moe`: DiT-MoE's form, single objects by class."""

    network: Callable[[], torch.nn.Module] = build_mixture
    world: World = SHAPES_WORLD

    def build(self, workspace: Workspace) -> torch.nn.Module:
        return self.network()

    def trainer(self, model, workspace: Workspace, scenes: int, schedule: Schedule) -> Trainer:
        data = build_labeled_latents(scenes, workspace.seed + 2, workspace.code)
        return FlowTrainer(model, data, schedule, workspace.seed)

    def save(self, model: torch.nn.Module, workspace: Workspace) -> None:
        save_class_pipeline(workspace.out, workspace.vae, model, CLASSES, EMBEDDED["shapes-moe"].guidance)


MODEL_CONFIGS: dict[str, ModelConfig] = {
    "unet": UNetConfig(),
    "dit": TransformerConfig(),
    "moe": MixtureConfig(),
    "posters": PosterConfig(),
}
