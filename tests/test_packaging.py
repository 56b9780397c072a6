"""What a user installs: contents of an actually built wheel, and the console script in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from tests import release_check
from vqcompress.embedded import EMBEDDED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that is made from the sdist."""
    return zipfile.ZipFile(release_check.build(tmp_path_factory.mktemp("build") / "dist"))


@pytest.mark.slow
def test_top_level_folders_install_under_the_package(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"vqcompress"}
    for expected in (
        "cli/main.py",
        "calib_prompts/general.txt",
        "shapes/scenes.py",
        "shapes/judge.py",
        *(f"shapes/{model.folder}/model_index.json" for model in EMBEDDED.values()),
    ):
        assert f"vqcompress/{expected}" in names
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in names)


@pytest.mark.slow
def test_every_source_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "vqcompress").rglob("*.py")}
    assert sources <= set(wheel.namelist())


@pytest.mark.slow
def test_training_the_embedded_models_is_for_clones(wheel: zipfile.ZipFile) -> None:
    shipped = {name.removeprefix("vqcompress/shapes/") for name in wheel.namelist() if "/shapes/" in name}
    modules = {name for name in shipped if name.endswith(".py")}
    sources = {path.relative_to(ROOT / "shapes").as_posix() for path in (ROOT / "shapes").rglob("*.py")}
    assert modules == {name for name in sources if not name.startswith("train/")}
    assert (ROOT / "shapes" / "train" / "__main__.py").is_file()


@pytest.mark.slow
def test_console_script(wheel: zipfile.ZipFile) -> None:
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "vqcompress = vqcompress.cli.main:main" in wheel.read(entry).decode()


@pytest.mark.slow
def test_the_wheel_works_away_from_the_sources(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """What `make release-check` does with an empty environment, here in one that sees the installed dependencies."""
    environment, folder = tmp_path / "environment", tmp_path / "elsewhere"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    site = next((environment / "lib").glob("python*")) / "site-packages"
    paths = (path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", str(wheel.filename)]
    subprocess.run([environment / "bin" / "python", *install], check=True)
    release_check.try_out(environment / "bin", folder, release_check.COMMANDS[:3])
    assert list(folder.iterdir()) == []


def test_resources_are_found_through_importlib() -> None:
    assert files("vqcompress.calib_prompts").joinpath("general.txt").is_file()
    for model in EMBEDDED.values():
        assert (model.path / "model_index.json").is_file()


def test_a_bare_checkout_is_imported_without_metadata(tmp_path: Path) -> None:
    (tmp_path / "vqcompress").symlink_to(ROOT / "vqcompress")
    code = (
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'vqcompress': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "import vqcompress\n"
        "print(vqcompress.__version__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0+checkout"
