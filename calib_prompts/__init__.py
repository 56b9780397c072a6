"""Prompt sets for calibration and evaluation; README.md in this folder says what each one is for."""
