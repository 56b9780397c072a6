"""The report as one HTML file that needs nothing else: style, plots and pictures are inside."""

from __future__ import annotations

from base64 import b64encode
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vqcompress.report import plots
from vqcompress.report.comparison import ORIGINAL, Comparison
from vqcompress.report.components import NOTE, components_table
from vqcompress.report.experts import NOTE as EXPERTS_NOTE
from vqcompress.report.experts import experts_table
from vqcompress.report.palette import MARKERS, STYLES
from vqcompress.report.table import variants_table
from vqcompress.report.verdicts import verdict_lines
from vqcompress.report.wording import TABLE_NOTE, key_figures, layer_notes, measured, overall, summary, title

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
        components=components_table(comparison),
        component_note=NOTE,
        experts=experts_table(comparison),
        experts_note=EXPERTS_NOTE,
        notes=layer_notes(comparison),
        measured=measured(comparison),
        pictures=_pictures(comparison),
        plots=_plots(comparison),
        original=ORIGINAL,
        shown=FIRST_SCREEN,
        style=Markup(_resource("report.css")),
        styles=STYLES,
        markers={marker: Markup(drawn) for marker, drawn in MARKERS.items()},
    )


def _resource(name: str) -> str:
    return files("vqcompress.report").joinpath(name).read_text(encoding="utf-8")


def _pictures(comparison: Comparison) -> dict[str, list[str]]:
    return {
        label: [f"data:image/png;base64,{b64encode(png).decode()}" for png in files]
        for label, files in comparison.pictures.items()
    }


def _plots(comparison: Comparison) -> dict[str, Markup]:
    """Plot name -> SVG; a plot without data is left out."""
    drawn = {"error_by_bytes": plots.error_by_bytes, "psnr_by_bytes": plots.psnr_by_bytes}
    if any(variant.error_by_timestep for variant in comparison.variants):
        drawn["error_by_timestep"] = plots.error_by_timestep
    if overall(comparison.original.caption_accuracy):
        drawn["caption_accuracy"] = plots.caption_accuracy
    if any(variant.layer_errors for variant in comparison.variants):
        drawn["error_by_layer"] = plots.error_by_layer
    # Our own drawing, with all text in it escaped by matplotlib.
    return {name: Markup(draw(comparison)) for name, draw in drawn.items()}
