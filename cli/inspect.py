"""`vqcompress inspect DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, with an entry for each layer.")
@click.option(
    "--layers",
    is_flag=True,
    help="List every layer, its kernels, and how far its error is from the bound of Gaussian weights.",
)
def inspect(folder: Path, as_json: bool, layers: bool) -> None:
    """Show a compressed FOLDER: bits per weight with everything stored counted, bytes on disk, and the kernels that
    its layers use on this machine.
    """
    from vqcompress.checkpoint import inspect as look
    from vqcompress.checkpoint import read_layer_table
    from vqcompress.cli.kernel_use import kernel_lines, kernel_use
    from vqcompress.cli.written import say, say_beside

    found = look(folder)
    found["device"], found["kernels"] = kernel_use(folder)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    bits = found["bits_per_weight"]
    held = "nothing is quantized" if bits is None else f"{bits:.3f} bits per quantized weight"
    click.echo(f"{folder}: {held}, {_megabytes(found['bytes'])} on disk")
    gaps = {(record.component, record.layer): record.gap for record in read_layer_table(folder)} if layers else {}
    for name, component in found["components"].items():
        say(_component_line(name, component), hang=4)
        for row in component["layers"] if layers else ():
            uses = found["kernels"].get(name, {}).get(row["name"], {})
            say_beside(f"    {row['name']:<72}", _layer(row, uses, gaps.get((name, row["name"]))), hang=6)
        for line in kernel_lines(found["device"], found["kernels"].get(name, {})):
            say(line, hang=6)


def _layer(row: dict[str, Any], uses: dict[str, Any], gap: float | None) -> str:
    """All but a layer's name. ``gap``: to the bound of Gaussian weights, below which trained ones can lie."""
    shape = "x".join(str(n) for n in row["shape"])
    served = " / ".join(use["kernel"] for use in uses.values())
    outliers = f"  {row['outliers']} {'outlier' if row['outliers'] == 1 else 'outliers'}" if row["outliers"] else ""
    bound = "" if gap is None else f"  {abs(gap):.2f} bits {'above' if gap >= 0 else 'below'} the bound"
    return f"{row['format']:<9} {shape:>16} {row['bits_per_weight']:6.3f}  {served}{outliers}{bound}"


def _component_line(name: str, component: dict[str, Any]) -> str:
    return (
        f"  {name}: {len(component['layers'])} layers at {component['bits_per_weight']:.3f} bits per weight, "
        f"{component['component_bits_per_weight']:.3f} over the whole component, {_megabytes(component['bytes'])} "
        f"({_formats(component)})"
    )


def _formats(component: dict[str, Any]) -> str:
    """Layers by format, and outliers: ``trellis 60, scalar 2, 41 outliers``."""
    counts = ", ".join(f"{form} {count}" for form, count in component["formats"].items())
    return f"{counts}, {component['outliers']} outliers" if component["outliers"] else counts


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.3f} GB"
