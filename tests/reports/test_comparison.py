import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from vqcompress.errors import VQCompressError
from vqcompress.reports import Comparison, json_schema


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
    variant, summary = comparison.to_json()["variants"][0], comparison.to_json()["summaries"][0]
    assert summary["family"] == "vector"
    errors = [each["error"] for each in variant["layer_errors"]]
    assert summary["layer_error_mean"] == pytest.approx(sum(errors) / len(errors))
    assert summary["layer_error_max"] == max(errors)
    assert summary["worst_image"] == 3
    values = sorted(variant["image_values"]["psnr"])
    assert summary["psnr_median"]["value"] == pytest.approx((values[2] + values[3]) / 2)
    assert summary["psnr_median"]["low"] <= summary["psnr_median"]["value"] <= summary["psnr_median"]["high"]
    assert summary["signal_to_error_db"] == pytest.approx(-10 * math.log10(variant["denoiser_error"]))
    assert list(variant["error_by_timestep"])[:2] == ["950.0", "900.0"]


def test_another_schema_is_refused(comparison):
    with pytest.raises(VQCompressError, match="schema 99"):
        Comparison.from_json({**comparison.to_json(), "schema": 99})


def test_data_that_do_not_fit_are_refused_by_their_place(comparison):
    data = comparison.to_json()
    data["variants"][1]["denoiser_bytes"] = "many"
    with pytest.raises(VQCompressError, match=r"variants\.1\.denoiser_bytes"):
        Comparison.from_json(data)


def test_the_published_schema_is_that_of_the_code_and_the_report_fits_it(comparison):
    """`python docs/write_report_schema.py` writes it anew."""
    published = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())
    assert published == json_schema()
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(published)
    nan = replace(comparison.variants[0], denoiser_error=math.nan)
    for each in (comparison, replace(comparison, variants=(nan,))):
        validator(published).validate(json.loads(json.dumps(each.to_json())))
    broken = comparison.to_json()
    del broken["variants"][0]["denoiser_bytes"]
    assert not validator(published).is_valid(broken)
