"""Settings by name, old names among them."""

from __future__ import annotations

import pytest

from vqcompress.errors import RecipeError
from vqcompress.quantizers import settings_for


@pytest.mark.parametrize("method", ["trellis", "additive"])
def test_old_names_are_accepted(method):
    old = settings_for(method, {"gains": False, "polish": 2})
    assert old == settings_for(method, {"column_scales": False, "coordinate_descent": 2})
    assert (old.column_scales, old.coordinate_descent) == (False, 2)


def test_a_setting_is_given_once():
    with pytest.raises(RecipeError, match="'coordinate_descent' of method 'trellis' is given by its old name as well"):
        settings_for("trellis", {"polish": 1, "coordinate_descent": 2})


def test_old_names_that_a_method_never_had_are_unknown():
    with pytest.raises(RecipeError, match="unknown setting 'polish' of method 'rtn'; it has group_size"):
        settings_for("rtn", {"polish": 1})
