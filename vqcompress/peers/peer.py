"""What a peer is: a format of weights with the package that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from vqcompress.errors import UnsupportedError
from vqcompress.matrix_view import to_matrix
from vqcompress.moments.second_moment import SecondMoment


class UnfitForPeerError(UnsupportedError):
    """A weight that a peer's format cannot take."""


@dataclass(frozen=True)
class PeerWeight:
    """``dense``, float32, is what the package decodes to; ``nbytes`` what its stored tensors take.

    ``note`` says where the weight did not get the format that was asked for.
    """

    dense: Tensor
    nbytes: int
    note: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Everything stored, in bits a weight."""
        return 8 * self.nbytes / self.dense.numel()

    def decode(self) -> Tensor:
        """The dense weight."""
        return self.dense


Encode = Callable[[Tensor, SecondMoment | None], PeerWeight]
"""``(matrix [out, columns] float32, second moment)`` -> ``dense [out, columns]`` and its bytes."""


def installed(*packages: str) -> str:
    """``hqq 0.2.8, termcolor 3.1``, or nothing where one of ``packages`` is not installed here."""
    try:
        return ", ".join(f"{name} {version(name)}" for name in packages)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Peer:
    """A format called ``name``.

    ``found`` gives the packages with their versions, or nothing where they are missing; ``install`` is the command that
    installs them. ``calibrated`` formats use the second moment of a layer's inputs. ``curve`` is shared by the widths
    of one format.
    """

    name: str
    curve: str
    encode: Encode
    found: Callable[[], str]
    install: str
    calibrated: bool = False

    def quantize(self, weight: Tensor, moment: SecondMoment | None = None) -> PeerWeight:
        """``weight`` of two or more dimensions as the package stores it; a convolution's kernels as a matrix.

        ``moment`` is the second moment of the layer's input, in the column order of `matrix_view`; without one,
        calibrated formats take all inputs as alike. Raises `UnfitForPeerError` where the format cannot take the weight.
        """
        matrix = to_matrix(weight.detach()).float().cpu().contiguous()
        made = self.encode(matrix, moment if self.calibrated else None)
        return PeerWeight(made.dense.float().reshape(weight.shape), made.nbytes, made.note)
