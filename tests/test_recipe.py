"""Recipes under former names of their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqcompress.compression import effective_recipe
from vqcompress.errors import RecipeError
from vqcompress.recipe import Recipe

RULES = {"^conv_in$": "a test"}


def test_a_former_name_is_read_and_the_current_one_written(tmp_path: Path) -> None:
    recipe = Recipe.parse({"model": "shapes", "keep": RULES})
    assert recipe == Recipe(model="shapes", ignore=RULES)
    assert recipe.to_dict()["ignore"] == RULES
    assert "keep" not in recipe.to_dict()
    (tmp_path / "old.yaml").write_text("model: shapes\nkeep: {^conv_in$: a test}\n")
    assert Recipe.read(tmp_path / "old.yaml") == recipe


def test_a_change_replaces_a_recipe_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("model: shapes\nkeep: {^conv_out$: another}\n")
    assert Recipe.read(tmp_path / "old.yaml", ignore=RULES).ignore == RULES
    before = Recipe.read(tmp_path / "old.yaml")
    assert effective_recipe("shapes", before, {"keep": RULES}).ignore == RULES
    assert effective_recipe("shapes", before, {}).ignore == {"^conv_out$": "another"}


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(RecipeError, match="'ignore' alone"):
        Recipe.parse({"model": "shapes", "ignore": RULES, "keep": RULES})
