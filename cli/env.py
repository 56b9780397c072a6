"""`vqcompress env`"""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def env(as_json: bool) -> None:
    """Show versions, devices and memory, the kernels that compressed layers run here, and what is missing.

    Paste it into a bug report.
    """
    from vqcompress.cli.written import say
    from vqcompress.environment import env as look

    found = look()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    memory = f", {found['memory'] / 1e9:.0f} GB" if found["memory"] else ""
    click.echo(f"Python {found['python']} on {found['system']}, {found['cores']} cores{memory}")
    for name, installed in found["packages"].items():
        click.echo(f"  {name:<14}{installed or 'not installed'}")
    click.echo("Devices, the one that would be used first")
    for device in found["devices"]:
        size = f", {device['memory'] / 1e9:.1f} GB" if device.get("memory") else ""
        capability = f", compute capability {device['capability']}" if "capability" in device else ""
        click.echo(f"  {device['device']:<14}{device['name']}{size}{capability}")
    click.echo("Kernels for a 3-bit layer of 1280 x 1280")
    for label, use in found["kernels"].items():
        say(f"  {label:<14}{use['kernel']}: {use['why']}", hang=16)
        for kernel, reason in use["refused"].items():
            say(f"  {'':<14}not {kernel}: {reason}", hang=20)
    for line in found["missing"]:
        say(f"Missing: {line}", hang=2)
