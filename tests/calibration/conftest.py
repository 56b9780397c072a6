"""The tiny pipelines of tests/architectures, for recording."""

from __future__ import annotations

import pytest
from diffusers import DiffusionPipeline

from tests.architectures import tiny_pipelines as _tiny


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
