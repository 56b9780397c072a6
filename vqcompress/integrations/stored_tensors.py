"""The gate of loading: every packed tensor that a loader reads is checked before it is placed in a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vqcompress.errors import CheckpointError
from vqcompress.formats import UNCHECKED_CONTENTS
from vqcompress.formats.gate import codebook_problem, expected_tensors, tensor_problem
from vqcompress.formats.screening import Stored, not_cleared
from vqcompress.layers import SHARED_NAME
from vqcompress.layers.description import LayerSpecs
from vqcompress.layers.module_names import LEVEL


class PackedTensorError(CheckpointError):
    """A stored tensor ``key`` does not fit its layer's description."""

    def __init__(self, key: str, problem: str, file: str | Path | None = None) -> None:
        where = "" if file is None else f"{file}: "
        super().__init__(f"{where}{key} {problem}; copy or download the folder again, `vqcompress verify` checks it")
        self.key, self.problem, self.file = key, problem, file


class Place(NamedTuple):
    """Where a stored tensor belongs, and the shape and dtype that it must have."""

    layer: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class StoredTensors:
    """What the files of a component must hold by its description: ``specs`` of layers, ``shared`` shapes by name."""

    def __init__(self, specs: LayerSpecs, shared: Mapping[str, Sequence[int]]) -> None:
        self.specs = specs
        self.shared = {f"{SHARED_NAME}.{name}": tuple(shape) for name, shape in shared.items()}
        self.places = {
            f"{layer}.{name}": Place(layer, name, *header)
            for layer, own in specs.items()
            for name, header in expected_tensors(*own).items()
        }

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """State-dict key of each packed tensor (biases excluded) -> the dtype in which the format stores it."""
        found = dict.fromkeys(self.shared, torch.float16)
        return found | {key: place.dtype for key, place in self.places.items()}

    @property
    def with_contents(self) -> list[str]:
        """Keys of the tensors whose contents can be wrong."""
        return [*self.shared, *(key for key, place in self.places.items() if place.name not in UNCHECKED_CONTENTS)]

    def check_all(self, tensors: Mapping[str, Tensor], file: str | Path | None = None) -> None:
        """`check` each of ``tensors``, in a fraction of the time."""
        screened = {}
        for key, tensor in tensors.items():
            place = self.places.get(key)
            if place is None or tensor.shape != place.shape or tensor.dtype != place.dtype:
                self.check(key, tensor, file)
            elif place.name not in UNCHECKED_CONTENTS:
                screened[key] = Stored(*self.specs[place.layer], place.name, tensor)
        for key in not_cleared(screened):
            self.check(key, tensors[key], file)

    def check(self, key: str, tensor: Tensor, file: str | Path | None = None) -> None:
        """Raise `PackedTensorError` if ``tensor``, stored under ``key``, does not fit; other keys are left alone."""
        if (place := self.places.get(key)) is not None:
            problem = tensor_problem(*self.specs[place.layer], place.name, tensor)
        elif (shape := self.shared.get(key)) is not None:
            problem = codebook_problem(shape, tensor)
        else:
            return
        if problem:
            raise PackedTensorError(key, problem, file)

    def check_files(self, files: Iterable[str | Path]) -> None:
        """`check` every tensor in safetensors ``files``, codes by their header alone."""
        known = {name: key for key in (*self.shared, *self.places) for name in _stored_names(key)}
        contents = set(self.with_contents)
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                        if (key := known.get(name)) in contents and key is not None:
                            self.check(key, opened.get_tensor(name), file)
            except (OSError, SafetensorError, ValueError) as error:
                raise CheckpointError(f"{file} cannot be read: {error}; copy or download it again") from None


def _stored_names(key: str) -> tuple[str, ...]:
    """Keys under which a file may hold the tensor ``key``: transformers adds or drops a level on loading."""
    return key, f"{LEVEL}{key}", key.removeprefix(LEVEL)
