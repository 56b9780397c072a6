"""Functions compiled by numba: once per process, their machine code kept on disk where a folder can be written.

numba stamps a cached function with the time of its own file alone. When a function that it calls changes in another
file, the old machine code would be loaded and linked with the new: wrong results, or a crash. Here the stamp also has a
hash of every file with compiled functions. numba is imported by the first use, because it takes half a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

FOLDERS = ("kernels/cpu", "search")
"""Where compiled functions are, in the package; this file counts too."""


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options, cached."""

    def decorate(function: Callable[..., Any]) -> Any:
        import numba

        made = numba.njit(**options)(function)
        return made if _cached(made) else numba.njit(**options)(function)

    return decorate


def native(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """`numba.cfunc`, cached: machine code calls the function's ``address``, Python its ``ctypes``, without the lock."""

    def decorate(function: Callable[..., Any]) -> Any:
        from numba.core.ccallback import CFunc
        from numba.core.sigutils import normalize_signature

        # As numba.cfunc does, which would compile before the stamp is set.
        made = CFunc(function, normalize_signature(signature), locals={}, options={})
        _cached(made)
        made.compile()
        return made

    return decorate


def source_hash(package: Path = Path(__file__).parent) -> str:
    """SHA-256 of every file of ``package`` that compiled functions are in, names included."""
    files = [Path(__file__), *(path for folder in FOLDERS for path in sorted((package / folder).glob("*.py")))]
    whole = sha256()
    for path in files:
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def _cached(function: Any) -> bool:
    """Whether ``function`` now keeps its machine code on disk, under a stamp with `source_hash`."""
    try:
        function.enable_caching()
    except RuntimeError:  # numba's words for "no locator available": neither here nor in the user's cache
        return False
    index = function._cache._cache_file  # numba has no public way to extend the stamp
    index._source_stamp = (*_as_tuple(index._source_stamp), _own_hash())
    return True


def _as_tuple(stamp: Any) -> tuple[Any, ...]:
    return stamp if isinstance(stamp, tuple) else (stamp,)


@cache
def _own_hash() -> str:
    return source_hash()
