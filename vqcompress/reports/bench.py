"""Run the original and its compressed variants under the same conditions and measure what differs.

The original stays loaded. Compressed folders are opened one after the other, and only their packed weights are kept.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.checkpoint import RECIPE_NAME, LayerRecord, inspect, load, read_layer_table
from vqcompress.checkpoint.origin import check_network
from vqcompress.denoiser_calls.record import TeacherCall, record_teacher
from vqcompress.errors import VQCompressError
from vqcompress.layers import vq_layers
from vqcompress.methods import SCALAR_FORMAT, gave_way
from vqcompress.metrics import (
    caption_accuracy,
    denoiser_error,
    error_by_timestep,
    fidelity_per_image,
    image_fidelity,
    overall,
    pipeline_bytes,
    weight_bytes,
)
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.peers import AllocatedPeer, Peer
from vqcompress.placement import Placement, place
from vqcompress.progress import Progress, silent
from vqcompress.recipe import Recipe
from vqcompress.reports.allocated_peers import allocated_weights, importance_of, single_peers
from vqcompress.reports.candidate import Candidate, check_labels
from vqcompress.reports.comparison import ORIGINAL, Comparison, Original, Settings
from vqcompress.reports.components import component_costs
from vqcompress.reports.drawing import Drawing, draw
from vqcompress.reports.evaluation import EvaluationConfig, EvaluationSet
from vqcompress.reports.experts import expert_uses
from vqcompress.reports.latents import LatentsRecord, strayed
from vqcompress.reports.layer_errors import Packed, layer_errors, packed_weights
from vqcompress.reports.machine import machine, weight_memory
from vqcompress.reports.peers import (
    PeerWeights,
    calibration_run,
    denoiser_moments,
    exchanged_weights,
    missing_peers,
    quantize_with_peers,
)
from vqcompress.reports.pictures import full_png, is_scaled_down, to_picture, to_png
from vqcompress.reports.replay import replay
from vqcompress.reports.variant import LayerError, Share, Variant
from vqcompress.reports.verdicts import verdicts

MADE_FROM = "name that one first, then the folders"
PICTURED = 12  # prompts whose images the report shows, the first variant's worst and median ones among them
ENLARGED = 4  # of these in full size
MAX_CALLS_A_STEP = 8  # of the denoiser for one batch: separate guidance calls times a solver's stages
VERSIONS_OF = ("vqcompress", "torch", "diffusers", "transformers")


def compare_candidates(
    original: DiffusionPipeline,
    architecture: Architecture,
    candidates: Sequence[Candidate],
    evaluation: EvaluationSet,
    config: EvaluationConfig | None = None,
    *,
    peers: Sequence[Peer | AllocatedPeer] = (),
    name: str | None = None,
    progress: Progress | None = None,
    placement: Placement | None = None,
) -> Comparison:
    """Compare compressed folders with the pipeline that they were made from; the report is about the first.

    ``peers`` quantize the layers that the first folder's recipe names, on the same calibration, allocated ones by the
    importance of layers in one of the folders; those that are not installed are named in `Comparison.missing`. ``name``
    is what the report calls the model. ``placement`` is where it runs, and folders will; by default where it is. Raises
    `VQCompressError` for no prompts, for labels used twice, or for allocated peers beside folders that were not, and
    whatever opening a folder raises.
    """
    check_labels(candidates)
    if not evaluation.prompts:
        raise VQCompressError("a comparison needs at least one prompt")
    denoiser, named = architecture.module(original, architecture.denoiser), name or _name_of(original)
    if vq_layers(denoiser):
        raise VQCompressError(f"{named} is compressed itself; name the original model first, then the folders")
    for candidate in candidates:
        check_network(candidate.folder, denoiser, architecture.denoiser, named, MADE_FROM)
    importance = _importance(peers, candidates, architecture.denoiser)
    placement = placement or Placement.of(denoiser)
    bench = _Bench(original, architecture, evaluation, config or EvaluationConfig(), progress or silent, placement)
    bench.observe_original()
    variants = [bench.variant(candidate) for candidate in candidates]
    with TemporaryDirectory(prefix="vqcompress-peers-") as spool:
        variants += bench.peer_variants(peers, candidates[0], importance, Path(spool))
        errors = bench.layer_errors()
    variants = [replace(variant, layer_errors=errors.get(variant.label, ())) for variant in variants]
    return Comparison(
        model=named,
        denoiser=architecture.denoiser,
        original=bench.original_sizes(),
        variants=tuple(variants),
        verdicts=verdicts(variants),
        settings=bench.settings(),
        pictured=bench.pictured,
        missing=missing_peers(peers),
        pictures=bench.pictures,
        full_size=bench.full_size,
    )


@dataclass
class _Bench:
    """The original, what was observed of it, and the packed weights of the variants seen so far."""

    original: DiffusionPipeline
    architecture: Architecture
    evaluation: EvaluationSet
    config: EvaluationConfig
    progress: Progress
    placement: Placement
    calls: list[TeacherCall] = field(default_factory=list)
    packed: dict[str, Packed] = field(default_factory=dict)
    records: dict[str, dict[str, LayerRecord]] = field(default_factory=dict)
    pictured: tuple[int, ...] = ()
    pictures: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    full_size: dict[str, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prompts, config = self.evaluation.prompts[: self.config.count], self.config
        self.drawing = Drawing(tuple(prompts), config.seed, config.sampling.resolve(self.architecture.defaults))

    def observe_original(self) -> None:
        """Draw the reference images and record the denoiser's calls."""
        self.latents = self._latents()
        step = self._step("draw", ORIGINAL)
        self.images, self.seconds = draw(self.original, self.architecture, self.drawing, step, self.latents)
        self.judged = self._judged(self.images)
        run = self.drawing.run(self.original, self.architecture, self.config.trajectory_prompts)
        self.batches = [len(run.prompts[at : at + run.batch_size]) for at in range(0, len(run.prompts), run.batch_size)]
        self.calls = record_teacher(
            run,
            count=self.config.trajectory_prompts * MAX_CALLS_A_STEP * run.steps,
            progress=lambda done, total, _: self.progress("record denoiser", done, total, ORIGINAL),
        )

    def variant(self, candidate: Candidate) -> Variant:
        """Everything about one variant but its layer errors; its pipeline is freed before this returns."""
        label, denoiser = candidate.label, self.architecture.denoiser
        sizes = inspect(candidate.folder)
        if sizes["bits_per_weight"] is None:
            raise VQCompressError(
                f"{candidate.folder} has no quantized layers; compare compressed folders with the original"
            )
        pipeline = self._open(candidate.folder)
        self.packed[label] = packed_weights(pipeline, self.architecture)
        memory = weight_memory(self._module(pipeline))
        seconds, measured = self.measured(label, pipeline)
        costs = component_costs(
            self.original,
            pipeline,
            self.architecture,
            self.drawing,
            self.images,
            sizes["components"],
            self._step(f"components of {label}", ""),
        )
        del pipeline
        gc.collect()
        nbytes = weight_bytes(candidate.folder / denoiser)
        records = read_layer_table(candidate.folder)
        self.records[label] = {_recorded_name(record, denoiser): record for record in records}
        return Variant(
            label=label,
            method=candidate.method,
            scheme=candidate.scheme,
            dense_layers=tuple(record.layer for record in records if record.format == "dense"),
            undersampled_layers=tuple(record.layer for record in records if record.is_undersampled),
            scalar_layers=tuple(record.layer for record in records if gave_way(candidate.method, record.format)),
            outliers=sum(record.outliers for record in records),
            experts=expert_uses(records),
            bits_per_weight=sizes["bits_per_weight"],
            denoiser_bits=8 * nbytes / self.denoiser_weights,
            denoiser_bytes=nbytes,
            folder_bytes=sizes["bytes"],
            layer_errors=(),
            time_ratio=seconds / self.seconds,
            components=costs,
            memory_bytes=memory,
            **measured,
        )

    def peer_variants(
        self,
        peers: Sequence[Peer | AllocatedPeer],
        candidate: Candidate,
        importance: Mapping[str, float],
        spool: Path,
    ) -> list[Variant]:
        """One variant for each installed peer, of the layers that the recipe of ``candidate`` quantizes."""
        peers = [peer for peer in peers if peer.found()]
        if not peers:
            return []
        recipe = Recipe.read(candidate.folder / RECIPE_NAME)
        denoiser = self._module(self.original)
        plans = self.architecture.layers(self.original, self.architecture.denoiser, recipe.ignore)
        layers = {p.name: denoiser.get_parameter(f"{p.name}.weight").detach() for p in plans if p.reason is None}

        def moments() -> Iterator[tuple[str, SecondMoment | None]]:
            run = calibration_run(self.original, self.architecture, recipe)
            step = self._step("calibrate peers", "")
            return denoiser_moments(run, list(layers), recipe.calibration.rows_per_call, step)

        step, weighed = self._step("quantize by peers", ""), any(isinstance(peer, AllocatedPeer) for peer in peers)
        found = quantize_with_peers(single_peers(peers), layers, moments, spool, step, weighed=weighed)
        made, counts = {each.name: each for each in found}, {name: weight.numel() for name, weight in layers.items()}
        results = (
            allocated_weights(peer, made, counts, importance) if isinstance(peer, AllocatedPeer) else made[peer.name]
            for peer in peers
        )
        return [self._peer_variant(result, sum(counts.values())) for result in results if result.weights]

    def _peer_variant(self, result: PeerWeights, weights: int) -> Variant:
        label, denoiser = result.name, self._module(self.original)
        self.packed[label] = {self.architecture.denoiser: result.weights}
        with exchanged_weights(denoiser, result.weights):
            _, measured = self.measured(label, self.original)
        quantized = sum(denoiser.get_parameter(f"{name}.weight").numel() for name in result.weights)
        nbytes = result.nbytes + 2 * (self.denoiser_weights - quantized)
        known = self.original_sizes()
        return Variant(
            label=label,
            method=result.curve,
            scheme=result.scheme,
            peer=result.made_by,
            dense_layers=tuple(result.dense),
            bits_per_weight=(8 * result.nbytes + 16 * (weights - quantized)) / weights,
            denoiser_bits=8 * nbytes / self.denoiser_weights,
            denoiser_bytes=nbytes,
            folder_bytes=known.folder_bytes - known.denoiser_bytes + nbytes if known.folder_bytes else 0,
            layer_errors=(),
            time_ratio=math.nan,
            **measured,
        )

    def measured(self, label: str, pipeline: DiffusionPipeline) -> tuple[float, dict[str, Any]]:
        """A variant's seconds per image, and the fields of `Variant` that follow from what it computes."""
        latents = self._latents()
        step = self._step(f"draw {label}", "")
        images, seconds = draw(pipeline, self.architecture, self.drawing, step, latents)
        step = self._step(f"replay {label}", "")
        replayed = replay(self._module(pipeline), self.calls, step, self.batches)
        values = fidelity_per_image(images, self.images)
        self._picture(label, images, values["psnr"])
        fields = {
            "denoiser_error": denoiser_error(replayed.by_timestep),
            "error_by_timestep": error_by_timestep(replayed.by_timestep),
            "energies": replayed.by_image,
            "trajectory": strayed(latents, self.latents),
            "image_metrics": image_fidelity(images, self.images),
            "image_values": values,
            **self._judged(images),
        }
        return seconds, fields

    def layer_errors(self) -> dict[str, tuple[LayerError, ...]]:
        """Label -> layer errors, from one pass over the original."""
        few = self.config.layer_prompts
        run = self.drawing.run(self.original, self.architecture, few) if few else None
        step = self._step("layer errors", "")
        found = layer_errors(self.original, self.architecture, self.packed, run, step)
        return {
            label: tuple(_with_record(error, self.records.get(label, {}).get(error.layer)) for error in errors)
            for label, errors in found.items()
        }

    def original_sizes(self) -> Original:
        """The original: its sizes on disk if it came from a folder, else those of its weights at 16 bits."""
        folder = Path(str(getattr(self.original, "name_or_path", None) or ""))
        weights = self.denoiser_weights
        known = (folder / "model_index.json").is_file()
        return Original(
            denoiser_bytes=weight_bytes(folder / self.architecture.denoiser) if known else 2 * weights,
            folder_bytes=pipeline_bytes(folder) if known else 0,
            denoiser_weights=weights,
            seconds_per_image=self.seconds,
            memory_bytes=weight_memory(self._module(self.original)),
            **self.judged,
        )

    def settings(self) -> Settings:
        """The conditions under which all this was measured."""
        prompts = len(self.drawing.prompts)
        shown = min(self.config.layer_prompts, prompts)
        moments = f"the second moments of its inputs while the original drew {shown} of the images"
        return Settings(
            prompts=self.drawing.prompts,
            prompt_source=self.evaluation.source,
            seed=self.drawing.seed,
            steps=self.drawing.sampling.steps,
            guidance=self.drawing.sampling.guidance,
            trajectory_prompts=min(self.config.trajectory_prompts, prompts),
            denoiser_calls=len(self.calls),
            layer_inputs=moments if shown else "all inputs taken as equally large and independent",
            versions={package: version(package) for package in VERSIONS_OF},
            machine=machine(self._module(self.original).device),
        )

    def _open(self, folder: Path) -> DiffusionPipeline:
        checked, budget = self.config.verified, self.config.dense_budget
        dtype = self._module(self.original).dtype
        pipeline = load(folder, checked=checked, dense_budget=budget, dtype=dtype)
        place(pipeline, self.placement)
        return pipeline

    def _module(self, pipeline: DiffusionPipeline):
        return self.architecture.module(pipeline, self.architecture.denoiser)

    def _latents(self) -> LatentsRecord:
        return LatentsRecord(min(self.config.trajectory_prompts, len(self.drawing.prompts)))

    @property
    def denoiser_weights(self) -> int:
        """Number of the denoiser's weights."""
        return sum(parameter.numel() for parameter in self._module(self.original).parameters())

    def _judged(self, images: Tensor) -> dict[str, Any]:
        """The judge's answers over all images, as fields of `Original` and of `Variant`."""
        if (judge := self.evaluation.judge) is None:
            return {}
        answers = [judge(to_picture(i), p) for i, p in zip(images, self.drawing.prompts, strict=True)]
        shares = {question: Share(**share) for question, share in caption_accuracy(answers).items()}
        right = [overall(each) for each in answers]
        known = () if None in right else tuple(map(bool, right))  # pairs need an answer for every image
        return {"caption_accuracy": shares, "right_images": known}

    def _picture(self, label: str, images: Tensor, psnr: tuple[float, ...]) -> None:
        """Keep images for the page; which ones, the first variant decides."""
        is_lead = not self.pictures
        if is_lead:
            self.pictured = shown(psnr)
            self.pictures[ORIGINAL] = tuple(to_png(self.images[at]) for at in self.pictured)
        self.pictures[label] = tuple(to_png(images[at]) for at in self.pictured)
        if is_lead and is_scaled_down(images[0]):
            for name, source in ((ORIGINAL, self.images), (label, images)):
                self.full_size[name] = tuple(full_png(source[at]) for at in self.pictured[:ENLARGED])

    def _step(self, stage: str, detail: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total, detail)


def shown(psnr: tuple[float, ...]) -> tuple[int, ...]:
    """The prompts whose images a report shows: the worst one by PSNR, the median one, and the first ones."""
    order = sorted(range(len(psnr)), key=lambda at: (psnr[at], at))
    chosen = dict.fromkeys([order[0], order[(len(order) - 1) // 2], *range(len(psnr))])
    return tuple(chosen)[:PICTURED]


def _importance(
    peers: Sequence[Peer | AllocatedPeer], candidates: Sequence[Candidate], denoiser: str
) -> Mapping[str, float]:
    """What errors of each layer cost, where a peer is allocated by it."""
    if not any(isinstance(peer, AllocatedPeer) for peer in peers):
        return {}
    return importance_of((read_layer_table(candidate.folder) for candidate in candidates), denoiser)


def _recorded_name(record: LayerRecord, denoiser: str) -> str:
    return record.layer if record.component == denoiser else f"{record.component}.{record.layer}"


def _with_record(error: LayerError, record: LayerRecord | None) -> LayerError:
    if record is None:
        return error
    return replace(error, gap=record.gap, outliers=record.outliers, is_scalar=record.format == SCALAR_FORMAT)


def _name_of(pipeline: DiffusionPipeline) -> str:
    return Path(str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)).name
