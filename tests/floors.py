"""The floors of the package: which room may import which. `tests/test_house_law.py` and the docs' picture use it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("folder_files", "time_limit"),
    ("safetensors_header",),
    ("bundling", "openable"),
    (
        "bitpack",
        "cache_line",
        "component_files",
        "disk",
        "embedded",
        "expert_stacks",
        "machine_code",
        "matrix_view",
        "methods",
        "near_misses",
        "network_size",
        "plain_yaml",
        "progress",
        "recipe_presets",
        "results",
        "run_signature",
        "sampling_config",
        "storage_dtype",
        "tensor_tree",
        "workers",
        "working_memory",
    ),
    ("formats", "placement", "quantized_weight", "recipe", "run_store"),
    ("kernels", "metrics", "models", "moments"),
    ("architectures", "layers", "peers", "search"),
    ("denoiser_calls", "quantizers"),
    ("calibration",),
    ("checkpoint", "finetuning", "integrations"),
    ("reports", "stages"),
    ("compression", "environment", "estimate", "generation", "tuning"),
    ("pushing",),
    ("cli", "shapes", "calib_prompts"),
    ("__main__",),
)
"""From the ground up. A module imports from lower floors and from its own room."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[tuple[str, Path]]:
    """``(room, path)`` of every module, the facade left out."""
    package = ROOT / "vqcompress"
    found = [(path.relative_to(package).parts[0].removesuffix(".py"), path) for path in sorted(package.rglob("*.py"))]
    found += [(room, path) for room in ("cli", "shapes") for path in sorted((ROOT / room).rglob("*.py"))]
    return [(room, path) for room, path in found if path != package / "__init__.py"]


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "vqcompress")
    return names


def rooms_entered(path: Path) -> set[str]:
    """Rooms of vqcompress that a module imports from."""
    parts = (name.split(".") for name in imports(path))
    return {p[1] for p in parts if p[0] == "vqcompress" and len(p) > 1}
