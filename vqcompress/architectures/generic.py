"""Any other diffusers pipeline that prompts and images can drive, around one denoiser or several.

A denoiser is a component whose call has a time. Which of its layers stay dense is told by following one call
(`roles`), refined by names; where there is no pipeline to call, as for a network on the meta device, by names alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vqcompress.architectures.architecture import (
    Architecture,
    OutputType,
    Pipeline,
    latent_factor,
    present_text_encoders,
)
from vqcompress.architectures.call_inputs import (
    CallInputs,
    has_true_guidance,
    missing_inputs,
    parameters,
    takes_one_prompt,
)
from vqcompress.architectures.few_step import few_step_sampling
from vqcompress.architectures.layer_plan import (
    FINAL,
    LATENT_INPUT,
    ONE_SAMPLE_PER_TIMESTEP,
    IgnoreRules,
    LayerPlan,
    plan_layers,
)
from vqcompress.architectures.roles import REFUSALS, TIMES, trace_denoisers, why_dense
from vqcompress.architectures.traced_call import TracedCall, block_candidates
from vqcompress.sampling_config import ResolvedSampling, SamplingConfig

FIRST = ("transformer", "unet")
BESIDE = re.compile(r"vae|vqgan|movq|encoder|safety|controlnet|adapter|upsampler|vocoder|connector")
TEXT = re.compile(r"text|txt|context|caption|cap_|prompt|llm|encoder_hid|image_embed")
POOLED = re.compile(r"pooled|^encoder_hid_proj\.image_embeds")  # one vector for each image
OUTSIDE = "outside of the blocks, where layers read latents, time and positions or write the estimate"
PROBE = "a cat beside a dog"  # several tokens: one would look like a vector
SMALL, SIDES = 8, (64, 256)  # latents, and pixels, a side to try: what a layer reads does not depend on it

_traced: WeakKeyDictionary[nn.Module, TracedCall | None] = WeakKeyDictionary()


class GenericArchitecture(Architecture):
    """Call arguments follow the pipeline's signature.

    Modulation inside the blocks is quantized (a quarter of FLUX); embedders of time and pooled conditions are not.
    """

    ignore: ClassVar[IgnoreRules] = {
        r"^(pos_embed|patch_embed\w*|patchify_proj|x_embedder|img_in|conv_in|proj_in)(\.|$)": LATENT_INPUT,
        r"(^|[._])(time|timestep|guidance|class|label|pooled|aspect_ratio|resolution)\w*_?(emb\w*|proj\w*)(\.|$)|"
        r"^(time_text_embed|adaln_single|add_embedding|distilled_guidance_layer)\.|"
        r"^\w*stream_modulation": ONE_SAMPLE_PER_TIMESTEP,
        r"^(proj_out\w*|final_layer|norm_out|conv_out)(\.|$)": FINAL,
    }
    """For a denoiser that no call was followed through."""

    ignore_inside: ClassVar[IgnoreRules] = {
        r"(^|[._])(time|timestep|guidance|class|label|pooled)\w*_?(emb\w*|proj\w*)(\.|$)": ONE_SAMPLE_PER_TIMESTEP,
    }
    """Inside of blocks, beside what the call tells of layers outside."""

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        return bool(find_denoisers(pipeline)) and not missing_inputs(pipeline)

    @classmethod
    def of(cls, pipeline: Pipeline) -> GenericArchitecture:
        denoiser, *others = find_denoisers(pipeline)
        return cls(
            type(getattr(pipeline, denoiser)).__name__,
            denoiser,
            (denoiser, *others, *present_text_encoders(pipeline)),
            _defaults(pipeline, denoiser),
            other_denoisers=tuple(others),
            batch_limit=1 if takes_one_prompt(pipeline) else None,
        )

    def layers(
        self, pipeline: Pipeline, component: str, ignore: IgnoreRules | Sequence[tuple[str, str]] | None = None
    ) -> list[LayerPlan]:
        if component not in self.denoisers:
            return super().layers(pipeline, component, ignore)
        module = self.module(pipeline, component)
        traced = self._traced(pipeline, component)
        if traced is None:
            plans = super().layers(pipeline, component, ignore)
            return plans if ignore is not None else _by_structure(module, plans)
        rules = {**self.ignore_inside} if ignore is None else dict(ignore)
        plans = [_by_role(traced, plan) if ignore is None else plan for plan in plan_layers(module, rules)]
        return sorted(plans, key=lambda plan: traced.place(plan.name))

    def _traced(self, pipeline: Pipeline, component: str) -> TracedCall | None:
        """The first call of a denoiser, or that of one with the same configuration; None where there is no pipeline."""
        networks = {name: self.module(pipeline, name) for name in self.denoisers}
        if any(network not in _traced for network in networks.values()):
            found = {} if _without_weights(pipeline, networks) else self._trace(pipeline, networks)
            for name, network in networks.items():
                alike = (found.get(other) for other in networks if type(networks[other]) is type(network))
                _traced[network] = found.get(name) or next((call for call in alike if call), None)
        return _traced[networks[component]]

    def _trace(self, pipeline: Pipeline, networks: dict[str, nn.Module]) -> dict[str, TracedCall]:
        """Empty where the pipeline cannot be called: calibration then says what is wrong with it."""
        usual = self.defaults.height, self.defaults.width
        sides = [side for side in (SMALL * latent_factor(pipeline), *SIDES) if side < min(usual)]
        for height, width in (*((side, side) for side in sides), usual):
            sampling = SamplingConfig(self.probe_steps, height=height, width=width)
            draw = partial(self.sample, pipeline, [PROBE], seeds=[0], sampling=sampling, output_type="latent")
            with suppress(*REFUSALS):
                return trace_denoisers(networks, draw)
        return {}

    def run(
        self,
        pipeline: Pipeline,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        sampling: ResolvedSampling,
        output_type: OutputType,
    ) -> Any:
        size = self.batch_limit or len(prompts)
        results = [
            pipeline(
                **CallInputs(
                    pipeline, prompts[first : first + size], generators[first : first + size], sampling, output_type
                ).arguments()
            )[0]
            for first in range(0, len(prompts), size)
        ]
        return results[0] if len(results) == 1 else _joined(results)


def _without_weights(pipeline: Pipeline, networks: dict[str, nn.Module]) -> bool:
    weights = (weight for network in networks.values() for weight in network.parameters())
    return isinstance(pipeline, SimpleNamespace) or any(weight.is_meta for weight in weights)


def find_denoisers(pipeline: Pipeline) -> list[str]:
    """Components whose call has a time, `transformer` or `unet` first; control networks and adapters are none."""
    names = [
        name
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module) and not BESIDE.search(name) and any(map(TIMES.match, parameters(part.forward)))
    ]
    usual = [name for name in FIRST if isinstance(getattr(pipeline, name, None), nn.Module)]
    return list(dict.fromkeys([*(name for name in usual if name in names or not names), *names]))


def _by_role(traced: TracedCall, plan: LayerPlan) -> LayerPlan:
    return LayerPlan(plan.name, plan.reason or why_dense(traced, plan.name), plan.shape)


def _by_structure(denoiser: nn.Module, plans: list[LayerPlan]) -> list[LayerPlan]:
    """Outside of the members of lists only layers that text goes through are quantized."""
    blocks = tuple(name + "." for name in block_candidates(denoiser))
    return [
        plan
        if plan.reason or plan.name.startswith((*blocks, "mid_block.")) or _is_of_text(plan.name)
        else LayerPlan(plan.name, OUTSIDE, plan.shape)
        for plan in plans
    ]


def _is_of_text(name: str) -> bool:
    return bool(TEXT.search(name)) and not POOLED.search(name)


def _joined(results: list[Any]) -> Any:
    """Results of single prompts as one."""
    if isinstance(results[0], torch.Tensor):
        return torch.cat(results)
    return [item for result in results for item in result]


def _defaults(pipeline: Pipeline, denoiser: str) -> ResolvedSampling:
    """The defaults in the pipeline's signature; sizes come from the denoiser if the signature has None."""
    accepted = parameters(pipeline.__call__)

    def default(name: str, otherwise: Any) -> Any:
        value = accepted[name].default if name in accepted else None
        return otherwise if value is None or value is inspect.Parameter.empty else value

    side = _latent_side(pipeline, getattr(pipeline, denoiser)) * latent_factor(pipeline)
    scale = "true_cfg_scale" if has_true_guidance(accepted) else "guidance_scale"
    usual = int(default("num_inference_steps", 50)), _number(default(scale, 1.0))
    return ResolvedSampling(
        *(few_step_sampling(pipeline) or usual),
        int(default("height", side)),
        int(default("width", side)),
    )


def _number(scale: Any) -> float:
    """The first scale of a list of them."""
    return float(scale[0] if isinstance(scale, list | tuple) else scale)


def _latent_side(pipeline: Pipeline, denoiser: Any) -> int:
    sample_size = getattr(pipeline, "default_sample_size", None) or denoiser.config.get("sample_size") or 64
    return sample_size if isinstance(sample_size, int) else tuple(sample_size)[-1]
