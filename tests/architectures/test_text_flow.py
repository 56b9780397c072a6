"""Our text pipelines as architectures: what is kept, padded text, and the whole way through a packed folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vqcompress
from tests.models import tiny_text_pipelines
from vqcompress.architectures import architecture_of
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.models.pipelines import pipeline_class
from vqcompress.models.text_pipeline import TextPipeline
from vqcompress.sampling_config import SamplingConfig

BUILDERS = tiny_text_pipelines.PIPELINES
KEPT = {
    "next": {"x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1"},
    "flag": {"x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1"},
    "pt_dit": {"pos_embed.proj", "adaln_single.linear", "proj_out"},
}


def sampled(pipeline: TextPipeline, prompts: list[str]) -> Tensor:
    small = SamplingConfig(steps=2, height=16, width=16)
    seeds = range(len(prompts))
    return architecture_of(pipeline).sample(pipeline, prompts, seeds=seeds, sampling=small, output_type="latent")


@pytest.mark.parametrize("name", BUILDERS)
def test_every_matrix_is_planned(name: str) -> None:
    pipeline = BUILDERS[name]()
    family = architecture_of(pipeline)
    assert isinstance(family, TextFlowArchitecture)
    plans = {plan.name: plan for plan in family.layers(pipeline, "transformer")}
    matrices = {n.removesuffix(".weight") for n, p in pipeline.transformer.named_parameters() if p.ndim > 1}
    assert plans.keys() == matrices
    assert KEPT[name] <= {plan.name for plan in plans.values() if plan.reason}
    blocks = [n for n, plan in plans.items() if plan.reason is None]
    assert all(n.startswith(("layers.", "transformer_blocks.", "caption_projection.")) for n in blocks)


@pytest.mark.parametrize("name", BUILDERS)
def test_padding_is_known(name: str) -> None:
    pipeline, seen = BUILDERS[name](), []
    family = architecture_of(pipeline)

    def note(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        names = (
            ("x", "t", "cap_feats", "cap_mask")
            if name != "pt_dit"
            else ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
        )
        seen.append(family.text_mask(dict(zip(names, args, strict=False)) | kwargs))

    pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    sampled(pipeline, ["a", "a long name"])
    assert seen[0].dtype == torch.bool
    assert int(seen[0][0].sum()) < int(seen[0][1].sum())


@pytest.mark.parametrize("name", BUILDERS)
def test_packed_folder_opens_and_draws_the_same(name: str, tmp_path: Path) -> None:
    pipeline = BUILDERS[name]()
    vqcompress.quantize(pipeline, tmp_path / "packed", method="rtn", bits=4)
    opened = pipeline_class(tmp_path / "packed").from_pretrained(tmp_path / "packed")
    assert type(opened) is type(pipeline)
    packed = [n for n, p in opened.transformer.state_dict().items() if p.dtype == torch.int8]
    assert len(packed) >= 20
    assert sampled(opened, ["a cat"]).equal(sampled(pipeline, ["a cat"]))
