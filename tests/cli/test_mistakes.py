"""A user's mistakes: one clear line, exit code 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from vqcompress.cli.main import main
from vqcompress.embedded import EMBEDDED


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert "Traceback" not in result.output
    return lines[-1]


def quantize(tmp_path: Path, *arguments: str, model: str = "shapes") -> str:
    out = tmp_path / "out"
    line = refuse("quantize", model, "-o", str(out), *arguments)
    assert not out.exists()
    assert not list(tmp_path.glob("out*"))
    return line


def test_unknown_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no-such-model" in quantize(tmp_path, model="no-such-model")


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    assert "model_index.json" in quantize(tmp_path, model=str(folder))


def test_missing_prompt_file(tmp_path: Path) -> None:
    assert "nowhere.txt" in quantize(tmp_path, "--prompts", str(tmp_path / "nowhere.txt"))


def test_empty_prompt_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "empty.txt" in quantize(tmp_path, "--prompts", str(empty))


@pytest.mark.parametrize("bits", ["0.5", "99", "nan"])
def test_bits_out_of_range(tmp_path: Path, bits: str) -> None:
    assert "bits" in quantize(tmp_path, "--bits", bits)


def test_fractional_bits_for_a_scalar_code(tmp_path: Path) -> None:
    assert "whole number" in quantize(tmp_path, "--bits", "3.5", "--method", "gptq")


def test_unknown_recipe_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: shapes\nbitz: 3\n")
    assert "bitz" in quantize(tmp_path, "--recipe", str(recipe))


def test_unknown_setting(tmp_path: Path) -> None:
    assert "sate_bits" in quantize(tmp_path, "--set", "sate_bits=14")


def test_unknown_component(tmp_path: Path) -> None:
    assert "text_decoder" in quantize(tmp_path, "--components", "text_decoder", "--method", "rtn")


def test_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "--overwrite" in refuse("quantize", "shapes", "-o", str(out))
    assert (out / "thesis.txt").read_text() == "years of work"


def test_overwrite_does_not_delete_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    refuse("quantize", "shapes", "-o", str(out), "--overwrite", "--method", "rtn", "--bits", "4")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_verify_on_a_dense_pipeline() -> None:
    assert str(EMBEDDED["shapes"].path) in refuse("verify", str(EMBEDDED["shapes"].path))


def test_generate_wants_a_png(tmp_path: Path) -> None:
    assert "PNG" in refuse("generate", "shapes", "a red circle", "-o", str(tmp_path / "grid.jpg"))


def test_a_dense_budget_is_a_size(tmp_path: Path) -> None:
    assert "4GB" in refuse("generate", "shapes", "a red circle", "--dense-budget", "plenty")


def test_unknown_command_names_the_command() -> None:
    assert "squash" in refuse("squash")
