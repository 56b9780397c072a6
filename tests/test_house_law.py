"""The house law: who may import whom, what `import vqcompress` may cost, and names that must not exist."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.floors import FLOOR_OF, FLOORS, ROOT, imports, modules, rooms_entered
from tests.lowest_versions import declared

# formats and quantized_weight share a floor on purpose: a packed weight is a format with its tensors.
DOORS = {("quantized_weight", "formats")}
ONLY_IN = {"triton": ("kernels", "search"), "click": ("cli", "shapes"), "rich": ("cli",)}


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_imports_go_strictly_down(room: str, path: Path) -> None:
    for other in rooms_entered(path) & FLOOR_OF.keys():
        allowed = other == room or FLOOR_OF[other] < FLOOR_OF[room] or (room, other) in DOORS
        assert allowed, f"{path.relative_to(ROOT)} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})"


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in modules()} <= FLOOR_OF.keys()


@pytest.mark.parametrize(("package", "homes"), ONLY_IN.items())
def test_packages_stay_in_their_rooms(package: str, homes: tuple[str, ...]) -> None:
    strays = [
        path for room, path in modules() if room not in homes and any(n.split(".")[0] == package for n in imports(path))
    ]
    assert not strays, f"{package} belongs in {homes}"


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_names(extras: Collection[str]) -> set[str]:
    """Distributions in ``dependencies`` and in ``extras``."""
    project = declared()
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return {normal(Requirement(line).name) for line in lines}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("vqcompress", "cli", "calib_prompts", "shapes"), ("lora", "gpu", "datasets", "peers")),
        (("tests", "benchmarks"), ("test", "peers", "networks")),
    ],
    ids=["package", "tests"],
)
def test_every_import_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    ours = {"vqcompress", "tests", *(path.stem for path in (ROOT / "benchmarks").glob("*.py"))}
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    packages = {name.split(".")[0] for path in paths for name in imports(path)} - ours - set(sys.stdlib_module_names)
    distributions, known = packages_distributions(), declared_names(extras)
    missing = [name for name in packages if not {normal(d) for d in distributions.get(name, [name])} & known]
    assert not sorted(missing), "imported but not declared in pyproject.toml"


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "core", "engine"}
    tracked = [p for top in ("vqcompress", "cli", "shapes") for p in (ROOT / top).rglob("*")]
    assert not [p for p in tracked if p.stem in drawers]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    return result.stdout.strip()


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import vqcompress; took = time.perf_counter() - start\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numba', 'sklearn'} & set(sys.modules)), took)"
    )
    runs = [run_python(code).rsplit(" ", 1) for _ in range(3)]  # the best of three: other processes share the machine
    assert {heavy for heavy, _ in runs} == {"[]"}
    assert min(float(took) for _, took in runs) < 0.3


def test_facade_names_resolve() -> None:
    assert (
        run_python("import vqcompress; print(all(callable(getattr(vqcompress, n)) for n in vqcompress.__all__))")
        == "True"
    )


def test_loading_never_imports_a_quantizer() -> None:
    loaded = run_python(
        "import sys, vqcompress; vqcompress.load; import vqcompress.layers, vqcompress.checkpoint, diffusers\n"
        "print([m for m in sys.modules if m.startswith('vqcompress.quantizers')])"
    )
    assert loaded == "[]"


def test_the_table_of_the_floors_is_theirs() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) >= len(FLOORS) - 1  # all but the one line of __main__
    for floor, rooms in rows:
        assert set(re.findall(r"`(\w+)`", rooms)) <= set(FLOORS[int(floor)]), f"floor {floor}"


def test_the_picture_of_the_floors_is_drawn_from_the_imports() -> None:
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_floors.py"))
    assert (ROOT / "docs" / "floors.svg").read_text() == drawing["picture"](), "run `python docs/draw_floors.py`"
