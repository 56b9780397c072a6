"""How many prompts calibration takes of a set: those that were asked for, or as many of a preset's as the set has."""

from __future__ import annotations

from vqcompress.calibration.prompts import PromptSet
from vqcompress.errors import RecipeError
from vqcompress.recipe import Calibration, Recipe
from vqcompress.recipe_presets import count_of_preset


def fitted_count(recipe: Recipe, prompts: PromptSet) -> Recipe:
    """``recipe``, with a count that leaves prompts for fine-tuning where it is to.

    The default's and a preset's count are the most to take, and half of the prompts where the run fine-tunes, because
    training needs others. Raises `RecipeError` where another count was asked for than there are prompts.
    """
    asked, there = recipe.calibration.count, len(prompts.prompts)
    if asked not in (Calibration().count, count_of_preset(recipe.training.preset)):
        if asked > there:
            raise RecipeError(f"calibration.count: {asked} prompts were asked for and {prompts.name} has {there}")
        return recipe
    most = max(1, there // 2)
    if recipe.finetune == "none" or asked <= most:
        return recipe
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"count": most})})
