"""diffusers opens folders with our pipelines and networks, whichever package is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from diffusers import DDIMScheduler, DiffusionPipeline

from vqcompress.errors import UnsupportedError
from vqcompress.integrations import register
from vqcompress.integrations.diffusers_pipelines import OursFirst, attach
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.dit import DiT

TINY = {"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2, "num_classes": 5}


def saved(folder: Path) -> Path:
    ClassConditionalPipeline(DiT(**TINY), DDIMScheduler()).save_pretrained(folder)
    return folder


def test_fresh_process_opens_the_folder(tmp_path: Path) -> None:
    code = (
        "import vqcompress; from diffusers import DiffusionPipeline\n"
        f"p = DiffusionPipeline.from_pretrained({str(saved(tmp_path))!r})\n"
        "print(type(p).__name__, type(p.transformer).__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-2:] == ["ClassConditionalPipeline", "vqcompress.models.dit"]


def test_registered_after_diffusers(tmp_path: Path) -> None:
    register()
    assert type(DiffusionPipeline.from_pretrained(saved(tmp_path))) is ClassConditionalPipeline


def test_other_pipelines_are_left_to_diffusers() -> None:
    asked = type("DiffusionPipeline", (), {})
    choose = OursFirst(lambda kind, config=None, **options: (kind, config["_class_name"], options))
    assert choose(asked, config={"_class_name": "DiTPipeline"}, revision=None) == (
        asked,
        "DiTPipeline",
        {"revision": None},
    )


def test_attaching_twice_wraps_once() -> None:
    module = ModuleType("pipeline_utils")
    module._get_pipeline_class = lambda kind, config=None, **options: kind
    module.DiffusionPipeline = type(
        "DiffusionPipeline", (), {"from_pretrained": classmethod(lambda cls, source: source)}
    )
    attach(module)
    once, opening = module._get_pipeline_class, vars(module.DiffusionPipeline)["from_pretrained"]
    attach(module)
    assert module._get_pipeline_class is once
    assert vars(module.DiffusionPipeline)["from_pretrained"] is opening
    assert module.DiffusionPipeline.from_pretrained("owner/name") == "owner/name"


def test_a_moved_function_is_named() -> None:
    with pytest.raises(UnsupportedError, match="_get_pipeline_class"):
        attach(ModuleType("pipeline_utils"))
