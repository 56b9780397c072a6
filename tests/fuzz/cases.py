"""A case: which honest folder, what is changed, and whether the manifest agrees with it afterwards."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import descriptions, headers, pipeline_files, texts
from tests.fuzz.mutations import BUNDLE_MUTATIONS, FOLDER_MUTATIONS, MANIFEST, files
from tests.fuzz.watch import Swap
from vqcompress.bundling import MARK

KINDS = (FOLDER_MUTATIONS, FOLDER_MUTATIONS, headers.MUTATIONS, descriptions.MUTATIONS, texts.MUTATIONS,
         pipeline_files.MUTATIONS)  # fmt: skip
SHARES = {"whole": 6, "shards": 2, "bundle": 2}
"""Of the cases that start from each honest folder: one in shards takes longer."""
SECONDS = 10.0
"""A thousand times what a mutation takes."""


@dataclass(frozen=True)
class Case:
    """``index`` of a run with ``seed``; everything else follows from them."""

    seed: int
    index: int

    @property
    def rng(self) -> random.Random:
        """Its own, from the beginning."""
        return random.Random(f"{self.seed}:{self.index}")


@dataclass(frozen=True)
class Made:
    """The folder or bundle of a case; ``stale``: a file differs from the manifest that came with the honest folder.

    With ``swap`` the folder is honest until it is open.
    """

    path: Path
    changes: tuple[str, ...]
    stale: bool
    swap: Swap | None = None


def make(case: Case, honest: Mapping[str, Path], home: Path) -> Made:
    """Copy an honest folder to ``home`` and change it."""
    rng = case.rng
    name = rng.choices(sorted(honest), weights=[SHARES[name] for name in sorted(honest)])[0]
    source, path = honest[name], home / honest[name].name
    if source.is_file():
        shutil.copyfile(source, path)
        mutations = (*BUNDLE_MUTATIONS, headers.play, headers.play)
        changes = [rng.choice(mutations)(rng, path) for _ in range(rng.choice((1, 1, 2)))]
        return Made(path, (name, *changes), _bundled(source) != _bundled(path))
    shutil.copytree(source, path)
    if rng.random() < 0.06:
        return _swapped(rng, source, path)
    changes = [_mutated(rng, path) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    if rng.random() < 0.6 and refresh_manifest(path):
        return Made(path, (name, *changes, "manifest renewed"), False)
    return Made(path, (name, *changes), _is_stale(source, path))


def _mutated(rng: random.Random, path: Path) -> str:
    mutation = rng.choice(rng.choice(KINDS))
    try:
        with _interrupted_after(SECONDS):
            return mutation(rng, path)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{mutation.__name__}: nothing left to change ({type(error).__name__})"


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer: to open a pipe that an earlier mutation left waits for ever."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _swapped(rng: random.Random, source: Path, path: Path) -> Made:
    """A folder of which a file is replaced while it is open, by what a mutation would have made of it."""
    other = path.with_name("other")
    shutil.copytree(source, other)
    changes = [_mutated(rng, other) for _ in range(3)]
    pairs = [(file, path / file.relative_to(other)) for file in files(other)]
    changed = [file for file, old in pairs if old.is_file() and file.read_bytes() != old.read_bytes()]
    if not changed:
        return Made(path, ("nothing",), False)
    chosen = rng.choice(changed)
    target = path / chosen.relative_to(other)
    swap = Swap(target, path.with_name("replacement"), rng.randrange(1, 40))
    shutil.copyfile(chosen, swap.other)
    shutil.copyfile(target, path.with_name("original"))
    return Made(path, (f"{target.name} replaced at opening {swap.at}", *changes), False, swap)


def refresh_manifest(folder: Path) -> bool:
    """Make the manifest agree with the files, without the package's help; false where it is no file any more."""
    if not (folder / MANIFEST).is_file() or (folder / MANIFEST).is_symlink():
        return False
    entries = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in files(folder)
        if path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(entries))
    return True


def _bundled(path: Path) -> dict[str, bytes] | None:
    """Name -> contents of the files in a bundle, read without the package's help; ``None`` where that fails."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        contents = json.loads(json.loads(data[8:start])["__metadata__"][MARK])
        found = {name: text.encode() for name, text in contents["texts"].items()}
        for weight in contents["weights"]:
            first = start + weight["start"]
            found[weight["name"]] = weight["header"].encode() + data[first : first + weight["length"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found


def _is_stale(source: Path, path: Path) -> bool:
    """Whether a file that the honest manifest lists has other bytes, while the manifest is the honest one."""
    manifest = path / MANIFEST
    honest = (source / MANIFEST).read_bytes()
    if not manifest.is_file() or manifest.stat().st_size != len(honest) or manifest.read_bytes() != honest:
        return False
    return any(
        not (path / name).is_file()
        or (path / name).stat().st_size != (source / name).stat().st_size
        or (path / name).read_bytes() != (source / name).read_bytes()
        for name in json.loads(manifest.read_bytes())
    )
