"""What vqcompress needs to know about a family of pipelines: one subclass per family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vqcompress.architectures.layer_plan import IgnoreRules, LayerPlan, plan_layers
from vqcompress.errors import ArchitectureError
from vqcompress.sampling_config import ResolvedSampling, SamplingConfig

OutputType = Literal["latent", "pil", "pt"]

Pipeline = Any
"""A `diffusers.DiffusionPipeline`. Its components are attributes of the instance, so they have no static type."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
VAE = "vae"

TEXT_IGNORE: IgnoreRules = {
    r"(^|\.)text_projection$": "sees one row per prompt: its input's second moment is rank-limited",
    r"(^|\.)(lm_head|output_layer)$": "not used for conditioning",
    r"(^|\.)(visual|vision_tower|vision_model|audio_tower|multi_modal_projector)(\.|$)": "reads images or sound, which "
    "prompts do not have",
}
VAE_IGNORE: IgnoreRules = {
    r"(^|\.)conv_in(\.|$)": "reads bare pixels or latents through few columns; every later layer depends on it",
    r"(^|\.)conv_out(\.|$)": "writes pixels or latents themselves: nothing after it can absorb an error; small",
    r"^(post_)?quant_conv$": "maps latents to latents: its error is in every pixel; tiny",
}


@dataclass(frozen=True)
class Architecture:
    """A pipeline's components by name.

    ``denoiser`` is the component that runs at every timestep, the first of them if there are ``other_denoisers``: a
    second one for the last steps, or a prior. ``components`` are all that can be quantized, the denoisers first.
    ``prompt_set`` is the prompt set that suits the model (see `calibration.prompts.load_prompts`). ``batch_limit`` is
    how many prompts one call takes (None: any number).
    """

    ignore: ClassVar[IgnoreRules] = {}
    """The default ignore list: layers of the denoiser that stay dense."""

    masked_layers: ClassVar[str | None] = None
    """Regular expression of layers whose input is text tokens; `text_mask` marks the padding among them."""

    usual: ClassVar[tuple[int, float]] = (50, 4.0)
    """Steps and guidance scale where neither the pipeline nor the user says them."""

    call_arguments: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the pipeline's call in addition to the prompts and the sampling settings."""

    name: str
    denoiser: str
    components: tuple[str, ...]
    defaults: ResolvedSampling
    prompt_set: str = "general"
    other_denoisers: tuple[str, ...] = ()
    batch_limit: int | None = None

    @property
    def denoisers(self) -> tuple[str, ...]:
        """All components that run at every timestep, or at some."""
        return (self.denoiser, *self.other_denoisers)

    @property
    def probe_steps(self) -> int:
        """Steps of the shortest run that calls each denoiser: two, to see what changes, and six that several share."""
        return 6 if self.other_denoisers else 2

    @classmethod
    def supports(cls, pipeline: Pipeline) -> bool:
        """Whether ``pipeline`` belongs to this family."""
        raise NotImplementedError

    @classmethod
    def of(cls, pipeline: Pipeline) -> Architecture:
        """The family's description of ``pipeline``."""
        raise NotImplementedError

    def ignore_rules(self, component: str) -> IgnoreRules:
        """The ignore rules that `layers` uses by default."""
        if component in self.denoisers:
            return self.ignore
        return VAE_IGNORE if component == VAE else TEXT_IGNORE

    def layers(
        self, pipeline: Pipeline, component: str, ignore: IgnoreRules | Sequence[tuple[str, str]] | None = None
    ) -> list[LayerPlan]:
        """Every matrix of ``component`` in execution order, with the reason if it stays dense.

        ``ignore``, a mapping or (pattern, reason) pairs, replaces `ignore_rules`. Weights that cannot be quantized at
        all (tables, grouped convolutions, tiny or tied weights) stay dense under any rules. Raises `ArchitectureError`
        if the pipeline has no such component.
        """
        if component not in self.components:
            raise ArchitectureError(
                f"this {self.name} pipeline has no component {component!r} to quantize; "
                f"it has {', '.join(self.components)}"
            )
        plans = plan_layers(
            self.module(pipeline, component), self.ignore_rules(component) if ignore is None else dict(ignore)
        )
        return self.execution_order(plans) if component in self.denoisers else plans

    def module(self, pipeline: Pipeline, component: str) -> nn.Module:
        """The network called ``component``."""
        return getattr(pipeline, component)

    def execution_order(self, plans: list[LayerPlan]) -> list[LayerPlan]:
        """The denoiser's plans in the order in which they run. Families with another registration order override it."""
        return plans

    def sample(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Run the pipeline with its own scheduler and guidance; one image per prompt.

        Image ``i`` has its own generator, seeded with ``seeds[i]``, so it does not depend on the rest of the batch
        (except for the rounding of batched sums). Values that are None in ``sampling`` come from `defaults`. Returns
        latents ``[n, channels, h, w]`` ("latent"), images ``[n, 3, height, width]`` in 0..1 ("pt"), or PIL images.
        """
        if len(seeds) != len(prompts):
            raise ArchitectureError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        with quiet(pipeline), own_randomness(seeds), evaluating(pipeline):
            return self.run(
                pipeline,
                list(prompts),
                generators=[torch.Generator().manual_seed(seed) for seed in seeds],
                sampling=(sampling or SamplingConfig()).resolve(self.defaults),
                output_type=output_type,
            )

    def run(
        self,
        pipeline: Pipeline,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        sampling: ResolvedSampling,
        output_type: OutputType,
    ) -> Any:
        """One call of the pipeline, with every argument given; `sample` is the public method."""
        negative = sampling.inputs.negative_prompt
        return pipeline(
            **({} if negative is None else {"negative_prompt": [negative] * len(prompts)}),
            prompt=prompts,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            generator=generators,
            output_type=output_type,
            **self.call_arguments,
        ).images

    def encode(self, pipeline: Pipeline, prompts: Sequence[str], *, guidance: float) -> None:
        """Run only the text encoders, as `sample` does, to record statistics of their layers."""
        offered = {
            "prompt": list(prompts),
            "device": pipeline._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guidance > 1,
        }
        with torch.no_grad(), evaluating(pipeline):
            pipeline.encode_prompt(**_accepted(pipeline.encode_prompt, offered))

    def autoencode(
        self,
        pipeline: Pipeline,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig | None = None,
    ) -> None:
        """Draw images and encode them again, to record statistics of both halves of the VAE.

        Video is not encoded again: autoencoders of video have convolutions in time, which stay dense.
        """
        images = self.sample(pipeline, prompts, seeds=seeds, sampling=sampling, output_type="pt")
        if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3:
            vae = self.module(pipeline, VAE)
            with torch.no_grad(), evaluating(pipeline):
                vae.encode((2 * images - 1).to(vae.device, vae.dtype))

    def text_mask(self, call: dict[str, Any]) -> Tensor | None:
        """True for text tokens that are not padding, bool ``[batch, tokens]``, from the arguments of a call of the
        denoiser or of a text encoder. None if no token is padding."""
        return None


def token_mask(call: dict[str, Any], *names: str) -> Tensor | None:
    """The first of these arguments that is a mask over tokens ``[batch, tokens]``, as bool."""
    found = (call.get(name) for name in names)
    return next((mask.bool() for mask in found if isinstance(mask, Tensor) and mask.ndim == 2), None)


def _accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The arguments in ``offered`` that the function accepts, and None for each other required argument."""
    parameters = inspect.signature(function).parameters
    given = {name: value for name, value in offered.items() if name in parameters}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            given.setdefault(name, None)
    return given


def present_text_encoders(pipeline: Pipeline) -> tuple[str, ...]:
    """Names of the text encoders that ``pipeline`` has."""
    return tuple(name for name in TEXT_ENCODERS if isinstance(getattr(pipeline, name, None), nn.Module))


def image_size(pipeline: Pipeline, denoiser: Any, *, default: int = 64) -> tuple[int, int]:
    """(height, width) in pixels for which the denoiser was trained, from its ``sample_size`` in latent units."""
    sample_size = denoiser.config.get("sample_size") or default
    sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)[-2:]
    factor = latent_factor(pipeline)
    return sides[0] * factor, sides[1] * factor


def latent_factor(pipeline: Pipeline) -> int:
    """Pixels per latent along one side."""
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return 1
    for name in ("vae_scale_factor", "vae_scale_factor_spatial"):
        if (factor := getattr(pipeline, name, None)) is not None:
            return factor
    widths = vae.config.get("block_out_channels")
    return 2 ** (len(widths) - 1) if widths else 8


def generator_arguments(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """``{"generator": …}`` for schedulers whose ``step`` draws noise from it."""
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


@contextmanager
def quiet(pipeline: Pipeline) -> Iterator[None]:
    """Disable the pipeline's progress bars inside the block."""
    before = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)


class _Steps:
    """What a pipeline takes for its progress bar: an iterable, and a context in which it calls ``update``."""

    def __init__(self, report: Callable[[int, int], None], iterable: Any, total: int | None) -> None:
        self._report, self._iterable, self._done = report, iterable, 0
        self._total = total if total is not None else len(iterable)

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is drawn."""

    def update(self, steps: int = 1) -> None:
        self._done = min(self._done + steps, self._total)
        self._report(self._done, self._total)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever else tqdm has, as ``set_description``, does nothing."""
        return lambda *_, **__: None


@contextmanager
def steps_reported(pipeline: Pipeline, report: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``report(done, total)`` after each denoising step inside the block: at the place where diffusers' pipelines
    ask for their progress bar."""
    pipeline.progress_bar = lambda iterable=None, total=None: _Steps(report, iterable, total)
    try:
        yield
    finally:
        del pipeline.progress_bar


@contextmanager
def own_randomness(seeds: Sequence[int]) -> Iterator[None]:
    """Seed torch's global generators, for pipelines that ignore their generators, and restore the state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0] if seeds else 0)
        yield


@contextmanager
def evaluating(pipeline: Pipeline) -> Iterator[None]:
    """Disable dropout in all networks of the pipeline, in training mode too."""
    training = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and part.training]
    for part in training:
        part.eval()
    try:
        yield
    finally:
        for part in training:
            part.train()
