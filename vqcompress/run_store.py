"""A run's folder. It stores finished results, so that a stopped run continues without computing them again.

``<folder>/<stage>/<key>.safetensors`` (or ``.json``) is one finished result. A file gets its name only when it is
complete and on disk (temporary file, fsync, rename), so every named file is valid after a crash.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqcompress.disk import TEMPORARY, replace_file, write_problem
from vqcompress.errors import CheckpointError, RecipeError, VQCompressError
from vqcompress.run_signature import StageInputs, changes_since

SIGNATURE = "signature.json"
LOCK = ".lock"
SOURCE = "source.json"
TENSORS, JSON = ".safetensors", ".json"
STAGE = re.compile(r"[\w-][\w.-]*")


def check_folder(folder: Path) -> None:
    """Raise `RecipeError` for a folder that is no run's and has other files: results are not mixed with them."""
    if not folder.name:
        raise RecipeError(
            f"{str(folder)!r} is no folder of its own; name one for the run's results, such as out/calibration"
        )
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in (SIGNATURE, LOCK)):
        raise RecipeError(f"{folder} has files of others in it; name a new folder, or one that an earlier run has made")


class RunStore:
    """Finished results of one run in ``folder``. One process locks it; others of the same job can join (``joins``).

    ``signature`` is what the results depend on: `StageInputs`, or JSON values that all stages depend on as settings. A
    folder whose results were made with other settings is refused; results of other inputs are made again, and a line in
    the log says so. ``current`` converts the folder's settings to the form that this version writes. Use as a context
    manager, or call `close`. A folder without any result is removed then: a start that failed leaves nothing.

    Raises `RecipeError` if the settings differ (the message names the keys), `VQCompressError` if another process has
    locked the folder, `CheckpointError` if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        signature: Mapping[str, Any] | Sequence[StageInputs],
        *,
        joins: bool = False,
        current: Callable[[Any], Any] = lambda settings: settings,
    ) -> None:
        self.folder, self._current = Path(folder), current
        self._inputs = () if joins else _inputs_of(signature)
        self._is_ours = not os.path.exists(self.folder) or (self.folder / LOCK).exists()
        self._lock = FileLock(self.folder / LOCK)
        if joins:
            return
        self._make_folder()
        self._take_lock()
        try:
            self._sign(self._inputs)
            self._sweep()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other processes; remove it if it holds no result."""
        if self._lock.is_locked and self._is_ours and not self._stages():
            with suppress(OSError):  # somebody put a file into it
                for name in (SIGNATURE, SOURCE, LOCK):
                    (self.folder / name).unlink(missing_ok=True)
                self.folder.rmdir()
        self._lock.release()

    def load_or_make(self, stage: str, key: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that ``make`` returned, now or in an earlier run. If ``make`` raises, nothing is stored."""
        if not self._path(stage, key, TENSORS).exists():
            self.put(stage, key, make())
        return read_tensors(self._path(stage, key, TENSORS))

    def load_or_make_json(self, stage: str, key: str, make: Callable[[], Any]) -> Any:
        """Like `load_or_make`, for a JSON value. A new value is returned as it would be read back from JSON."""
        if not self._path(stage, key, JSON).exists():
            self.put_json(stage, key, make())
        return read_json(self._path(stage, key, JSON))

    def load_or_make_pair(
        self, stage: str, json_stage: str, key: str, make: Callable[[], tuple[Mapping[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """Tensors in ``stage`` and a JSON value in ``json_stage`` that belong together.

        If one of them is missing, ``make`` is called for both.
        """
        if not self.has_pair(stage, json_stage, key):
            tensors, value = make()
            self.put_json(json_stage, key, value)
            self.put(stage, key, tensors)
        return self.load(stage, key), self.load_json(json_stage, key)

    def has_pair(self, stage: str, json_stage: str, key: str) -> bool:
        """Whether both parts of a pair are stored."""
        return self._path(stage, key, TENSORS).exists() and self._path(json_stage, key, JSON).exists()

    def load(self, stage: str, key: str) -> dict[str, Tensor]:
        """Tensors that an earlier step stored. Raises `CheckpointError` if the file is missing, damaged or empty."""
        path = self._path(stage, key, TENSORS)
        return read_tensors(path) or _holds_nothing(path)

    def load_json(self, stage: str, key: str) -> Any:
        """A JSON value that an earlier step stored. Raises `CheckpointError` if the file is missing, damaged or
        empty."""
        path = self._path(stage, key, JSON)
        return read_json(path) or _holds_nothing(path)

    def put(self, stage: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store ``tensors``, replacing an earlier file."""
        self._check_inputs(stage)
        stored = {name: _storable(tensor) for name, tensor in tensors.items()}
        _publish(self._path(stage, key, TENSORS), lambda temporary: save_file(stored, temporary))

    def put_json(self, stage: str, key: str, value: Any) -> None:
        """Store ``value``, replacing an earlier file."""
        self._check_inputs(stage)
        _publish_bytes(self._path(stage, key, JSON), _json(value))

    def done(self, stage: str) -> set[str]:
        """Keys of ``stage`` that are finished, for both tensors and JSON."""
        folder = self._stage(stage)
        return {unquote(path.stem) for path in folder.glob("*") if path.suffix in (TENSORS, JSON)}

    def discard(self, stage: str, key: str) -> None:
        """Delete a finished result, for example moments whose layers are all quantized."""
        for suffix in (TENSORS, JSON):
            self._path(stage, key, suffix).unlink(missing_ok=True)

    def discard_tensors(self, stage: str, key: str) -> None:
        """Delete only the tensors of a finished result."""
        self._path(stage, key, TENSORS).unlink(missing_ok=True)

    def put_source_note(self, note: Mapping[str, Any]) -> None:
        """Keep what is known of the source's files (`read_source_note`), which no result depends on."""
        if note != read_source_note(self.folder):
            _publish_bytes(self.folder / SOURCE, _json(note))

    def _check_inputs(self, stage: str) -> None:
        """A result of which nobody said what it depends on would be reused when that changes."""
        if self._inputs and not any(each.holds(stage) for each in self._inputs):
            raise CheckpointError(f"nothing says what stage {stage!r} of a run depends on; its StageInputs are missing")

    def _stage(self, stage: str) -> Path:
        if not STAGE.fullmatch(stage):
            raise CheckpointError(f"{stage!r} cannot name a stage of a run: use letters, digits, '.', '_' and '-'")
        return self.folder / stage

    def _path(self, stage: str, key: str, suffix: str) -> Path:
        if not key:
            raise CheckpointError(f"a result of stage {stage!r} needs a non-empty key")
        return self._stage(stage) / (quote(key, safe="") + suffix)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = write_problem(error) or error.strerror
            raise CheckpointError(f"the run folder {self.folder} cannot be made: {reason}") from error

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise VQCompressError(
                f"another process is working in {self.folder}; wait for it to end, or choose another output folder"
            ) from None
        except OSError as error:
            raise CheckpointError(f"the run folder {self.folder} cannot be locked: {error}") from error

    def _sign(self, inputs: Sequence[StageInputs]) -> None:
        """Refuse a folder of other settings, discard results of other inputs, and note today's."""
        path = self.folder / SIGNATURE
        written = self._written(path) if path.exists() else {}
        changes = changes_since(written, inputs, self._stages())
        if changes.refused:
            raise RecipeError(
                f"{self.folder} holds an unfinished run with other settings ({'; '.join(changes.refused)}); "
                "go on with the settings it was started with, or delete that folder"
            )
        for stage in changes.stale:
            shutil.rmtree(self.folder / stage)
        if changes.stale:
            logging.getLogger(__name__).warning(changes.sentence(self.folder))
        now = {**written, **{each.stages: each.to_json() for each in inputs}}
        if not path.exists() or json.loads(_json(now)) != self._signed(path):
            _publish_bytes(path, _json(now))

    def _written(self, path: Path) -> dict[str, Any]:
        """The inputs in the folder's signature. Earlier versions wrote the settings alone."""
        found = self._signed(path)
        by_stages = isinstance(found, dict) and all(
            isinstance(value, dict) and value.keys() == {"settings", "found"} for value in found.values()
        )
        parts = found if by_stages else {".*": {"settings": found, "found": {}}}
        return {stages: {**part, "settings": self._current(part["settings"])} for stages, part in parts.items()}

    def _stages(self) -> list[str]:
        """Stages with at least one result."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and any(path.iterdir()))

    @staticmethod
    def _signed(path: Path) -> Any:
        try:
            return read_json(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path}, which says what the run depends on, is damaged; delete the folder {path.parent} to start anew"
            ) from error

    def _sweep(self) -> None:
        """Remove temporary files of interrupted writes. This process has the lock, so no other one is writing."""
        for path in self.folder.rglob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)


def _inputs_of(signature: Mapping[str, Any] | Sequence[StageInputs]) -> Sequence[StageInputs]:
    return [StageInputs(".*", signature)] if isinstance(signature, Mapping) else signature


def read_source_note(folder: Path) -> dict[str, Any]:
    """What an earlier start noted of the source's files; empty where it noted nothing or the note is damaged."""
    try:
        note = read_json(folder / SOURCE)
    except CheckpointError:
        return {}
    return note if isinstance(note, dict) else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A run's file of tensors. Raises `CheckpointError`, which says what to do, if it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def read_json(path: Path) -> Any:
    """A run's JSON file. Raises `CheckpointError`, which says what to do, if it is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except (ValueError, OSError) as error:
        raise unreadable(path, error) from error
    if not text.endswith("\n"):  # a truncated number is still valid JSON
        raise unreadable(path, "its end is missing")
    return value


def unreadable(path: Path, error: Exception | str) -> CheckpointError:
    """The error for a missing or damaged file of a run. The next run computes the file again."""
    if isinstance(error, FileNotFoundError) or not path.exists():
        return CheckpointError(f"{path} is missing; run the same command again to make it anew")
    return CheckpointError(f"{path} is damaged ({error}); delete it and run again to make it anew")


def _holds_nothing(path: Path) -> NoReturn:
    raise unreadable(path, "it holds nothing")


def _json(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a run can only store finite JSON values: {error}") from error


def _storable(tensor: Tensor) -> Tensor:
    """``tensor`` on the CPU, contiguous, with its own storage: safetensors refuses views that share storage."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _publish_bytes(path: Path, content: bytes) -> None:
    _publish(path, lambda temporary: temporary.write_bytes(content))


def _publish(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_unwritten(path, error)) from error


def _unwritten(path: Path, error: Exception) -> str:
    if (problem := write_problem(error)) is None:
        return f"{path} cannot be written: {error}"
    return f"{path} cannot be written: {problem}, then run the same command again; what was finished is kept"
