"""The shipped prompt sets: sizes, no repeats, breadth, and the checksums stated in their README."""

import hashlib
import itertools
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "calib_prompts"
# | `file` | purpose | count | author | licence | `sha256` |
ROW = re.compile(r"^\| `(?P<file>[\w.-]+\.txt)` \|.*\| (?P<count>\d+) \|.*\| `(?P<sha>[0-9a-f]{64})` \|$", re.M)
LISTED = {m["file"]: m for m in ROW.finditer((FOLDER / "README.md").read_text(encoding="utf-8"))}
GENERAL_SETS = ("general.txt", "general_heldout.txt")


def read_lines(name: str) -> list[str]:
    text = (FOLDER / name).read_bytes().decode("utf-8")
    assert text.endswith("\n"), f"{name} does not end in a newline"
    return text.removesuffix("\n").split("\n")


def words(prompt: str) -> list[str]:
    return re.findall(r"\w+", prompt.casefold())


def prompts_of_both_sets() -> list[str]:
    return [prompt for name in GENERAL_SETS for prompt in read_lines(name)]


def test_readme_lists_the_sets():
    assert {*GENERAL_SETS, "imagenet.txt"} <= LISTED.keys()


@pytest.mark.parametrize("name", sorted(LISTED))
def test_file_matches_its_readme_row(name):
    assert len(read_lines(name)) == int(LISTED[name]["count"])
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == LISTED[name]["sha"]


def test_general_sets_are_large_enough():
    assert len(read_lines("general.txt")) >= 640
    assert len(read_lines("general_heldout.txt")) == 128


@pytest.mark.parametrize("name", GENERAL_SETS)
def test_lines_are_clean(name):
    for line in read_lines(name):
        assert line, "an empty line"
        assert line == " ".join(line.split()), f"stray white space in {line!r}"
        assert line.isprintable(), f"unprintable character in {line!r}"


def test_no_prompt_appears_twice_within_or_across_the_sets():
    counts = Counter(" ".join(words(prompt)) for prompt in prompts_of_both_sets())
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_no_two_prompts_are_variants_of_one_sentence():
    # A template that swaps a noun or two leaves most words in common; unrelated sentences share few.
    bags = [(prompt, frozenset(words(prompt))) for prompt in prompts_of_both_sets()]
    close = [
        (first, second) for (first, a), (second, b) in itertools.combinations(bags, 2) if 2 * len(a & b) > len(a | b)
    ]
    assert close == []


@pytest.mark.parametrize("name", GENERAL_SETS)
def test_openings_vary(name):
    prompts = [words(prompt) for prompt in read_lines(name)]
    three = Counter(tuple(w[:3]) for w in prompts)
    assert three.most_common(1)[0][1] < 0.03 * len(prompts)
    assert Counter(w[0] for w in prompts).most_common(1)[0][1] < 0.12 * len(prompts)


@pytest.mark.parametrize("name", GENERAL_SETS)
def test_lengths_spread(name):
    lengths = [len(prompt.split()) for prompt in read_lines(name)]
    assert sum(n <= 4 for n in lengths) >= 0.05 * len(lengths), "too few very short prompts"
    assert sum(50 <= n <= 70 for n in lengths) >= 0.015 * len(lengths), "too few very long prompts"
    assert sum(15 <= n < 50 for n in lengths) >= 0.08 * len(lengths), "too few of middling length"
    assert max(lengths) <= 70
    assert statistics.stdev(lengths) > 6


@pytest.mark.parametrize("name", GENERAL_SETS)
def test_several_scripts_and_tag_lists_occur(name):
    prompts = read_lines(name)
    assert any(re.search(r"[^\W\d_a-zA-ZÀ-ɏ]", prompt) for prompt in prompts), "Latin script only"
    assert any(prompt.count(",") >= 5 and len(prompt.split()) < 25 for prompt in prompts), "no tag list"


def test_imagenet_has_every_class_id_once_in_order_with_its_own_name():
    rows = [line.split("\t") for line in read_lines("imagenet.txt")]
    assert all(len(row) == 2 for row in rows)
    assert [row[0] for row in rows] == [str(i) for i in range(1000)]
    names = [row[1] for row in rows]
    assert all(name and name == name.strip() for name in names)
    assert len({name.casefold() for name in names}) == 1000


@pytest.mark.parametrize(
    ("class_id", "name"),
    [(0, "tench"), (207, "golden retriever"), (388, "giant panda"), (779, "school bus"), (980, "volcano")],
)
def test_imagenet_names_sit_at_their_ids(class_id, name):
    assert read_lines("imagenet.txt")[class_id] == f"{class_id}\t{name}"
