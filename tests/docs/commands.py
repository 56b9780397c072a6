"""What a line of shell in a document asks for, checked against the programs that it names without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

import click

from tests.docs.blocks import ROOT
from tests.lowest_versions import declared
from vqcompress.architectures.known_names import known_name
from vqcompress.cli.main import main
from vqcompress.embedded import EMBEDDED


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block, without comments; those of a pipe and of ``"$(…)"`` one by one."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "|" in words:
            yield words[: words.index("|")]
            words = words[words.index("|") + 1 :]
        if words and (inner := re.fullmatch(r"\$\((.+)\)", words[-1])):
            yield from commands(inner[1])
            words = words[:-1]
        if words:
            yield words


def inline_commands(text: str) -> Iterator[list[str]]:
    """Commands within ``text``, which is prose, in backticks, of our own programs."""
    for span in re.findall(
        r"`((?:vqcompress |python benchmarks/|python docs/|python tests/|make |pytest )[^`]*)`", text
    ):
        yield span.split()


def check(words: list[str]) -> None:
    """Raises `AssertionError` or click's error if the command could not work."""
    words = _without_launcher(words)
    assert words[0] in CHECKS, f"nothing here knows how to check {words[0]!r}"
    CHECKS[words[0]](words[1:])


def parse(arguments: list[str]) -> click.Context:
    """The context of a verb of ``vqcompress``: options exist, values are of their types, nothing is missing."""
    with main.make_context("vqcompress", arguments[:1]) as context:
        _, verb, _ = main.resolve_command(context, arguments[:1])
        assert verb is not None
        made = verb.make_context(arguments[0], arguments[1:], parent=context)
    _model_is_known(made)
    return made


def _model_is_known(context: click.Context) -> None:
    """A word without a path or an ending has to be the name of a model, or "my-…", the reader's own."""
    for key in ("model", "original", "name"):
        value = context.params.get(key)
        if isinstance(value, str) and re.fullmatch(r"[\w-]+", value):
            own = value.startswith(("my-", "my_"))
            assert own or value in EMBEDDED or known_name(value), f"no model is called {value}"


def check_names(words: list[str]) -> None:
    """What prose says of a command: the verb and its options exist, whatever else it leaves out."""
    if "…" in words:
        return None
    if words[0] != "vqcompress":
        return check(words)
    if len(words) > 1 and re.fullmatch(r"[a-z][a-z-]*", words[1]):
        verb = main.get_command(click.Context(main), words[1])
        assert verb is not None, f"there is no verb {words[1]}"
        known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} - known - {"--help"}
        assert not unknown, f"{words[1]} has no option {unknown}"
    return None


def _vqcompress(arguments: list[str]) -> None:
    if arguments and arguments[0].strip("-") not in ("help", "version"):
        parse(arguments)


def _without_launcher(words: list[str]) -> list[str]:
    """``torchrun … -m vqcompress.cli …``, ``python -m vqcompress …`` and ``NAME=value … vqcompress …``."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    for module in ("vqcompress", "vqcompress.cli"):
        if words[0] in ("torchrun", "python") and module in words and words[words.index(module) - 1] == "-m":
            return ["vqcompress", *words[words.index(module) + 1 :]]
    return words


def _python(arguments: list[str]) -> None:
    """A script of the repository that has the options."""
    if arguments[0] == "-m":
        return _module(arguments[1], arguments[2:])
    path = ROOT / arguments[0]
    assert path.is_file(), f"{arguments[0]} is not in the repository"
    text = path.read_text(encoding="utf-8")
    for option in re.findall(r"(?:^| )(--[\w-]+)", " ".join(arguments)):
        assert re.search(rf"{option}(?![\w-])", text), f"{arguments[0]} has no option {option}"
    return None


def _module(name: str, arguments: list[str]) -> None:
    if name in ("pip", "venv"):
        return CHECKS[name](arguments)
    if name == "pytest":
        return _pytest(arguments)
    assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (
        ROOT / name.replace(".", "/") / "__main__.py"
    ).is_file(), f"there is no module {name}"
    return None


def _pytest(arguments: list[str]) -> None:
    for each in arguments:
        if each.startswith("tests"):
            assert (ROOT / each.split("::")[0]).exists(), f"{each} is not there"


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for each in arguments:
        assert "=" in each or each in targets, f"the Makefile has no target {each}"


def _pip(arguments: list[str]) -> None:
    """Extras are declared."""
    assert arguments[0] == "install"
    for extra in re.findall(r"(?:\.|vqcompress)\[([\w,]+)\]", " ".join(arguments)):
        assert set(extra.split(",")) <= declared()["optional-dependencies"].keys(), f"no extra {extra}"


def _known(arguments: list[str]) -> None:
    """A program of somebody else, with nothing of ours in its arguments."""
    assert not any("vqcompress" in each for each in arguments)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "vqcompress": _vqcompress,
    "python": _python,
    "pytest": _pytest,
    "make": _make,
    "pip": _pip,
    "venv": _known,
    "hf": _known,
    "git": _known,
    "eval": _known,
    "source": _known,
}
