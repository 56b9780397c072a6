"""Registration: light, in either import order, and loud when it is absent."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

from vqcompress.errors import UnsupportedError
from vqcompress.integrations.registration import ATTACHMENTS

CHECK = """
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING as d, AUTO_QUANTIZATION_CONFIG_MAPPING as dc
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as t, AUTO_QUANTIZATION_CONFIG_MAPPING as tc
assert d['vqcompress'].__name__ == 'VQDiffusersQuantizer'
assert t['vqcompress'].__name__ == 'VQTransformersQuantizer'
assert dc['vqcompress'] is tc['vqcompress']
"""


def _run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import vqcompress" + CHECK,
        "import diffusers, transformers\nimport diffusers.quantizers, transformers.quantizers\nimport vqcompress"
        + CHECK,
        "import transformers.quantizers\nimport vqcompress\nimport diffusers" + CHECK,
    ],
    ids=["ours first", "ours last", "ours between"],
)
def test_either_import_order(code):
    result = _run(code)
    assert result.returncode == 0, result.stderr


def test_registering_imports_none_of_them():
    code = "import sys, vqcompress.integrations as i; i.register(); i.register()\n"
    result = _run(code + "assert not {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


def test_upstream_still_has_what_we_hang_on():
    from diffusers.quantizers import auto as diffusers_auto
    from transformers.quantizers import auto as transformers_auto

    from vqcompress.integrations.registration import table

    for upstream, ours in ATTACHMENTS.items():
        import_module(ours).attach(import_module(upstream))
    for module in (diffusers_auto, transformers_auto):
        assert table(module, "AUTO_QUANTIZER_MAPPING")
        assert table(module, "AUTO_QUANTIZATION_CONFIG_MAPPING")
    with pytest.raises(UnsupportedError, match="no table any more"):
        table(diffusers_auto, "A_NAME_THAT_MOVED")


@pytest.mark.parametrize("upstream", ATTACHMENTS)
def test_what_moved_is_said_in_a_sentence(upstream):
    with pytest.raises(UnsupportedError, match=rf"{upstream}\..*install a version in the range") as caught:
        import_module(ATTACHMENTS[upstream]).attach(ModuleType(upstream))
    assert "\n" not in str(caught.value)


def test_without_our_import_nothing_loads_silently(compressed_folder):
    diffusers = _run(
        "from diffusers import UNet2DConditionModel; "
        f"UNet2DConditionModel.from_pretrained({str(compressed_folder / 'unet')!r})"
    )
    assert diffusers.returncode != 0
    assert "vqcompress" in diffusers.stderr
    transformers = _run(
        "from transformers import CLIPTextModel; "
        f"CLIPTextModel.from_pretrained({str(compressed_folder / 'text_encoder')!r})"
    )
    assert transformers.returncode != 0
    assert "vqcompress" in transformers.stderr
