"""The tiny SDXL and what was recorded of it once, shared with the tests of fine-tuning."""

from tests.calibration.conftest import dit, lumina, pixart, sd15, sdxl
from tests.finetuning.conftest import distillation, run_folder, teacher, training

__all__ = ["distillation", "dit", "lumina", "pixart", "run_folder", "sd15", "sdxl", "teacher", "training"]
