"""The report as one HTML file that needs nothing else: style, plots and pictures are inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vqcompress.metrics import overall
from vqcompress.reports import plots
from vqcompress.reports.blocks import NOTE as BLOCKS_NOTE
from vqcompress.reports.blocks import blocks_table
from vqcompress.reports.comparison import ORIGINAL, Comparison
from vqcompress.reports.components import NOTE, components_table
from vqcompress.reports.experts import NOTE as EXPERTS_NOTE
from vqcompress.reports.experts import experts_table
from vqcompress.reports.fidelity import NOTE as FIDELITY_NOTE
from vqcompress.reports.fidelity import fidelity_table
from vqcompress.reports.figure_data import data_url, figure_data
from vqcompress.reports.palette import MARKERS, STYLES
from vqcompress.reports.table import variants_table
from vqcompress.reports.verdicts import verdict_lines
from vqcompress.reports.viewer import viewer
from vqcompress.reports.wording import TABLE_NOTE, key_figures, layer_notes, measured, summary, title

FIRST_SCREEN = 8  # images of the first variant beside the title


def to_html(comparison: Comparison) -> str:
    """The page's text; the same comparison gives the same text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("report.html"))
    return template.render(
        comparison=comparison,
        lead=comparison.variants[0],
        title=title(comparison),
        summary=summary(comparison),
        figures=key_figures(comparison),
        verdicts=verdict_lines(comparison.verdicts),
        table=variants_table(comparison),
        table_note=TABLE_NOTE,
        fidelity=fidelity_table(comparison),
        fidelity_note=FIDELITY_NOTE,
        components=components_table(comparison),
        component_note=NOTE,
        experts=experts_table(comparison),
        experts_note=EXPERTS_NOTE,
        notes=layer_notes(comparison),
        measured=measured(comparison),
        pictures=_data_urls(comparison.pictures),
        plots=_plots(comparison),
        original=ORIGINAL,
        shown=FIRST_SCREEN,
        viewer=viewer(comparison),
        full_size=Markup(json.dumps(_data_urls(comparison.full_size))),
        blocks=blocks_table(comparison),
        blocks_note=BLOCKS_NOTE,
        csv={name: data_url(text.encode(), "text/csv") for name, text in figure_data(comparison).items()},
        report_json=data_url(json.dumps(comparison.to_json(), ensure_ascii=False).encode(), "application/json"),
        script=Markup(_resource("report.js")),
        style=Markup(_resource("report.css")),
        styles=STYLES,
        markers={marker: Markup(drawn) for marker, drawn in MARKERS.items()},
    )


def _resource(name: str) -> str:
    return files("vqcompress.reports").joinpath(name).read_text(encoding="utf-8")


def _data_urls(pictures: Mapping[str, Sequence[bytes]]) -> dict[str, list[str]]:
    return {label: [data_url(png, "image/png") for png in files] for label, files in pictures.items()}


def _plots(comparison: Comparison) -> dict[str, Markup]:
    """Plot name -> SVG; a plot without data is left out."""
    drawn = {"error_by_bytes": plots.error_by_bytes, "psnr_by_bytes": plots.psnr_by_bytes}
    if any(variant.error_by_timestep for variant in comparison.variants):
        drawn["error_by_timestep"] = plots.error_by_timestep
    if any(variant.trajectory.by_timestep for variant in comparison.variants):
        drawn["latents_by_timestep"] = plots.latents_by_timestep
    if overall(comparison.original.caption_accuracy):
        drawn["caption_accuracy"] = plots.caption_accuracy
    if any(variant.layer_errors for variant in comparison.variants):
        drawn["error_by_layer"] = plots.error_by_layer
        drawn["bits_by_layer"] = plots.bits_by_layer
    if any(each.gap is not None for variant in comparison.variants for each in variant.layer_errors):
        drawn["gap_by_layer"] = plots.gap_by_layer
    # Our own drawing, with all text in it escaped by matplotlib.
    return {name: Markup(draw(comparison)) for name, draw in drawn.items()}
