"""`python docs/name_table.py`: write the table of names in `docs/models.md`, and how many weights each plan quantizes.

Every published model is built and planned on the meta device, which takes a minute and no memory to speak of. The
counts go into `vqcompress/architectures/coded_weights.json`, from which `vqcompress presets` tells sizes.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, COUNTS = ROOT / "docs" / "models.md", ROOT / "vqcompress" / "architectures" / "coded_weights.json"
sys.path.insert(0, str(ROOT))

from vqcompress.architectures.published import PUBLISHED, class_of_pipeline  # noqa: E402
from vqcompress.architectures.published_skeleton import published_skeleton  # noqa: E402

BEGIN, END = "<!-- names: written by `python docs/name_table.py` -->", "<!-- end of names -->"
INTRODUCTION = """## Models by name

`vqcompress quantize NAME --dry-run` plans each of these without weights and network; `vqcompress presets` lists them
by family. Weights are those of all denoisers, sizes with what stays dense at 16 bits.
[Pipelines](pipelines.md) has every pipeline class of diffusers that is tested: denoisers, share, what stays dense.
A * stands for a licence that forbids commercial use.

| name | pipeline or network | weights | quantized | at 2, 3, 4 bits, GB | licence | source |
|---|---|---|---|---|---|---|"""


def quantized_weights(name: str) -> int:
    """How many of the denoisers' weights the plan of ``name`` quantizes."""
    found = published_skeleton(name)
    plans = (plan for part in found.architecture.denoisers for plan in found.architecture.layers(found.pipeline, part))
    return sum(math.prod(plan.shape) for plan in plans if plan.reason is None)


def section(counts: dict[str, int]) -> str:
    """The section of the page, between its marks."""
    return "\n".join([BEGIN, INTRODUCTION, *_lines(counts), END])


def _lines(counts: dict[str, int]) -> Iterator[str]:
    for name, row in PUBLISHED.items():
        coded = counts[name]
        sizes = (f"{(2 * (row.parameters - coded) + bits * coded / 8) / 1e9:.3g}" for bits in (2, 3, 4))
        licence = (row.licence or "–") + r" \*" * (not row.commercial)
        share = f"{100 * coded / row.parameters:.1f} %"
        cells = (
            f"`{name}`", class_of_pipeline(name), f"{row.parameters / 1e9:.3g} B", share, ", ".join(sizes), licence,
            row.source,
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def page_with(text: str, found: str) -> str:
    """``found``, a page, with its section of names replaced by ``text``, or with that added."""
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    if pattern.search(found):
        return pattern.sub(lambda _: text, found)
    return f"{found or '# Models'}\n\n{text}\n" if not found.endswith("\n") else f"{found}\n{text}\n"


def main() -> None:
    counts = {name: quantized_weights(name) for name in PUBLISHED}
    COUNTS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page_with(section(counts), page), encoding="utf-8")


if __name__ == "__main__":
    main()
