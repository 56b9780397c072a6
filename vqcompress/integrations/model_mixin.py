"""What is extended in ``diffusers.models.modeling_utils``: loading is checked, and saving leaves adapters out."""

from __future__ import annotations

from types import ModuleType

from vqcompress.integrations import adapted_models, component_loading


def attach(module: ModuleType) -> None:
    """Extend ``ModelMixin``. Calling it again changes nothing."""
    component_loading.attach(module)
    adapted_models.attach(module)
