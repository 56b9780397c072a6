"""The constraints that `make test-lowest` installs with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.lowest_versions import declared, lowest

SCRIPT = Path(__file__).with_name("lowest_versions.py")


def project(*dependencies: str, lora: tuple[str, ...] = (), test: tuple[str, ...] = ()) -> dict:
    return {"dependencies": list(dependencies), "optional-dependencies": {"lora": list(lora), "test": list(test)}}


def test_each_lower_bound_becomes_the_version():
    declared = project("torch>=2.11,<2.14", "numba >= 0.62", lora=("peft>=0.18",), test=("peft>=0.18", "pytest>=8"))
    assert lowest(declared) == ["torch==2.11", "numba==0.62", "peft==0.18", "pytest==8"]
    assert lowest(declared, {"torch", "numba"}) == ["peft==0.18", "pytest==8"]


def test_markers_stay():
    assert lowest(project("triton>=3.6; platform_system == 'Linux'")) == ["triton==3.6; platform_system == 'Linux'"]


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch==2.11"])
def test_no_lower_bound_is_an_error(requirement):
    with pytest.raises(ValueError, match="no lower bound"):
        lowest(project(requirement))


def test_two_bounds_are_an_error():
    with pytest.raises(ValueError, match="two lower bounds"):
        lowest(project("peft>=0.18", test=("peft>=0.17",)))


def test_what_is_declared_allows_what_is_printed():
    printed = subprocess.run(
        [sys.executable, SCRIPT, "--except", "torch"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pinned = {each.name: each for each in map(Requirement, printed)}
    assert "torch" not in pinned
    assert len(pinned) > 20
    for requirement in map(Requirement, declared()["dependencies"]):
        if requirement.name != "torch":
            (version,) = (specifier.version for specifier in pinned[requirement.name].specifier)
            assert requirement.specifier.contains(version), requirement
