"""Denoisers of pipelines on the Hub, with the configurations of their folders there.

FLUX.1, FLUX.2 and FLUX.3 [klein] by Black Forest Labs, Stable Diffusion 3 and 3.5 (arXiv 2403.03206), Qwen-Image
(2508.02324), Z-Image (2511.22699), Wan 2.2 (2503.20314), LTX-2 (2601.03233), HunyuanVideo 1.5 (2511.18870),
HunyuanImage 2.1, Chroma, Sana (2410.10629), Krea 2, PixArt-Σ (2403.04692), Lumina-Image 2.0 (2503.21758), Kolors,
SSD-1B (2401.02677), SDXL and its refiner (2307.01952). Where nothing is given, the defaults of the class are the
model.
"""

from __future__ import annotations

from vqcompress.models.hub_parts import HubPart
from vqcompress.models.presets import SDXL_UNET

_VIDEO = ("Wan", "LTX2Video", "HunyuanVideo15")


def _transformer(name: str, parameters: int, **config: object) -> HubPart:
    return HubPart(f"diffusers:{name}Transformer{'3D' if name in _VIDEO else '2D'}Model", config, parameters)


def _unet(parameters: int, **config: object) -> HubPart:
    return HubPart("diffusers:UNet2DConditionModel", SDXL_UNET | config, parameters)


FLUX_DEV = _transformer("Flux", 11_901_408_320, guidance_embeds=True)
FLUX_SCHNELL = _transformer("Flux", 11_891_178_560)
FLUX2_DEV = _transformer("Flux2", 32_223_281_152)
FLUX2_KLEIN_4B = _transformer(
    "Flux2", 3_875_544_576, num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
    guidance_embeds=False,
)  # fmt: skip
FLUX2_KLEIN_9B = _transformer(
    "Flux2", 9_078_581_248, num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288,
    guidance_embeds=False,
)  # fmt: skip
FLUX3_KLEIN = _transformer("Flux3", 5_548_681_984, flow_map=True)

_SD3 = {
    "sample_size": 128, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}  # fmt: skip
_SD3_2B = _SD3 | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_SD3_8B = _SD3 | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
SD3_MEDIUM = _transformer("SD3", 2_028_328_000, **_SD3_2B, pos_embed_max_size=192)
SD35_LARGE = _transformer("SD3", 8_056_627_520, **_SD3_8B, pos_embed_max_size=192, qk_norm="rms_norm")
SD35_MEDIUM = _transformer(
    "SD3", 2_243_171_520, **_SD3_2B, pos_embed_max_size=384, qk_norm="rms_norm",
    dual_attention_layers=tuple(range(13)),
)  # fmt: skip

QWEN_IMAGE = _transformer("QwenImage", 20_430_401_088)
Z_IMAGE = _transformer("ZImage", 6_154_908_736)
WAN22_T2V_EXPERT = _transformer("Wan", 14_288_491_584)
WAN22_I2V_EXPERT = _transformer("Wan", 14_288_901_184, in_channels=36)
WAN22_TI2V_5B = _transformer(
    "Wan", 4_999_787_712, in_channels=48, out_channels=48, num_attention_heads=24, num_layers=30, ffn_dim=14336
)
LTX2 = _transformer("LTX2Video", 18_876_174_592)
HUNYUAN_VIDEO_15 = _transformer("HunyuanVideo15", 8_326_608_160)
HUNYUAN_IMAGE = _transformer("HunyuanImage", 17_425_795_520, text_embed_2_dim=1472, guidance_embeds=False)
CHROMA = _transformer("Chroma", 8_899_983_424)
SANA = _transformer("Sana", 1_604_462_752)
KREA2 = _transformer("Krea2", 12_820_073_036)
PIXART_SIGMA = _transformer(
    "PixArt", 610_856_096, sample_size=128, caption_channels=4096, interpolation_scale=2,
    use_additional_conditions=False,
)  # fmt: skip
LUMINA_IMAGE_2 = _transformer("Lumina2", 2_609_769_152, cap_feat_dim=2304)

KOLORS = _unet(
    2_579_458_820, encoder_hid_dim=4096, encoder_hid_dim_type="text_proj", projection_class_embeddings_input_dim=5632
)
SSD_1B = _unet(
    1_331_334_404, mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(0, 2, 4),
    reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1),
)  # fmt: skip
SDXL = _unet(2_567_463_684)
SDXL_INPAINT = _unet(2_567_478_084, in_channels=9)
SDXL_REFINER = _unet(
    2_259_526_660, block_out_channels=(384, 768, 1536, 1536), attention_head_dim=(6, 12, 24, 24),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=1280, transformer_layers_per_block=4, projection_class_embeddings_input_dim=2560,
)  # fmt: skip
