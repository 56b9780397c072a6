"""``push_to_hub`` sends the packed form. The Hub here is one function that writes what it is sent to a folder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub.utils import _http as hub_http
from transformers import CLIPTextModel

from vqcompress.layers import vq_layers

http: Any = getattr(hub_http, "httpx2", None) or hub_http.httpx  # huggingface_hub 2 and 1


class Hub:
    """Answers the requests of an upload, and keeps the files of the last commit."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, request: Any) -> Any:
        path = request.url.path
        if path.endswith("/repos/create"):
            return http.Response(200, json={"url": "https://huggingface.co/me/packed", "name": "me/packed"})
        if path.endswith("/validate-yaml"):
            return http.Response(200, json={"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(request.read())["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return http.Response(200, json={"files": modes})
        if "/commit/" in path:
            lines = [json.loads(line) for line in request.read().splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            answer = {"commitUrl": "https://huggingface.co/me/packed/commit/" + 40 * "0", "commitOid": 40 * "0"}
            return http.Response(200, json={"success": True, **answer})
        return http.Response(404, headers={"X-Error-Code": "EntryNotFound"}, json={"error": f"no {path}"})

    def clone(self, folder: Path) -> Path:
        """Write what was pushed below ``folder``."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub in the place of the network."""
    found = Hub()
    client = http.Client(transport=http.MockTransport(found))
    monkeypatch.setattr(hub_http, "_GLOBAL_CLIENT", client)
    return found


@pytest.mark.feature("`push_to_hub` sends the same format", "UNet")
def test_a_denoiser(hub, compressed_pipeline, tmp_path, run_unet):
    compressed_pipeline.unet.push_to_hub("me/packed", token="hf_x")
    loaded = UNet2DConditionModel.from_pretrained(hub.clone(tmp_path))
    assert torch.equal(run_unet(loaded), run_unet(compressed_pipeline.unet))


@pytest.mark.feature("`push_to_hub` sends the same format", "text encoder")
def test_a_text_encoder(hub, compressed_pipeline, tmp_path):
    compressed_pipeline.text_encoder.push_to_hub("me/packed", token="hf_x")
    loaded = CLIPTextModel.from_pretrained(hub.clone(tmp_path))
    for name, layer in vq_layers(compressed_pipeline.text_encoder).items():
        assert torch.equal(vq_layers(loaded)[name].dense_weight(), layer.dense_weight()), name


@pytest.mark.feature("`push_to_hub` sends the same format", "DiT")
def test_a_transformer(hub, pack_component, tmp_path):
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    sizes = {
        "sample_size": 8,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "norm_num_groups": 4,
    }
    packed = pack_component(PixArtTransformer2DModel(**sizes, cross_attention_dim=32, caption_channels=32))
    packed.push_to_hub("me/packed", token="hf_x")
    loaded = PixArtTransformer2DModel.from_pretrained(hub.clone(tmp_path))
    for name, layer in vq_layers(packed).items():
        assert torch.equal(vq_layers(loaded)[name].dense_weight(), layer.dense_weight()), name


def test_a_whole_pipeline(hub, compressed_pipeline, tmp_path, draw):
    compressed_pipeline.push_to_hub("me/packed", token="hf_x")
    loaded = DiffusionPipeline.from_pretrained(hub.clone(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(draw(loaded), draw(compressed_pipeline))
