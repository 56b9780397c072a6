"""Recording on the networks of vqcompress.models: experts, silent blocks, padded text."""

import torch
from diffusers import DiffusionPipeline
from torch import nn

from vqcompress.architectures import architecture_of
from vqcompress.calibration.record import record_moments
from vqcompress.denoiser_calls.record import record_teacher
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.dit import DiT
from vqcompress.models.dit_moe import DiTMoE
from vqcompress.models.mdt import MDTv2
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.moments.shrinkage import expert_key, is_undersampled, shrunk_moment
from vqcompress.sampling_config import SamplingConfig

TINY = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_classes": 12}
CLASSES = ("1", "5", "9")


def pipeline_of(network: nn.Module) -> DiffusionPipeline:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return ClassConditionalPipeline.with_defaults(network.eval())


def recorded(pipeline: DiffusionPipeline) -> dict[str, SecondMoment]:
    family = architecture_of(pipeline)
    layers = [plan.name for plan in family.layers(pipeline, "transformer") if plan.reason is None]
    run = SamplingRun(pipeline, family, CLASSES, sampling=SamplingConfig(3), batch_size=2)
    groups = record_moments(run, "transformer", layers)
    return {name: moments for names, moments in groups for name in names}


def test_rows_of_all_experts_add_up() -> None:
    pipeline = pipeline_of(DiTMoE(**TINY, num_experts=4))
    found = recorded(pipeline)
    rows = {name: moments.seen for name, moments in found.items() if name.startswith("blocks.1.moe.experts.")}
    per_expert = [count for name, count in rows.items() if name.endswith("down_proj")]
    tokens = len(CLASSES) * 3 * 2 * 16  # steps, guidance halves, tokens
    assert len(per_expert) == 4
    assert sum(per_expert) == 2 * tokens  # top two experts
    assert len(set(per_expert)) > 1


def test_blocks_that_never_run_do_not_block() -> None:
    found = recorded(pipeline_of(MDTv2(**TINY, decode_layer=2)))
    silent = [name for name, moments in found.items() if moments.seen == 0]
    assert silent
    assert all(name.startswith("sideblocks.") for name in silent)


def test_modulation_sees_a_row_for_each_image_and_step() -> None:
    """Such a moment has no more directions than samples: it is shrunk towards white noise for error feedback."""
    found = recorded(pipeline_of(DiT(**TINY)))
    modulation = found["blocks.0.adaLN_modulation.1"]
    assert modulation.seen == len(CLASSES) * 3 * 2  # steps, guidance halves
    assert is_undersampled(modulation)
    assert torch.linalg.matrix_rank(modulation.dense()) < 32
    usable = shrunk_moment(modulation).dense()
    assert torch.linalg.eigvalsh(usable).min() > 1e-4 * usable.diagonal().mean()
    assert not is_undersampled(found["blocks.0.attn.qkv"])


def test_seldom_chosen_experts_borrow_from_the_others_of_their_mixture() -> None:
    found = recorded(pipeline_of(DiTMoE(**TINY, num_experts=16)))
    name = min(
        (n for n in found if "blocks.1.moe.experts." in n and n.endswith("down_proj")), key=lambda n: found[n].seen
    )
    experts = [found[n] for n in found if expert_key(n) == expert_key(name)]
    assert len(experts) == 16
    usable = shrunk_moment(found[name], experts).dense()
    assert torch.isfinite(usable).all()
    assert usable.trace() > 0


def test_teacher_calls_of_a_network_of_ours() -> None:
    pipeline = pipeline_of(DiTMoE(**TINY, num_experts=4))
    run = SamplingRun(pipeline, architecture_of(pipeline), CLASSES, sampling=SamplingConfig(3))
    calls = record_teacher(run, count=3)
    for call in calls:
        with torch.no_grad():
            assert torch.equal(pipeline.transformer(**call["kwargs"]), call["output"])
        assert torch.equal(call["timestep"], call["kwargs"]["t"].float())
