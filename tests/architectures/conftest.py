"""Tiny pipelines of every family, built once a session; ``pytest … --write-models`` writes docs/pipelines.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.architectures import other_pipelines as _other
from tests.architectures import own_pipelines as _own
from tests.architectures import tiny_pipelines as _tiny
from tests.architectures.models_table import DOCUMENT, Table

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


@pytest.fixture
def own() -> Callable[[str], DiffusionPipeline]:
    """``own("dit_moe")``: a new pipeline around a network of vqcompress.models."""
    return lambda name: _own.OWN[name]()


@pytest.fixture
def other() -> Callable[[str], DiffusionPipeline]:
    """``other("wan")``: a new pipeline of a family that only the generic description knows."""
    return lambda name: _other.OTHER[name]()


ALL = {**_own.OWN, **_other.OTHER, **_tiny.TINY}


@pytest.fixture(params=ALL)
def any_family(request: pytest.FixtureRequest) -> DiffusionPipeline:
    """A new pipeline of each family, of diffusers and ours."""
    return ALL[request.param]()


_TABLE = Table()


@pytest.fixture(scope="session")
def models() -> Table:
    """What becomes docs/pipelines.md."""
    return _TABLE


@pytest.fixture(scope="session")
def every_pipeline(request: pytest.FixtureRequest) -> bool:
    """Whether all pipeline classes are driven."""
    return any(request.config.getoption(name, default=False) for name in ("--every-pipeline", "--write-models"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-models", action="store_true", help="write docs/pipelines.md")
    parser.addoption("--every-pipeline", action="store_true", help="drive all pipeline classes, not a slice of them")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-models", default=False) and not hasattr(session.config, "workerinput"):
        DOCUMENT.write_text(_TABLE.markdown(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
