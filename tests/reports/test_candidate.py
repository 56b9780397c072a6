import pytest
import yaml

from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.reports import Candidate, candidate_at
from vqcompress.reports.candidate import check_labels, with_own_labels


def folder_with(recipe, folder):
    folder.mkdir(parents=True)
    (folder / "vqcompress_recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_label_and_method_come_from_the_recipe(tmp_path):
    found = candidate_at(folder_with({"model": "shapes", "method": "gptq", "bits": 4.0}, tmp_path / "x"))
    assert (found.label, found.method, found.folder) == ("gptq 4-bit", "gptq", tmp_path / "x")


@pytest.mark.parametrize(
    ("method", "budget", "label", "scheme"),
    [
        ("gptq", "model", "gptq 3-bit mixed", "mixed"),
        ("gptq", "layer", "gptq 3-bit", ""),
        ("trellis", "layer", "trellis 3-bit uniform", "uniform"),
        ("trellis", "model", "trellis 3-bit", ""),
    ],
)
def test_another_allocation_than_the_default_is_named(tmp_path, method, budget, label, scheme):
    found = candidate_at(folder_with({"model": "shapes", "method": method, "budget": budget}, tmp_path / "x"))
    assert (found.label, found.scheme) == (label, scheme)


def test_equal_labels_get_the_folder_names(tmp_path):
    recipe = {"model": "shapes", "method": "trellis", "bits": 3.1}
    found = with_own_labels([candidate_at(folder_with(recipe, tmp_path / name)) for name in ("a", "b")])
    assert [each.label for each in found] == ["trellis 3.1-bit (a)", "trellis 3.1-bit (b)"]
    check_labels(found)


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no vqcompress_recipe\.yaml"):
        candidate_at(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        candidate_at(tmp_path / "nowhere")


@pytest.mark.parametrize("labels", [(), ("a", "a"), ("original",)])
def test_labels_must_be_distinct(labels, tmp_path):
    with pytest.raises(VQCompressError, match="different labels"):
        check_labels([Candidate(label, tmp_path, "rtn") for label in labels])


def test_unknown_methods_are_refused(tmp_path):
    with pytest.raises(VQCompressError, match="unknown method 'magic'"):
        Candidate("x", tmp_path, "magic")
