"""Progress on stderr: a bar for each stage with elapsed and remaining time, and a line for each encoded layer."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

LAYER_BY_LAYER = "encode"  # the stage whose details stay on screen: a layer's bits, error and seconds


class StageProgress:
    """Callable ``(stage, done, total, detail)``, as the library reports its progress; use as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        columns = ("[bold]{task.description:<22}", BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(
            *(TextColumn(c) if isinstance(c, str) else c for c in columns),
            Remaining(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=Console(stderr=True, quiet=quiet),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageProgress:
        _silence_other_bars()
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Report that ``done`` of ``total`` steps of ``stage`` are finished; ``detail`` says which one."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)
        if stage.startswith(LAYER_BY_LAYER):
            self._bars.console.print(
                f"{done}/{total} {detail}", style="dim", highlight=False, markup=False, soft_wrap=True
            )


def _silence_other_bars() -> None:
    """Turn off the bars of diffusers and transformers, which overwrite ours, and their remarks on optional packages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
