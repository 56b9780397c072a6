"""Run a pipeline on calibration prompts, or a denoiser on recorded calls, and record the layers' inputs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vqcompress.architectures import VAE, Architecture
from vqcompress.calibration.exchange import gather_round, owners
from vqcompress.calibration.input_samples import input_samples, sample_count
from vqcompress.calibration.passes import plan_passes
from vqcompress.calibration.shared_inputs import InputGroup, layer_input, shared_inputs
from vqcompress.denoiser_calls.call import call_arguments, check_latents, first_output
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.errors import CalibrationError
from vqcompress.moments.accumulate import MomentAccumulator
from vqcompress.moments.cross_validation import FOLDS
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.placement import execution_device
from vqcompress.progress import StageProgress
from vqcompress.workers import Workers

SQUARES = 2  # of a group in memory: the sum so far, and that of the batch under way


class Source(Protocol):
    """What makes a module run: batch after batch, or once for a look at what its layers are given."""

    @property
    def batches(self) -> int:
        """How many batches there are."""

    @property
    def repeats(self) -> float:
        """How many times as many samples all batches show as `probe` does, about."""

    def batch(self, index: int) -> None:
        """Run batch ``index``."""

    def probe(self) -> None:
        """Run a little: every layer that a batch runs, once."""


@dataclass(frozen=True)
class RecordingLimits:
    """``memory_budget`` bytes for the second moments of one pass (None: all in one), how many samples a layer's moment
    takes of one call (None: all; see `MomentAccumulator`), and bytes that are free on the disk for all moments.

    ``on_device`` are bytes for moments on an accelerator that computes; what has no room there is summed on the host,
    within ``memory_budget``.
    """

    memory_budget: int | None = None
    samples_per_call: int | None = None
    free_disk: int | None = None
    on_device: int = 0

    @property
    def of_a_pass(self) -> int | None:
        """Bytes of the moments of one pass."""
        return None if self.memory_budget is None else self.memory_budget + self.on_device // SQUARES


@dataclass(frozen=True)
class Component:
    """``module`` is the network called ``name`` in a pipeline of ``architecture``, or a copy of it."""

    architecture: Architecture
    name: str
    module: nn.Module


def record_moments(
    run: SamplingRun,
    component: str,
    layers: Sequence[str],
    limits: RecordingLimits | None = None,
    progress: StageProgress | None = None,
    workers: Workers | None = None,
) -> Iterator[tuple[list[str], SecondMoment]]:
    """Second moments of the inputs of ``layers`` of ``component``, one for all layers that read the same tensor.

    Every prompt goes through the pipeline's own sampler: all timesteps and both guidance halves count. Activations are
    summed as they pass and never kept. What exceeds the memory budget of ``limits`` is recorded in further passes,
    with the same result. With ``workers`` the batches are shared among processes, and each yields the groups that it
    summed; together they are what one process yields, bit for bit.

    Yields (layer names, moments), pass by pass; a layer that never ran comes with ``seen == 0``. Raises
    `CalibrationError` for a budget below one layer's need, for a disk that is too full, and when activations are not
    finite.
    """
    module = run.architecture.module(run.pipeline, component)
    others = component not in run.architecture.denoisers
    source = replace(run, encode_only=others and component != VAE, autoencode=others and component == VAE)
    watched = Component(run.architecture, component, module)
    yield from record_inputs(watched, layers, source, run.seed, limits, progress, workers, FOLDS)


def record_inputs(
    component: Component,
    layers: Sequence[str],
    source: Source,
    seed: int = 0,
    limits: RecordingLimits | None = None,
    progress: StageProgress | None = None,
    workers: Workers | None = None,
    folds: int = 1,
) -> Iterator[tuple[list[str], SecondMoment]]:
    """`record_moments` while ``source`` makes ``component`` run; ``seed`` chooses samples where ``limits`` say so.

    ``folds`` is how many moments are recorded of inputs that depend on little but the prompt (`shared_inputs`): batch i
    is in that number ``i % folds``, which is of use where batches have different prompts.
    """
    limits, workers = limits or RecordingLimits(), workers or Workers()
    groups = shared_inputs(component.module, layers, source.probe, source.repeats, folds)
    _check_disk(groups, limits.free_disk)
    passes = plan_passes(groups, limits.of_a_pass)
    total = len(passes) * source.batches
    if progress:
        progress(0, total, f"{len(passes)} {'pass' if len(passes) == 1 else 'passes'}")
    for index, members in enumerate(passes):
        recorder = _Recorder(component, limits, seed, workers)
        what = f"pass {index + 1} of {len(passes)}"
        for done in recorder.record(members, source):
            if progress:
                progress(index * source.batches + done, total, what)
        yield from recorder.results(members)


def _check_disk(groups: Sequence[InputGroup], free: int | None) -> None:
    needed = sum(group.nbytes for group in groups)
    if free is not None and needed > free:
        raise CalibrationError(
            f"the second moments of {len(groups)} inputs take {needed / 1e9:.3g} GB, and the disk of the run's folder "
            f"has {free / 1e9:.3g} GB free; free some space, or keep them elsewhere (--calibration FOLDER)"
        )


@dataclass
class _Recorder:
    """One pass: an accumulator per group, fed by a hook on the group's first layer."""

    component: Component
    limits: RecordingLimits
    seed: int
    workers: Workers
    accumulators: dict[str, MomentAccumulator] = field(default_factory=dict)
    text_mask: Tensor | None = None
    calls: int = 0

    def record(self, groups: Sequence[InputGroup], source: Source) -> Iterator[int]:
        """Run this process's share of the batches; yields the number of those that all have finished."""
        module = self.component.module
        with ExitStack() as hooks:
            hooks.callback(module.register_forward_pre_hook(self._note_call, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(self._check_output).remove)
            device = execution_device(module)
            spilled = _spilled(groups, None if device.type == "cpu" else self.limits.on_device)
            for group in groups:
                layer, home = module.get_submodule(group.layers[0]), torch.device("cpu") if group in spilled else None
                hooks.callback(layer.register_forward_pre_hook(self._feed(group, home), with_kwargs=True).remove)
            owner, world_size = owners(groups, self.workers), self.workers.world_size
            for first in range(0, source.batches, world_size):
                recording = min(world_size, source.batches - first)
                if self.workers.rank < recording:
                    self._batch(source, first + self.workers.rank)
                gather_round(self.accumulators, owner, recording, self.workers, device)
                yield first + recording

    def results(self, groups: Sequence[InputGroup]) -> Iterator[tuple[list[str], SecondMoment]]:
        """The moments of each group that this process sums, freed as soon as they are handed over."""
        owner = owners(groups, self.workers)
        for group in groups:
            accumulator = self.accumulators.pop(group.layers[0])
            if owner[group.layers[0]] == self.workers.rank:
                yield list(group.layers), accumulator.finish()

    def _batch(self, source: Source, number: int) -> None:
        for accumulator in self.accumulators.values():
            accumulator.start_part(number)
        self.calls = 0
        source.batch(number)
        self._check_finite()

    def _feed(
        self, group: InputGroup, home: torch.device | None
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        name = group.layers[0]
        accumulator = MomentAccumulator(
            group.columns,
            max_samples_per_call=self.limits.samples_per_call,
            seed=_layer_seed(self.seed, name),
            home=home,
            folds=group.folds,
        )
        self.accumulators[name] = accumulator
        is_masked = self._reads_padding(name)

        def feed(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = layer_input(args, kwargs).detach()
            x = _real_tokens(x, self.text_mask) if is_masked else x
            accumulator.add_from(
                sample_count(x, layer),
                lambda chosen: input_samples(x, layer, None if chosen is None else chosen.to(x.device)),
            )

        return feed

    def _reads_padding(self, name: str) -> bool:
        """Whether the layer is given padded tokens that nothing reads: where the denoiser masks them, all text
        layers."""
        architecture = self.component.architecture
        pattern, is_denoiser = architecture.masked_layers, self.component.name in architecture.denoisers
        return pattern is not None and (not is_denoiser or bool(re.search(pattern, name)))

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments, architecture = call_arguments(module, args, kwargs), self.component.architecture
        self.calls += 1
        if self.component.name in architecture.denoisers:
            check_latents(self.component.name, self.calls, arguments)
        if architecture.masked_layers is not None:
            self.text_mask = architecture.text_mask(arguments)

    def _check_output(self, module: nn.Module, args: Any, output: Any) -> None:
        """Stop at the first call that goes wrong: afterwards every layer sees infinities."""
        if not bool(torch.isfinite(first_output(output)).all()):
            self._check_finite()
            raise _not_finite(f"the output of {self.component.name}")

    def _check_finite(self) -> None:
        for name, accumulator in self.accumulators.items():
            if not accumulator.is_finite():
                raise _not_finite(f"the input of {self.component.name}.{name}")


def _spilled(groups: Sequence[InputGroup], room: int | None) -> set[InputGroup]:
    """The ``groups`` whose sums have no place in ``room`` bytes of the device; none where that is the host."""
    if room is None:
        return set()
    found = set()
    for group in groups:
        needed = SQUARES * group.nbytes
        if needed > room:
            found.add(group)
        else:
            room -= needed
    return found


def _not_finite(what: str) -> CalibrationError:
    return CalibrationError(
        f"{what} became infinite or NaN while sampling; open the model in float32 or bfloat16 instead of float16, "
        "and check that its images are not black"
    )


def _real_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Without padded text tokens, which attention ignores: ``x [batch, tokens, width]``, ``mask [batch, tokens]``."""
    if mask is None or x.ndim != 3 or x.shape[:2] != mask.shape:
        return x
    return x[mask]


def _layer_seed(seed: int, name: str) -> int:
    """A layer draws the same samples whatever else is recorded with it."""
    return (seed << 32) | zlib.crc32(name.encode())
