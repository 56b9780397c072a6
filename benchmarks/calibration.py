"""Cost and benefit of calibration: one pass or block by block, full or half resolution, many or few prompts.

``python benchmarks/calibration.py [--bits 2 3] [--images 64] [--out FOLDER]``

Every line compresses `shapes`, recording included, with trellis codes of the same bits in every layer and `full_size`'s
quick settings. It gives processor seconds, the denoiser's relative output error on the original's own inputs, and the
PSNR of images against the original's with the same seeds, both for captions that calibration did not see. Existing
folders are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import vqcompress
from finetune import Examination
from vqcompress.checkpoint import load

QUICK = {"state_bits": 10, "coordinate_descent": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "block by block": {"order": "sequential"},
    "half resolution": {"height": 16, "width": 16},
    "16 prompts": {"count": 16},
    "16 prompts, half resolution": {"count": 16, "height": 16, "width": 16},
}


def compressed(folder: Path, bits: float, calibration: dict[str, Any]) -> float:
    """Processor seconds that `vqcompress.quantize` took to make ``folder``, now or earlier."""
    seconds = folder.with_suffix(".seconds")
    if not seconds.exists():
        clock = time.process_time()
        recipe = {"bits": bits, "budget": "layer", "settings": QUICK, "calibration": calibration}
        vqcompress.quantize("shapes", folder, overwrite=True, **recipe)
        seconds.write_text(str(time.process_time() - clock))
    return float(seconds.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("out/calibration"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Examination(given.images)
    print("| calibration | bits | denoiser error | PSNR, dB | processor s |\n|---|---|---|---|---|", flush=True)
    rows = []
    for bits in given.bits:
        for variant, calibration in VARIANTS.items():
            name = f"{variant.replace(',', '').replace(' ', '-')}-{bits:g}"
            seconds = compressed(given.out / name, bits, calibration)
            found = bench.grade(load(given.out / name).unet)
            rows.append({"way": variant, "seconds": seconds, **found})
            print(
                f"| {variant} | {found['bits']:.3f} | {found['error']:.2%} | {found['psnr']:.2f} | {seconds:.0f} |",
                flush=True,
            )
    (given.out / "calibration.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
