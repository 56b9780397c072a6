"""`vqcompress inspect DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, with an entry for each layer.")
@click.option("--layers", is_flag=True, help="List every layer.")
def inspect(folder: Path, as_json: bool, layers: bool) -> None:
    """Show a compressed FOLDER: bits per weight with everything stored counted, bytes on disk, and the kernels that
    its layers use on this machine.
    """
    from vqcompress.checkpoint import inspect as look
    from vqcompress.checkpoint import read_layer_table
    from vqcompress.cli.kernel_use import kernel_lines, kernel_use

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
        click.echo(_component_line(name, component))
        for row in component["layers"] if layers else ():
            shape = "x".join(str(n) for n in row["shape"])
            served = " / ".join(use["kernel"] for use in found["kernels"].get(name, {}).get(row["name"], {}).values())
            outliers = f"  {row['outliers']} outliers" if row["outliers"] else ""
            stored = f"{row['format']:<9} {shape:>16} {row['bits_per_weight']:6.3f}"
            gap = gaps.get((name, row["name"]))
            above = "" if gap is None else f"  {gap:.3f} bits above the bound"
            click.echo(f"    {row['name']:<72} {stored}  {served}{outliers}{above}")
        for line in kernel_lines(found["device"], found["kernels"].get(name, {})):
            click.echo(line)


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
