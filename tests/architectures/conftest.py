"""Tiny pipelines of every family, built once a session."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from diffusers import DiffusionPipeline


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_tiny = _load(Path(__file__).with_name("tiny_pipelines.py"))
FAMILIES = ["sdxl", "sd15", "dit", "pixart", "lumina", "sd3", "flux"]
_built: dict[str, DiffusionPipeline] = {}


def tiny(name: str) -> DiffusionPipeline:
    if name not in _built:
        _built[name] = _tiny.TINY[name]()
    return _built[name]


@pytest.fixture(params=FAMILIES)
def pipeline(request: pytest.FixtureRequest) -> DiffusionPipeline:
    """One pipeline of each family."""
    return tiny(request.param)


@pytest.fixture
def sdxl() -> DiffusionPipeline:
    return tiny("sdxl")


@pytest.fixture
def dit() -> DiffusionPipeline:
    return tiny("dit")


@pytest.fixture
def pixart() -> DiffusionPipeline:
    return tiny("pixart")
