"""The tiny pipelines of tests/architectures, for recording."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

_PATH = Path(__file__).parents[1] / "architectures" / "tiny_pipelines.py"
_spec = importlib.util.spec_from_file_location("tiny_pipelines", _PATH)
assert _spec is not None
assert _spec.loader is not None
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)


@pytest.fixture(scope="session")
def sdxl() -> DiffusionPipeline:
    return _tiny.sdxl()


@pytest.fixture(scope="session")
def sd15() -> DiffusionPipeline:
    return _tiny.sd15()


@pytest.fixture(scope="session")
def pixart() -> DiffusionPipeline:
    return _tiny.pixart()


@pytest.fixture(scope="session")
def lumina() -> DiffusionPipeline:
    return _tiny.lumina()


@pytest.fixture(scope="session")
def dit() -> DiffusionPipeline:
    return _tiny.dit()
