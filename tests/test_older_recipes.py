"""Recipes and unfinished runs of older versions: keys that were renamed or dropped."""

from __future__ import annotations

import json

import pytest

from vqcompress.errors import RecipeError
from vqcompress.recipe import Recipe
from vqcompress.run_store import RunStore
from vqcompress.stages.run import open_store
from vqcompress.tuning import tuning_recipe
from vqcompress.workers import Workers


def older(**training) -> dict:
    """A recipe as it was written before, every default in it."""
    data = Recipe(model="shapes").to_dict()
    del data["training"]["requantize"]
    data["keep"] = data.pop("ignore")
    return {**data, "training": {**data["training"], "recode": 5, "row_scales": False, "tables": 0.0, **training}}


def test_older_keys_are_read_under_their_names_of_today():
    training = Recipe.parse(older()).training
    assert training.requantize == 5
    assert not {"recode", "row_scales", "tables"} & training.model_dump().keys()


@pytest.mark.parametrize(("key", "value"), [("row_scales", True), ("tables", 0.01)])
def test_what_was_dropped_is_refused_with_a_sentence(key, value):
    with pytest.raises(RecipeError, match=rf"^training\.{key} is not supported any more.*leave it out"):
        Recipe.parse(older(**{key: value}))


def test_an_unfinished_run_of_before_goes_on(tmp_path):
    with RunStore(tmp_path, {}) as store:
        store.put_json("teacher.train", "length", 3)
    (tmp_path / "signature.json").write_text(json.dumps({"seed": 0, "recipe": older()}) + "\n")
    now = {"seed": 0, "recipe": Recipe.parse(older()).to_dict()}
    with open_store(tmp_path, now, Workers()):
        pass
    other = {**now, "recipe": {**now["recipe"], "seed": 1}}
    with pytest.raises(RecipeError, match=r"recipe\.seed: 0 -> 1"), open_store(tmp_path, other, Workers()):
        pass


def test_a_change_by_an_older_name_replaces_what_the_folder_s_recipe_says(tmp_path):
    (tmp_path / "vqcompress_recipe.yaml").write_text(Recipe.parse(older()).to_yaml())
    assert tuning_recipe(tmp_path, None, {"recode": 3}).training.requantize == 3
    assert tuning_recipe(tmp_path, None, {}).training.requantize == 5
