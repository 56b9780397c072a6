import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vqcompress.errors import CheckpointError, RecipeError, VQCompressError
from vqcompress.run_signature import StageInputs
from vqcompress.run_store import RunStore

SIGNATURE = {"bits": 3.0, "calibration": {"steps": None, "prompts": "general"}, "seed": 0}
KEY = "down_blocks.0/attn to_q.ü"


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 8, generator=generator)
    return {"codes": torch.arange(5, dtype=torch.int8), "half": base.half(), "view": base.t(), "row": base[2]}


def no_make() -> dict[str, torch.Tensor]:
    raise AssertionError("made twice")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_made_once_then_loaded(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", SIGNATURE) as store:
        made = store.load_or_make("weights", KEY, tensors)
    with RunStore(tmp_path / "run", SIGNATURE) as store:
        loaded = store.load_or_make("weights", KEY, no_make)
        assert store.done("weights") == {KEY}
        assert store.done("moments") == set()
    for name, tensor in tensors().items():
        assert torch.equal(made[name], tensor)
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype is tensor.dtype


def test_json_values(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        assert store.load_or_make_json("plan", "bits", lambda: {"a": (1, 2.5)}) == {"a": [1, 2.5]}
        assert store.load_or_make_json("plan", "bits", no_make) == {"a": [1, 2.5]}
        store.put_json("plan", "bits", [])
        assert store.load_or_make_json("plan", "bits", no_make) == []
        assert store.done("plan") == {"bits"}
        with pytest.raises(CheckpointError, match="finite JSON"):
            store.put_json("plan", "bad", float("nan"))


def test_discard(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.load_or_make("moments", KEY, tensors)
        store.discard("moments", KEY)
        store.discard("moments", KEY)
        assert store.done("moments") == set()


def test_make_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with RunStore(tmp_path, SIGNATURE) as store:
        before = files(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            store.load_or_make("weights", KEY, fail)
        assert files(tmp_path) == before
        assert torch.equal(store.load_or_make("weights", KEY, tensors)["row"], tensors()["row"])


def forked(work: Callable[[], None]) -> int:
    """Exit code of a child process that does ``work``: 0, 1 after an exception, or whatever it left with."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except VQCompressError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def three_layers(folder: Path, die_at: int = 0) -> None:
    """A run that makes three layers and is killed in its ``die_at``-th write, when only the rename is missing."""
    writes = 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == die_at:
            os._exit(9)
        return replace(self, target)

    Path.replace = dying
    with RunStore(folder, SIGNATURE) as store:
        for index in range(3):
            store.load_or_make("weights", f"layer{index}", lambda index=index: {"x": torch.full((100,), float(index))})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_while_writing_then_resumed_gives_equal_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forked(lambda: three_layers(whole)) == 0
    for moment in (1, 2, 3):  # the signature, then the first and the second write of what is left
        assert forked(lambda moment=moment: three_layers(killed, moment)) == 9
    assert [path.name for path in killed.rglob("*.tmp")]
    assert forked(lambda: three_layers(killed)) == 0
    assert files(killed) == files(whole)


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.load_or_make("weights", KEY, tensors)
    changed = {**SIGNATURE, "bits": 4.0, "calibration": {"steps": 20, "prompts": "general"}, "new": 1}
    with pytest.raises(RecipeError) as caught:
        RunStore(tmp_path, changed)
    text = str(caught.value)
    assert "bits: 3.0 -> 4.0; calibration.steps: null -> 20; new: null -> 1" in text
    assert "delete that folder" in text
    RunStore(tmp_path, dict(reversed(SIGNATURE.items()))).close()  # neither order nor the unsupported_reason matters


def test_two_holders_are_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE), pytest.raises(VQCompressError, match="another process is working"):
        RunStore(tmp_path, SIGNATURE)
    RunStore(tmp_path, SIGNATURE).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a forked process")
def test_two_processes_are_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE):
        assert forked(lambda: RunStore(tmp_path, SIGNATURE).close()) == 1
    assert forked(lambda: RunStore(tmp_path, SIGNATURE).close()) == 0


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.load_or_make("weights", "layer", tensors)
        path = next((tmp_path / "weights").glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(CheckpointError, match=r"damaged.*delete it"):
            store.load_or_make("weights", "layer", no_make)
    (tmp_path / "signature.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        RunStore(tmp_path, SIGNATURE)


def test_what_must_exist_is_never_made(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        for load in (store.load, store.load_json):
            with pytest.raises(CheckpointError, match=r"is missing; run the same command again"):
                load("moments", KEY)
        assert store.done("moments") == set()
        store.put("moments", KEY, {})
        store.put_json("moments", KEY, {})  # earlier versions left such files behind
        for load in (store.load, store.load_json):
            with pytest.raises(CheckpointError, match=r"damaged \(it holds nothing\); delete it"):
                load("moments", KEY)


@pytest.mark.parametrize("gone", ["codes", "specs"])
def test_a_pair_is_one_piece(tmp_path: Path, gone: str) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.load_or_make_pair("codes", "specs", KEY, lambda: (tensors(0), {"seed": 0}))
        assert store.load_or_make_pair("codes", "specs", KEY, no_make)[1] == {"seed": 0}
        store.discard(gone, KEY)
        codes, spec = store.load_or_make_pair("codes", "specs", KEY, lambda: (tensors(1), {"seed": 1}))
        assert spec == {"seed": 1}
        assert torch.equal(codes["row"], tensors(1)["row"])


def test_a_number_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.put_json("plan", "length", 12)
        path = tmp_path / "plan" / "length.json"
        path.write_text(path.read_text()[:1])
        with pytest.raises(CheckpointError, match="its end is missing"):
            store.load_or_make_json("plan", "length", no_make)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        RunStore(tmp_path / "file" / "run", SIGNATURE)


@pytest.mark.parametrize(("stage", "key"), [("../out", "k"), ("", "k"), (".lock", "k"), ("stage", "")])
def test_names_stay_inside_the_folder(tmp_path: Path, stage: str, key: str) -> None:
    with RunStore(tmp_path, SIGNATURE) as store, pytest.raises(CheckpointError):
        store.load_or_make(stage, key, tensors)


@pytest.mark.parametrize("key", ["../../escape", "..", ".", "a" + os.sep + "b", "CON:*?"])
def test_odd_keys_are_files_of_their_stage(tmp_path: Path, key: str) -> None:
    with RunStore(tmp_path, SIGNATURE) as store:
        store.load_or_make("stage", key, tensors)
        assert store.done("stage") == {key}
    assert all(path.parent == tmp_path / "stage" for path in tmp_path.rglob("*.safetensors"))


def test_no_stage_without_inputs(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", [StageInputs(r"unet\.layers")]) as store:
        store.put("unet.layers", KEY, tensors())
        for put in (lambda: store.put("unet.errors", KEY, tensors()), lambda: store.put_json("unet.errors", KEY, 1)):
            with pytest.raises(CheckpointError, match=r"nothing says what stage 'unet\.errors' of a run depends on"):
                put()


def test_a_folder_without_results_does_not_stay(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", SIGNATURE) as store:
        store.put_source_note({"files": "none"})
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    RunStore(tmp_path / "mine", SIGNATURE).close()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
    with RunStore(tmp_path / "kept", SIGNATURE) as store:
        store.put_json("stage", KEY, 1)
    assert (tmp_path / "kept" / "signature.json").exists()
