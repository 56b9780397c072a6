"""Renew published results: run their commands, write each document from what they print, and stamp it.

``python benchmarks/evidence.py`` (or ``make evidence``) runs every result of the table below, ``evidence.py NAME…``
those, ``--list`` names them with their commands. A document ``docs/results/NAME.md`` is written from the numbers in
``NAME.json`` beside it and from nothing else; that file also holds the stamp: commands, version and commit, machine,
date and seconds. ``tests/reports/test_evidence.py`` renders every stamped document again and compares.

Formats of packages in environments of their own are compared where the environment variables of `vqcompress.peers`
name them; a report says which ones were not there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import click

from vqcompress.reports import Comparison, to_markdown
from vqcompress.reports.machine import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
OUT = "out/evidence"
PEERS = (
    "gguf-q4_k", "gguf-q3_k", "nf4", "hqq-3", "torchao-int4", "sdnq-uint4", "llmcompressor-gptq-3", "gptqmodel-3",
)  # fmt: skip
TWO_BITS = ("gguf-q2_k", "hqq-2", "llmcompressor-gptq-2")
SEVERAL_WIDTHS = (
    *TWO_BITS,
    "gguf-q3_k",
    "gguf-q4_k",
    "hqq-3",
    "sdnq-uint4",
    "llmcompressor-gptq-3",
    "llmcompressor-gptq-4",
)
VARIANTS = tuple(f"{method}-{bits}" for bits in (2, 3, 4) for method in ("trellis", "gptq"))


@dataclass(frozen=True)
class Result:
    """``commands`` make it; ``report`` is the report.json that they write, None where the last one prints a table.
    ``about`` explains the columns of that. The folder ``starts_without`` is removed first: what lies there already
    would not be measured again. Words like ``NAME=value`` before a command are its environment."""

    name: str
    commands: tuple[str, ...]
    report: str | None = None
    about: str = ""
    starts_without: str = ""


@dataclass(frozen=True)
class Stamp:
    """Where numbers come from."""

    commands: tuple[str, ...]
    version: str
    commit: str
    machine: str
    date: str
    seconds: int


def against_peers(model: str, count: int) -> Result:
    """`VARIANTS` with the same bits in every layer, beside other packages' formats."""
    return _beside_peers(f"{model}-peers", model, count, "layer", "", "peers", (*TWO_BITS, *PEERS))


def against_allocated_peers(model: str, count: int) -> Result:
    """`VARIANTS` with allocated bits, beside other packages' formats with a width for each layer."""
    peers = tuple(f"{name}-allocated" for name in SEVERAL_WIDTHS)
    return _beside_peers(f"{model}-allocated-peers", model, count, "model", "allocated-", "allocated-peers", peers)


def _beside_peers(
    name: str, model: str, count: int, budget: str, prefix: str, folder: str, peers: tuple[str, ...]
) -> Result:
    """`VARIANTS` with bits by ``budget`` in folders with ``prefix``, beside ``peers``; the report is in ``folder``."""
    folders = [f"{OUT}/{model}/{prefix}{variant}" for variant in VARIANTS]
    made = [
        f"vqcompress quantize {model} -o {made} --method {variant.split('-')[0]} --bits {variant.split('-')[1]} "
        f"--budget {budget} --calibration {OUT}/{model}/calibration --overwrite"
        for variant, made in zip(VARIANTS, folders, strict=True)
    ]
    asked, out = " ".join(f"--peer {peer}" for peer in peers), f"{OUT}/{model}/{folder}"
    report = f"vqcompress report {model} {' '.join(folders)} --count {count} {asked} -o {out}"
    return Result(name, (*made, report), f"{out}/report.json")


def by_captions(model: str, count: int) -> Result:
    """Every method at 3 bits, the same in every layer, by the share of images that show what their caption says."""
    folders = {method: f"{OUT}/{model}/{method}-3" for method in ("trellis", "gptq", "additive", "kmeans", "rtn")}
    common = f"--bits 3 --budget layer --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"vqcompress quantize {model} -o {made} --method {method} {common}" for method, made in folders.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/captions"
    return Result(f"{model}-captions", (*commands, report), f"{OUT}/{model}/captions/report.json")


def with_output_feedback(model: str, count: int) -> Result:
    """The trellis at 2 bits, allocated: without output feedback, with it, and with the same bits in every layer."""
    made = {"feedback": ("--output-feedback",), "allocated": (), "uniform": ("--budget", "layer")}
    folders = {name: f"{OUT}/{model}/2-bit-{name}" for name in made}
    common = f"vqcompress quantize {model} --bits 2 --calibration {OUT}/{model}/calibration --overwrite"
    commands = [" ".join((common, "-o", folders[name], *options)) for name, options in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/2-bit-report"
    return Result(f"{model}-feedback", (*commands, report), f"{OUT}/{model}/2-bit-report/report.json")


def allocation(model: str, count: int) -> Result:
    """The trellis at 2, 3 and 4 bits, the same in every layer and allocated."""
    made = {f"{bits}-bit-{budget}": (bits, budget) for bits in (2, 3, 4) for budget in ("layer", "model")}
    folders = {name: f"{OUT}/{model}/{name}" for name in made}
    common = f"vqcompress quantize {model} --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"{common} -o {folders[name]} --bits {bits} --budget {budget}" for name, (bits, budget) in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/allocation"
    return Result(f"{model}-allocation", (*commands, report), f"{OUT}/{model}/allocation/report.json")


def fine_tuned(model: str, count: int) -> Result:
    """The trellis at 2 bits, allocated, before and after fine-tuning the whole denoiser, beside GPTQ at 4."""
    made = {"2-bit-model": "--bits 2", "2-bit-tuned": "--bits 2 --finetune full", "gptq-4": "--method gptq --bits 4"}
    folders = {name: f"{OUT}/{model}/{name}" for name in made}
    common = f"vqcompress quantize {model} --calibration {OUT}/{model}/calibration --overwrite"
    commands = [f"{common} -o {folders[name]} {options}" for name, options in made.items()]
    report = f"vqcompress report {model} {' '.join(folders.values())} --count {count} -o {OUT}/{model}/tuned"
    return Result(f"{model}-finetune", (*commands, report), f"{OUT}/{model}/tuned/report.json")


def schemes(model: str) -> Result:
    """Every method at 2, 3 and 4 bits, uniform and allocated, as ``make results`` makes them."""
    return Result(f"{model}-methods", (f"make results MODEL={model}",), f"out/results/{model}/report/report.json")


LAYERS = (
    "Relative output error; held-out learns from half of the inputs and is scored on the other half; gap is what "
    "is spent in bits a weight above the rate-distortion bound of Gaussian weights; bits count everything stored; "
    "seconds are processor time of one layer. Layer a has Gaussian weights and independent inputs, b the same "
    "weights and correlated inputs, c heavy-tailed weights and correlated inputs."
)

NETWORKS = (
    "What the networks are, and what follows: [Networks that others trained](../real-networks.md). Every layer gets "
    "the same bits; bits count everything stored. Second moments are of one set of inputs, the output's errors, "
    "relative and squared, of another; errors of layers and output channels are on the moments. Of Silero VAD and "
    "waifu2x the output's error is the geometric mean over six calibrations. A scalar layer is one whose vector code "
    "gave way to a scalar code in no more bytes."
)
SMALLER_NETWORKS = "all-MiniLM-L6-v2,Silero VAD,waifu2x upconv 7"

TABLE = (
    against_peers("shapes-dit", 48),
    against_peers("shapes", 48),
    against_peers("shapes-moe", 48),
    against_peers("posters", 96),
    by_captions("posters", 192),
    against_allocated_peers("shapes-dit", 48),
    against_allocated_peers("shapes-moe", 48),
    with_output_feedback("shapes-dit", 48),
    allocation("shapes-dit", 48),
    allocation("shapes", 48),
    allocation("shapes-moe", 48),
    fine_tuned("shapes-dit", 48),
    schemes("shapes"),
    schemes("shapes-dit"),
    schemes("shapes-moe"),
    Result("presets", ("python benchmarks/presets.py",)),
    Result(
        "layers-peers",
        (f"python benchmarks/layer_error.py --bits 2,3,4 --only default,rtn,gptq --peers {','.join(PEERS)}",),
        about=LAYERS,
    ),
    Result(
        "layers",
        ("python benchmarks/layer_error.py --bits 2,3,3.1,4 --only default,best,gptq,rtn",),
        about=f"{LAYERS} `default` has states of 12 bits, at 4 bits of 14, and `best` of 16.",
    ),
    Result("real-networks", ("python benchmarks/real_networks.py --methods gptq,trellis",), about=NETWORKS),
    Result(
        "real-networks-methods",
        (
            "python benchmarks/real_networks.py --methods gptq,rtn,kmeans,additive "
            f"--networks {shlex.quote(SMALLER_NETWORKS)}",
        ),
        about=NETWORKS,
    ),
    Result("trellis-states", ("python benchmarks/layer_error.py --states --bits 2,3,4",), about=LAYERS),
)


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Only name the results and their commands.")
@click.option("--made", is_flag=True, help="The commands have run: write documents and stamps from what is in out/.")
def main(names: tuple[str, ...], listed: bool, made: bool) -> None:
    known = {result.name: result for result in TABLE}
    if unknown := [name for name in names if name not in known]:
        raise click.ClickException(f"no result is called {unknown[0]!r}; there are {', '.join(known)}")
    for result in [known[name] for name in names] or TABLE:
        if listed:
            click.echo("\n  ".join([result.name, *result.commands]))
        else:
            renew(result, run=not made)


def renew(result: Result, *, run: bool = True, folder: Path = RESULTS) -> None:
    """Run the commands and write document, numbers and stamp into ``folder``; nothing is written if one fails."""
    start = time.monotonic()
    if run and result.starts_without:
        shutil.rmtree(ROOT / result.starts_without, ignore_errors=True)
    printed = [run_command(command) for command in result.commands] if run else [""]
    stamp = Stamp(
        commands=result.commands,
        version=version("vqcompress"),
        commit=_git("rev-parse", "HEAD")[:12],
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(time.monotonic() - start),
    )
    if result.report:
        numbers: dict[str, Any] = {"report": json.loads((ROOT / result.report).read_text(encoding="utf-8"))}
        grid = (ROOT / result.report).with_name("grid.png")
        if grid.is_file():
            (folder / f"{result.name}.png").write_bytes(grid.read_bytes())
    else:
        numbers = {"table": printed[-1], "about": result.about}
    stamped = json.loads(json.dumps({"stamp": asdict(stamp), **numbers}))
    (folder / f"{result.name}.json").write_text(json.dumps(stamped, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / f"{result.name}.md").write_text(render(result.name, stamped), "utf-8")


def render(name: str, stamped: dict[str, Any]) -> str:
    """The document of a stamped result."""
    stamp = stamped["stamp"]
    commands = "\n".join(stamp["commands"])
    head = (
        f"Made on {stamp['date']} with vqcompress {stamp['version']} ({stamp['commit']}) on {stamp['machine']} by "
        f"`python benchmarks/evidence.py {name}`, which runs\n\n```sh\n{commands}\n```\n"
    )
    if "table" in stamped:
        about = f"{stamped['about']}\n\n" if stamped.get("about") else ""
        return f"# {name}\n\n{head}\n{about}{stamped['table'].strip()}\n"
    title, _, body = to_markdown(Comparison.from_json(stamped["report"])).partition("\n")
    picture = f"![images of the original and of each variant, from the same seeds]({name}.png)\n\n"
    there = (RESULTS / f"{name}.png").is_file()
    return f"{title}\n\n{head}{body}\n{picture if there else ''}".rstrip() + "\n"


def run_command(command: str) -> str:
    """What a command prints; it runs with this interpreter's programs. Raises `click.ClickException` if it fails."""
    click.echo(command, err=True)
    words = shlex.split(command)
    environment = dict(takewhile(lambda pair: len(pair) == 2, (word.split("=", 1) for word in words)))
    words = words[len(environment) :]
    here = Path(sys.executable).parent
    program = sys.executable if words[0] == "python" else str(here / words[0])
    done = subprocess.run(
        [program if words[0] != "make" else "make", *words[1:]],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
    )
    if done.returncode:
        raise click.ClickException(f"{command} ended with {done.returncode}; nothing of this result was written")
    return done.stdout.decode()


def _git(*arguments: str) -> str:
    asked = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "no commit"


if __name__ == "__main__":
    main()
