"""Registration with diffusers, transformers and peft; lazy, so that importing this costs nothing."""

from vqcompress.integrations.registration import register

__all__ = ["register"]
