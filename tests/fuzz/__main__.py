"""``python -m tests.fuzz --cases 20000``: run cases, keep each one's result, and say what was wrong.

Run again with the same folder, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def prepare() -> None:
    """Quiet libraries and one thread, before the first fork."""
    import diffusers
    import torch
    import transformers

    import vqcompress

    for name in vqcompress.__all__:  # what an index may name is imported when it is looked up, with matplotlib's cache
        getattr(vqcompress, name)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def summary(lines: list[dict]) -> str:
    """Counts over all results: of operations by what they came to, and of faults."""
    kinds = Counter((name, kind) for line in lines for name, kind in line["kinds"].items())
    faults = Counter(fault for line in lines for fault in line["faults"])
    table = [f"{len(lines)} cases, {sum(kinds.values())} operations"]
    table += [f"  {name:12} {kind:8} {count}" for (name, kind), count in sorted(kinds.items())]
    table += ["faults: none" if not faults else "faults:"]
    return "\n".join(table + [f"  {count} {fault}" for fault, count in faults.most_common()])


def main() -> int:
    """Exit code 1 where any case has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, with all that it said")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder of the results")
    options = parser.parse_args()
    prepare()
    from tests.fuzz.cases import Case
    from tests.fuzz.folders import honest_folders
    from tests.fuzz.runner import run_cases, to_line

    options.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="vqcompress-honest-") as home:
        honest = honest_folders(Path(home))
        if options.only is not None:
            for result in run_cases([Case(options.seed, options.only)], honest):
                sys.stdout.write(json.dumps(json.loads(to_line(result)), indent=1) + "\n")
            return 0
        return _run_to_file(options, honest)


def _run_to_file(options: argparse.Namespace, honest: dict[str, Path]) -> int:
    """Run the cases that the file of results lacks; 1 where any has a fault."""
    from tests.fuzz.cases import Case
    from tests.fuzz.runner import run_cases, timed, to_line

    results = options.out / f"seed-{options.seed}.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {line["index"] for line in lines}
    cases = [Case(options.seed, index) for index in range(options.cases) if index not in done]
    with results.open("a") as out:
        for result, seconds in timed(run_cases(cases, honest)):
            line = to_line(result)
            lines.append(json.loads(line))
            out.write(line + "\n")
            out.flush()
            if result.faults:
                said = f"{result.index} ({seconds:.1f} s): {result.faults} {result.changes} {result.details}"
                sys.stdout.write(f"{said}\n")
                sys.stdout.flush()
    sys.stdout.write(summary(lines) + "\n")
    return int(any(line["faults"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
