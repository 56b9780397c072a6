"""A compressed folder on the Hub: verified, with a card that says what it is, in one commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vqcompress.architectures.call_inputs import VIDEOS, drawn_inputs_of, parameters
from vqcompress.architectures.opening import HUB_ID
from vqcompress.architectures.published import PUBLISHED
from vqcompress.checkpoint import inspect, verify
from vqcompress.component_files import MANIFEST_NAME
from vqcompress.errors import CheckpointError, RecipeError, VQCompressError, first_line
from vqcompress.folder_files import StrPath, read_bytes, read_json, walk

CARD, SAMPLES = "README.md", "samples.png"
CARD_LIMIT = 1 << 22  # bytes
LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "OpenRAIL++-M": "openrail++",
    "OpenRAIL-M": "creativeml-openrail-m",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
}
"""Our name of a licence -> the Hub's; any other is ``other`` there, with its name and a link."""


@dataclass(frozen=True)
class Push:
    """What was sent, or would be: ``repository``, its ``files`` (name -> bytes), and the ``card``."""

    repository: str
    files: dict[str, int]
    card: str

    @property
    def url(self) -> str:
        """Where it can be seen."""
        return f"https://huggingface.co/{self.repository}"


def push(
    folder: StrPath,
    repository: str,
    *,
    report: StrPath | None = None,
    base: str | None = None,
    licence: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Push:
    """Send the compressed ``folder`` to ``repository`` (``owner/name``) on the Hub, which is made if need be.

    Its card gets what the Hub asks for: base model and licence, from the table of known models unless ``base`` (a Hub
    id) and ``licence`` (the Hub's word) say them; how to install and load it; the pictures and the table of a
    ``report`` that `vqcompress.report` wrote. The folder itself is not changed. With ``dry_run`` nothing is sent.

    Raises `RecipeError` where base model or licence are not known, `CheckpointError` for a folder that is not sound,
    and `VQCompressError` for what the Hub refuses, each in one line.
    """
    folder = Path(folder)
    if not HUB_ID.fullmatch(repository):
        raise RecipeError(f"{repository!r} is no repository on the Hub; give owner/name")
    if problems := verify(folder):
        raise CheckpointError(f"{folder} is not sound, so it is not sent: {problems[0]}")
    added = _added(folder, repository, report, _front_matter(folder, base, licence))
    files = {name: (folder / name).stat().st_size for name, _ in walk(folder) if not name.startswith(".")}
    files |= {name: len(data) for name, data in added.items()}
    pushed = Push(repository, dict(sorted(files.items())), added[CARD].decode())
    if not dry_run:
        _send(folder, pushed, added, private)
    return pushed


def _added(folder: Path, repository: str, report: StrPath | None, matter: Mapping[str, Any]) -> dict[str, bytes]:
    """Files that are sent in place of the folder's own or beside them: card, pictures, and the manifest of both."""
    title = repository.partition("/")[2]
    body = re.sub(r"^# .*$", f"# {title}", _body(folder), count=1, flags=re.MULTILINE)
    body = re.sub(r'from_pretrained\("[^"]*"', f'from_pretrained("{repository}"', body, count=1)
    body = body.partition("\n## Measured\n")[0]  # of an earlier push
    added: dict[str, bytes] = {}
    if report is not None:
        added[SAMPLES] = read_bytes(Path(report) / "grid.png", 1 << 28)
        body = f"{body.rstrip()}\n\n{_measured(Path(report))}\n"
    head = yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True)
    added[CARD] = f"---\n{head}---\n{body}".encode()
    entries = json.loads(read_bytes(folder / MANIFEST_NAME, CARD_LIMIT * 4))
    for name, data in added.items():
        entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    added[MANIFEST_NAME] = (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode()
    return added


def _body(folder: Path) -> str:
    """The card without its front matter, with the line that installs what it needs."""
    _, body = _card(folder)
    install = "```sh\npip install vqcompress diffusers transformers\n```\n\n"
    return body if install in body else body.replace("```python\n", f"{install}```python\n", 1)


def _card(folder: Path) -> tuple[str, str]:
    """Front matter, empty where there is none, and the rest of the folder's card."""
    path = folder / CARD
    text = read_bytes(path, CARD_LIMIT).decode("utf-8", "replace") if path.exists() else f"# {folder.name}\n"
    before, *parts = text.split("---\n", 2)
    return (parts[0], parts[1]) if not before and len(parts) == 2 else ("", text)


def _measured(report: Path) -> str:
    """Pictures and first table of a report."""
    lines = read_bytes(report / "report.md", CARD_LIMIT).decode("utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("|")), None)
    if start is None:
        raise RecipeError(f"{report / 'report.md'} has no table; give the folder that `vqcompress report` wrote")
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    note = next((line for line in lines[start:] if line.startswith("Size and error")), "")
    picture = f"![images of the original and of each variant, from the same seeds]({SAMPLES})"
    return "\n".join(["## Measured", "", picture, "", *rows, "", note])


def _front_matter(folder: Path, base: str | None, licence: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_card(folder)[0])
    except yaml.YAMLError:
        raise CheckpointError(f"{folder / CARD} begins with front matter that is no YAML; mend it") from None
    matter: dict[str, Any] = found if isinstance(found, dict) else {}
    base = base or matter.get("base_model")
    if not isinstance(base, str) or not HUB_ID.fullmatch(base):
        raise RecipeError(f"{folder} does not say which model on the Hub it was made from; give --base owner/name")
    matter |= {"base_model": base, "base_model_relation": "quantized", "pipeline_tag": _pipeline_tag(folder)}
    kept = {key: value for key, value in matter.items() if key not in ("license", "license_name", "license_link")}
    found = matter.get("tags")
    tags = {tag for tag in found if isinstance(tag, str)} if isinstance(found, list) else set()
    return {**_licence(base, licence), **kept, "tags": sorted({"vqcompress", "quantized", *tags})}


def _licence(base: str, given: str | None) -> dict[str, str]:
    if given is not None:
        return {"license": given}
    known = next((row.licence for row in PUBLISHED.values() if row.hub == base and row.licence), None)
    if known is None:
        raise RecipeError(f"the licence of {base} is not known here; read it there and give --license, such as mit")
    if known in LICENCES:
        return {"license": LICENCES[known]}
    link = f"https://huggingface.co/{base}"
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", known.lower()).strip("-"),
        "license_link": link,
    }


def _pipeline_tag(folder: Path) -> str:
    """The Hub's word for what the pipeline does."""
    import diffusers

    from vqcompress.generation.call_checks import draws_video
    from vqcompress.models.pipelines import pipeline_class

    name = read_json(folder / "model_index.json").get("_class_name")
    kind: Any = getattr(diffusers, str(name), None) or pipeline_class(folder)
    given = drawn_inputs_of(kind)
    if not given and "prompt" not in parameters(kind.__call__):
        return "unconditional-image-generation"
    source = "text" if not given else "video" if set(given) <= set(VIDEOS) else "image"
    return f"{source}-to-{'video' if draws_video(kind) else 'image'}"


def _send(folder: Path, pushed: Push, added: Mapping[str, bytes], private: bool) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, added.get(name, folder / name)) for name in pushed.files]
    bits = inspect(folder)["bits_per_weight"]
    try:
        api = HfApi()
        api.create_repo(pushed.repository, private=private, exist_ok=True)
        api.create_commit(pushed.repository, operations, commit_message=f"Upload weights of {bits:.3g} bits")
    except Exception as error:
        raise VQCompressError(
            f"{pushed.repository} was not sent: {first_line(error)[:80]}; `hf auth login` signs in, the same "
            "command sends it again"
        ) from error
