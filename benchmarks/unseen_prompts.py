"""Error of layers that see little but the prompt, on prompts that were not calibrated on, by how their moment is made.

``python benchmarks/unseen_prompts.py`` calibrates `shapes-moe` on 64 of its 192 classes and quantizes the modulation
layers of its blocks with the trellis: with the moment as it was recorded, with a share of its mean diagonal added, and
cross-validated in 2, 4 and 8 folds (`vqcompress.moments.cross_validation`); and, to see what could be had, with the
moment of the other classes themselves. Errors are relative, of outputs, means over layers: on the classes that were
calibrated on / on all others.

With ``--text`` the layer is one that reads text: Gaussian weights after all-MiniLM-L6-v2, which stands for a pipeline's
text encoder, on 32 to 256 diverse prompts of the general set, whose tokens come at each of 20 timesteps, and on 128
held-out ones. Markdown tables go to standard output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import Tensor

from trained_networks import NETWORKS
from vqcompress.architectures import architecture_of, open_pipeline
from vqcompress.calibration.diversity import choose_diverse
from vqcompress.calibration.prompts import load_prompts
from vqcompress.calibration.record import Component, record_inputs
from vqcompress.denoiser_calls.sampling import SamplingRun
from vqcompress.moments.accumulate import MomentAccumulator
from vqcompress.moments.cross_validation import FOLDS, cross_validated
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error

MODEL, LAYER, COUNT, BATCH = "shapes-moe", "adaLN_modulation", 64, 8
SHARES, TRIED = (0.01, 0.1, 1.0), (2, 4, 8)
TEXT_ENCODER, TEXT_COUNTS, HELD_OUT, TIMESTEPS, OUTPUTS = "all-MiniLM-L6-v2", (32, 64, 128, 256), 128, 20, 512


@click.command(help=__doc__)
@click.option("--bits", default="2,3,4", show_default=True)
@click.option("--text", is_flag=True, help="A layer that reads text, in place of modulation layers.")
@click.option("--cache", default="out/networks", show_default=True, type=click.Path(path_type=Path))
def main(bits: str, text: bool, cache: Path) -> None:
    torch.set_num_threads(1)
    widths = [float(width) for width in bits.split(",")]
    if text:
        of_text(widths, cache)
    else:
        of_modulation(widths)


def of_modulation(widths: Sequence[float]) -> None:
    """The table of the embedded model's modulation layers."""
    pipeline = open_pipeline(MODEL)
    architecture = architecture_of(pipeline)
    denoiser = architecture.module(pipeline, architecture.denoiser)
    layers = [plan.name for plan in architecture.layers(pipeline, architecture.denoiser) if LAYER in plan.name]
    weights = {name: denoiser.get_parameter(f"{name}.weight").detach() for name in layers}
    classes = load_prompts(architecture.prompt_set).prompts
    shown = choose_diverse(classes, COUNT, 0)

    def recorded(prompts: tuple[str, ...], folds: int) -> dict[str, SecondMoment]:
        source = SamplingRun(pipeline, architecture, prompts, 0, batch_size=BATCH)
        watched = Component(architecture, architecture.denoiser, denoiser)
        found = record_inputs(watched, layers, source, folds=folds)
        return {name: moment for names, moment in found for name in names}

    by_folds = {folds: recorded(shown, folds) for folds in TRIED}
    seen = {name: replace(moment, folds=()) for name, moment in by_folds[TRIED[0]].items()}
    others = recorded(tuple(name for name in classes if name not in shown), 1)
    heading("moment", widths)

    def row(label: str, moments: Mapping[str, SecondMoment], damping: float | None = None) -> None:
        print_row(label, weights, moments, (seen, others), widths, damping)

    row("as recorded", seen)
    for share in SHARES:
        row(f"as recorded, damping {share:g}", seen, share)
    for folds, moments in by_folds.items():
        row(f"cross-validated, {folds} folds", {name: cross_validated(moment) for name, moment in moments.items()})
    row("that of the others", others)


def of_text(widths: Sequence[float], cache: Path) -> None:
    """The table of a layer that reads text."""
    cache.mkdir(parents=True, exist_ok=True)
    others = {"": replace(text_moment(load_prompts("general_heldout").prompts[:HELD_OUT], cache), folds=())}
    weights = {"": torch.randn(OUTPUTS, others[""].columns, generator=torch.Generator().manual_seed(0))}
    heading("prompts, moment", widths)
    for count in TEXT_COUNTS:
        folded = text_moment(choose_diverse(load_prompts("general").prompts, count, 0), cache)
        seen = {"": replace(folded, folds=())}
        for label, moment in (("as recorded", seen[""]), ("cross-validated", cross_validated(folded))):
            print_row(f"{count}, {label}", weights, {"": moment}, (seen, others), widths)
    print_row("that of the held-out prompts", weights, others, (seen, others), widths)


@torch.no_grad()
def text_moment(prompts: Sequence[str], cache: Path) -> SecondMoment:
    """The second moment of the encoder's last hidden states, in folds, as often as there are timesteps."""
    from tokenizers import Tokenizer

    module = NETWORKS[TEXT_ENCODER](cache).module
    tokenizer = Tokenizer.from_file(str(cache / "minilm" / "tokenizer.json"))
    tokenizer.enable_padding()
    accumulator = MomentAccumulator(module.config.hidden_size, folds=FOLDS)
    for number, start in enumerate(range(0, len(prompts), BATCH)):
        encoded = tokenizer.encode_batch(list(prompts[start : start + BATCH]))
        ids, mask = (torch.tensor([getattr(each, name) for each in encoded]) for name in ("ids", "attention_mask"))
        states = module(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        accumulator.start_part(number)
        for _ in range(TIMESTEPS):
            accumulator.add(states)
        accumulator.absorb(accumulator.take_part())
    return accumulator.finish()


def heading(first: str, widths: Sequence[float]) -> None:
    """The first lines of a table."""
    click.echo(f"|{first}|" + "|".join(f"{width:g} bits" for width in widths) + "|\n|---|" + "---|" * len(widths))


def print_row(
    label: str,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, SecondMoment],
    on: Sequence[Mapping[str, SecondMoment]],
    widths: Sequence[float],
    damping: float | None = None,
) -> None:
    """A line: what codes made with ``moments`` lose ``on`` inputs of each of these."""
    settings, cells = TrellisSettings() if damping is None else TrellisSettings(damping=damping), []
    for width in widths:
        decoded = {
            name: quantize_weight(weight, moments[name], bits=width, settings=settings).decode()
            for name, weight in weights.items()
        }
        cells.append(" / ".join(f"{mean_error(weights, decoded, inputs):.2g}" for inputs in on))
    click.echo(f"|{label}|" + "|".join(cells) + "|")


def mean_error(
    weights: Mapping[str, Tensor], decoded: Mapping[str, Tensor], moments: Mapping[str, SecondMoment]
) -> float:
    """The mean over layers of the relative error of ``decoded`` weights on inputs of these ``moments``."""
    errors = [relative_error(weight, decoded[name], moments[name]) for name, weight in weights.items()]
    return sum(errors) / len(errors)


if __name__ == "__main__":
    main()
