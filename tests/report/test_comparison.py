import json
import math
from dataclasses import replace

import pytest

from vqcompress.errors import VQCompressError
from vqcompress.report import Comparison


def through_text(comparison: Comparison) -> Comparison:
    return Comparison.from_json(json.loads(json.dumps(comparison.to_json(), allow_nan=False)))


def test_json_round_trip_keeps_everything_but_pictures(comparison):
    again = through_text(comparison)
    assert again == comparison
    assert again.pictures == {}


def test_numbers_that_are_not_finite_survive(comparison):
    first = comparison.variants[0]
    lossless = {**first.image_metrics, "psnr": math.inf}
    broken = replace(first, image_metrics=lossless, denoiser_error=math.nan, layer_errors=())
    variant = through_text(replace(comparison, variants=(broken,))).variants[0]
    assert variant.psnr == math.inf
    assert math.isnan(variant.denoiser_error)
    assert math.isnan(variant.layer_error_mean)


def test_json_names_what_readers_look_for(comparison):
    variant = comparison.to_json()["rows"][0]
    assert variant["family"] == "vector"
    errors = [each["error"] for each in variant["layer_errors"]]
    assert variant["layer_error_mean"] == pytest.approx(sum(errors) / len(errors))
    assert variant["layer_error_max"] == max(errors)
    assert list(variant["error_by_timestep"])[:2] == ["950.0", "900.0"]


def test_another_schema_is_refused(comparison):
    with pytest.raises(VQCompressError, match="schema 99"):
        Comparison.from_json({**comparison.to_json(), "schema": 99})
