"""The recipes in `recipes/`, and the presets that recipes and options name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from vqcompress.calibration.prompts import given_prompts
from vqcompress.cli.main import main
from vqcompress.cli.quantize import _recipe, quantize
from vqcompress.compression import effective_recipe, recipe_of
from vqcompress.errors import RecipeError
from vqcompress.quantizers import settings_for
from vqcompress.recipe import Recipe
from vqcompress.recipe_presets import RECIPE_PRESETS, preset_table, preset_values
from vqcompress.stages.prompt_count import fitted_count

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans_its_model(path: Path) -> None:
    result = CliRunner().invoke(main, ["quantize", "--recipe", str(path), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    found, recipe = json.loads(result.stdout), Recipe.read(path)
    assert (found["model"], found["bits"], found["prompts"]) == (recipe.model, 3.0, recipe.calibration.count)
    assert found["quantized_layers"] > 0


def options(**given: object) -> dict[str, object]:
    """What the command line gives to the verb's function, with ``given`` in it."""
    names = {parameter.name: None for parameter in quantize.params}
    return {**names, "settings": (), **given}


def test_the_default_preset_is_what_runs_without_one() -> None:
    for method in ("trellis", "additive", "gptq"):
        without = Recipe(model="shapes", method=method, bits=3)
        preset = Recipe.parse({"model": "shapes", "method": method, "bits": 3, "preset": "default"})
        assert settings_for(method, preset.settings) == settings_for(method, {})
        assert preset.to_dict() | {"settings": {}} == without.to_dict()


def test_explicit_keys_win_over_a_preset_wherever_each_stands(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: shapes\npreset: best\ncalibration: {steps: 7}\nsettings: {state_bits: 8}\nfinetune: none\n")
    read = Recipe.read(path)
    assert (read.calibration.count, read.calibration.steps, read.settings["state_bits"]) == (256, 7, 8)
    assert (read.finetune, read.training.preset) == ("none", "best")
    given = _recipe(None, options(recipe_path=path, preset="fast", count=9, settings=("tail=1",)))
    assert (given.calibration.count, given.calibration.steps) == (9, 7)
    assert given.settings == {"state_bits": 10, "tail": 1}
    assert (given.finetune, given.training.preset) == ("none", "fast")
    called = effective_recipe("shapes", read, {"preset": "best", "calibration": {"count": 5}})
    assert (called.calibration.count, called.calibration.steps, called.settings["state_bits"]) == (5, 7, 14)
    assert called.finetune == "full"


def test_a_preset_of_a_recipe_is_that_of_the_method_that_is_asked_for() -> None:
    path = ROOT / "recipes" / "shapes.yaml"
    assert Recipe.read(path).settings == {"state_bits": "auto"}
    for method, expected in (("additive", {"beam": 16, "coordinate_descent": 3}), ("gptq", {})):
        given = _recipe(None, options(recipe_path=path, method=method))
        read = [recipe_of(recipe, "shapes", {"method": method}) for recipe in (path, {"preset": "default"})]
        assert all(recipe and (recipe.method, recipe.settings) == (method, expected) for recipe in (given, *read))


def test_a_preset_searches_as_its_method_does() -> None:
    for preset in RECIPE_PRESETS:
        for method in ("trellis", "additive", "kmeans", "gptq", "rtn"):
            asdict(settings_for(method, preset_values(preset, method)["settings"]))  # raises for what it does not have
    assert effective_recipe("shapes", None, {"preset": "fast", "method": "additive"}).settings["beam"] == 8


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'best'"):
        Recipe.parse({"model": "shapes", "preset": "bset"})
    with pytest.raises(RecipeError, match="did you mean 'preset'"):
        Recipe.parse({"model": "shapes", "presett": "best"})


def test_the_documented_table_is_what_presets_set() -> None:
    document = (ROOT / "docs" / "command-line.md").read_text().splitlines()
    written = [line.replace("`", "").replace(" ", "") for line in document]
    for row in preset_table():
        assert f"|{'|'.join(row)}|".replace(" ", "") in written, row


def test_a_presets_count_takes_what_a_set_has_and_leaves_half_of_it_for_fine_tuning() -> None:
    hundred = given_prompts([f"prompt {number}" for number in range(100)])

    def count(**keys: object) -> int:
        return fitted_count(effective_recipe("shapes", None, keys), hundred).calibration.count

    assert count(preset="best") == 50
    assert count(preset="fast", finetune="blocks") == 32
    assert count(finetune="full") == 50
    assert count(finetune="full", calibration={"count": 70}) == 70
    for preset in RECIPE_PRESETS:
        assert (
            count(preset=preset, finetune="none") == effective_recipe("x", None, {"preset": preset}).calibration.count
        )
    with pytest.raises(RecipeError, match="101 prompts were asked for and given has 100"):
        count(calibration={"count": 101})
