"""Compare compressed pipelines with their original, and write the results as a report."""

from vqcompress.reports.bench import compare_candidates
from vqcompress.reports.candidate import Candidate, candidate_at
from vqcompress.reports.comparison import ORIGINAL, Comparison, Original, Rival, Settings, Verdict, json_schema
from vqcompress.reports.evaluation import EvaluationConfig, EvaluationSet
from vqcompress.reports.folders import compare, report
from vqcompress.reports.html import to_html
from vqcompress.reports.markdown import to_markdown
from vqcompress.reports.pictures import image_grid, tile
from vqcompress.reports.variant import LayerError, Share, Trajectory, Variant
from vqcompress.reports.verdicts import verdicts
from vqcompress.reports.write import write_report

__all__ = [
    "ORIGINAL",
    "Candidate",
    "Comparison",
    "EvaluationConfig",
    "EvaluationSet",
    "LayerError",
    "Original",
    "Rival",
    "Settings",
    "Share",
    "Trajectory",
    "Variant",
    "Verdict",
    "candidate_at",
    "compare",
    "compare_candidates",
    "image_grid",
    "json_schema",
    "report",
    "tile",
    "to_html",
    "to_markdown",
    "verdicts",
    "write_report",
]
