"""Compare compressed pipelines with their original, and write the results as a report."""

from vqcompress.report.candidate import Candidate, candidate_at
from vqcompress.report.compare import compare
from vqcompress.report.comparison import ORIGINAL, Comparison, Original, Rival, Settings, Verdict, json_schema
from vqcompress.report.evaluation import EvaluationConfig, EvaluationSet
from vqcompress.report.folders import compare_folders
from vqcompress.report.html import to_html
from vqcompress.report.markdown import to_markdown
from vqcompress.report.pictures import image_grid, tile
from vqcompress.report.variant import LayerError, Share, Trajectory, Variant
from vqcompress.report.verdicts import verdicts
from vqcompress.report.write import write_report

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
    "compare_folders",
    "image_grid",
    "json_schema",
    "tile",
    "to_html",
    "to_markdown",
    "verdicts",
    "write_report",
]
