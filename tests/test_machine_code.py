"""Machine code on disk is used again only while every file with compiled functions is what it was."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from vqcompress import machine_code

CALLEE = """
from vqcompress.machine_code import compiled

@compiled()
def step(x):
    return x + {added}
"""
CALLER = """
from vqcompress.kernels.cpu.callee import step
from vqcompress.machine_code import compiled, native

@compiled()
def twice(x):
    return step(step(x))

@native("int64(int64)")
def thrice(x):
    return step(step(step(x)))
"""
USE = """
from vqcompress.kernels.cpu.caller import thrice, twice
print(twice(0), thrice.ctypes(0), sum(twice.stats.cache_hits.values()), thrice.cache_hits)
"""


def use(folder: Path) -> list[int]:
    """What both functions return, and how often each came from the disk."""
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_changed_callee_in_another_file_is_noticed(tmp_path):
    package = tmp_path / "vqcompress"
    (package / "kernels" / "cpu").mkdir(parents=True)
    shutil.copy(machine_code.__file__, package)
    for folder in (package, package / "kernels", package / "kernels" / "cpu"):
        (folder / "__init__.py").touch()
    (package / "kernels" / "cpu" / "caller.py").write_text(CALLER)
    callee = package / "kernels" / "cpu" / "callee.py"
    callee.write_text(CALLEE.format(added=1))
    assert use(tmp_path) == [2, 3, 0, 0]
    assert use(tmp_path) == [2, 3, 1, 1]
    callee.write_text(CALLEE.format(added=5))
    assert use(tmp_path) == [10, 15, 0, 0]


def test_every_file_that_compiles_is_in_the_stamp():
    """Files of the package that decorate with `compiled` or `native` lie in the folders that are hashed."""
    package = Path(machine_code.__file__).parent
    for path in package.rglob("*.py"):
        if "vqcompress.machine_code import" in path.read_text() or "import numba" in path.read_text():
            inside = str(path.parent.relative_to(package)) in machine_code.FOLDERS
            assert inside or path == Path(machine_code.__file__), path
