"""Runs the blocks of the documents as a reader would: ``python -m tests.docs.reader FOLDER [lora.md …]``.

A process of its own, because ``HF_HOME`` counts when the Hub's client is imported: its cache holds tiny random models
under the names of published ones, so that ``sdxl`` opens without a network. All blocks run in one folder, in the order
of the documents.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from pathlib import Path
from runpy import run_path
from time import process_time

from click.testing import CliRunner
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from tests.architectures import tiny_pipelines
from tests.cli.test_bake_lora import lora
from tests.docs import commands, signatures
from tests.docs.blocks import BLOCKS, ROOT, Block
from vqcompress.checkpoint.ldm_checkpoint import ldm_tensors
from vqcompress.cli.main import main as vqcompress

SHORT = {
    "quantize": {"--count": "1", "--steps": "1", "--budget": "layer"},
    "generate": {"--steps": "2"},
    "report": {"--steps": "2", "--count": "2"},
}
"""Options that runs get here unless they give them: less calibration, fewer steps. All else is as written."""


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """A single file tells the text encoders apart by their widths; the UNet's convolutions take most of the time."""
    return tiny_pipelines.sdxl(64, (16, 32))


STAND_INS = {"stabilityai/stable-diffusion-xl-base-1.0": tiny_sdxl}
"""Hub id -> what stands in for it."""

RUN = [block for block in BLOCKS if block.language in ("sh", "python") and not block.reason]


def furnish(folder: Path) -> None:
    """What documents take for granted: models in the Hub's cache, a checkpoint of the reader's own, a LoRA."""
    for name, make in STAND_INS.items():
        cached = Path(os.environ["HF_HOME"]) / "hub" / f"models--{name.replace('/', '--')}"
        make().save_pretrained(cached / "snapshots" / "0")
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text("0")
    tiny_sdxl().save_pretrained(folder / "my-sdxl")
    save_file(ldm_tensors(tiny_sdxl()), folder / "my-sdxl.safetensors")
    shutil.copy(folder / "my-sdxl.safetensors", folder / "my_sdxl.safetensors")
    shutil.copytree(ROOT / "recipes", folder / "recipes", dirs_exist_ok=True)
    (folder / "mine.yaml").write_text("bits: 4\nmethod: gptq\n")
    lora(tiny_sdxl(), ("unet",), folder / "style.safetensors", 1)


def run(block: Block) -> None:
    """Run one block in the current folder. Raises what it raises."""
    if block.language == "python":
        assert signatures.check(block.text) > 0, "it calls nothing that is known"
        script = Path(f"{block.path.stem}_{block.line}.py")
        script.write_text(block.text, encoding="utf-8")
        run_path(str(script), run_name="__main__")
        return
    for words in commands.commands(block.text):
        commands.check(words)
        assert words[0] == "vqcompress", f"{words[0]} is not run here; say why above the block"
        result = CliRunner().invoke(vqcompress, shortened(words[1:]))
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}"


def shortened(arguments: list[str]) -> list[str]:
    """``arguments`` of ``vqcompress`` with the options of `SHORT` that they lack."""
    if "--dry-run" in arguments:
        return arguments
    extra = SHORT.get(arguments[0], {})
    return [*arguments, *(word for key, value in extra.items() if key not in arguments for word in (key, value))]


def main(folder: Path, names: list[str]) -> int:
    """The number of blocks that failed, of all documents or of those in ``names``."""
    furnish(folder)
    os.chdir(folder)
    failed = 0
    for block in RUN:
        if names and block.path.name not in names:
            continue
        start = process_time()
        try:
            run(block)
        except Exception:  # noqa: BLE001
            failed += 1
            sys.stderr.write(f"{block} fails:\n{traceback.format_exc()}\n")
        else:
            sys.stderr.write(f"{block} runs, {process_time() - start:.0f} s of a processor\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
