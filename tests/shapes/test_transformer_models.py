"""`shapes-dit` and `shapes-moe`: inputs, initialisation, learning, and their folders from end to end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vqcompress.architectures import architecture_of
from vqcompress.cli.main import main
from vqcompress.models.clip_pixart_pipeline import ClipPixArtPipeline, caption_features
from vqcompress.models.mixture import Router
from vqcompress.models.pipelines import pipeline_class
from vqcompress.reports.folders import evaluation_set
from vqcompress.shapes.classes import CLASSES, class_captions
from vqcompress.shapes.evaluate import generate, load_pipeline
from vqcompress.shapes.judge import judge
from vqcompress.shapes.render import render
from vqcompress.shapes.scenes import caption, sample_single_objects
from vqcompress.shapes.train import networks
from vqcompress.shapes.train.attribute_tokens import fit_attributes, set_attribute_tokens
from vqcompress.shapes.train.autoencoder import build_autoencoder, fit_patch_code, set_encoder
from vqcompress.shapes.train.curriculum import CURRICULUM
from vqcompress.shapes.train.dataset import build_labeled_latents, training_captions, training_images
from vqcompress.shapes.train.denoiser import DenoiserTrainer, TransformerDenoiser, UNetDenoiser
from vqcompress.shapes.train.flow import FlowTrainer
from vqcompress.shapes.train.model_configs import MixtureConfig, TransformerConfig
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.text_encoders import ATTRIBUTES
from vqcompress.shapes.train.tokenizer import build_tokenizer

SMALL = {
    "dit": TransformerConfig(partial(networks.build_transformer, 64, 1), captions=100),
    "moe": MixtureConfig(partial(networks.build_mixture, 64, 1, 4)),
}


class TinyWorkspace:
    """The training's workspace with few captions and small networks."""

    def __init__(self, out: Path) -> None:
        torch.manual_seed(0)
        self.out, self.seed = out, 0
        self.code = fit_patch_code(training_images(200, 0))
        self.tokenizer = build_tokenizer(training_captions(500, 0))
        self.vae = build_autoencoder().eval()
        set_encoder(self.vae, self.code)
        self.model = UNetDenoiser(None, *networks.build_text_encoders(self.tokenizer)).eval()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> TinyWorkspace:
    return TinyWorkspace(tmp_path_factory.mktemp("workspace") / "pipeline")


def test_each_extra_token_has_columns_of_its_own() -> None:
    states, pooled = torch.randn(2, 3, 5), torch.randn(2, 4)
    features = caption_features(states, pooled, 5 + 2 * 4)
    assert features.shape == (2, 5, 13)
    assert torch.equal(features[:, :3, :5], states)
    assert torch.equal(features[:, 3, 5:9], pooled)
    assert torch.equal(features[:, 4, 9:], pooled)
    assert features.count_nonzero() == states.numel() + 2 * pooled.numel()


def test_attributes_are_fitted_where_they_are_linear() -> None:
    torch.manual_seed(0)
    targets = torch.stack([torch.randint(size, (400,)) for size in ATTRIBUTES.values()], 1)
    codes = torch.cat([torch.nn.functional.one_hot(targets[:, i], s) for i, s in enumerate(ATTRIBUTES.values())], 1)
    pooled = codes.float() @ torch.randn(codes.shape[1], 64) + 3.0
    weight, bias = fit_attributes(pooled, targets)
    found = (pooled @ weight.T + bias).split(list(ATTRIBUTES.values()), 1)
    assert all(torch.equal(sheet.argmax(1), targets[:, i]) for i, sheet in enumerate(found))


def test_attribute_tokens_start_with_attributes_of_their_own(workspace: TinyWorkspace) -> None:
    transformer = networks.build_transformer(64, 1)
    before = transformer.caption_projection.linear_1.weight.clone()
    set_attribute_tokens(transformer, workspace.model.text_encoder_2, workspace.tokenizer, training_captions(100, 1))
    after = transformer.caption_projection.linear_1.weight
    states = 2 * networks.TEXT_WIDTH
    assert torch.equal(after[:, :states], before[:, :states])
    ranks = [torch.linalg.matrix_rank(part).item() for part in after[:, states:].chunk(networks.ATTRIBUTE_TOKENS, 1)]
    assert max(ranks) < 30, "a token with few attributes cannot hold all of them"


def test_the_transformer_starts_with_open_gates_and_no_output() -> None:
    transformer = networks.build_transformer(64, 2)
    hidden = torch.randn(2, 6, transformer.config["caption_channels"])
    noisy, steps = torch.randn(2, 8, 8, 8), torch.tensor([3, 900])
    assert transformer(noisy, hidden, timestep=steps).sample.abs().max() == 0
    tables = [block.scale_shift_table for block in transformer.transformer_blocks]
    assert all(torch.equal(table.sum(1), torch.tensor([0.0, 0, 64, 0, 0, 64])) for table in tables)


def test_cached_captions_give_the_same_output(workspace: TinyWorkspace) -> None:
    model = TransformerDenoiser(
        networks.build_transformer(64, 1), workspace.model.text_encoder, workspace.model.text_encoder_2
    )
    torch.nn.init.normal_(model.transformer.proj_out.weight)
    tokens = workspace.tokenizer(training_captions(4, 3), padding="max_length", return_tensors="pt").input_ids
    noisy, steps = torch.randn(4, 8, 8, 8), torch.tensor([3, 300, 600, 900])
    with torch.no_grad():
        first, again = model(noisy, steps, tokens), model(noisy, steps, tokens)
        turned = model(noisy.flip(0), steps.flip(0), tokens.flip(0)).flip(0)
    assert torch.equal(first, again)
    assert torch.allclose(first, turned, atol=1e-5)


def test_the_transformer_learns(workspace: TinyWorkspace) -> None:
    config = SMALL["dit"]
    model = config.build(workspace)
    for encoder in (model.text_encoder, model.text_encoder_2):
        encoder.requires_grad_(False)
    training = config.trainer(model, workspace, 64, Schedule(peak=2e-3, warmup=5, steps=40))
    training.curriculum = CURRICULUM[-1:]  # one scale of the loss
    before = _loss_of_given_batches(training)
    training.run(lambda step, loss: None, 10, lambda: None)
    after = _loss_of_given_batches(training)
    assert after < 0.9 * before


@torch.no_grad()
def _loss_of_given_batches(training: DenoiserTrainer) -> float:
    """Over the same images, captions, noise and timesteps each time, so that no lucky batch looks like learning."""
    return sum(training.loss(torch.Generator().manual_seed(seed)).item() for seed in range(1000, 1004))


def test_classes_are_captions_of_single_objects() -> None:
    assert len(set(CLASSES)) == 192
    scenes = list(sample_single_objects(40, 5))
    assert {caption(scene) for scene in scenes} <= set(CLASSES)
    assert {scene.items[0].size for scene in scenes} == {"small", "large"}
    assert all(judge(render(scene), caption(scene))["all"] for scene in scenes)
    assert sorted(class_captions()) == sorted(CLASSES)
    assert len(class_captions(200)) == 200


def test_labels_name_what_latents_show(workspace: TinyWorkspace) -> None:
    data = build_labeled_latents(12, 7, workspace.code)
    images = np.stack([render(scene) for scene in sample_single_objects(12, 7)])
    assert data.latents.numpy() == pytest.approx(workspace.code.encode(images), abs=0.01)
    assert [CLASSES[label] for label in data.labels] == [caption(scene) for scene in sample_single_objects(12, 7)]
    assert all((seen > 0).any() for seen in data.layouts)
    _, labels, _ = data.batch(300, 0.5, torch.Generator().manual_seed(0))
    assert (labels == len(CLASSES)).float().mean() == pytest.approx(0.5, abs=0.1)


def test_the_mixture_learns_and_its_routers_too(workspace: TinyWorkspace) -> None:
    model = SMALL["moe"].build(workspace)
    routers = [part for part in model.modules() if isinstance(part, Router)]
    before = [router.weight.clone() for router in routers]
    training = FlowTrainer(
        model, build_labeled_latents(64, 7, workspace.code), Schedule(peak=3e-3, warmup=5, steps=30), 0
    )
    losses: list[float] = []
    training.run(lambda step, loss: losses.append(loss), 10, lambda: None)
    assert losses[-1] < 0.8 * losses[0]
    assert len(training._balance) == len(routers)
    assert all(not torch.equal(a, router.weight) for a, router in zip(before, routers, strict=True))


def test_a_resumed_mixture_ends_with_the_same_weights(workspace: TinyWorkspace, tmp_path: Path) -> None:
    data = build_labeled_latents(64, 7, workspace.code)

    def fresh() -> FlowTrainer:
        torch.manual_seed(2)
        return FlowTrainer(SMALL["moe"].build(workspace), data, Schedule(peak=1e-3, warmup=2, steps=4), 0)

    whole, first, second = fresh(), fresh(), fresh()
    whole.run(lambda step, loss: None, 1, lambda: None)
    first.train_step(), first.train_step()
    first.save(tmp_path / "run.pt")
    second.restore(tmp_path / "run.pt")
    second.run(lambda step, loss: None, 1, lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))


@pytest.mark.parametrize("name", ["dit", "moe"])
def test_a_folder_is_quantized_verified_and_sampled(name: str, workspace: TinyWorkspace, tmp_path: Path) -> None:
    workspace.out = tmp_path / name
    config = SMALL[name]
    network = config.build(workspace)
    for parameter in network.parameters():
        if parameter.ndim > 1 and parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    config.save(network, workspace)
    pipe = load_pipeline(workspace.out)
    family = architecture_of(pipe)
    assert family.name == f"shapes-{name}"
    evaluation = evaluation_set(family, None, 6)
    assert evaluation.judge is not None
    prompts = evaluation.prompts
    images = generate(pipe, prompts[:3], steps=2)
    assert images.shape == (3, 32, 32, 3)
    assert np.abs(generate(pipe, prompts[:2], steps=2).astype(int) - images[:2]).max() <= 2

    packed = tmp_path / "packed"
    few = ["--json", "--count", "2", "--steps", "2", "--method", "gptq", "--bits", "4"]
    for words in (
        ["quantize", str(workspace.out), "-o", str(packed), *few],
        ["verify", str(packed)],
        ["generate", str(packed), prompts[0], "-o", str(tmp_path / "one.png"), "--steps", "2"],
    ):
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    opened = pipeline_class(packed).from_pretrained(packed)
    assert type(opened) is type(pipe)
    assert any(p.dtype == torch.int8 for p in opened.transformer.state_dict().values())


def test_guidance_is_the_pipelines_own(workspace: TinyWorkspace) -> None:
    from vqcompress.models.class_pipeline import ClassConditionalPipeline

    network = networks.build_mixture(64, 1, 4)
    assert ClassConditionalPipeline.with_defaults(network).default_guidance == 7.0
    assert ClassConditionalPipeline.with_defaults(network, guidance=3.0).default_guidance == 3.0


def test_the_empty_caption_guides(workspace: TinyWorkspace) -> None:
    transformer = networks.build_transformer(64, 1).eval()
    torch.nn.init.normal_(transformer.proj_out.weight)
    encoders = workspace.model.text_encoder, workspace.model.text_encoder_2
    pipe = ClipPixArtPipeline(workspace.tokenizer, *encoders, transformer, networks.build_scheduler(), workspace.vae)
    pipe.set_progress_bar_config(disable=True)

    def draw(guidance: float, negative: str = "") -> torch.Tensor:
        start = torch.Generator().manual_seed(0)
        words = "a red ring on a gray background"
        return pipe(
            words, 2, guidance, negative_prompt=negative, generator=start, output_type="latent", return_dict=False
        )[0]

    same = draw(3.0, "a red ring on a gray background")
    assert torch.allclose(same, draw(1.0), atol=1e-4), "guidance away from the same caption changes nothing"
    assert not torch.allclose(draw(3.0), same, atol=1e-3)
