"""Calibration: prompts, second moments of the layers' inputs, importance and output moments."""
