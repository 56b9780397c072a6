"""Try what a release would upload: ``python tests/release_check.py`` (`make release-check`).

Builds the sdist, and the wheel from it; installs the wheel into an empty environment, away from the sources; there
plans, compresses, draws and verifies an embedded model. Both files stay in ``dist/``. Its needs come from the package
index, torch first from the requirement given (the CPU build where that is what the index has).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
SHORT = ("--method", "rtn", "--bits", "4", "--budget", "layer")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("env",),
    ("quantize", "shapes", "--dry-run"),
    ("quantize", "shapes-dit", "-o", "out/shapes", *SHORT),
    ("generate", "out/shapes", "a red circle on a white background", "--steps", "2", "-o", "out/grid.png"),
    ("verify", "out/shapes"),
)
"""What a new user might do first, without a network."""
NOT_SHIPPED = ("tests", "benchmarks", "docs", ".github")


def run(*words: object, folder: Path = ROOT) -> str:
    """The output of a command in ``folder``, with nothing of ours on its path. Raises `click.ClickException`."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    click.echo(f"$ {' '.join(map(str, words))}")
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, capture_output=True, text=True, env=clean, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{words[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path) -> Path:
    """The wheel, made from the sdist that lies beside it."""
    for older in (*out.glob("vqcompress-*.tar.gz"), *out.glob("vqcompress-*.whl")):
        older.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    sdist, wheel = next(out.glob("*.tar.gz")), next(out.glob("*.whl"))
    if unpackaged := set(_modules(ROOT)) - _in_wheel(wheel):
        raise click.ClickException(f"the wheel lacks {sorted(unpackaged)}")
    with tarfile.open(sdist) as archive:
        shipped = {Path(name).name for name in archive.getnames()}
    if not shipped >= {"LICENSE", "README.md", "pyproject.toml"}:
        raise click.ClickException(f"{sdist.name} lacks the licence, README.md or pyproject.toml")
    return wheel


def _modules(root: Path) -> list[str]:
    """Modules that the wheel must have."""
    return [path.relative_to(root).as_posix() for path in (root / "vqcompress").rglob("*.py")]


def _in_wheel(wheel: Path) -> set[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    if strays := {name for name in names if name.split("/")[0] in NOT_SHIPPED}:
        raise click.ClickException(f"{wheel.name} holds {sorted(strays)[:3]}")
    return names


def install(wheel: Path, environment: Path, torch: str) -> Path:
    """The folder of programs of a new environment with the wheel and what it needs."""
    run(sys.executable, "-m", "venv", environment)
    programs = environment / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", torch)
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel)
    run(programs / "python", "-m", "pip", "check")
    return programs


def try_out(programs: Path, folder: Path, commands: Sequence[tuple[str, ...]] = COMMANDS) -> None:
    """Run ``commands`` of the installed package in ``folder``."""
    where = run(programs / "python", "-c", "import vqcompress; print(vqcompress.__file__)", folder=folder)
    if str(ROOT) in where and str(ROOT) not in str(programs):
        raise click.ClickException(f"the environment imports the sources: {where}")
    for words in commands:
        run(programs / "vqcompress", *words, folder=folder)


@click.command(help=__doc__)
@click.option("--out", default=ROOT / "dist", type=click.Path(path_type=Path), help="Folder for sdist and wheel.")
@click.option("--torch", default="torch", show_default=True, help="Requirement of torch to install first.")
def main(out: Path, torch: str) -> None:
    wheel = build(out)
    with tempfile.TemporaryDirectory() as scratch:
        programs = install(wheel, Path(scratch) / "environment", torch)
        folder = Path(scratch) / "elsewhere"
        folder.mkdir()
        try_out(programs, folder)
    click.echo(f"{wheel.name} and its sdist are ready in {out}")


if __name__ == "__main__":
    main()
