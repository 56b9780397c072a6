"""Commands and Python of the documents: they run here where they can, and fit the real programs where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click import ClickException

from tests.docs import commands, signatures
from tests.docs.blocks import BLOCKS, DOCUMENTS, ROOT, Block, prose
from tests.docs.reader import RUN

LANGUAGES = {"sh", "python", "json", "yaml", "text", "math"}
MOST_NOT_RUN = 18
"""Blocks that need weights, a device, an account or hours. Only lower it."""

NOT_RUN = [block for block in BLOCKS if block.language in ("sh", "python") and block.reason]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES, [str(b) for b in BLOCKS if b.language not in LANGUAGES]


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    here = [block for block in NOT_RUN if block.path.parent.name != "results"]
    assert len(here) <= MOST_NOT_RUN, [f"{block}: {block.reason}" for block in here]
    assert len(RUN) > len(here)


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_what_is_not_run_fits_the_programs(block: Block) -> None:
    if block.language == "python":
        assert signatures.check(block.text) > 0
        return
    for words in commands.commands(block.text):
        commands.check(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_within_prose_exist(path: Path) -> None:
    for words in commands.inline_commands(prose(path)):
        commands.check_names(words)


@pytest.mark.slow
def test_blocks_run(tmp_path: Path) -> None:
    """All of them in one folder, in the order of the documents, in a process of their own."""
    folder = tmp_path / "reader"
    folder.mkdir()
    own = {"HF_HOME": str(tmp_path / "huggingface"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.docs.reader", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-10_000:]
    assert done.stderr.count(" runs, ") == len(RUN)


@pytest.mark.parametrize(
    "line",
    [
        "vqcompress quantize sdxl -o out --bitz 3",
        "vqcompress quantize sdxll --dry-run",
        "vqcompress quantize sdxl --method magic",
        "vqcompress paint sdxl",
        "make bread",
        "python benchmarks/matmul.py --no-such-option",
        'pip install "vqcompress[nope]"',
        "curl example.org",
    ],
)
def test_a_wrong_command_is_seen(line: str) -> None:
    (words,) = commands.commands(line)
    with pytest.raises((AssertionError, ClickException)):
        commands.check(words)


@pytest.mark.parametrize(
    "source",
    [
        "import vqcompress\nvqcompress.quantise('a', 'b')",
        "import vqcompress\nvqcompress.generate('a', ['b'], seedz=1)",
        "from diffusers import DiffusionPipelines",
        "from diffusers import DiffusionPipeline as P\nP.from_pretrained('a').enable_model_cpu_offload(nope=1)",
    ],
)
def test_wrong_python_is_seen(source: str) -> None:
    with pytest.raises((AttributeError, TypeError, ImportError)):
        signatures.check(source)
