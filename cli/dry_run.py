"""The text that `vqcompress quantize MODEL --dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def dry_run_lines(expected: dict[str, Any]) -> Iterator[str]:
    """The numbers of `vqcompress.estimate.estimate` as text."""
    denoiser_only = expected["parts"] == "denoiser"
    where = f" in {' and '.join(expected['components'])}" if len(expected["components"]) > 1 else ""
    yield (
        f"{expected['model']}: {expected['quantized_layers']} layers to quantize{where}, {expected['kept_layers']} "
        "stay dense"
    )
    yield f"  weights            {_millions(expected['quantized_weights'])} of {_millions(expected['weights'])}"
    yield f"  bytes before       {_bytes(expected['bytes_before'])} (fp16)"
    sizes = {**expected["bytes_by_bits"], f"{expected['bits']:g}": expected["bytes_after"]}
    for bits, size in sorted(sizes.items(), key=lambda item: float(item[0])):
        asked = ", this run" * (float(bits) == expected["bits"])
        yield f"  at {bits + ' bits':<16}{_bytes(size)}, {expected['bytes_before'] / size:.1f} times smaller{asked}"
    if expected["prompts"]:
        yield from _calibration(expected)
    yield (
        f"  peak memory        about {_bytes(expected['peak_memory_bytes'])}"
        + f", {_bytes(expected['peak_memory_bytes'] - expected['narrow_saves_bytes'])} from 16-bit files"
        * bool(expected["narrow_saves_bytes"])
        + ", without text encoders and VAE" * denoiser_only
    )
    yield (
        f"  encoding           about {_duration(expected['encode_seconds'])} on one core of this machine, with "
        f"{expected['method']} at {expected['bits']:g} bits"
    )
    yield from _forecast(expected["forecast"], tuned=expected["finetune"] != "none")
    if expected["obstacle"]:
        yield f"  cannot run here    {expected['obstacle']}"


def _forecast(found: dict[str, Any], tuned: bool) -> Iterator[str]:
    """Times on the device and on this CPU, what is needed of both, and what would help; ``tuned`` if the run is to."""
    device, needs, free = found["device"], found["needs"], found["free"]
    yield (
        f"  device             {device['device']} ({device['name']}, {_bytes(device['total'])}, "
        f"{_bytes(device['free'])} free)"
    )
    for where, seconds in reversed(found["seconds"].items()):
        taken = {stage: time for stage, time in seconds.items() if tuned or stage != "fine-tuning"}
        each = ", ".join(f"{stage} {_duration(time)}" for stage, time in taken.items())
        yield f"  {'time on ' + where:<19}about {_duration(sum(taken.values()))}, computed: {each}"
    if needs["device"]:
        yield f"  device memory      about {_bytes(needs['device'])} for weights and a second moment (computed)"
    yield f"  disk               at most {_bytes(needs['disk'])} during the run, {_bytes(free['disk'])} free here"
    if found["advice"]:
        yield f"  does not fit       {found['advice']}"


def _calibration(expected: dict[str, Any]) -> Iterator[str]:
    yield f"  calibration        {expected['prompts']} prompts, sampled {_times(expected['passes'])}"
    sampling = expected["sampling"]
    if sampling["height"]:
        yield (
            f"  sampling           {sampling['steps']} steps at guidance {sampling['guidance']:g}, "
            f"{sampling['width']} × {sampling['height']} pixels"
        )
    yield f"  second moments     at most {_bytes(expected['moment_bytes'])} on disk during the run"
    if expected["order"] == "sequential":
        yield (
            f"  recorded calls     at most {_bytes(expected['call_bytes'])} on disk during the run; every block "
            "replays them"
        )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e10 else f"{count / 1e9:.2f} B"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _times(most: int) -> str:
    return "once" if most == 1 else f"at most {most} times"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
    if seconds < 7200:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
