"""Registration with diffusers, transformers and peft. It is lazy: importing this package imports none of them."""

from vqcompress.integrations.registration import register

__all__ = ["register"]
