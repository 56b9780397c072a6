"""Completion in a shell: verbs, options and the names of models."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from vqcompress.cli.main import main


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "qu", {"quantize"}),
        (["quantize"], "shapes-", {"shapes-dit", "shapes-moe"}),
        (["generate"], "sdxl-t", {"sdxl-turbo"}),
        (["quantize", "sdxl", "--method"], "t", {"trellis"}),
        (["report"], "--pro", {"--prompts"}),
    ],
)
def test_a_shell_is_told_what_may_come_next(words: list[str], incomplete: str, expected: set[str]) -> None:
    found = ShellComplete(main, {}, "vqcompress", "_VQCOMPRESS_COMPLETE").get_completions(words, incomplete)
    assert {item.value for item in found if item.type == "plain"} == expected
