"""Why layers stay dense, in the words that several families share."""

from __future__ import annotations

ONE_ROW_PER_TIMESTEP = (
    "sees one row per image and timestep, not one per position: its input's second moment has as few "
    "directions as there are timesteps"
)
LATENT_INPUT = "reads the bare latents through few columns; small, and every later layer depends on it"
FINAL = "writes the estimate itself: nothing after it can absorb an error; small"
