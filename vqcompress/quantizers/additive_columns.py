"""A weight while it is being coded additively: its columns' codes and values, and the steps that improve them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.bitpack import pack
from vqcompress.formats import AdditiveSpec
from vqcompress.formats.rates import join_blocks, pack_rates
from vqcompress.moments.second_moment import SecondMoment
from vqcompress.quantizers.codebooks import CodebookProblem
from vqcompress.quantizers.column_rates import RatePlan
from vqcompress.quantizers.coordinate_descent import descend
from vqcompress.quantizers.error_feedback import Feedback
from vqcompress.quantizers.scales import divide_by_scale
from vqcompress.search.beam import BeamSearch, sum_codewords


class AdditiveColumns:
    """``weight [out, columns]`` under ``scale [out]``, ``codebooks [M, K, d]`` (both as stored) and a plan of column
    rates.

    ``per_output``: whether every output has its own scale or all share one. ``target`` and ``values`` are scaled and
    transposed, ``[columns, vectors * d]``, outputs padded with zeros.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, per_output: bool, codebooks: Tensor, plan: RatePlan, beam: int
    ) -> None:
        self.weight, self.plan, self.beam, self.per_output = weight, plan, beam, per_output
        self.rates = plan.rates.tolist()
        self.padding = -len(weight) % codebooks.shape[2]
        self._set_codebooks(codebooks)
        self._set_scale(scale)
        vectors = self.target.shape[1] // codebooks.shape[2]
        self.codes = torch.zeros(len(self.target), vectors, len(codebooks), dtype=torch.int32)
        self.values = torch.zeros_like(self.target)

    def sweep(self, feedback: Feedback | None) -> None:
        """Encode every column, with error feedback if there is a second moment."""
        if feedback is None:
            for column, target in enumerate(self.target):
                self._encode(column, target)
        else:
            feedback.sweep(self.target, self._encode)

    def descend(self, second_moment: SecondMoment | None) -> None:
        """One pass of coordinate descent; vectors that do not come closer keep their codes."""
        if second_moment is None:
            for column, target in enumerate(self.target):
                self._encode_better(column, target)
            return
        codes, values = self.codes.clone(), self.values.clone()
        _, accepted = descend(self.target, values, second_moment, self._encode_better)
        self.codes[~accepted], self.values[~accepted] = codes[~accepted], values[~accepted]

    def refit_codebooks(self, second_moment: SecondMoment | None) -> None:
        """The best codebooks for the codes at hand, rounded as stored; kept if that leaves a gain."""
        before, codebooks = self.error(second_moment), self.codebooks
        problem = CodebookProblem(self.codes, self.plan.rates, self._output_weights(), second_moment)
        self._set_codebooks(problem.refit(codebooks, self.target))
        self._decode()
        if not self.error(second_moment) < before:
            self._set_codebooks(codebooks)
            self._decode()

    def refit_scale(self, second_moment: SecondMoment | None) -> None:
        """The best scales for the codes at hand: each output's least-squares factor under H, rounded as stored."""
        outputs = len(self.weight)
        filtered = (self.values if second_moment is None else second_moment @ self.values)[:, :outputs]
        along, power = (self.target[:, :outputs] * filtered).sum(0), (self.values[:, :outputs] * filtered).sum(0)
        if not self.per_output:
            along, power = along.sum().expand(outputs), power.sum().expand(outputs)
        refitted = torch.where(power > 0, self.scale * along / power, self.scale).half().float()
        self._set_scale(torch.where(refitted.isfinite() & (refitted > 0), refitted, self.scale))

    def error(self, second_moment: SecondMoment | None) -> float:
        """``tr(E H Eᵀ)`` of the weight as it would be decoded."""
        errors = (self.target - self.values)[:, : len(self.weight)] * self.scale
        return float((errors * (errors if second_moment is None else second_moment @ errors)).sum())

    def packed(self, shared_name: str | None) -> tuple[AdditiveSpec, dict[str, Tensor]]:
        """Spec and stored tensors; codebooks are among them unless they are shared under a name."""
        codes = join_blocks({rate: self._packed_block(rate) for rate in set(self.rates)})
        tensors = {"weight": codes, "scale": (self.scale if self.per_output else self.scale[:1]).half()}
        if self.plan.rate_bits:
            tensors["rates"] = pack_rates(self.plan.rates, self.plan.min_rate, self.plan.rate_bits)
        if shared_name is None:
            tensors["codebooks"] = self.codebooks.half()
        spec = AdditiveSpec(
            dimension=self.codebooks.shape[2],
            code_bits=self._code_bits(),
            codebooks=len(self.codebooks),
            min_rate=self.plan.min_rate,
            rate_bits=self.plan.rate_bits,
            codebook=shared_name,
            row_scales=self.per_output,
            code_bytes=codes.numel(),
        )
        return spec, tensors

    def _encode(self, column: int, target: Tensor) -> Tensor:
        codes = self.search(target.view(-1, self.codebooks.shape[2]), self.rates[column])
        self.codes[column, :, : self.rates[column]] = codes
        self.values[column] = sum_codewords(codes, self.codebooks).flatten()
        return self.values[column]

    def _encode_better(self, column: int, target: Tensor) -> Tensor:
        """As `_encode`, but a vector whose old code is at least as near keeps it."""
        rate, vectors = self.rates[column], target.view(-1, self.codebooks.shape[2])
        codes = self.search(vectors, rate)
        values, kept = sum_codewords(codes, self.codebooks), self.values[column].view(vectors.shape)
        nearer = (values - vectors).square().sum(1) < (kept - vectors).square().sum(1)
        self.codes[column, nearer, :rate] = codes[nearer]
        self.values[column] = torch.where(nearer[:, None], values, kept).flatten()
        return self.values[column]

    def _decode(self) -> None:
        for rate in set(self.rates):
            columns = self.plan.rates == rate
            self.values[columns] = sum_codewords(self.codes[columns, :, :rate], self.codebooks).flatten(1)

    def _set_codebooks(self, codebooks: Tensor) -> None:
        self.codebooks = codebooks.half().float()
        self.search = BeamSearch(self.codebooks, self.beam)

    def _set_scale(self, scale: Tensor) -> None:
        self.scale = scale
        self.target = F.pad(divide_by_scale(self.weight, scale).t(), (0, self.padding)).contiguous()

    def _output_weights(self) -> Tensor:
        return F.pad(self.scale.square(), (0, self.padding))

    def _code_bits(self) -> int:
        return (self.codebooks.shape[1] - 1).bit_length()

    def _packed_block(self, rate: int) -> Tensor:
        codes = self.codes[self.plan.rates == rate][:, :, :rate].flatten(1)
        return pack(codes, self._code_bits()) if rate else torch.zeros(len(codes), 0, dtype=torch.int8)
