"""Commands print nothing of what optional packages say while torch and diffusers import them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "from vqcompress.cli.main import main; main.get_command(None, 'inspect'); "
DIFFUSERS = "import diffusers.quantizers.torchao.torchao_quantizer"


@pytest.fixture
def torchao(tmp_path: Path) -> Path:
    """A folder with a torchao whose extensions do not load, as its wheels' do not without CUDA."""
    package, metadata = tmp_path / "torchao", tmp_path / "torchao-0.15.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("import logging\nlogging.getLogger(__name__).warning('Failed to load')\n")
    (package / "quantization.py").write_text("FqnToConfig = quantize_ = None\n")  # which diffusers takes from there
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.15.0\n")
    return tmp_path


def said(code: str, folder: Path, **variables: str) -> str:
    path = os.pathsep.join((str(folder), str(ROOT)))
    environment = {key: value for key, value in os.environ.items() if key != "DIFFUSERS_VERBOSITY"}
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        run, env={**environment, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=True
    )
    return done.stderr


@pytest.mark.slow
def test_a_command_imports_in_silence_what_speaks_otherwise(torchao):
    alone = said(DIFFUSERS, torchao)
    assert "Failed to load" in alone
    assert "Unable to import" in alone
    assert said(COMMAND + DIFFUSERS, torchao) == ""


@pytest.mark.slow
def test_whoever_asks_for_diffusers_remarks_gets_them(torchao):
    assert "Unable to import" in said(COMMAND + DIFFUSERS, torchao, DIFFUSERS_VERBOSITY="warning")
