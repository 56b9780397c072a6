import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vqcompress.calibration import diversity
from vqcompress.calibration.prompts import built_in_sets, choose_diverse, load_prompts
from vqcompress.errors import CalibrationError


def written(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def unsupported_reason(source: object) -> str:
    with pytest.raises(CalibrationError) as caught:
        load_prompts(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_in_sets() -> None:
    assert {"general", "general_heldout", "imagenet"} <= set(built_in_sets())
    general = load_prompts("general")
    assert (general.name, len(general.prompts) > 500) == ("general", True)
    assert load_prompts("imagenet").prompts[:2] == ("tench", "goldfish")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "one\n\n  two  \n"),
        ("a.txt", "one\r\ntwo\r\n"),
        ("a.txt", "\ufeffone\ntwo"),
        ("a.tsv", "1\tone\n\n2\ttwo\n"),
        ("a.txt", "x\tone\ny\ttwo"),
        ("a.jsonl", '{"prompt": "one"}\n\n{"caption": "two", "id": 3}\n'),
        ("a.jsonl", '{"text": "one"}\n{"text": " two "}'),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, name, text)
    found = load_prompts(str(path))
    assert found.prompts == ("one", "two")
    assert found.name == str(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_line_with_a_tab_among_others_is_no_table(tmp_path: Path) -> None:
    assert load_prompts(written(tmp_path, "a.txt", "one\nsign\tpost\n")).prompts == ("one", "sign\tpost")


def test_refusals(tmp_path: Path) -> None:
    assert "neither a file nor one of general" in unsupported_reason("nowhere")
    assert "neither a file" in unsupported_reason(tmp_path)
    assert "is empty" in unsupported_reason(written(tmp_path, "empty.txt", "\n \n"))
    assert "line 2: no caption after the tab" in unsupported_reason(written(tmp_path, "a.tsv", "1\tone\n2\t \n"))
    assert "line 1: not JSON" in unsupported_reason(written(tmp_path, "a.jsonl", "one"))
    assert "line 2: expected an object" in unsupported_reason(written(tmp_path, "b.jsonl", '{"prompt": "x"}\n["y"]'))
    assert "not UTF-8" in unsupported_reason(written(tmp_path, "latin.txt", "caf\xe9".encode("latin-1")))


def test_hub_dataset_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in unsupported_reason("hf:owner/name")


def test_hub_dataset_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(dict):
        column_names = ("id", "caption", "title")

    def load_dataset(repo: str, split: str) -> Rows:
        if repo != "owner/name":
            raise ConnectionError("offline\nsecond line")
        assert split == "train"
        return Rows(caption=["one", None, " "], title=["other", "two", ""])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_prompts("hf:owner/name").prompts == ("one",)
    assert load_prompts("hf:owner/name:title").prompts == ("other", "two")
    assert "no column text; it has id, caption, title" in unsupported_reason("hf:owner/name:text")
    assert "could not be loaded: offline" in unsupported_reason("hf:owner/else")


def test_diverse_choice_covers_the_topics() -> None:
    topics = ["a red square on black", "portrait of an old sailor", "foggy mountain valley at dawn"]
    prompts = [f"{topic}, version {index}" for topic in topics for index in range(30)]
    chosen = choose_diverse(prompts, 3, seed=0)
    assert sorted(text.split(",")[0] for text in chosen) == sorted(topics)
    assert [prompts.index(text) for text in chosen] == sorted(prompts.index(text) for text in chosen)


def test_diverse_choice_is_reproducible() -> None:
    prompts = load_prompts("general").prompts[:200]
    chosen = choose_diverse(prompts, 24, seed=0)
    for remembered in (diversity._features, diversity._medoids):
        remembered.cache_clear()
    assert chosen == choose_diverse(prompts, 24, seed=0)
    assert chosen != choose_diverse(prompts, 24, seed=1)
    assert len(set(chosen)) == 24


def test_prompts_are_compared_once_for_every_count() -> None:
    """Every stage of a run asks for its prompts."""
    diversity._features.cache_clear()
    for count in (8, 5, 8):
        choose_diverse([f"prompt {index}" for index in range(40)], count, seed=0)
    assert diversity._features.cache_info().misses == 1


def test_diverse_choice_of_everything() -> None:
    assert choose_diverse(["b", "a", "b"], 5, seed=0) == ("b", "a")
    assert choose_diverse(["b", "a", "b"], 1, seed=0) in (("a",), ("b",))
    assert len(choose_diverse([f"prompt {index}" for index in range(40)], 39, seed=0)) == 39
    with pytest.raises(CalibrationError, match="at least one"):
        choose_diverse(["a"], 0, seed=0)


def test_files_of_strangers(tmp_path: Path) -> None:
    """Each is refused in one line, in little memory; a BOM and CRLF are read (`test_files`)."""
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    assert "longer than 64 MiB" in unsupported_reason(huge)
    assert "line 2: a NUL character" in unsupported_reason(written(tmp_path, "nul.txt", "one\ntw\0o\n"))
    assert "not UTF-8" in unsupported_reason(written(tmp_path, "latin.txt", "one\nm\xfcde\n".encode("latin-1")))
    assert "not UTF-8" in unsupported_reason(written(tmp_path, "wide.txt", "one\n".encode("utf-16")))
    assert "not UTF-8" in unsupported_reason(written(tmp_path, "binary.txt", bytes(range(256)) * 50))
    assert "line 1: 10001 characters" in unsupported_reason(written(tmp_path, "long.txt", "x" * 10_001))
    assert "line 1: not JSON" in unsupported_reason(written(tmp_path, "deep.jsonl", "[" * 9_000))
    assert "line 1: expected an object" in unsupported_reason(written(tmp_path, "a.jsonl", '{"prompt": ["one"]}'))
    loop = tmp_path / "loop.txt"
    loop.symlink_to(loop)
    for name in (loop, "a\0b", "~nobody-of-this-name/prompts.txt", "x" * 5000):
        assert "no prompt set" in unsupported_reason(name)


def test_of_a_long_list_some_are_compared() -> None:
    prompts = [f"number {index}" for index in range(30_000)]
    chosen = diversity.drawn(prompts, 100, seed=0)
    assert len(chosen) == 100
    assert chosen == sorted(chosen, key=prompts.index)
    assert chosen == diversity.drawn(prompts, 100, seed=0) != diversity.drawn(prompts, 100, seed=1)
    assert diversity.drawn(prompts[:100], 100, seed=0) == prompts[:100]
