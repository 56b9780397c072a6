"""The whole comparison on a tiny random pipeline, quantized here on a plain grid of each variant's range."""

import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vqcompress.architectures import architecture_of
from vqcompress.bitpack import pack
from vqcompress.calibration.prompts import load_prompts
from vqcompress.checkpoint import save_pipeline
from vqcompress.errors import VQCompressError
from vqcompress.formats import ScalarSpec
from vqcompress.layers import swap
from vqcompress.matrix_view import to_matrix
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.reports import (
    ORIGINAL,
    Candidate,
    EvaluationConfig,
    EvaluationSet,
    compare,
    compare_candidates,
    write_report,
)
from vqcompress.reports.bench import _Bench
from vqcompress.reports.folders import evaluation_set
from vqcompress.reports.pictures import decode
from vqcompress.sampling_config import SamplingConfig

PROMPTS = ("a red fox", "two blue cups", "an old door")
CONFIG = EvaluationConfig(3, seed=5, sampling=SamplingConfig(3, 4.0), trajectory_prompts=2, layer_prompts=1)


def tiny_sdxl():
    from tests.architectures import tiny_pipelines

    return tiny_pipelines.sdxl()


def on_row_grid(weight: torch.Tensor, bits: int) -> QuantizedWeight:
    matrix = to_matrix(weight.detach()).float()
    low, high = matrix.amin(1), matrix.amax(1)
    scale = ((high - low) / (2**bits - 1)).half()
    zero = (-low / scale.float()).round().clamp(0, 2**bits - 1)
    codes = (matrix / scale.float()[:, None] + zero[:, None]).round().clamp(0, 2**bits - 1)
    tensors = {
        "weight": pack(codes.t().int().contiguous(), bits).reshape(1, -1),
        "group_scale": scale[None],
        "group_zero": pack(zero[None].int(), bits),
    }
    return QuantizedWeight(ScalarSpec(bits, matrix.shape[1]), tuple(weight.shape), tensors)


@pytest.fixture(scope="module")
def original():
    return tiny_sdxl()


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    return [written(root / f"bits{bits}", bits, method) for bits, method in ((4, "trellis"), (3, "rtn"), (6, "rtn"))]


def written(folder: Path, bits: int, method: str) -> Candidate:
    pipeline = tiny_sdxl()
    plans = architecture_of(pipeline).layers(pipeline, "unet")
    names = [plan.name for plan in plans if plan.reason is None]
    swap(pipeline.unet, {name: on_row_grid(pipeline.unet.get_submodule(name).weight, bits) for name in names})
    save_pipeline(pipeline, folder, recipe={"model": "tiny", "method": method, "bits": float(bits)})
    return Candidate(f"{method} {bits}-bit", folder, method)


def run(original, candidates, judge=None, **changes):
    evaluation = EvaluationSet(PROMPTS, judge=judge)
    return compare_candidates(
        original, architecture_of(original), candidates, evaluation, replace(CONFIG, **changes), name="tiny"
    )


@pytest.fixture(scope="module")
def found(original, candidates):
    asked = []

    def judge(image, prompt):
        asked.append((image.size, image.mode, prompt))
        return {"all": prompt != PROMPTS[1]}

    comparison = run(original, candidates, judge=judge)
    assert asked == [((16, 16), "RGB", prompt) for prompt in PROMPTS] * 4
    return comparison


def test_more_bits_mean_less_of_every_error(found):
    variants = sorted(found.variants, key=lambda variant: variant.denoiser_bytes)
    assert [variant.label for variant in variants] == ["rtn 3-bit", "trellis 4-bit", "rtn 6-bit"]
    for worse, better in pairwise(variants):
        assert better.denoiser_error < worse.denoiser_error / 2
        assert better.layer_error_mean < worse.layer_error_mean / 2
        assert better.psnr > worse.psnr
        assert better.ssim > worse.ssim


def test_sizes_are_those_of_the_files(found, candidates):
    variant = found.variants[0]
    files = [path for path in candidates[0].folder.rglob("*") if path.is_file()]
    assert variant.folder_bytes == sum(path.stat().st_size for path in files)
    assert variant.denoiser_bytes == sum(path.stat().st_size for path in files if path.match("unet/*.safetensors"))
    assert 4 < variant.bits_per_weight < 5
    assert variant.denoiser_bits > variant.bits_per_weight


def test_original_without_a_folder_is_counted_at_16_bits(found, original):
    weights = sum(parameter.numel() for parameter in original.unet.parameters())
    assert (found.original.denoiser_bytes, found.original.folder_bytes) == (2 * weights, 0)


def test_timesteps_run_from_noise_to_image(found):
    times = list(found.variants[0].error_by_timestep)
    assert len(times) == 3
    assert times == sorted(times, reverse=True)


def test_layers_come_in_execution_order(found, original):
    planned = [p.name for p in architecture_of(original).layers(original, "unet") if p.reason is None]
    assert [each.layer for each in found.variants[0].layer_errors] == planned


def test_judge_counts_prompts(found):
    assert {variant.caption_accuracy["all"].share for variant in found.variants} == {2 / 3}
    assert found.original.caption_accuracy["all"].count == 3
    assert [sum(each.right_images) for each in (found.original, *found.variants)] == [2] * (1 + len(found.variants))


def test_every_image_and_every_call_is_measured(found, original, candidates):
    """One image of the trajectory by hand: its calls replayed, the guided latents of both runs compared."""
    variant = found.variants[0]
    assert len(variant.image_values["psnr"]) == len(PROMPTS)
    assert variant.psnr_median.value == pytest.approx(variant.image_metrics["psnr_median"])
    assert min(variant.image_values["psnr"]) == pytest.approx(variant.image_metrics["psnr_worst"])
    assert len(variant.energies) == CONFIG.trajectory_prompts
    errors, signals = zip(*variant.energies, strict=True)
    assert sum(errors) / sum(signals) == pytest.approx(variant.denoiser_error)
    assert variant.error.value == pytest.approx(variant.denoiser_error)
    assert variant.error.low < variant.error.value < variant.error.high
    times, strayed = zip(*variant.trajectory.by_timestep.items(), strict=True)
    assert times == tuple(variant.error_by_timestep)
    assert strayed[0] == 0  # the same noise
    assert 0 < strayed[1] < strayed[2]
    assert 0 < variant.memory_bytes < found.original.memory_bytes


def test_verdicts_name_measured_neighbours(found):
    error, _ = found.verdicts
    assert (error.label, error.larger, error.smaller) == ("trellis 4-bit", None, None)  # the default allocates bits
    assert found.pictured[:2] == (found.variants[0].worst_image, found.variants[0].median_image)


def test_large_images_are_kept_in_full_for_the_first_variant():
    bench = object.__new__(_Bench)
    bench.pictures, bench.full_size = {}, {}
    bench.images = torch.zeros(6, 3, 8, 400)
    bench._picture("lead", bench.images + 0.5, (30.0, 20.0, 25.0, 40.0, 35.0, 28.0))
    bench._picture("other", bench.images + 0.5, (10.0,) * 6)
    assert bench.pictured == (1, 5, 0, 2, 3, 4)
    assert list(bench.full_size) == [ORIGINAL, "lead"]
    assert [len(files) for files in bench.full_size.values()] == [4, 4]
    assert decode(bench.full_size["lead"][0]).size == (400, 8)
    assert decode(bench.pictures["lead"][0]).size[0] == 384


def test_it_can_be_written(found, tmp_path):
    assert list(found.pictures) == [ORIGINAL, *(variant.label for variant in found.variants)]
    text = write_report(found, tmp_path).read_text()
    assert "tiny at" in text


def test_the_same_run_again_finds_the_same(found, original, candidates):
    again = run(original, candidates[:1], layer_prompts=1)
    judged = {"time_ratio": 0, "caption_accuracy": 0, "right_images": 0}
    assert {**asdict(again.variants[0]), **judged} == {**asdict(found.variants[0]), **judged}


def test_plain_layer_errors_need_no_activations(original, candidates):
    variant = run(original, candidates[:1], count=1, trajectory_prompts=1, layer_prompts=0)
    weight = original.unet.get_submodule(variant.variants[0].layer_errors[0].layer).weight.detach()
    lost = weight - on_row_grid(weight, 4).decode()
    expected = float(lost.square().sum() / weight.square().sum())
    assert variant.variants[0].layer_errors[0].error == pytest.approx(expected, rel=1e-4)
    assert "independent" in variant.settings.layer_inputs


def test_mistakes_are_named(original, candidates, tmp_path):
    with pytest.raises(VQCompressError, match="at least one prompt"):
        compare_candidates(original, architecture_of(original), candidates, EvaluationSet(()))
    with pytest.raises(VQCompressError, match="draws 1 to 10000 images"):
        EvaluationConfig(count=0)
    with pytest.raises(VQCompressError, match="different labels"):
        run(original, [candidates[0], replace(candidates[1], label=candidates[0].label)])
    original.save_pretrained(tmp_path / "dense")
    with pytest.raises(VQCompressError, match="no quantized layers"):
        run(original, [Candidate("dense", tmp_path / "dense", "rtn")], count=1)


def test_all_numbers_are_finite(found):
    for variant in found.variants:
        assert all(math.isfinite(value) for value in vars(variant).values() if isinstance(value, float))


def test_names_alone_are_enough(original, candidates, tmp_path):
    original.save_pretrained(tmp_path / "dense")
    (tmp_path / "prompts.txt").write_text("a red fox\na blue cup\n")
    stages = []
    comparison = compare(
        str(tmp_path / "dense"),
        [candidates[0].folder],
        prompts=str(tmp_path / "prompts.txt"),
        config=EvaluationConfig(2, sampling=SamplingConfig(steps=2)),
        progress=lambda stage, done, total, detail: stages.append((stage, done == total)),
    )
    assert comparison.model == "dense"
    assert [variant.label for variant in comparison.variants] == ["trellis 4-bit"]
    assert comparison.settings.prompt_source.startswith("set prompts.txt, SHA-256 ")
    assert comparison.original.denoiser_bytes > 4 * comparison.original.denoiser_weights
    assert comparison.original.caption_accuracy == {}
    assert dict(stages).keys() >= {"draw", "record denoiser", "draw trellis 4-bit", "layer errors"}
    assert all(dict(stages).values())


@pytest.mark.parametrize(
    ("name", "prompts", "is_judged"),
    [
        ("shapes", ["a red circle on a black background"], True),
        ("shapes", ["a red circle on a black background", "a fox"], False),
        ("sdxl", ["a red circle on a black background"], False),
    ],
)
def test_judge_is_taken_where_it_understands_all_prompts(name, prompts, is_judged, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    found = evaluation_set(replace(architecture_of(tiny_sdxl()), name=name), str(tmp_path / "prompts.txt"), 8)
    assert found.prompts == tuple(prompts)
    assert (found.judge is not None) == is_judged


def test_evaluation_prompts_are_not_those_of_calibration():
    tiny = architecture_of(tiny_sdxl())
    assert not set(load_prompts("general").prompts) & set(evaluation_set(tiny, None, 8).prompts)
    shapes = evaluation_set(replace(tiny, name="shapes"), None, 8)
    assert len(shapes.prompts) == 8
    assert "held-out" in shapes.source
    assert shapes.judge is not None
    assert not set(load_prompts("shapes").prompts) & set(shapes.prompts)
