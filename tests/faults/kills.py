"""Kill tiny runs at random times: ``python -m tests.faults.kills --count 50 --seed 0`` (`make kills COUNT=50`).

Each run is killed after a random share of the time that a whole one takes, and then once more at random while it goes
on. The same command then must end with exit code 0, the bytes of a run that nobody killed, and nothing else left. A run
that ends before its time does not count.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import tiny_stable_diffusion
from tests.faults.runs import Child, TinyRun, check_finished, digest


def kill_many(count: int, seed: int, source: Path) -> Counter[str]:
    """Where runs were when they were killed, ``count`` times in all.

    Raises `AssertionError` for the first that does not recover.
    """
    tiny_stable_diffusion().save_pretrained(source / "model")
    (source / "prompts.txt").write_text("a\nb c\n")
    whole = TinyRun(source / "model", source / "prompts.txt", source / "whole" / "out")
    whole.output.parent.mkdir()
    assert whole.run().code == 0  # compiles loops, which later runs find compiled
    shutil.rmtree(whole.output)
    start = time.perf_counter()
    assert whole.run().code == 0
    seconds, expected = time.perf_counter() - start, digest(whole.output)
    draw, states = random.Random(seed), Counter[str]()
    for index in itertools.takewhile(lambda _: states.total() < count, itertools.count()):
        run = TinyRun(whole.model, whole.prompts, source / str(index) / "out")
        run.output.parent.mkdir()
        for _ in range(2):
            died = run.run(kill_after=draw.uniform(0, seconds))
            if died.code == -signal.SIGKILL:
                states[_state(run)] += 1
        ended = _again(run)
        assert ended.code == 0, f"run {index}: {ended.said}"
        check_finished(run, expected)
        shutil.rmtree(run.output.parent)
    return states


def _again(run: TinyRun) -> Child:
    """Run the command again; where a run had ended before it could be killed, it must say so and change nothing."""
    if run.output.exists() and not list(run.output.parent.glob(".*")) and not run.work.exists():
        return Child(0, "was complete")
    return run.run()


def _state(run: TinyRun) -> str:
    if run.output.exists():
        return "clearing up"
    if list(run.output.parent.glob(".out.*")):
        return "publishing"
    stages = [path.name for path in run.work.iterdir() if path.is_dir()] if run.work.exists() else []
    return "encoding" if "unet.layers" in stages else "recording" if stages else "starting"


def main() -> None:
    """Parse the command line and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vqcompress-kills-") as folder:
        states = kill_many(options.count, options.seed, Path(folder))
    where = ", ".join(f"{number} while {state}" for state, number in states.most_common())
    print(f"{states.total()} kills ({where}): all runs ended with equal bytes and nothing left")


if __name__ == "__main__":
    main()
