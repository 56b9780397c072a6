"""YAML from strangers, read as plain data: mappings, sequences, strings, numbers, booleans and null, within limits.

Aliases let a file of 500 bytes stand for a billion values, and deep nesting exhausts the stack of every recursive
reader. The limits are checked on the stream of parser events, before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_ALIASES = 64
MAX_NUMBER = 100
"""Characters of a number: YAML's base 60 and hexadecimal make huge integers of long ones."""
MAX_VALUES = 20_000
"""Values that the file stands for once its aliases are written out."""

_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class PlainYAMLError(ValueError):
    """Why a file is not plain YAML, in one line without the file's name."""


def read_plain_yaml(path: Path) -> Any:
    """The data in ``path``. Raises `PlainYAMLError` for whatever is no plain YAML within the limits, and for a file
    that cannot be read."""
    text = _text(path)
    try:
        _check_limits(text)
        return yaml.load(text, Loader=_PlainLoader)
    except PlainYAMLError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlainYAMLError(_one_line(error)) from None


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise PlainYAMLError("it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise PlainYAMLError(getattr(error, "strerror", None) or str(error)) from None
    if len(content) > MAX_BYTES:
        raise PlainYAMLError(f"it is longer than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlainYAMLError(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _check_limits(text: str) -> None:
    """Walk the events and count: how deep it nests, how many aliases there are, how many values they stand for."""
    depth = values = aliases = 0
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    for event in _events(text):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor not in sizes:
                raise PlainYAMLError(f"the alias *{event.anchor} stands for a value that contains it, or for none")
            values += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        for count, limit, what in (
            (depth, MAX_DEPTH, "levels of nesting"),
            (aliases, MAX_ALIASES, "aliases"),
            (values, MAX_VALUES, "values, aliases written out"),
        ):
            if count > limit:
                raise PlainYAMLError(f"it has more than {limit} {what}")


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=yaml.SafeLoader)


def _one_line(error: BaseException) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1})" if mark else error.problem
    return " ".join(str(error).split()) or type(error).__name__


class _PlainLoader(yaml.SafeLoader):
    """Only the types that JSON has."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: maker
        for tag, maker in yaml.SafeLoader.yaml_constructors.items()
        if tag is not None and tag.rpartition(":")[2] in _TAGS
    }


def _short(maker: Callable[..., Any]) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    def number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        if len(node.value) > MAX_NUMBER:
            what = f"a number of {len(node.value)} digits is longer than {MAX_NUMBER}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return maker(loader, node)

    return number


def _not_plain(loader: yaml.SafeLoader, node: yaml.Node) -> NoReturn:
    kind = node.tag.rpartition(":")[2]
    raise yaml.constructor.ConstructorError(
        None, None, f"a {kind} is not allowed here; write text in quotes", node.start_mark
    )


_PlainLoader.add_constructor(None, _not_plain)
for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _PlainLoader.add_constructor(_tag, _short(yaml.SafeLoader.yaml_constructors[_tag]))
