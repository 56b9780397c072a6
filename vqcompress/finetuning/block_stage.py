"""The block stage: blocks learn one after the other, before the denoiser learns as a whole.

A block's inputs come from the denoiser as compressed so far; its targets are the outputs of the dense block in the
dense denoiser, so that it compensates for the errors of the blocks before it. Only that block learns, which takes
little memory and time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.denoiser_calls.blocks import execution_order, find_blocks
from vqcompress.denoiser_calls.dataset import DistillationDataset
from vqcompress.denoiser_calls.partial_run import run_through_block, weight_sharing_copy
from vqcompress.finetuning.context import TuningContext
from vqcompress.finetuning.curvature import draw_samples
from vqcompress.finetuning.learnable import learnable_names, make_learnable, put_tensors, tensors_of
from vqcompress.finetuning.trainer import Schedule, Trainer
from vqcompress.layers import swap
from vqcompress.placement import execution_device, saved_on_host
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.recipe import Training
from vqcompress.run_store import RunStore
from vqcompress.tensor_tree import tensors_in

BLOCKS, TITLE = "finetune.blocks", "fine-tune blocks"
HELD_OUT_SHARE = 4  # training samples for each held-out one


@dataclass(frozen=True)
class BlockCall:
    """One call of a block by the student, and what the dense block returned in the teacher, as a flat list of
    tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: list[Tensor]


def tune_blocks(denoiser: nn.Module, quantized: Mapping[str, QuantizedWeight], context: TuningContext) -> None:
    """Put ``quantized`` into the dense ``denoiser`` block by block, each block tuned against its dense self, in place.

    The dense weights stay in memory until the last block is done; no other copy is made. Blocks that an earlier try has
    finished are taken from the run's store. Layers that no call reaches are put in as they are.
    """
    preset, distillation, seed = context.preset, context.distillation, context.recipe.seed
    draw = _Draw(preset.micro_batch, seed, execution_device(denoiser))
    train = draw.calls(distillation.train, preset.block_samples)
    held_out = draw.calls(distillation.held_out, preset.block_samples // HELD_OUT_SHARE)
    schedule = Schedule(preset.block_steps, preset.rate, measure_every=max(1, preset.block_steps // 3))
    blocks = find_blocks(denoiser, list(quantized))
    teacher = weight_sharing_copy(denoiser)
    with torch.no_grad():
        first = distillation.train.batch([0], execution_device(denoiser))
        order = execution_order(denoiser, list(blocks), lambda: denoiser(**first.kwargs))
    for index, name in enumerate(order):
        block = _Block(denoiser, teacher, name, {layer: quantized[layer] for layer in blocks[name]})
        change = block.tune(train, held_out, context.store, context.training, schedule)
        context.progress(TITLE, index + 1, len(order), f"{name} {change:+.0%}")
    swap(denoiser, {layer: quantized[layer] for name in blocks.keys() - set(order) for layer in blocks[name]})


class _Block:
    """One block of ``denoiser``, dense until `tune` has run; ``teacher`` is the denoiser when it was dense."""

    def __init__(
        self, denoiser: nn.Module, teacher: nn.Module, name: str, quantized: Mapping[str, QuantizedWeight]
    ) -> None:
        self.denoiser, self.teacher, self.name, self.quantized = denoiser, teacher, name, quantized

    def tune(
        self,
        train: Sequence[dict[str, Any]],
        held_out: Sequence[dict[str, Any]],
        store: RunStore,
        training: Training,
        schedule: Schedule,
    ) -> float:
        """Pack and tune; returns the relative change of the held-out error (0 where it was found in ``store``)."""
        change = 0.0

        def make() -> dict[str, Tensor]:
            nonlocal change
            calls = [self._capture(kwargs) for kwargs in train]
            tests = [self._capture(kwargs) for kwargs in held_out]
            module = self._packed()
            if not learnable_names(module, training.learn):
                return tensors_of(module)
            task = _BlockTask(self.denoiser, module, calls, tests)
            learnable = make_learnable(module, training.learn, execution_device(self.denoiser))
            outcome = Trainer(learnable, task.gradient, task.measure, schedule).run()
            learnable.finalize()
            change = outcome.after / outcome.before - 1 if outcome.before else 0.0
            return tensors_of(module)

        tensors = store.load_or_make(BLOCKS, self.name, make)
        put_tensors(self._packed(), tensors)
        return change

    def _packed(self) -> nn.Module:
        """The block with its packed layers in place."""
        missing = {n: w for n, w in self.quantized.items() if not hasattr(self.denoiser.get_submodule(n), "spec")}
        swap(self.denoiser, missing)
        return self.denoiser.get_submodule(self.name)

    @torch.no_grad()
    def _capture(self, kwargs: dict[str, Any]) -> BlockCall:
        """What student and teacher do with this block, each run up to its end."""
        args, options, _ = run_through_block(self.name, self.denoiser, kwargs)
        return BlockCall(args, options, list(tensors_in(run_through_block(self.name, self.teacher, kwargs)[2])))


class _BlockTask:
    """``gradient`` and ``measure`` for `Trainer`; losses are relative to the mean square of the targets."""

    def __init__(
        self, denoiser: nn.Module, block: nn.Module, train: Sequence[BlockCall], held_out: Sequence[BlockCall]
    ) -> None:
        self.denoiser, self.block, self.train, self.held_out = denoiser, block, train, held_out

    def gradient(self, step: int) -> float:
        """One call a step, in turn."""
        with torch.enable_grad(), saved_on_host(self.denoiser):
            loss = self._loss(self.train[step % len(self.train)])
            loss.backward()
        return float(loss.detach())

    def measure(self) -> float:
        """Over all held-out calls."""
        return sum(float(self._loss(call)) for call in self.held_out) / len(self.held_out)

    def _loss(self, call: BlockCall) -> Tensor:
        outputs = tensors_in(self.block(*call.args, **call.kwargs))
        error = sum((o.float() - t.float()).square().sum() for o, t in zip(outputs, call.target, strict=True))
        signal = sum(t.float().square().sum() for t in call.target)
        return torch.as_tensor(error) / torch.as_tensor(signal).clamp_min(1e-30)


@dataclass(frozen=True)
class _Draw:
    """Samples drawn by ``seed``, as denoiser calls of ``at_once`` samples on ``device``."""

    at_once: int
    seed: int
    device: torch.device

    def calls(self, dataset: DistillationDataset, count: int) -> list[dict[str, Any]]:
        """``count`` samples of ``dataset``."""
        chosen = draw_samples(len(dataset), max(1, count), self.seed)
        at_once = (chosen[at : at + self.at_once] for at in range(0, len(chosen), self.at_once))
        return [dataset.batch(indices, self.device).kwargs for indices in at_once]
